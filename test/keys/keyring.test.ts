import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { PluginError } from "../../src/failures/plugin-error.ts";
import { type Envelope, encodeEnvelope, kekHeader } from "../../src/keys/envelope.ts";
import { keyNameHash } from "../../src/keys/key-id.ts";
import { TestClock, turn, within } from "../clock.ts";
import { kindOf, recordingLog } from "../support.ts";
import {
  adopt,
  FakeKey4C,
  failUnwraps,
  keyring,
  ready,
  readyParts,
  revoke,
  ringParts,
  type TestKeyring,
  wellAgain,
} from "./fake-key4c.ts";

const DEK = randomBytes(32);
const HOUR_MS = 3_600_000;

/** Lets everything that is already possible happen. */
const settle = async () => {
  await turn();
  await Bun.sleep(2); // what was dropped is wiped by a timer
};

const UNAVAILABLE = new PluginError("unavailable", "fake");

test("ten thousand DEKs cost one wrap and one verifying unwrap", async () => {
  const key4c = new FakeKey4C();
  const ring = await ready(key4c);
  for (let round = 0; round < 10_000; round++) {
    const { envelope } = await ring.wrap(DEK);
    expect(await ring.unwrap(envelope)).toEqual(DEK);
  }
  expect(key4c.calls).toEqual({ describe: 0, wrap: 1, unwrap: 1 });
});

test("a restarted plugin unwraps an old local KEK once, however many ask at once", async () => {
  const key4c = new FakeKey4C();
  const { envelope } = await (await ready(key4c)).wrap(DEK);
  const restarted = await ready(key4c);
  key4c.calls.unwrap = 0;
  key4c.calls.wrap = 0;
  const all = await Promise.all(Array.from({ length: 64 }, () => restarted.unwrap(envelope)));
  expect(all.every((one) => one.equals(DEK))).toBe(true);
  expect(key4c.calls).toEqual({ describe: 0, wrap: 0, unwrap: 1 });
});

test("at most 64 unwraps run at once and 1,024 wait, and neither probe nor renewal waits behind them", async () => {
  const key4c = new FakeKey4C();
  const other = await ready(key4c, { maxUses: 1 });
  const envelopes: Envelope[] = [];
  while (envelopes.length < 64 + 1_024 + 10) {
    envelopes.push((await other.wrap(DEK)).envelope);
    await adopt(other, key4c);
  }
  const { ring, key } = await readyParts(key4c);
  key4c.calls.unwrap = 0;
  const { promise, resolve } = Promise.withResolvers<void>();
  key4c.gate = promise;
  const kinds = envelopes.map((envelope) => kindOf(ring.unwrap(envelope)));
  expect(await Promise.all(kinds.slice(-10))).toEqual(Array(10).fill("throttled"));
  expect(key4c.calls.unwrap).toBe(64);
  key4c.gate = Promise.resolve();
  expect(await ring.missing()).toEqual([]);
  key4c.version = 2;
  await adopt(ring, key4c);
  // Those that wait are told when Key4C is found to be away, instead of hanging in their turn.
  failUnwraps(key, UNAVAILABLE);
  key4c.failure = UNAVAILABLE;
  key4c.calls.unwrap = 0;
  resolve();
  expect(await Promise.all(kinds.slice(0, -10))).toEqual(Array(64 + 1_024).fill("unavailable"));
  expect(key4c.calls.unwrap).toBe(0);
});

test("a failed unwrap is not kept, and what follows tries again", async () => {
  const key4c = new FakeKey4C();
  const { envelope } = await (await ready(key4c)).wrap(DEK);
  const restarted = await ready(key4c);
  key4c.failure = new PluginError("unavailable", "fake");
  expect(await kindOf(restarted.unwrap(envelope))).toBe("unavailable");
  key4c.failure = undefined;
  expect(await restarted.unwrap(envelope)).toEqual(DEK);
});

test("a local KEK that Key4C does not unwrap never becomes current", async () => {
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  key4c.mangle = () => randomBytes(32);
  const ring = keyring(key4c, { clock });
  expect(await kindOf(adopt(ring, key4c))).toBe("unavailable");
  expect(ring.snapshot).toBeUndefined();
  expect(await kindOf(ring.wrap(DEK))).toBe("unavailable");
  key4c.mangle = (bytes) => bytes;
  clock.skip(250); // the pause after a failed wrap
  await adopt(ring, key4c);
  const good = ring.snapshot;
  key4c.mangle = () => randomBytes(32);
  key4c.version = 2;
  expect(await kindOf(adopt(ring, key4c))).toBe("unavailable");
  expect(ring.snapshot).toBe(good);
});

test("where Key4C gives back other local KEKs, an object that does not open is not called invalid", async () => {
  const key4c = new FakeKey4C();
  const { envelope } = await (await ready(key4c)).wrap(DEK);
  const clock = new TestClock();
  const ring = keyring(key4c, { clock });
  key4c.mangle = () => randomBytes(32);
  expect(await kindOf(adopt(ring, key4c))).toBe("unavailable");
  expect(await kindOf(ring.unwrap(envelope))).toBe("unavailable");
  key4c.mangle = (bytes) => bytes;
  clock.skip(250); // the pause after a failed wrap
  await adopt(ring, key4c);
  const ciphertext = Buffer.from(envelope.ciphertext);
  ciphertext.writeUInt8(ciphertext.readUInt8(ciphertext.length - 1) ^ 1, ciphertext.length - 1);
  expect(await kindOf(ring.unwrap({ ...envelope, ciphertext }))).toBe("invalid");
});

test("an Encrypt that comes while the first local KEK is made waits for it", async () => {
  const key4c = new FakeKey4C();
  const { promise, resolve } = Promise.withResolvers<void>();
  key4c.gate = promise;
  const { ring } = ringParts(key4c);
  ring.firstProbe = adopt(ring, key4c).then(() => {});
  const wrapping = ring.wrap(DEK);
  resolve();
  expect((await wrapping).keyId).toMatch(/^k4c-.*\.v1$/);
});

test("without a local KEK, Encrypt says why", async () => {
  const { ring, key } = ringParts(new FakeKey4C());
  expect(await kindOf(ring.wrap(DEK))).toBe("unavailable");
  key.record(new PluginError("keyUnusable", "fake"));
  expect(await kindOf(ring.wrap(DEK))).toBe("keyUnusable");
});

test("the limit of uses renews ahead of need and keeps key_id", async () => {
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { maxUses: 100 });
  const witness = ring.snapshot;
  const lastOfEach: Envelope[] = [];
  for (let renewal = 0; renewal < 3; renewal++) {
    const before = ring.snapshot;
    for (let round = 0; round < 90; round++) {
      await ring.wrap(DEK);
    }
    expect(ring.snapshot).toBe(before);
    const { envelope: last } = await ring.wrap(DEK); // 91st: starts the renewal and does not wait
    expect(last.header).toBe(before?.header as never);
    lastOfEach.push(last);
    await settle();
    expect(ring.snapshot).not.toBe(before);
    expect(ring.snapshot?.keyId).toBe(witness?.keyId as never);
  }
  key4c.calls.unwrap = 0;
  for (const envelope of lastOfEach) {
    expect(await ring.unwrap(envelope)).toEqual(DEK);
  }
  expect(key4c.calls.unwrap).toBe(0); // the first is the witness, the others stay in the cache
});

test("the limit of age renews ahead of need", async () => {
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { maxAgeMs: 10 * HOUR_MS, clock });
  const first = ring.snapshot;
  await clock.pass(8.9 * HOUR_MS);
  ring.renewIfDue();
  await settle();
  expect(ring.snapshot).toBe(first);
  await clock.pass(0.1 * HOUR_MS);
  ring.renewIfDue();
  await settle();
  expect(ring.snapshot).not.toBe(first);
});

test("one use and no cache: Key4C is asked for every DEK, also by 64 callers at once", async () => {
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { maxUses: 1, cacheSize: 0 });
  const results = await Promise.all(Array.from({ length: 64 }, () => ring.wrap(DEK)));
  const wrapped = new Set(results.map(({ envelope }) => envelope.header.wrappedLocalKek));
  expect(wrapped.size).toBe(64);
  await settle();
  key4c.calls.unwrap = 0;
  const old = results.slice(1, 11).map(({ envelope }) => envelope);
  for (const envelope of old) {
    expect(await ring.unwrap(envelope)).toEqual(DEK);
    await settle();
    expect(await ring.unwrap(envelope)).toEqual(DEK);
  }
  expect(key4c.calls.unwrap).toBe(20); // only the witness, of the first result, is pinned
});

test("while Key4C is away the current local KEK goes on, and attempts are spaced", async () => {
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { maxUses: 10, clock });
  key4c.failure = UNAVAILABLE;
  key4c.calls.unwrap = 0;
  for (let round = 0; round < 50; round++) {
    await ring.wrap(DEK);
    await settle();
  }
  expect(key4c.calls.unwrap).toBe(1); // for the witness, which a renewal begins with
  await clock.pass(4_999);
  await ring.wrap(DEK);
  await settle();
  expect(key4c.calls.unwrap).toBe(1);
  await clock.pass(1);
  key4c.failure = undefined;
  const first = ring.snapshot;
  await ring.wrap(DEK);
  await settle();
  expect(ring.snapshot).not.toBe(first);
});

test("an Encrypt above the limit waits two seconds in all for a Key4C that hangs", async () => {
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { maxUses: 1, clock });
  key4c.gate = new Promise(() => {});
  await ring.wrap(DEK);
  const first = ring.snapshot;
  const many = Promise.all(Array.from({ length: 100 }, () => ring.wrap(DEK)));
  await clock.pass(1_999);
  expect(first?.localKek.uses).toBe(1);
  await clock.pass(1);
  await many;
  expect(ring.snapshot).toBe(first);
  expect(ring.overLimit).toBe(100);
  expect(clock.timers).toBe(0);
});

test("Encrypts above the limit that waited and were served leave nothing behind", async () => {
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { maxUses: 1, clock });
  const wrapped = new Set<string>();
  const wrap = async () => wrapped.add((await ring.wrap(DEK)).envelope.header.wrappedLocalKek);
  await wrap();
  await wrap(); // waits for the second local KEK
  expect(clock.timers).toBe(0);
  await clock.pass(2_100);
  await Promise.all([wrap(), wrap(), wrap()]);
  expect(wrapped.size).toBe(5);
  expect([clock.timers, ring.overLimit]).toEqual([0, 0]);
});

test("unwraps that fail are forgotten, also those of unknown keys", async () => {
  const key4c = new FakeKey4C();
  const { envelope } = await (await ready(key4c, { kmsKeyId: "stranger" })).wrap(DEK);
  const ring = await ready(key4c);
  for (let round = 0; round < 100; round++) {
    const header = kekHeader({ ...envelope.header, wrappedLocalKek: `w${round}` });
    expect(await kindOf(ring.unwrap({ ...envelope, header }))).toBe("unknownKey");
  }
  expect(ring.unwraps.underWay).toBe(0);
});

test("a renewal that fails is told, in the log and to the probe", async () => {
  const { log, lines } = recordingLog();
  const key4c = new FakeKey4C();
  const { ring, key } = await readyParts(key4c, { maxUses: 1, log });
  let plans = 0;
  key.health.onChange = () => plans++;
  key4c.failure = new PluginError("denied", "fake");
  await ring.wrap(DEK);
  await ring.wrap(DEK);
  await settle();
  expect([plans, key.health.probeAfterMs(30_000)]).toEqual([1, 250]);
  expect(lines).toContainEqual(
    expect.objectContaining({ level: "warn", kind: "denied", cause: "fake" }),
  );
});

test("a renewal that takes long and fails is told once, however many Encrypts met it", async () => {
  const { log, lines } = recordingLog();
  const key4c = new FakeKey4C();
  const clock = new TestClock();
  const ring = await ready(key4c, { maxUses: 1_000, log, clock });
  const { promise, resolve } = Promise.withResolvers<void>();
  key4c.gate = promise;
  while ((ring.snapshot?.localKek.uses ?? 0) < 910) {
    await ring.wrap(DEK);
  }
  await clock.pass(60_000); // longer than the pause after a renewal that failed
  await Promise.all(Array.from({ length: 50 }, () => ring.wrap(DEK)));
  key4c.failure = new PluginError("unavailable", "fake");
  resolve();
  await settle();
  expect(lines.filter(({ level }) => level === "warn").length).toBe(1);
});

test("a caller that has left is given nothing and uses nothing up", async () => {
  const clock = new TestClock();
  const ring = await ready(new FakeKey4C(), { maxUses: 1, clock });
  await ring.wrap(DEK);
  const { snapshot } = ring;
  expect(await kindOf(ring.wrap(DEK, { hasLeft: () => true }))).toBe("cancelled"); // had to wait for a renewal
  expect([snapshot?.localKek.uses, ring.snapshot?.localKek.uses]).toEqual([1, 0]);
});

test("the bytes of a new local KEK are wiped when Key4C has them", async () => {
  const key4c = new FakeKey4C();
  await ready(key4c);
  expect(key4c.given.map((bytes) => bytes.equals(Buffer.alloc(32)))).toEqual([true]);
});

test("a local KEK that is replaced while Key4C unwraps it for the probe is no failure", async () => {
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { maxUses: 1, cacheSize: 0 });
  await ring.wrap(DEK);
  await settle();
  const unwrap = key4c.unwrap.bind(key4c);
  key4c.unwrap = async (...args) => {
    const bytes = await unwrap(...args);
    key4c.unwrap = unwrap;
    await ring.wrap(DEK);
    key4c.version = 2; // so that it is no witness either
    await adopt(ring, key4c);
    await settle();
    return bytes;
  };
  const { localKek } = ring.snapshot ?? {};
  expect(await ring.missing()).toEqual([]);
  expect(localKek?.isDropped).toBe(true);
});

test("at 2^32 uses without a successor Encrypt fails (NIST SP 800-38D §8.3)", async () => {
  const key4c = new FakeKey4C();
  const ring = await ready(key4c);
  key4c.failure = new PluginError("unavailable", "fake");
  const { localKek } = ring.snapshot ?? {};
  if (localKek) {
    localKek.uses = 2 ** 32 - 1;
  }
  await ring.wrap(DEK);
  expect(await kindOf(ring.wrap(DEK))).toBe("unavailable");
});

test("a rotation changes local KEK and key_id at once; old data stay readable", async () => {
  const key4c = new FakeKey4C();
  const ring = await ready(key4c);
  const before = await ring.wrap(DEK);
  key4c.version = 2;
  await adopt(ring, key4c);
  const after = await ring.wrap(DEK);
  expect([before.keyId.slice(-3), after.keyId.slice(-3)]).toEqual([".v1", ".v2"]);
  expect(after.envelope.header.keyVersion).toBe(2);
  expect(await ring.unwrap(before.envelope)).toEqual(DEK);
});

test("a backend that lags never takes the version back", async () => {
  const key4c = new FakeKey4C();
  key4c.version = 5;
  const ring = await ready(key4c);
  const current = ring.snapshot;
  for (const version of [4, undefined]) {
    key4c.version = version;
    expect(await kindOf(adopt(ring, key4c))).toBe("olderVersion");
    expect(ring.snapshot).toBe(current);
  }
});

test("what Key4C refused is not asked again for ten seconds, however often it comes", async () => {
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { clock });
  const { envelope } = await ring.wrap(DEK);
  const garbage = (name: string) => ({
    ...envelope,
    header: kekHeader({ ...envelope.header, wrappedLocalKek: name }),
  });
  key4c.calls.unwrap = 0;
  for (let round = 0; round < 100; round++) {
    expect(await kindOf(ring.unwrap(garbage("x")))).toBe("invalid");
  }
  await clock.pass(9_999);
  expect(await kindOf(ring.unwrap(garbage("x")))).toBe("invalid");
  expect(key4c.calls.unwrap).toBe(1);
  await clock.pass(1);
  expect(await kindOf(ring.unwrap(garbage("x")))).toBe("invalid");
  expect(key4c.calls.unwrap).toBe(2);
});

/** Ciphertexts whose wrapped local KEK Key4C does not know. */
function invented({ header, ...rest }: Envelope, count: number, name: string): Envelope[] {
  return Array.from({ length: count }, (_, number) => ({
    ...rest,
    header: kekHeader({ ...header, wrappedLocalKek: `${name}${number}` }),
  }));
}

test("after 1,024 dead local KEKs a healthy unknown one still comes through, known data cost nothing", async () => {
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const { ring, key } = await readyParts(key4c, { clock });
  const { envelope } = await ring.wrap(DEK);
  const { envelope: unseen } = await (await ready(key4c)).wrap(DEK); // a replica's
  key4c.calls.unwrap = 0;
  for (const dead of invented(envelope, 1_024, "x")) {
    expect(await kindOf(ring.unwrap(dead))).toBe("invalid");
  }
  expect(key4c.calls.unwrap).toBe(1_024);
  expect(await ring.unwrap(envelope)).toEqual(DEK);
  expect(await within(clock, 10, ring.unwrap(unseen))).toEqual(DEK);
  expect(key.health.probeAfterMs(30_000)).toBe(30_000); // garbage brings no probe forward
});

test("whoever invents wrapped KEKs costs Key4C one call in 10 ms once there were 1,024", async () => {
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { clock });
  const { envelope } = await ring.wrap(DEK);
  key4c.calls.unwrap = 0;
  const inventAtOnce = (count: number, name: string) =>
    Promise.all(invented(envelope, count, name).map((one) => kindOf(ring.unwrap(one))));
  expect(new Set(await inventAtOnce(1_000, "x"))).toEqual(new Set(["invalid"]));
  const flood = inventAtOnce(1_000, "y");
  await clock.pass(0);
  const atOnce = key4c.calls.unwrap;
  expect(atOnce).toBeLessThanOrEqual(1_024 + 64 + 1); // those under way at the limit
  await clock.pass(1_000);
  expect(key4c.calls.unwrap - atOnce).toBeLessThanOrEqual(101);
  expect(key4c.calls.unwrap - atOnce).toBeGreaterThanOrEqual(99);
  expect(new Set(await within(clock, 10_000, flood))).toEqual(new Set(["invalid"]));
  expect(clock.timers).toBe(0);
});

test("a Decrypt counts as one hit or one miss of the cache, in whatever steps it is made", async () => {
  const key4c = new FakeKey4C();
  const { envelope } = await (await ready(key4c)).wrap(DEK); // a replica's
  const ring = await ready(key4c);
  expect(await ring.unwrap(envelope)).toEqual(DEK);
  expect(ring.cache).toMatchObject({ hits: 0, misses: 1 });
  expect(await ring.unwrap(envelope)).toEqual(DEK);
  expect(ring.cache).toMatchObject({ hits: 1, misses: 1 });
});

test("a wrong answer of Key4C is not believed for ever, and garbage costs no flood of calls", async () => {
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const { envelope } = await (await ready(key4c)).wrap(DEK);
  const ring = await ready(key4c, { clock });
  key4c.mangle = () => randomBytes(32);
  key4c.calls.unwrap = 0;
  for (let round = 0; round < 100; round++) {
    expect(await kindOf(ring.unwrap(envelope))).toBe("invalid");
  }
  expect(key4c.calls.unwrap).toBe(1);
  key4c.mangle = (bytes) => bytes;
  await clock.pass(10_000);
  expect(await kindOf(ring.unwrap(envelope))).toBe("invalid"); // and now Key4C is asked once more
  await settle();
  expect(await ring.unwrap(envelope)).toEqual(DEK);
  expect(key4c.calls.unwrap).toBe(2);
  // What has opened something stays, whatever else does not open.
  await clock.pass(20_000);
  const tampered = { ...envelope, iv: randomBytes(12) };
  expect(await kindOf(ring.unwrap(tampered))).toBe("invalid");
  await settle();
  expect(await ring.unwrap(envelope)).toEqual(DEK);
  expect(key4c.calls.unwrap).toBe(2);
});

test.each(["unavailable", "denied", "throttled"] as const)(
  "while the probe says that Key4C is %s, callers do not ask it; known keys work on",
  async (kind) => {
    const key4c = new FakeKey4C();
    const unknown = await (await ready(key4c)).wrap(DEK);
    const { ring, key } = await readyParts(key4c);
    const known = await ring.wrap(DEK);
    key4c.calls.unwrap = 0;
    failUnwraps(key, new PluginError(kind, "fake"));
    expect(await kindOf(ring.unwrap(unknown.envelope))).toBe(kind);
    expect(await ring.unwrap(known.envelope)).toEqual(DEK);
    expect(key4c.calls.unwrap).toBe(0);
    wellAgain(key);
    expect(await ring.unwrap(unknown.envelope)).toEqual(DEK);
  },
);

test("what is known of one key keeps nobody from asking for another", async () => {
  const key4c = new FakeKey4C();
  const old = await (await ready(key4c, { kmsKeyId: "old" })).wrap(DEK);
  const unknown = await (await ready(key4c)).wrap(DEK);
  const { ring, key } = await readyParts(key4c, { previousKeyIds: ["old"], cacheSize: 0 });
  const canary = await ring.unwrap(old.envelope); // pinned, so that each Decrypt of another one asks
  expect(canary).toEqual(DEK);
  const other = await (await ready(key4c, { kmsKeyId: "old" })).wrap(DEK);
  for (const kind of [
    "throttled",
    "keyUnusable",
    "keyNotFound",
    "unavailable",
    "denied",
  ] as const) {
    failUnwraps(key, new PluginError(kind, "fake"));
    expect(await kindOf(ring.unwrap(unknown.envelope))).toBe(kind);
    key4c.calls.unwrap = 0;
    expect(await ring.unwrap(other.envelope)).toEqual(DEK);
    expect(key4c.calls.unwrap).toBe(1);
    await settle();
  }
  wellAgain(key);
  for (const kind of ["mismatch", "olderVersion", "unavailable", "denied"] as const) {
    key.record(new PluginError(kind, "fake")); // of a describe, or of a wrap
    expect(await ring.unwrap(unknown.envelope)).toEqual(DEK); // Key4C unwraps all the same
  }
});

test("a caller's failure for want of Key4C brings the probe forward, garbage does not", async () => {
  const key4c = new FakeKey4C();
  const { envelope } = await (await ready(key4c)).wrap(DEK);
  const { ring, key } = await readyParts(key4c);
  let plans = 0;
  key.health.onChange = () => plans++;
  const garbage = kekHeader({ ...envelope.header, wrappedLocalKek: "x" });
  await kindOf(ring.unwrap({ ...envelope, header: garbage }));
  expect([plans, key.health.probeAfterMs(30_000)]).toEqual([0, 30_000]);
  key4c.failure = UNAVAILABLE;
  await kindOf(ring.unwrap(envelope));
  expect([plans, key.health.probeAfterMs(30_000)]).toEqual([1, 250]);
});

test("a caller that is throttled stops all others of its key until Key4C wants to be asked", async () => {
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const unknown = await (await ready(key4c)).wrap(DEK);
  const { ring, key } = await readyParts(key4c, { clock });
  key4c.failure = new PluginError("throttled", "fake", { retryAfterMs: 90_000 });
  key4c.calls.unwrap = 0;
  for (let round = 0; round < 10; round++) {
    expect(await kindOf(ring.unwrap(unknown.envelope))).toBe("throttled");
  }
  expect(key4c.calls.unwrap).toBe(1);
  expect([key.health.isPaused, key.health.probeAfterMs(30_000)]).toEqual([true, 30_000]);
});

test("a revoked key loses its local KEKs, other keys keep theirs, enabling brings it back", async () => {
  const key4c = new FakeKey4C();
  const old = await (await ready(key4c, { kmsKeyId: "old" })).wrap(DEK);
  const parts = await readyParts(key4c, { previousKeyIds: ["old"], revocationGraceMs: 0 });
  const { ring, key } = parts;
  const { key: oldKey } = ring.member("old");
  const { envelope } = await ring.wrap(DEK);
  expect(await ring.unwrap(old.envelope)).toEqual(DEK);
  const { localKek } = ring.snapshot ?? {};
  revoke(parts, "demo");
  await settle();
  expect([ring.snapshot, key.health.state, oldKey.health.revocation]).toEqual([
    undefined,
    "revoked",
    undefined,
  ]);
  expect(() => localKek?.equals(DEK)).toThrow("dropped");
  expect(await kindOf(ring.wrap(DEK))).toBe("keyUnusable");
  expect(await kindOf(ring.status())).toBe("keyUnusable");
  expect(await kindOf(ring.unwrap(envelope))).toBe("keyUnusable");
  key4c.calls.unwrap = 0;
  expect(await ring.unwrap(old.envelope)).toEqual(DEK);
  expect(key4c.calls.unwrap).toBe(0);

  revoke(parts, "old");
  expect(await kindOf(ring.unwrap(old.envelope))).toBe("keyUnusable");
  expect(key4c.calls.unwrap).toBe(0);
  await adopt(ring, key4c); // as the probe does that finds it enabled
  key.record(undefined);
  oldKey.record(undefined);
  expect((await ring.wrap(DEK)).keyId).toEndWith(".v1");
  expect(await ring.unwrap(envelope)).toEqual(DEK);
  expect(await ring.unwrap(old.envelope)).toEqual(DEK);
});

/** Runs `begin`, revokes the key while Key4C is at it, and lets it go on. */
async function revokedDuring(begin: (ring: TestKeyring, key4c: FakeKey4C) => unknown) {
  const key4c = new FakeKey4C();
  const given: Buffer[] = [];
  const parts = await readyParts(key4c, { maxUses: 1, revocationGraceMs: 0 });
  const { ring } = parts;
  const { promise, resolve } = Promise.withResolvers<void>();
  const unwrap = key4c.unwrap.bind(key4c);
  key4c.unwrap = async (...args) => {
    await promise;
    const bytes = await unwrap(...args);
    given.push(bytes);
    return bytes;
  };
  const before = await ring.wrap(DEK);
  const ended = begin(ring, key4c);
  await settle();
  revoke(parts, "demo");
  resolve();
  await settle();
  return { ...parts, key4c, before, ended, given };
}

test("a key that is revoked while it is renewed has no local KEK afterwards", async () => {
  const { ring, key, before, given, ended, key4c } = await revokedDuring((ring) =>
    kindOf(ring.wrap(DEK)),
  );
  expect(await ended).toBe("keyUnusable");
  expect(given.length).toBe(2); // the new one's and the witness's
  expect([ring.snapshot, ring.cache.size, key.health.hasLocalKek]).toEqual([undefined, 0, false]);
  expect(await kindOf(ring.unwrap(before.envelope))).toBe("keyUnusable");
  await adopt(ring, key4c);
  key.record(undefined);
  expect(await ring.unwrap(before.envelope)).toEqual(DEK);
});

test("a key that is revoked while a higher version is adopted has no local KEK afterwards", async () => {
  const { ring, key, ended } = await revokedDuring((ring, key4c) => {
    key4c.version = 2;
    return kindOf(adopt(ring, key4c));
  });
  expect(await ended).toBe("unavailable");
  expect([ring.snapshot, ring.cache.size, key.health.hasLocalKek]).toEqual([undefined, 0, false]);
});

test("a key that is revoked while a caller's local KEK is fetched keeps none of it", async () => {
  const key4c = new FakeKey4C();
  const { envelope } = await (await ready(key4c)).wrap(DEK);
  const parts = await readyParts(key4c, { revocationGraceMs: 0 });
  const { promise, resolve } = Promise.withResolvers<void>();
  key4c.gate = promise;
  const unwrapping = kindOf(parts.ring.unwrap(envelope));
  await settle();
  revoke(parts, "demo");
  resolve();
  await unwrapping;
  expect(parts.ring.cache.size).toBe(0);
  expect(await kindOf(parts.ring.unwrap(envelope))).toBe("keyUnusable");
});

test("data of a previous key are read when it is listed, and not when it is not", async () => {
  const key4c = new FakeKey4C();
  const { envelope } = await (await ready(key4c, { kmsKeyId: "old" })).wrap(DEK);
  const listed = await ready(key4c, { previousKeyIds: ["older", "old"] });
  expect(await listed.unwrap(envelope)).toEqual(DEK);
  expect(await kindOf((await ready(key4c)).unwrap(envelope))).toBe("unknownKey");
});

test("the cache holds what it may, drops the longest unused, and pins the current one", async () => {
  const key4c = new FakeKey4C();
  const envelopes: Envelope[] = [];
  for (let round = 0; round < 4; round++) {
    envelopes.push((await (await ready(key4c)).wrap(DEK)).envelope);
  }
  const [a, b, c, d] = envelopes;
  const ring = await ready(key4c, { cacheSize: 2 });
  const { envelope: current } = await ring.wrap(DEK);
  const costs = async (envelope: Envelope | undefined) => {
    key4c.calls.unwrap = 0;
    expect(await ring.unwrap(envelope as never)).toEqual(DEK);
    await settle();
    return key4c.calls.unwrap;
  };
  expect(await costs(a)).toBe(1);
  expect(await costs(b)).toBe(1);
  expect(await costs(a)).toBe(0); // now b is the longest unused
  expect(await costs(c)).toBe(1);
  expect(await costs(a)).toBe(0);
  expect(await costs(b)).toBe(1);
  expect(await costs(d)).toBe(1);
  expect(await costs(current)).toBe(0);
});

test("the version that a ciphertext claims makes no second entry, and does not open it", async () => {
  const key4c = new FakeKey4C();
  const ring = await ready(key4c);
  const { envelope } = await ring.wrap(DEK);
  key4c.calls.unwrap = 0;
  for (let keyVersion = 2; keyVersion < 10; keyVersion++) {
    const lying = { ...envelope, header: { ...envelope.header, keyVersion } };
    expect(await kindOf(ring.unwrap(lying))).toBe("invalid");
  }
  expect(key4c.calls.unwrap).toBe(0);
});

test("a plaintext above 512 bytes is refused before anything is wrapped", async () => {
  const ring = await ready(new FakeKey4C());
  await ring.wrap(randomBytes(512));
  expect(await kindOf(ring.wrap(randomBytes(513)))).toBe("tooLarge");
  expect(ring.snapshot?.localKek.uses).toBe(1);
});

test("missingKeks compares what Key4C gives back, on new connections", async () => {
  const key4c = new FakeKey4C();
  const ring = await ready(key4c);
  key4c.unwraps.length = 0;
  expect(await ring.missing()).toEqual([]);
  expect(key4c.unwraps).toEqual([{ newConnection: true }]);
  key4c.mangle = () => randomBytes(32);
  expect(await ring.missing()).toEqual([ring.snapshot as never]);
  key4c.failure = UNAVAILABLE;
  expect(await kindOf(ring.missing())).toBe("unavailable");
});

test("a service that tells no version gives a key_id without one", async () => {
  const key4c = new FakeKey4C();
  key4c.version = undefined;
  const { keyId, envelope } = await (await ready(key4c)).wrap(DEK);
  expect(keyId).toMatch(/^k4c-[a-z2-7]{26}$/);
  expect(envelope.header.keyVersion).toBe(0);
});

test("the largest wrapped KEK fits both APIs", async () => {
  const key4c = new FakeKey4C();
  const ring = await ready(key4c);
  const { envelope } = await ring.wrap(randomBytes(512));
  const large = {
    ...envelope,
    header: {
      ...envelope.header,
      keyNameHash: keyNameHash("x"),
      keyVersion: 2 ** 32 - 1,
      wrappedLocalKek: "w".repeat(16 * 1024),
    },
  };
  expect(encodeEnvelope(large, true).length).toBeLessThanOrEqual(65_535);
  expect(encodeEnvelope(large, false).length).toBeLessThanOrEqual(1_024);
});
