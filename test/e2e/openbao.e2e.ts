/** Scenario 10: bad days of a real OpenBao, whose profile has no codes: nothing that it says is a verdict. */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { ALL_WELL, keepCalling, launchOk, toldTo, unwrap, wrap } from "../binary/bent-key4c.ts";
import { rpcs, Sightings } from "../faults/callers.ts";
import { OpenBao } from "./openbao.ts";
import { figure, seconds } from "./process.ts";

/** Twice KMS_REVOCATION_GRACE. */
const SEALED_MS = 120_000;

const environment = ({ token }: OpenBao) => ({
  KEY4C_PROFILE: join(import.meta.dir, "../../src/commands/manifest/profiles/vault.json"),
  KMS_API_KEY: token,
  KMS_PROBE_INTERVAL: "1s",
});

test("sealed for two minutes: nothing is dropped, nobody fails, and it heals by itself", async () => {
  const openbao = await OpenBao.start("demo");
  const plugin = await launchOk(openbao.url, environment(openbao));
  const known = await wrap(plugin);
  const callers = keepCalling(plugin, known, 4);
  await openbao.seal();
  await plugin.untilState("degraded");
  await Bun.sleep(SEALED_MS);
  expect(await plugin.state()).toBe("degraded");
  expect(toldTo(callers.seen)).toEqual(ALL_WELL);
  await openbao.unseal();
  const healedS = await seconds(() => plugin.untilState("ok"));
  expect(toldTo(await callers.stop())).toEqual(ALL_WELL);
  expect(new Set(plugin.told().map(({ state }) => state))).toEqual(new Set(["ok", "degraded"]));
  figure(`OpenBao unsealed after ${SEALED_MS / 1_000} s: state ok ${healedS} s later`);
});

test("a version that is retired with a rotation: known data are read, and counted as orphaned", async () => {
  const openbao = await OpenBao.start("demo");
  const env = { ...environment(openbao), KMS_PROBE_INTERVAL: "10s" };
  const plugin = await launchOk(openbao.url, env);
  const known = await wrap(plugin);
  const callers = keepCalling(plugin, known);
  await openbao.rotateKey("demo");
  await openbao.setMinDecryptionVersion("demo", 2);
  await plugin.untilLogged(/local KEKs are orphaned.*rewrite all objects now/);
  await plugin.untilState("ok");
  expect(await plugin.metric("key4c_kms_local_keks_orphaned")).toBe(1);
  const fresh = await wrap(plugin);
  expect(fresh.v2.keyId).toEndWith(".v2");
  await unwrap(plugin, known);
  expect(toldTo(await callers.stop())).toEqual(ALL_WELL);

  const restarted = await launchOk(openbao.url, env);
  await unwrap(restarted, fresh);
  const seen = new Sightings();
  await seen.see("unseen", () => rpcs.decrypt2(restarted.client, known));
  expect(seen.codesOf("unseen")).toEqual([status.INVALID_ARGUMENT]);
});

test("a key that is deleted: said, nothing is dropped; made anew it is another one, and rotated it heals", async () => {
  const openbao = await OpenBao.start("demo");
  const env = { ...environment(openbao), KMS_REVOCATION_GRACE: "1s" };
  const plugin = await launchOk(openbao.url, env);
  const known = await wrap(plugin);
  const callers = keepCalling(plugin, known);
  await openbao.deleteKey("demo");
  await plugin.untilLogged(
    /"msg":"Key4C knows no such key; known local KEKs continue to work".*"state":"degraded"/,
  );
  await Bun.sleep(15_000);
  expect(await plugin.state()).toBe("degraded");
  expect(toldTo(callers.seen)).toEqual(ALL_WELL);

  await openbao.createKey("demo");
  await plugin.untilState("mismatch");
  await openbao.rotateKey("demo");
  await plugin.untilState("ok");
  const seen = await callers.stop();
  expect([seen.codesOf("known"), [...seen.defects]]).toEqual([[status.OK], []]);
  const fresh = await wrap(plugin);
  await unwrap(plugin, known);
  await unwrap(await launchOk(openbao.url, env), fresh);
});
