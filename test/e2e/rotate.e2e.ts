/** Scenario 4: the key is rotated in Key4C. */

import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { Cluster, someSecrets } from "./cluster.ts";
import { SECRETS_PREFIX, storedUnder } from "./etcd.ts";
import { eventually, figure, seconds } from "./process.ts";

const V2 = "k8s:enc:kms:v2:key4c:";

test("rotation: noticed by the next probe, used by the next poll, done by a rewrite", async () => {
  const cluster = await Cluster.start();
  const secrets = someSecrets(50);
  await cluster.api.createAll(secrets);
  const oldKeyId = await cluster.plugin.keyId();
  await cluster.expectStoredUnder(secrets, V2, oldKeyId);

  await cluster.key4c.key("demo", "rotate");
  let keyId = "";
  // KMS_PROBE_INTERVAL is a second, to which the plugin adds jitter; a busy machine takes longer.
  const noticedS = await seconds(async () => {
    keyId = await eventually("the plugin notices", 15_000, async () => {
      const now = await cluster.plugin.keyId();
      return now !== oldKeyId && now;
    });
  });
  // The key check value is another one, too.
  const withoutKcv = (text: string) => text.replace(/\.k[a-z2-7]{8}$/, "");
  expect(withoutKcv(keyId)).toBe(withoutKcv(oldKeyId).replace(/\.v1$/, ".v2"));
  // Nothing has been touched so far.
  await cluster.expectStoredUnder(secrets, V2, oldKeyId);
  expect(await cluster.api.values()).toEqual(secrets);

  const usedS = await seconds(() => writtenUnder(cluster, keyId));
  const metrics = await cluster.api.metrics();
  expect(keyIdHashes(metrics, "to_storage")).toEqual(new Set([oldKeyId, keyId].map(hashOf)));

  const listed = async (...flags: string[]) =>
    cluster.plugin.inspect(await cluster.etcd.etcdctlJson(SECRETS_PREFIX), ...flags);
  // All but the canary, which is what told us.
  const stale = await listed("--stale");
  expect(stale.length).toBe(secrets.size);
  expect(stale[0]?.split("\t").slice(1, 4)).toEqual(["key4c", "v2", oldKeyId]);

  await cluster.api.rewriteAll();
  expect(await cluster.api.request("DELETE", canaryPath)).toContain("Success");
  await cluster.expectStoredUnder(secrets, V2, keyId);
  expect(keyIdHashes(await cluster.api.metrics(), "from_storage")).toContain(hashOf(oldKeyId));

  expect(await listed("--stale")).toEqual([]);
  expect((await listed()).length).toBe(secrets.size);

  await cluster.restartPlugin();
  await cluster.restartApi();
  expect(await cluster.api.values()).toEqual(secrets);
  // What a fresh API server reads of etcd now is of the new key only.
  expect(keyIdHashes(await cluster.api.metrics(), "from_storage")).toEqual(
    new Set([hashOf(keyId)]),
  );
  figure(
    `rotation: noticed by the plugin after ${noticedS} s (probe interval 1 s), ` +
      `writes of the API server under it ${usedS} s later (it polls once a minute)`,
  );
}, 240_000);

const canary = "canary";
const canaryPath = `/api/v1/namespaces/default/secrets/${canary}`;

/** Writes a Secret again and again until etcd has it under `keyId`. */
async function writtenUnder(cluster: Cluster, keyId: string): Promise<void> {
  await cluster.api.create(canary, "0");
  let round = 0;
  await eventually(
    "writes go under the new key_id",
    90_000,
    async () => {
      round += 1;
      const data = { value: btoa(String(round)) };
      await cluster.api.request("PUT", canaryPath, { metadata: { name: canary }, data });
      const bytes = (await cluster.stored()).get(canary);
      return bytes !== undefined && storedUnder(bytes).keyId === keyId;
    },
    () => cluster.api.output(),
  );
}

/** As kube-apiserver shows key_ids in its metrics. */
const hashOf = (keyId: string) => `sha256:${createHash("sha256").update(keyId).digest("hex")}`;

function keyIdHashes(metrics: string, transformation: "to_storage" | "from_storage"): Set<string> {
  const series = metrics.matchAll(
    /^apiserver_envelope_encryption_key_id_hash_total\{(.*)\} \d+$/gm,
  );
  const labels = [...series].map(([, text]) => text ?? "");
  return new Set(
    labels
      .filter((text) => text.includes(`transformation_type="${transformation}"`))
      .map((text) => text.match(/key_id_hash="([^"]+)"/)?.[1] ?? ""),
  );
}
