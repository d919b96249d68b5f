/** Scenario 8: everything but Key4C and a snapshot of etcd is lost. */
import { expect, test } from "bun:test";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { temporaryDirectory } from "../support.ts";
import { identity, kms } from "./apiserver.ts";
import { Cluster, servers, someSecrets } from "./cluster.ts";
import { restoreSnapshot, SECRETS_PREFIX } from "./etcd.ts";
import { figure, seconds } from "./process.ts";

/** A line of `inspect --decrypt`. */
interface Decrypted {
  readonly object: { readonly metadata: { name: string }; readonly data: { value: string } };
}

test("etcd restored from a snapshot, on a machine that has never seen it", async () => {
  const lost = await Cluster.start({
    featureGates: "KMSv1=true",
    providers: (socket) => [kms("v1", "old", socket), identity],
  });
  const oldest = someSecrets(50, "v1");
  await lost.api.createAll(oldest);
  await lost.reconfigure([kms("v2", "key4c", lost.socket), kms("v1", "old", lost.socket)]);
  const older = someSecrets(50, "v2");
  await lost.api.createAll(older);
  await lost.key4c.key("demo", "rotate");
  // A restarted API server uses the new version at once.
  await lost.restartPlugin();
  await lost.restartApi();
  const newest = someSecrets(50, "rotated");
  await lost.api.createAll(newest);
  const keyId = await lost.plugin.keyId();
  const stored = await lost.stored();

  const snapshot = join(temporaryDirectory(), "etcd.db");
  await lost.etcd.snapshot(snapshot);
  await lost.api.stop();
  await lost.plugin.stop("SIGKILL");
  await lost.etcd.stop();
  rmSync(lost.directory, { recursive: true, force: true });

  const etcdData = join(temporaryDirectory(), "restored");
  let found: Cluster | undefined;
  const restoredS = await seconds(async () => {
    await restoreSnapshot(servers, snapshot, etcdData);
    found = await Cluster.start({
      etcdData,
      featureGates: "KMSv1=true",
      providers: (socket) => [kms("v2", "key4c", socket), kms("v1", "old", socket)],
      key4cOf: lost,
    });
  });
  expect(await found?.stored()).toEqual(stored);
  expect(await found?.api.values()).toEqual(new Map([...oldest, ...older, ...newest]));
  expect(await found?.plugin.keyId()).toBe(keyId);
  await found?.api.create("after", "the disaster");
  expect(await found?.api.read("after")).toBe("the disaster");
  // Without an API server: every value of every kind, by the break-glass path.
  const glass = (
    await found?.plugin.inspect((await found?.etcd.etcdctlJson(SECRETS_PREFIX)) ?? "", "--decrypt")
  )?.map((line) => (JSON.parse(line) as Decrypted).object);
  const inClear = new Map(glass?.map(({ metadata, data }) => [metadata.name, atob(data.value)]));
  expect(inClear).toEqual(new Map([...oldest, ...older, ...newest, ["after", "the disaster"]]));
  figure(`disaster: from the snapshot to an API server that reads 150 Secrets in ${restoredS} s`);
}, 180_000);
