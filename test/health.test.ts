import { expect, test } from "bun:test";
import { Health } from "../src/health.ts";
import { Keyring } from "../src/keyring.ts";
import { emulator, key4cClient, onTestEnd, recordingLog, silentLog } from "./support.ts";

/** A probe of an emulator, not yet started. */
function setup() {
  const { url, control, stop } = emulator();
  const key4c = key4cClient({ url });
  const keyring = new Keyring({
    key4c,
    kmsKeyId: "demo",
    previousKeyIds: [],
    maxUses: 1_000,
    maxAgeMs: 1_000_000,
    cacheSize: 10,
    log: silentLog,
  });
  const { log, lines } = recordingLog();
  const health = new Health({ key4c, keyring, kmsKeyId: "demo", intervalMs: 20, log });
  onTestEnd(() => health.stop());
  const until = async (state: string) => {
    while (health.state.name !== state) {
      await Bun.sleep(5);
    }
  };
  return { control, stop, keyring, health, lines, until };
}

test("before the first probe ends, Status is an error", () => {
  const { health } = setup();
  expect(health.state.name).toBe("starting");
  expect(() => health.usable).toThrow("no local KEK yet");
});

test("a probe makes the first local KEK", async () => {
  const { health, until, keyring } = setup();
  health.start();
  await until("ok");
  expect(health.usable).toBe(keyring.snapshot as never);
});

test("one line a change of state, however many probes", async () => {
  const { health, until, lines, control } = setup();
  health.start();
  await until("ok");
  await control("POST", "keys/demo/disable");
  await until("failing");
  const { describe } = await control("GET", "stats");
  while (((await control("GET", "stats"))["describe"] ?? 0) < (describe ?? 0) + 3) {
    await Bun.sleep(5);
  }
  expect(health.usable.keyId).toEndWith(".v1"); // it goes on with what it has
  await control("POST", "keys/demo/enable");
  await until("ok");
  expect(lines.map(({ level, msg }) => `${level} ${msg}`)).toEqual([
    "info Key4C is ok",
    "warn Key4C probe failed",
    "info Key4C is ok",
  ]);
  expect(lines[1]).toMatchObject({
    kind: "keyUnusable",
    remedy: expect.stringContaining("KMS_KEY_ID"),
  });
});

test("a rotation is noticed by the version of the key", async () => {
  const { health, until, control, keyring } = setup();
  health.start();
  await until("ok");
  await control("POST", "keys/demo/rotate");
  while (!keyring.snapshot?.keyId.endsWith(".v2")) {
    await Bun.sleep(5);
  }
  expect(health.usable.keyId).toEndWith(".v2");
});
