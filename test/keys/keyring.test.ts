import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { type Envelope, encodeEnvelope, kekHeader } from "../../src/keys/envelope.ts";
import { keyNameHash } from "../../src/keys/key-id.ts";
import { PluginError } from "../../src/system/errors.ts";
import { kindOf, recordingLog } from "../support.ts";
import { FakeKey4C, keyring, ready } from "./fake-key4c.ts";

const DEK = randomBytes(32);
const HOUR_MS = 3_600_000;

/** Lets everything that is already possible happen. */
const settle = () => Bun.sleep(1);

test("ten thousand DEKs cost one wrap and one verifying unwrap", async () => {
  const key4c = new FakeKey4C();
  const ring = await ready(key4c);
  for (let round = 0; round < 10_000; round++) {
    const { envelope } = await ring.wrap(DEK);
    expect(await ring.unwrap(envelope)).toEqual(DEK);
  }
  expect(key4c.calls).toEqual({ wrap: 1, unwrap: 1 });
});

test("a restarted plugin unwraps an old local KEK once, however many ask at once", async () => {
  const key4c = new FakeKey4C();
  const { envelope } = await (await ready(key4c)).wrap(DEK);
  const restarted = await ready(key4c);
  key4c.calls = { wrap: 0, unwrap: 0 };
  const all = await Promise.all(Array.from({ length: 64 }, () => restarted.unwrap(envelope)));
  expect(all.every((one) => one.equals(DEK))).toBe(true);
  expect(key4c.calls).toEqual({ wrap: 0, unwrap: 1 });
});

test("at most 64 unwraps run at once and 1,024 wait, and neither probe nor renewal waits behind them", async () => {
  const key4c = new FakeKey4C();
  const other = await ready(key4c, { maxUses: 1 });
  const envelopes: Envelope[] = [];
  while (envelopes.length < 64 + 1_024 + 10) {
    envelopes.push((await other.wrap(DEK)).envelope);
    await other.renew();
  }
  let probeFailure: PluginError | undefined;
  const ring = await ready(key4c, { probeFailure: () => probeFailure });
  key4c.calls = { wrap: 0, unwrap: 0 };
  const { promise, resolve } = Promise.withResolvers<void>();
  key4c.gate = promise;
  const kinds = envelopes.map((envelope) => kindOf(ring.unwrap(envelope)));
  expect(await Promise.all(kinds.slice(-10))).toEqual(Array(10).fill("throttled"));
  expect(key4c.calls.unwrap).toBe(64);
  key4c.gate = Promise.resolve();
  await ring.verifyCurrent();
  key4c.version = 2;
  await ring.renew();
  // Those that wait are told when Key4C is found to be away, instead of hanging in their turn.
  probeFailure = new PluginError("unavailable", "fake");
  resolve();
  expect(await Promise.all(kinds.slice(0, -10))).toEqual([
    ...Array(64).fill("ok"),
    ...Array(1_024).fill("unavailable"),
  ]);
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

test("a local KEK that Key4C does not give back never becomes current", async () => {
  const key4c = new FakeKey4C();
  key4c.mangle = () => randomBytes(32);
  const ring = keyring(key4c);
  expect(await kindOf(ring.renew())).toBe("unavailable");
  expect(ring.snapshot).toBeUndefined();
  expect(await kindOf(ring.wrap(DEK))).toBe("unavailable");
  key4c.mangle = (bytes) => bytes;
  await ring.renew();
  const good = ring.snapshot;
  key4c.mangle = () => randomBytes(32);
  key4c.version = 2;
  expect(await kindOf(ring.renew())).toBe("unavailable");
  expect(ring.snapshot).toBe(good);
});

test("an Encrypt that comes while the first local KEK is made waits for it", async () => {
  const key4c = new FakeKey4C();
  const { promise, resolve } = Promise.withResolvers<void>();
  key4c.gate = promise;
  const ring = keyring(key4c);
  void ring.renew();
  const wrapping = ring.wrap(DEK);
  resolve();
  expect((await wrapping).keyId).toMatch(/^k4c-.*\.v1$/);
});

test("without a local KEK, Encrypt says why", async () => {
  let probeFailure: PluginError | undefined;
  const ring = keyring(new FakeKey4C(), { probeFailure: () => probeFailure });
  expect(await kindOf(ring.wrap(DEK))).toBe("unavailable");
  probeFailure = new PluginError("keyUnusable", "fake");
  expect(await kindOf(ring.wrap(DEK))).toBe("keyUnusable");
});

test("the limit of uses renews ahead of need and keeps key_id", async () => {
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { maxUses: 100 });
  const first = ring.snapshot;
  for (let round = 0; round < 90; round++) {
    await ring.wrap(DEK);
  }
  expect(ring.snapshot).toBe(first);
  const { envelope: last } = await ring.wrap(DEK); // 91st: starts the renewal and does not wait
  expect(last.header).toBe(first?.header as never);
  await settle();
  expect(ring.snapshot).not.toBe(first);
  expect(ring.snapshot?.keyId).toBe(first?.keyId as never);
  key4c.calls.unwrap = 0;
  expect(await ring.unwrap(last)).toEqual(DEK);
  expect(key4c.calls.unwrap).toBe(0); // the former one stays in the cache
});

test("the limit of age renews ahead of need", async () => {
  let nowMs = 0;
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { maxAgeMs: 10 * HOUR_MS, nowMs: () => nowMs });
  const first = ring.snapshot;
  nowMs = 8.9 * HOUR_MS;
  ring.renewIfDue();
  await settle();
  expect(ring.snapshot).toBe(first);
  nowMs = 9 * HOUR_MS;
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
  const old = results.slice(0, 10).map(({ envelope }) => envelope);
  for (const envelope of old) {
    expect(await ring.unwrap(envelope)).toEqual(DEK);
    await settle();
    expect(await ring.unwrap(envelope)).toEqual(DEK);
  }
  expect(key4c.calls.unwrap).toBe(20);
});

test("while Key4C is away the current local KEK goes on, and attempts are spaced", async () => {
  let nowMs = 0;
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { maxUses: 10, nowMs: () => nowMs });
  key4c.failure = new PluginError("unavailable", "fake");
  key4c.calls.wrap = 0;
  for (let round = 0; round < 50; round++) {
    await ring.wrap(DEK);
    await settle();
  }
  expect(key4c.calls.wrap).toBe(1);
  nowMs += 5_000;
  key4c.failure = undefined;
  const first = ring.snapshot;
  await ring.wrap(DEK);
  await settle();
  expect(ring.snapshot).not.toBe(first);
});

test("an Encrypt above the limit does not wait for a Key4C that hangs", async () => {
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { maxUses: 1 });
  key4c.gate = new Promise(() => {});
  await ring.wrap(DEK);
  const first = ring.snapshot;
  await ring.wrap(DEK); // waits its two seconds, and goes on
  for (let round = 0; round < 10; round++) {
    await ring.wrap(DEK); // which is known now
  }
  expect(ring.snapshot).toBe(first);
});

test("a renewal that was waited for and came leaves nothing behind two seconds later", async () => {
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { maxUses: 1 });
  const wrapped = new Set<string>();
  const wrap = async () => wrapped.add((await ring.wrap(DEK)).envelope.header.wrappedLocalKek);
  await wrap();
  await wrap(); // waits for the second local KEK
  await Bun.sleep(2_100);
  await Promise.all([wrap(), wrap(), wrap()]);
  expect(wrapped.size).toBe(5);
});

test("unwraps that fail are forgotten, also those of unknown keys", async () => {
  const key4c = new FakeKey4C();
  const { envelope } = await (await ready(key4c, { kmsKeyId: "stranger" })).wrap(DEK);
  const ring = await ready(key4c);
  for (let round = 0; round < 100; round++) {
    const header = kekHeader({ ...envelope.header, wrappedLocalKek: `w${round}` });
    expect(await kindOf(ring.unwrap({ ...envelope, header }))).toBe("unknownKey");
  }
  expect(ring.unwrapsUnderWay).toBe(0);
});

test("a renewal that fails is told, in the log and to the probe", async () => {
  const { log, lines } = recordingLog();
  let suspicions = 0;
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { maxUses: 1, log, suspect: () => suspicions++ });
  key4c.failure = new PluginError("denied", "fake");
  await ring.wrap(DEK);
  await ring.wrap(DEK);
  await settle();
  expect(suspicions).toBe(1);
  expect(lines).toContainEqual(
    expect.objectContaining({ level: "warn", kind: "denied", cause: "fake" }),
  );
});

test("a renewal that takes long and fails is told once, however many Encrypts met it", async () => {
  const { log, lines } = recordingLog();
  const key4c = new FakeKey4C();
  let nowMs = 0;
  const ring = await ready(key4c, { maxUses: 1_000, log, nowMs: () => nowMs });
  const { promise, resolve } = Promise.withResolvers<void>();
  key4c.gate = promise;
  while ((ring.snapshot?.localKek.uses ?? 0) < 910) {
    await ring.wrap(DEK);
  }
  nowMs += 60_000; // longer than the pause after a renewal that failed
  await Promise.all(Array.from({ length: 50 }, () => ring.wrap(DEK)));
  key4c.failure = new PluginError("unavailable", "fake");
  resolve();
  await settle();
  expect(lines.filter(({ level }) => level === "warn").length).toBe(1);
});

test("a caller that has left is given nothing and uses nothing up", async () => {
  const ring = await ready(new FakeKey4C());
  expect(await kindOf(ring.wrap(DEK, { hasLeft: () => true }))).toBe("cancelled");
  expect(ring.snapshot?.localKek.uses).toBe(0);
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
    await ring.renew();
    await settle();
    return bytes;
  };
  await ring.verifyCurrent();
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
  await ring.renew();
  const after = await ring.wrap(DEK);
  expect([before.keyId.slice(-3), after.keyId.slice(-3)]).toEqual([".v1", ".v2"]);
  expect(after.envelope.header.keyVersion).toBe(2);
  expect(await ring.unwrap(before.envelope)).toEqual(DEK);
});

test("a backend that lags never takes the version back, nor makes a switch of no use", async () => {
  const key4c = new FakeKey4C();
  key4c.version = 5;
  const ring = await ready(key4c);
  const current = ring.snapshot;
  for (const version of [4, 5, undefined]) {
    key4c.version = version;
    expect(await ring.renew()).toBe(current as never);
    expect(ring.snapshot).toBe(current);
  }
});

test("what Key4C refused is not asked again for ten seconds, however often it comes", async () => {
  let nowMs = 0;
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { nowMs: () => nowMs });
  const { envelope } = await ring.wrap(DEK);
  const garbage = (name: string) => ({
    ...envelope,
    header: kekHeader({ ...envelope.header, wrappedLocalKek: name }),
  });
  key4c.calls.unwrap = 0;
  for (let round = 0; round < 100; round++) {
    expect(await kindOf(ring.unwrap(garbage("x")))).toBe("invalid");
  }
  expect(key4c.calls.unwrap).toBe(1);
  nowMs = 10_000;
  expect(await kindOf(ring.unwrap(garbage("x")))).toBe("invalid");
  expect(key4c.calls.unwrap).toBe(2);
});

test("whoever invents wrapped KEKs costs Key4C 1,024 calls in ten seconds, and known data nothing", async () => {
  let nowMs = 0;
  let suspicions = 0;
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { nowMs: () => nowMs, suspect: () => suspicions++ });
  const { envelope } = await ring.wrap(DEK);
  const { envelope: unseen } = await (await ready(key4c)).wrap(DEK); // a replica's
  const garbage = (name: string) => ({
    ...envelope,
    header: kekHeader({ ...envelope.header, wrappedLocalKek: name }),
  });
  key4c.calls.unwrap = 0;
  for (let number = 0; number < 1_024; number++) {
    expect(await kindOf(ring.unwrap(garbage(`x${number}`)))).toBe("invalid");
  }
  for (let number = 0; number < 100; number++) {
    expect(await kindOf(ring.unwrap(garbage(`y${number}`)))).toBe("throttled");
  }
  expect([key4c.calls.unwrap, suspicions]).toEqual([1_024, 0]);
  expect(await ring.unwrap(envelope)).toEqual(DEK);
  expect(await kindOf(ring.unwrap(unseen))).toBe("throttled");
  nowMs = 10_000;
  expect(await ring.unwrap(unseen)).toEqual(DEK);
});

test("a Decrypt counts as one hit or one miss of the cache, in whatever steps it is made", async () => {
  const key4c = new FakeKey4C();
  const { envelope } = await (await ready(key4c)).wrap(DEK); // a replica's
  const ring = await ready(key4c);
  expect(ring.unwrapNow(envelope)).toBeUndefined();
  expect(await ring.unwrap(envelope)).toEqual(DEK);
  expect(ring.cache).toMatchObject({ hits: 0, misses: 1 });
  expect(ring.unwrapNow(envelope)).toEqual(DEK);
  expect(ring.cache).toMatchObject({ hits: 1, misses: 1 });
});

test("invented wrapped KEKs that wait for their turn are not asked about when there were enough", async () => {
  const key4c = new FakeKey4C();
  const ring = await ready(key4c);
  const { envelope } = await ring.wrap(DEK);
  key4c.calls.unwrap = 0;
  const inventAtOnce = (count: number, name: string) =>
    Promise.all(
      Array.from({ length: count }, (_, number) => {
        const header = { ...envelope.header, wrappedLocalKek: `${name}${number}` };
        return kindOf(ring.unwrap({ ...envelope, header: kekHeader(header) }));
      }),
    );
  expect(new Set(await inventAtOnce(1_000, "x"))).toEqual(new Set(["invalid"]));
  expect(new Set(await inventAtOnce(1_000, "y"))).toEqual(new Set(["invalid", "throttled"]));
  expect(key4c.calls.unwrap).toBeLessThanOrEqual(1_024 + 64); // those under way at the limit
});

test("a wrong answer of Key4C is not believed for ever, and garbage costs no flood of calls", async () => {
  let nowMs = 0;
  const key4c = new FakeKey4C();
  const { envelope } = await (await ready(key4c)).wrap(DEK);
  const ring = await ready(key4c, { nowMs: () => nowMs });
  key4c.mangle = () => randomBytes(32);
  key4c.calls.unwrap = 0;
  for (let round = 0; round < 100; round++) {
    expect(await kindOf(ring.unwrap(envelope))).toBe("invalid");
  }
  expect(key4c.calls.unwrap).toBe(1);
  key4c.mangle = (bytes) => bytes;
  nowMs = 10_000;
  expect(await kindOf(ring.unwrap(envelope))).toBe("invalid"); // and now it is dropped
  expect(await ring.unwrap(envelope)).toEqual(DEK);
  expect(key4c.calls.unwrap).toBe(2);
  // What has opened something stays, whatever else does not open.
  nowMs = 30_000;
  const tampered = { ...envelope, iv: randomBytes(12) };
  expect(await kindOf(ring.unwrap(tampered))).toBe("invalid");
  expect(await ring.unwrap(envelope)).toEqual(DEK);
  expect(key4c.calls.unwrap).toBe(2);
});

test("while the probe says that Key4C is away, callers do not ask it; known keys work on", async () => {
  const key4c = new FakeKey4C();
  let probeFailure: PluginError | undefined;
  const unknown = await (await ready(key4c)).wrap(DEK);
  const ring = await ready(key4c, { probeFailure: () => probeFailure });
  const known = await ring.wrap(DEK);
  key4c.calls.unwrap = 0;
  probeFailure = new PluginError("unavailable", "fake");
  expect(await kindOf(ring.unwrap(unknown.envelope))).toBe("unavailable");
  expect(await ring.unwrap(known.envelope)).toEqual(DEK);
  expect(key4c.calls.unwrap).toBe(0);
  probeFailure = new PluginError("denied", "fake"); // a refusal is no outage: other keys may work
  expect(await ring.unwrap(unknown.envelope)).toEqual(DEK);
});

test("a caller's failure for want of Key4C raises suspicion, garbage does not", async () => {
  const key4c = new FakeKey4C();
  let suspicions = 0;
  const { envelope } = await (await ready(key4c)).wrap(DEK);
  const ring = await ready(key4c, { suspect: () => suspicions++ });
  const garbage = kekHeader({ ...envelope.header, wrappedLocalKek: "x" });
  await kindOf(ring.unwrap({ ...envelope, header: garbage }));
  expect(suspicions).toBe(0);
  key4c.failure = new PluginError("unavailable", "fake");
  await kindOf(ring.unwrap(envelope));
  expect(suspicions).toBe(1);
});

test("a revoked key loses its local KEKs, other keys keep theirs, restoring brings it back", async () => {
  const key4c = new FakeKey4C();
  const old = await (await ready(key4c, { kmsKeyId: "old" })).wrap(DEK);
  const ring = await ready(key4c, { previousKeyIds: ["old"] });
  const { envelope } = await ring.wrap(DEK);
  expect(await ring.unwrap(old.envelope)).toEqual(DEK);
  const { localKek } = ring.snapshot ?? {};
  ring.revoke("demo", new PluginError("keyUnusable", "fake"));
  await settle();
  expect([ring.snapshot, ring.isRevoked("demo"), ring.isRevoked("old")]).toEqual([
    undefined,
    true,
    false,
  ]);
  expect(() => localKek?.equals(DEK)).toThrow("dropped");
  expect(await kindOf(ring.wrap(DEK))).toBe("keyUnusable");
  expect(await kindOf(ring.unwrap(envelope))).toBe("keyUnusable");
  key4c.calls.unwrap = 0;
  expect(await ring.unwrap(old.envelope)).toEqual(DEK);
  expect(key4c.calls.unwrap).toBe(0);

  ring.revoke("old", new PluginError("denied", "fake"));
  expect(await kindOf(ring.unwrap(old.envelope))).toBe("denied");
  await ring.renew();
  expect([ring.restore("demo"), ring.restore("demo"), ring.restore("old")]).toEqual([
    true,
    false,
    true,
  ]);
  expect((await ring.wrap(DEK)).keyId).toEndWith(".v1");
  expect(await ring.unwrap(envelope)).toEqual(DEK);
  expect(await ring.unwrap(old.envelope)).toEqual(DEK);
});

test("a key that is revoked while a new local KEK is made leaves no dropped one in the cache", async () => {
  const key4c = new FakeKey4C();
  const ring = await ready(key4c, { maxAgeMs: 0 });
  const { promise, resolve } = Promise.withResolvers<void>();
  const unwrap = key4c.unwrap.bind(key4c);
  key4c.unwrap = async (...args) => {
    await promise;
    return unwrap(...args);
  };
  const { envelope } = await ring.wrap(DEK); // starts a renewal, which waits for its verifying unwrap
  await settle();
  ring.revoke("demo", new PluginError("denied", "fake"));
  resolve();
  await ring.renew();
  ring.restore("demo");
  expect(await ring.unwrap(envelope)).toEqual(DEK);
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
  expect(await kindOf(ring.wrap(randomBytes(513)))).toBe("invalid");
  expect(ring.snapshot?.localKek.uses).toBe(1);
});

test("verifyCurrent compares what Key4C gives back", async () => {
  const key4c = new FakeKey4C();
  const ring = await ready(key4c);
  await ring.verifyCurrent();
  key4c.mangle = () => randomBytes(32);
  expect(await kindOf(ring.verifyCurrent())).toBe("unavailable");
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
