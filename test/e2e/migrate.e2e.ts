/** Scenario 3: to our KMS v2 from all that a cluster may have had before, by hot reload and under load. */

import { expect, test } from "bun:test";
import { join } from "node:path";
import { temporaryDirectory } from "../support.ts";
import { identity, kms, type Provider } from "./apiserver.ts";
import { Cluster, someSecrets } from "./cluster.ts";
import { startLoad } from "./load.ts";
import { figure, seconds } from "./process.ts";
import { startStandIn } from "./stand-in.ts";

const V2 = "k8s:enc:kms:v2:key4c:";

test("from plaintext", async () => {
  await migrate("plaintext", () => identity, "plain");
}, 180_000);

test("from aescbc", async () => {
  const secret = Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString("base64");
  const aescbc: Provider = { aescbc: { keys: [{ name: "key1", secret }] } };
  await migrate("aescbc", () => aescbc, "k8s:enc:aescbc:v1:key1:");
}, 180_000);

test("from our v1, on the same socket", async () => {
  const v1 = (socket: string) => kms("v1", "key4c-v1", socket);
  await migrate("v1", v1, "k8s:enc:kms:v1:key4c-v1:", { featureGates: "KMSv1=true" });
}, 180_000);

test("from another KMS plugin, side by side", async () => {
  const socket = join(temporaryDirectory(), "other.sock");
  const other = await startStandIn(socket);
  await migrate("another plugin", () => kms("v2", "other", socket), "k8s:enc:kms:v2:other:", {
    afterwards: () => other.stop(),
  });
}, 180_000);

test("uninstall: back to plaintext, then without the plugin", async () => {
  const cluster = await Cluster.start();
  const key4c = kms("v2", "key4c", cluster.socket);
  const secrets = someSecrets(50);
  await cluster.api.createAll(secrets);
  await cluster.reconfigure([identity, key4c]);
  await cluster.api.rewriteAll();
  await cluster.expectStoredUnder(secrets, "plain");
  await cluster.reconfigure([identity]);
  await cluster.plugin.stop();
  await cluster.restartApi();
  expect(await cluster.api.values()).toEqual(secrets);
}, 180_000);

async function migrate(
  what: string,
  from: (socket: string) => Provider,
  fromPrefix: string,
  { featureGates = "", afterwards = () => {} } = {},
): Promise<void> {
  const cluster = await Cluster.start({ featureGates, providers: (socket) => [from(socket)] });
  const old = from(cluster.socket);
  const key4c = kms("v2", "key4c", cluster.socket);
  const before = someSecrets(100);
  await cluster.api.createAll(before);
  await cluster.expectStoredUnder(before, fromPrefix);

  const load = startLoad(cluster.api, 2, 20);
  const tookS = await seconds(async () => {
    await cluster.reconfigure([old, key4c]); // with several API servers all must read it, before one writes it
    await cluster.reconfigure([key4c, old]);
    await cluster.api.rewriteAll();
    await cluster.reconfigure([key4c]);
  });
  await load.stop();
  const secrets = new Map([...before, ...load.acknowledged]);
  await cluster.expectStoredUnder(secrets, V2, await cluster.plugin.keyId());
  expect(load.errors).toEqual([]);
  expect(load.acknowledged.size).toBeGreaterThan(50);

  afterwards();
  await cluster.restartPlugin();
  await cluster.restartApi();
  expect(await cluster.api.values()).toEqual(secrets);
  figure(
    `from ${what}: three reloads and a rewrite in ${tookS} s; ${load.acknowledged.size} Secrets ` +
      `written meanwhile, ${load.errors.length} errors, no write for ${load.longestGapMs()} ms at most`,
  );
}
