/** Scenario 1: KMS v2, what a new cluster is set up with. */
import { expect, test } from "bun:test";
import { Cluster, someSecrets } from "./cluster.ts";
import { figure } from "./process.ts";

test("v2: etcd holds ciphertext only, and a restarted API server reads it", async () => {
  const cluster = await Cluster.start();
  const secrets = someSecrets(100);
  await cluster.api.createAll(secrets);
  await cluster.expectStoredUnder(secrets, "k8s:enc:kms:v2:key4c:", await cluster.plugin.keyId());
  expect(await cluster.api.values()).toEqual(secrets);

  const restartS = await cluster.restartApi();
  expect(await cluster.api.values()).toEqual(secrets);
  expect(await cluster.api.read("s-0000")).toBe(secrets.get("s-0000") ?? "");

  // A replica elsewhere: nothing in the memory of the old one may be needed.
  await cluster.restartPlugin();
  await cluster.restartApi();
  expect(await cluster.api.values()).toEqual(secrets);
  const { encrypt, decrypt } = await cluster.key4c.stats();
  figure(
    `v2: 100 Secrets, API server ready ${restartS} s after its restart; ` +
      `Key4C was asked for ${encrypt} wraps and ${decrypt} unwraps by two plugins and three API servers`,
  );
}, 180_000);
