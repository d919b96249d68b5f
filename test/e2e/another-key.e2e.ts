/** Scenario 5: another key of Key4C takes over. */
import { expect, test } from "bun:test";
import { renameSync, writeFileSync } from "node:fs";
import { temporaryFile } from "../support.ts";
import { ApiError } from "./apiserver.ts";
import { Cluster, someSecrets } from "./cluster.ts";
import { storedUnder } from "./etcd.ts";
import { startLoad } from "./load.ts";
import { eventually, figure, seconds } from "./process.ts";

const V2 = "k8s:enc:kms:v2:key4c:";

test("another KMS_KEY_ID: the former one reads, a rewrite moves, then it can go", async () => {
  const cluster = await Cluster.start();
  const secrets = someSecrets(50);
  await cluster.api.createAll(secrets);
  const oldKeyId = await cluster.plugin.keyId();
  await cluster.expectStoredUnder(secrets, V2, oldKeyId);

  await cluster.restartPlugin({ KMS_KEY_ID: "next", KMS_PREVIOUS_KEY_IDS: "demo" });
  const keyId = await cluster.plugin.keyId();
  expect(keyId).not.toBe(oldKeyId);
  expect(await cluster.api.values()).toEqual(secrets);
  await cluster.expectStoredUnder(secrets, V2, oldKeyId);

  // A restarted API server has to ask for the old data keys, and takes the new key_id at once.
  const restartS = await cluster.restartApi();
  expect(await cluster.api.values()).toEqual(secrets);
  const rewriteS = await seconds(() => cluster.api.rewriteAll());
  await cluster.expectStoredUnder(secrets, V2, keyId);

  // Now nothing needs the former key, not even with everything restarted and that key disabled.
  await cluster.key4c.key("demo", "disable");
  await cluster.restartPlugin({ KMS_KEY_ID: "next" });
  await cluster.restartApi();
  expect(await cluster.api.values()).toEqual(secrets);
  await cluster.api.create("later", "written under next");
  await cluster.expectStoredUnder(secrets.set("later", "written under next"), V2, keyId);
  figure(
    `another key: API server restarted in ${restartS} s, 50 Secrets rewritten in ${rewriteS} s`,
  );
}, 180_000);

test("a key that is removed too early takes its data with it, and brings them back", async () => {
  const cluster = await Cluster.start();
  const secrets = someSecrets(5);
  await cluster.api.createAll(secrets);
  const oldKeyId = await cluster.plugin.keyId();

  await cluster.restartPlugin({ KMS_KEY_ID: "next" });
  await cluster.api.stop();
  cluster.launchApi();
  const refusal = await eventually(
    "the API server says why it cannot read",
    60_000,
    () =>
      cluster.api
        .read("s-0000")
        .then(() => "it can")
        .catch((error) => error instanceof ApiError && error.status === 500 && error.message),
    () => cluster.api.output(),
  );
  expect(refusal).toContain("code = NotFound");
  for (const value of (await cluster.stored()).values()) {
    expect(storedUnder(value)).toEqual({ provider: V2, keyId: oldKeyId }); // nothing was lost
  }

  await cluster.restartPlugin({ KMS_KEY_ID: "next", KMS_PREVIOUS_KEY_IDS: "demo" });
  const healedS = await seconds(() => cluster.api.ready());
  expect(await cluster.api.values()).toEqual(secrets);
  figure(
    `key removed too early: reads fail with NotFound; given back, all read after ${healedS} s`,
  );
}, 180_000);

test("another key by its file, under load: nothing is restarted and no call fails", async () => {
  const file = temporaryFile("demo\n");
  const pluginEnv = { KMS_KEY_ID: "", KMS_KEY_ID_FILE: file };
  const cluster = await Cluster.start({ pluginEnv });
  const oldKeyId = await cluster.plugin.keyId();
  const load = startLoad(cluster.api, 8, 200);
  await eventually("the API server writes", 60_000, () => load.acknowledged.size > 50);
  writeFileSync(`${file}.new`, "next\n");
  renameSync(`${file}.new`, file);
  const keyId = await eventually("the plugin wraps under it", 60_000, async () => {
    const now = await cluster.plugin.keyId();
    return now !== oldKeyId && now;
  });
  const keyIds = async () =>
    new Set([...(await cluster.stored()).values()].map((value) => storedUnder(value).keyId));
  const usedS = await seconds(() =>
    eventually("the API server writes under it", 120_000, async () => (await keyIds()).has(keyId)),
  );
  await load.stop();
  expect(load.errors).toEqual([]);
  const secrets = new Map(load.acknowledged);
  expect(await keyIds()).toEqual(new Set([oldKeyId, keyId]));
  expect(await cluster.api.values()).toEqual(secrets);
  await cluster.api.rewriteAll();
  await cluster.expectStoredUnder(secrets, V2, keyId);

  await cluster.key4c.key("demo", "disable");
  await cluster.restartPlugin();
  await cluster.restartApi();
  expect(await cluster.api.values()).toEqual(secrets);
  figure(
    `another key by its file: ${secrets.size} Secrets written meanwhile, no error; ` +
      `the API server writes under it ${usedS} s after the plugin does (it polls once a minute)`,
  );
}, 300_000);
