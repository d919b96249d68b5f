/** Which version becomes current (R11): what describe and encrypt tell both, never a lower one, never an absurd one. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { MAX_KEY_VERSION } from "../../src/keys/wrapping.ts";
import { TestClock } from "../clock.ts";
import { kindOf } from "../support.ts";
import { adopt, FakeKey4C, keyring, plugin, ready, readyParts } from "./fake-key4c.ts";

const DEK = randomBytes(32);

test("a version that only describe or only encrypt tells does not become current", async () => {
  const key4c = new FakeKey4C();
  key4c.version = 3;
  const ring = await ready(key4c);
  const current = ring.snapshot;
  for (const [told, used] of [
    [4, 3],
    [3, 4],
    [MAX_KEY_VERSION, 3],
    [3, MAX_KEY_VERSION],
    [2, 3],
    [4, 2],
  ] as const) {
    key4c.told = () => told;
    key4c.version = used;
    expect([told, used, await kindOf(adopt(ring, key4c))]).toEqual([told, used, "olderVersion"]);
    expect(ring.snapshot).toBe(current);
    expect((await ring.wrap(DEK)).keyId).toEndWith(".v3");
  }
});

test("the first local KEK too wants one version from both", async () => {
  const key4c = new FakeKey4C();
  key4c.told = () => 2;
  const ring = keyring(key4c);
  expect(await kindOf(adopt(ring, key4c))).toBe("olderVersion");
  expect(ring.snapshot).toBeUndefined();
});

test("a lower version that both tell never becomes current, and a higher one does", async () => {
  const key4c = new FakeKey4C();
  key4c.version = 3;
  const ring = await ready(key4c);
  key4c.version = 2;
  expect(await kindOf(adopt(ring, key4c))).toBe("olderVersion");
  expect(ring.snapshot?.header.keyVersion).toBe(3);
  key4c.version = 4;
  await adopt(ring, key4c);
  expect(ring.snapshot?.header.keyVersion).toBe(4);
});

test("a higher version that is not given back does not become current", async () => {
  const key4c = new FakeKey4C();
  const ring = await ready(key4c);
  key4c.version = 2;
  key4c.mangle = () => randomBytes(32);
  expect(await kindOf(adopt(ring, key4c))).toBe("unavailable");
  expect(ring.snapshot?.header.keyVersion).toBe(1);
});

test.each([2, 4, MAX_KEY_VERSION])(
  "a renewal under version %d, where 3 is current, is none",
  async (version) => {
    const clock = new TestClock();
    const key4c = new FakeKey4C();
    key4c.version = 3;
    const { ring, key } = await readyParts(key4c, { maxUses: 1, clock });
    await ring.wrap(DEK);
    key4c.version = version;
    const { keyId } = await ring.wrap(DEK);
    expect([keyId.slice(-3), ring.overLimit]).toEqual([".v3", 1]);
    expect(key.health.probeAfterMs(30_000)).toBe(250); // the probe looks which it is
    key4c.version = 3;
    await clock.pass(5_000);
    const fresh = await ring.wrap(DEK);
    expect([fresh.keyId, ring.overLimit]).toEqual([keyId, 1]);
  },
);

test("where describe tells no version, one counts that two encrypts tell", async () => {
  const key4c = new FakeKey4C();
  key4c.told = () => undefined;
  const clock = new TestClock();
  const ring = await ready(key4c, { clock });
  expect([ring.snapshot?.header.keyVersion, key4c.calls.wrap]).toEqual([1, 2]);
  await adopt(ring, key4c); // known by now
  expect(key4c.calls.wrap).toBe(3);

  const versions = [MAX_KEY_VERSION, 2, 2, 2];
  const wrap = key4c.wrap.bind(key4c);
  key4c.wrap = (...args) => {
    key4c.version = versions.shift();
    return wrap(...args);
  };
  expect(await kindOf(adopt(ring, key4c))).toBe("olderVersion"); // an absurd one, once
  expect(ring.snapshot?.header.keyVersion).toBe(1);
  clock.skip(250); // the pause after a failed wrap
  await adopt(ring, key4c);
  expect(ring.snapshot?.header.keyVersion).toBe(2);
});

test("where describe tells no version, a renewal follows a rotation, and no lag", async () => {
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  key4c.told = () => undefined;
  const ring = await ready(key4c, { maxUses: 1, clock });
  await ring.wrap(DEK);
  key4c.version = 2;
  expect((await ring.wrap(DEK)).keyId).toEndWith(".v2");
  key4c.version = 1;
  expect((await ring.wrap(DEK)).keyId).toEndWith(".v2");
  expect(ring.overLimit).toBe(1);
});

test("a key check value is in key_id and header of all that follow, and a renewal keeps it", async () => {
  const key4c = new FakeKey4C();
  key4c.kcv = "A1B2C3";
  const ring = await ready(key4c, { maxUses: 1 });
  const first = await ring.wrap(DEK);
  const second = await ring.wrap(DEK);
  expect(first.keyId).toMatch(/^k4c-[a-z2-7]{26}\.v1\.k[a-z2-7]{8}$/);
  expect(second.keyId).toBe(first.keyId);
  expect(second.envelope.header.kcvHash).toEqual(first.envelope.header.kcvHash);
  const fresh = new FakeKey4C();
  fresh.kcv = "A1B2C4"; // other material behind the same key and version
  expect((await (await ready(fresh)).wrap(DEK)).keyId).not.toBe(first.keyId);
});

test("where encrypt tells no version, a rotation in its midst is noticed", async () => {
  const key4c = new FakeKey4C();
  const wrap = key4c.wrap.bind(key4c);
  key4c.wrap = async (...args) => ({ ...(await wrap(...args)), version: undefined });
  const ring = await ready(key4c);
  expect([ring.snapshot?.header.keyVersion, key4c.calls.describe]).toEqual([1, 1]); // the second one
  key4c.version = 2;
  const adopting = adopt(ring, key4c);
  key4c.version = 3;
  expect(await kindOf(adopting)).toBe("unavailable");
  expect(ring.snapshot?.header.keyVersion).toBe(1);
});

test("a key that stops wrapping waits for no other key check value any more", async () => {
  const key4c = new FakeKey4C();
  let kmsKeyId = "demo";
  const configured = { kmsKeyId: () => kmsKeyId, previousIds: () => ["demo", "next"] };
  const { health, clock, ring } = plugin(key4c, { configured });
  key4c.kcv = "A1B2C3";
  health.start();
  await clock.pass(1_000);
  key4c.kcv = "A1B2C4";
  kmsKeyId = "next";
  await clock.pass(60_000);
  expect(ring.snapshot?.kmsKeyId).toBe("next");
  expect(ring.member("demo").key.materials.isWatching).toBe(false);
  key4c.calls.describe = 0;
  await clock.pass(600_000);
  expect(key4c.calls.describe).toBeLessThan(70); // each interval, of two keys; about the wraps too
});

test.each([
  ["another version", { version: 4 }, "unavailable"],
  ["another key check value", { kcv: "D4E5F6" }, "unavailable"],
  ["no key check value any more", { kcv: undefined }, "ok"],
] as const)(
  "only describe tells the material, and after a wrap it tells %s",
  async (_, after, kind) => {
    const key4c = new FakeKey4C();
    const told: { version: number; kcv: string | undefined } = { version: 3, kcv: "A1B2C3" };
    key4c.version = undefined;
    key4c.told = () => told.version;
    key4c.kcv = told.kcv;
    const wrap = key4c.wrap.bind(key4c);
    key4c.wrap = async (...args) => {
      const wrapped = await wrap(...args);
      Object.assign(told, after);
      key4c.kcv = told.kcv;
      return wrapped;
    };
    expect(await kindOf(adopt(keyring(key4c), key4c))).toBe(kind);
  },
);
