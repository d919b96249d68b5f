/**
 * Key4C is well, and not what it was: other key material, a version that is gone or goes back, a replica that lags.
 * Nothing that is acknowledged after it is found may be lost, what is known stays readable, and the plugin recovers.
 */
import { expect } from "bun:test";
import { randomBytes } from "node:crypto";
import { copyFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { Sightings } from "../faults/callers.ts";
import type { Wrapped } from "../faults/material.ts";
import { emulator, temporaryDirectory, temporaryFile } from "../support.ts";
import {
  ALL_WELL,
  type Behaviour,
  bendKey4C,
  eventually,
  expectReadable,
  keepCalling,
  launch,
  launchOk,
  type Plugin,
  page,
  rpcs,
  says,
  toldTo,
  unwrap,
  withoutKcv,
  wrap,
} from "./bent-key4c.ts";
import { sideBySide } from "./side-by-side.ts";

const { OK, FAILED_PRECONDITION, INVALID_ARGUMENT, UNAVAILABLE } = status;
const PLAY_TIMEOUT_MS = 240_000;
const INTERVAL = { KMS_PROBE_INTERVAL: "500ms" };
/** An emulator whose keys are those of another one at this moment: a backup of it. */
function restored(dataFile: string) {
  const copy = join(temporaryDirectory(), "restored.json");
  copyFileSync(dataFile, copy);
  return emulator({ dataFile: copy });
}

/** The version in a ciphertext of the emulator's. */
const versionIn = (body: string) =>
  Buffer.from((JSON.parse(body) as { ciphertext: string }).ciphertext, "base64").readUInt32BE();

const metricsOf = async (plugin: Plugin) => ({
  mismatch: await plugin.metric('key4c_kms_state{state="mismatch"}'),
  orphaned: (await plugin.metric("key4c_kms_local_keks_orphaned")) ?? 0,
});

/** As a careful administrator does it: never half a file. */
function nameKey(file: string, keyId: string): void {
  writeFileSync(`${file}.new`, `${keyId}\n`);
  renameSync(`${file}.new`, file);
}

const changes = ({ output }: Plugin) => output().split("another key wraps from now on").length - 1;

/** Other key material behind the same key and version, under callers; then a rotation, which heals. */
async function isReplaced(
  env: Record<string, string>,
  outageFirst: Behaviour | undefined = undefined,
): Promise<void> {
  const emulated = emulator();
  const key4c = bendKey4C(emulated.url);
  const plugin = await launchOk(key4c.url, { ...INTERVAL, ...env });
  const known = await wrap(plugin);
  const callers = keepCalling(plugin, known);
  await eventually("acknowledged", () => callers.acknowledged.length > 20);
  if (outageFirst !== undefined) {
    key4c.behaviour = outageFirst;
    await Bun.sleep(3_000);
  }
  await emulated.control("POST", "keys/demo/replace");
  key4c.behaviour = undefined;
  const replacedMs = performance.now();
  await plugin.untilState("mismatch");
  // How soon at most is tested in simulated time: test/health/bad-days.test.ts.
  console.log(`figure: mismatch after ${Math.round(performance.now() - replacedMs)} ms`);
  await eventually("Encrypt fails", () =>
    callers.seen.codesOf("encrypt").includes(FAILED_PRECONDITION),
  );
  const foundAt = callers.acknowledged.length;
  await Bun.sleep(1_000);
  await eventually("Status fails", () =>
    callers.seen.codesOf("status").includes(FAILED_PRECONDITION),
  );
  expect(callers.acknowledged.length).toBe(foundAt);
  expect(toldTo(callers.seen)).toEqual({
    ...ALL_WELL,
    status: ["FAILED_PRECONDITION", "OK"],
    encrypt: ["FAILED_PRECONDITION", "OK"],
  });
  // Said: which, what to do, what not to do; counted.
  const told = plugin.told().at(-1);
  expect(told).toMatchObject({ level: "error", state: "mismatch", kind: "mismatch" });
  expect(told?.cause).toMatch(/not the local KEK [0-9a-f]{16}/);
  expect(told?.remedy).toMatch(/do not restart plugin or API server.*rotate.*rewrite/);
  expect((await plugin.readyz()).status).toBe(503);
  await plugin.untilLogged(/local KEKs are orphaned/);
  const { mismatch, orphaned } = await metricsOf(plugin);
  expect(mismatch).toBe(1);
  expect(orphaned).toBeGreaterThan(0);

  await emulated.control("POST", "keys/demo/rotate");
  await plugin.untilState("ok");
  await eventually("acknowledged again", () => callers.acknowledged.length > foundAt + 20);
  const seen = await callers.stop();
  expect([seen.codesOf("known"), [...seen.defects]]).toEqual([[OK], []]);
  expect((await rpcs.status(plugin.client)).keyId).toContain(".v2");
  // In the process all of it stays readable; a fresh one reads what was acknowledged after the mismatch was found.
  for (const wrapped of callers.acknowledged.filter((_, index) => index % 7 === 0)) {
    await unwrap(plugin, wrapped);
  }
  await expectReadable(key4c.url, callers.acknowledged.slice(foundAt), env);
}

/** The plugin is restarted after the material was replaced: it knows nothing of the old one. */
async function isReplacedBeforeTheStart(env: Record<string, string>) {
  const emulated = emulator();
  const before = await launchOk(emulated.url, { ...INTERVAL, ...env });
  const old = await wrap(before);
  await before.stop();
  await emulated.control("POST", "keys/demo/replace");
  const plugin = await launchOk(emulated.url, { ...INTERVAL, ...env });
  const seen = new Sightings();
  await seen.see("unseen", () => rpcs.decrypt2(plugin.client, old));
  // A key check value that nobody has told yet may be that of a replica which is ahead.
  const code = "KEY4C_PROFILE" in env ? INVALID_ARGUMENT : UNAVAILABLE;
  expect([seen.codesOf("unseen"), [...seen.defects]]).toEqual([[code], []]);
  await expectReadable(emulated.url, [await wrap(plugin)], env);
  return { plugin, old, keyId: (await rpcs.status(plugin.client)).keyId };
}

const REPLACED = {
  "without a key check value": () => isReplaced(withoutKcv()),
  "after 3 s of 503": () => isReplaced(withoutKcv(), page(503)),
  "with KMS_LOCAL_KEK_MAX_USES=10": () =>
    isReplaced({ ...withoutKcv(), KMS_LOCAL_KEK_MAX_USES: "10" }),
  "with one: a mismatch is told, then the new material wraps under another key_id": async () => {
    const emulated = emulator();
    const plugin = await launchOk(emulated.url, INTERVAL);
    const known = await wrap(plugin);
    await emulated.control("POST", "keys/demo/replace");
    await plugin.untilLogged(/"state":"mismatch"/);
    await plugin.untilState("ok");
    await plugin.untilLogged(/local KEKs are orphaned/);
    const fresh = await wrap(plugin);
    expect(fresh.v2.keyId).not.toBe(known.v2.keyId);
    await unwrap(plugin, known);
    expect((await metricsOf(plugin)).orphaned).toBeGreaterThan(0);
    await expectReadable(emulated.url, [fresh]);
  },
  "with KMS_LOCAL_KEK_MAX_USES=1, without a key check value": () =>
    isReplaced({ ...withoutKcv(), KMS_LOCAL_KEK_MAX_USES: "1" }),
  "it is put back: healed, and nothing is orphaned": async () => {
    const [before, other] = [emulator(), emulator()];
    const key4c = bendKey4C(before.url);
    const plugin = await launchOk(key4c.url, { ...INTERVAL, ...withoutKcv() });
    const known = await wrap(plugin);
    key4c.behind = other.url;
    await plugin.untilState("mismatch");
    await plugin.untilLogged(/local KEKs are orphaned/);
    key4c.behind = before.url;
    await plugin.untilState("ok");
    await eventually("nothing is orphaned", async () => (await metricsOf(plugin)).orphaned === 0);
    await unwrap(plugin, known);
    await expectReadable(key4c.url, [known, await wrap(plugin)], withoutKcv());
  },
  "and the plugin restarted: another key_id makes a v2 API server renew its seed": async () => {
    const { old, keyId } = await isReplacedBeforeTheStart({});
    expect(keyId).not.toBe(old.v2.keyId);
  },
  "and the plugin restarted, without a key check value: it warns and counts": async () => {
    const { plugin, old, keyId } = await isReplacedBeforeTheStart(withoutKcv());
    expect(keyId).toBe(old.v2.keyId);
    await plugin.untilLogged(
      /"error","msg":"Key4C has refused local KEKs of the current key.*rotate it above every version/,
    );
    expect(
      await plugin.metric("key4c_kms_local_keks_of_current_key_refused_total"),
    ).toBeGreaterThan(0);
  },
  "a hiccup of two answers is none": async () => {
    const [before, other] = [emulator(), emulator()];
    const key4c = bendKey4C(before.url);
    const plugin = await launchOk(key4c.url, { ...INTERVAL, ...withoutKcv() });
    const callers = keepCalling(plugin, await wrap(plugin));
    key4c.behind = other.url;
    await plugin.untilState("degraded");
    key4c.behind = before.url;
    await plugin.untilState("ok");
    await Bun.sleep(12_000);
    expect(toldTo(await callers.stop())).toEqual(ALL_WELL);
    expect(plugin.statesSinceOk()).toEqual(new Set(["ok", "degraded"]));
  },
  "KMS_KEY_ID_FILE names another key: healed, and the old data still read": async () => {
    const emulated = emulator({ keyIds: ["demo", "next"] });
    const file = temporaryFile("demo\n");
    const env = { ...withoutKcv(), KMS_KEY_ID: "", KMS_KEY_ID_FILE: file };
    const plugin = await launchOk(emulated.url, { ...INTERVAL, ...env });
    const known = await wrap(plugin);
    await emulated.control("POST", "keys/demo/replace");
    await plugin.untilState("mismatch");
    nameKey(file, "next");
    await eventually("next wraps", () => changes(plugin) === 1);
    await plugin.untilState("ok");
    const fresh = await wrap(plugin);
    expect(fresh.v2.keyId).not.toBe(known.v2.keyId);
    await unwrap(plugin, known);
    expect((await metricsOf(plugin)).orphaned).toBeGreaterThan(0);
    await expectReadable(emulated.url, [fresh], env);
  },
};

/** Describe, encrypt or both tell this version. */
const tells =
  (version: number, ...operations: readonly ("describe" | "encrypt")[]): Behaviour =>
  async (asked) => {
    const operation = asked.method === "GET" ? "describe" : asked.path.split("/").at(-1);
    const answer = await asked.honest();
    return operations.some((one) => one === operation)
      ? Response.json({ ...((await answer.json()) as object), version })
      : answer;
  };

const VERSIONS = {
  "503 for 3 s, after which only version 2 exists: it goes on under that": async () => {
    const emulated = emulator();
    const key4c = bendKey4C(emulated.url);
    const plugin = await launchOk(key4c.url, INTERVAL);
    const known = await wrap(plugin);
    const callers = keepCalling(plugin, known);
    key4c.behaviour = page(503);
    await Bun.sleep(3_000);
    await emulated.control("POST", "keys/demo/rotate");
    key4c.behaviour = (asked) =>
      asked.path.endsWith("/decrypt") && versionIn(asked.body) === 1
        ? says(400, { code: "INVALID_CIPHERTEXT" })(asked)
        : asked.honest();
    await plugin.untilLogged(/new local KEK.*\.v2\./);
    await plugin.untilLogged(/local KEKs are orphaned/);
    await plugin.untilState("ok");
    const fresh = await wrap(plugin);
    expect(fresh.v2.keyId).toContain(".v2");
    expect(toldTo(await callers.stop())).toEqual(ALL_WELL);
    await unwrap(plugin, known);
    expect(await metricsOf(plugin)).toEqual({ mismatch: 0, orphaned: 1 });
    await expectReadable(key4c.url, [fresh], {});
  },
  "one that goes back is said, never used, and counted against the limit of uses": async () => {
    const dataFile = join(temporaryDirectory(), "keys.json");
    const emulated = emulator({ dataFile });
    const backup = restored(dataFile);
    await emulated.control("POST", "keys/demo/rotate");
    const key4c = bendKey4C(emulated.url);
    const env = { ...INTERVAL, KMS_LOCAL_KEK_MAX_USES: "1" };
    const plugin = await launchOk(key4c.url, env);
    const known = await wrap(plugin);
    const callers = keepCalling(plugin, known);
    key4c.behind = backup.url;
    await plugin.untilLogged(/"state":"degraded".*"kind":"olderVersion"/);
    const before = callers.acknowledged.length;
    await Bun.sleep(12_000);
    expect(await plugin.state()).toBe("degraded");
    expect(await plugin.metric("key4c_kms_encrypts_over_limit_total")).toBeGreaterThan(0);
    expect(await plugin.metric('key4c_kms_failure{kind="olderVersion"}')).toBe(1);
    expect(callers.acknowledged.length).toBeGreaterThan(before);
    expect(toldTo(callers.seen)).toEqual(ALL_WELL);
    const keyIds = new Set(callers.acknowledged.map(({ v2 }) => v2.keyId));
    expect([...keyIds]).toEqual([known.v2.keyId]);
    // A rotation leads to a version that was there before: other material, as the plugin finds.
    await backup.control("POST", "keys/demo/rotate");
    await plugin.untilState("mismatch");
    await backup.control("POST", "keys/demo/rotate");
    await plugin.untilState("ok");
    await callers.stop();
    const fresh = await wrap(plugin);
    expect(fresh.v2.keyId).toContain(".v3");
    await unwrap(plugin, known);
    await expectReadable(key4c.url, [fresh], env);
  },
  "absurd ones never become current": async () => {
    const key4c = bendKey4C(emulator().url);
    const plugin = await launchOk(key4c.url, { ...INTERVAL, KMS_LOCAL_KEK_MAX_USES: "10" });
    const known = await wrap(plugin);
    const callers = keepCalling(plugin, known);
    for (const operations of [["describe"], ["encrypt"]] as const) {
      key4c.behaviour = tells(4_294_967_295, ...operations);
      await plugin.untilLogged(
        operations[0] === "describe"
          ? /"state":"degraded".*"kind":"olderVersion"/
          : /no new local KEK.*"kind":"olderVersion"/,
      );
      key4c.behaviour = undefined;
      await plugin.untilState("ok");
    }
    for (const absurd of [0, -1, 1.5, 2 ** 53, 1e300]) {
      key4c.behaviour = tells(absurd, "describe", "encrypt");
      await plugin.untilState("degraded");
      key4c.behaviour = undefined;
      await plugin.untilState("ok");
    }
    expect(toldTo(await callers.stop())).toEqual(ALL_WELL);
    const keyIds = new Set(callers.acknowledged.map(({ v2 }) => v2.keyId));
    expect([...keyIds]).toEqual([known.v2.keyId]);
    expect((await wrap(plugin)).v2.keyId).toBe(known.v2.keyId);
  },
  "a replica that lags behind a kept connection stops nobody": async () => {
    const dataFile = join(temporaryDirectory(), "keys.json");
    const emulated = emulator({ dataFile });
    const lagging = restored(dataFile);
    await emulated.control("POST", "keys/demo/rotate");
    const key4c = bendKey4C(emulated.url);
    const plugin = await launchOk(key4c.url, INTERVAL);
    const callers = keepCalling(plugin, await wrap(plugin));
    // Each second connection leads to the replica, for as long as it is kept.
    const laggards = new Map<number, boolean>();
    key4c.behaviour = (asked) => {
      const lags = laggards.get(asked.connection) ?? laggards.size % 2 === 0;
      laggards.set(asked.connection, lags);
      return asked.honest(lags ? lagging.url : emulated.url);
    };
    await plugin.untilLogged(/"kind":"olderVersion"/);
    await Bun.sleep(15_000);
    key4c.behaviour = undefined;
    await plugin.untilState("ok");
    expect(toldTo(await callers.stop())).toEqual(ALL_WELL);
    expect(plugin.statesSinceOk()).toEqual(new Set(["ok", "degraded"]));
    const fresh = await wrap(plugin);
    expect(fresh.v2.keyId).toContain(".v2");
    await expectReadable(key4c.url, [fresh], {});
  },
};

const KEY_FILES = {
  "a plugin that starts anew at any step of the runbook starts, and reads both": async () => {
    const emulated = emulator({ keyIds: ["demo", "next"] });
    const [keyId, previous] = [temporaryFile("demo\n"), temporaryFile("\n")];
    const env = { KMS_KEY_ID: "", KMS_KEY_ID_FILE: keyId, KMS_PREVIOUS_KEY_IDS_FILE: previous };
    const written: Wrapped[] = [];
    for (const step of [
      () => {},
      () => writeFileSync(previous, "demo\nnext\n"), // everywhere, before any wraps under the new key
      () => nameKey(keyId, "next"),
    ]) {
      step();
      const plugin = await launchOk(emulated.url, { ...INTERVAL, ...env });
      written.push(await wrap(plugin));
      for (const one of written) {
        await unwrap(plugin, one);
      }
      await plugin.stop();
    }
    expect(new Set(written.map(({ v2 }) => v2.keyId)).size).toBe(2);
  },
  "under load, there and back and there again: no call of anybody fails": async () => {
    const emulated = emulator({ keyIds: ["demo", "next"] });
    const file = temporaryFile("demo\n");
    const env = { ...withoutKcv(), KMS_KEY_ID: "", KMS_KEY_ID_FILE: file };
    const plugin = await launchOk(emulated.url, { ...INTERVAL, ...env });
    const known = await wrap(plugin);
    const callers = keepCalling(plugin, known, 16);
    for (const [count, keyId] of ["next", "demo", "next"].entries()) {
      nameKey(file, keyId);
      await eventually(`${keyId} wraps`, () => changes(plugin) === count + 1);
      const isFormer = (await rpcs.status(plugin.client)).keyId === known.v2.keyId;
      expect(isFormer).toBe(keyId === "demo");
      const before = callers.acknowledged.length;
      await eventually("acknowledged", () => callers.acknowledged.length > before + 100);
    }
    expect(toldTo(await callers.stop())).toEqual(ALL_WELL);
    expect(new Set(callers.acknowledged.map(({ v2 }) => v2.keyId)).size).toBe(2);
    await expectReadable(
      emulated.url,
      callers.acknowledged.filter((_, index) => index % 7 === 0),
      { ...env, KMS_PREVIOUS_KEY_IDS: "demo" },
    );
  },
  "while the key is revoked: healed, and what was revoked stays so": async () => {
    const emulated = emulator({ keyIds: ["demo", "next"] });
    const file = temporaryFile("demo\n");
    const env = { KMS_KEY_ID: "", KMS_KEY_ID_FILE: file, KMS_REVOCATION_GRACE: "0s" };
    const plugin = await launchOk(emulated.url, { ...INTERVAL, ...env });
    const known = await wrap(plugin);
    await emulated.control("POST", "keys/demo/disable");
    await plugin.untilState("revoked");
    nameKey(file, "next");
    await plugin.untilState("ok");
    const fresh = await wrap(plugin);
    expect(fresh.v2.keyId).not.toBe(known.v2.keyId);
    const seen = new Sightings();
    await seen.see("known", () => rpcs.decrypt2(plugin.client, known));
    expect([seen.codesOf("known"), [...seen.defects]]).toEqual([[FAILED_PRECONDITION], []]);
    await expectReadable(emulated.url, [fresh], env);
  },
  "to one that does not exist: said, and the former goes on": async () => {
    const emulated = emulator();
    const file = temporaryFile("demo\n");
    const env = { KMS_KEY_ID: "", KMS_KEY_ID_FILE: file };
    const plugin = await launchOk(emulated.url, { ...INTERVAL, ...env });
    const callers = keepCalling(plugin, await wrap(plugin));
    nameKey(file, "absent");
    await plugin.untilLogged(
      /"error","msg":"the configured key does not become current.*"kmsKeyId":"absent".*"kind":"keyNotFound"/,
    );
    expect(await plugin.metric("key4c_kms_key_change_failed")).toBe(1);
    nameKey(file, "demo");
    await eventually(
      "well again",
      async () => (await plugin.metric("key4c_kms_key_change_failed")) === 0,
    );
    expect(toldTo(await callers.stop())).toEqual(ALL_WELL);
  },
  "a previous key is added while it runs: its data are read": async () => {
    const emulated = emulator({ keyIds: ["demo", "old"] });
    const former = await launchOk(emulated.url, { ...INTERVAL, KMS_KEY_ID: "old" });
    const old = await wrap(former);
    const file = temporaryFile("\n");
    const env = { KMS_PREVIOUS_KEY_IDS_FILE: file };
    const plugin = await launch(emulated.url, { ...INTERVAL, ...env });
    await plugin.untilState("ok");
    const seen = new Sightings();
    await seen.see("unseen", () => rpcs.decrypt2(plugin.client, old));
    expect(seen.codesOf("unseen")).toEqual([status.NOT_FOUND]);
    writeFileSync(file, "old\n");
    await eventually("its data are read", () =>
      seen.see("unseen", () => rpcs.decrypt2(plugin.client, old)),
    );
    await rpcs.encrypt2(plugin.client, randomBytes(32));
  },
};

sideBySide(
  {
    "other key material behind the same key and version": REPLACED,
    versions: VERSIONS,
    "a key changed by its file": KEY_FILES,
  },
  PLAY_TIMEOUT_MS,
);
