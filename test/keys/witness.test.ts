/** What is acknowledged must be readable: the witness, what is missing, and the local KEKs that nobody gives back. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { PluginError } from "../../src/failures/plugin-error.ts";
import type { Envelope } from "../../src/keys/envelope.ts";
import type { Snapshot } from "../../src/keys/held.ts";
import { TestClock, turn } from "../clock.ts";
import { kindOf, recordingLog } from "../support.ts";
import { adopt, FakeKey4C, type RingParts, ready, readyParts, revoke } from "./fake-key4c.ts";

const DEK = randomBytes(32);

const settle = async () => {
  await turn();
  await Bun.sleep(2); // what was dropped is wiped by a timer
};

/** Makes a local KEK of the same key and version current. */
async function renew({ ring }: RingParts, key4c: FakeKey4C): Promise<Snapshot> {
  return adopt(ring, key4c);
}

test("the oldest local KEK of this version is the witness, however many follow it", async () => {
  const key4c = new FakeKey4C();
  const parts = await readyParts(key4c, { cacheSize: 0 });
  const { ring } = parts;
  const { envelope } = await ring.wrap(DEK);
  for (let renewals = 0; renewals < 10; renewals++) {
    await renew(parts, key4c);
  }
  await settle();
  key4c.unwraps.length = 0;
  expect(await ring.missingKeks()).toEqual([]);
  expect(key4c.unwraps).toEqual([{ newConnection: true }, { newConnection: true }]); // it and the current one
  key4c.failure = new PluginError("unavailable", "fake");
  expect(await ring.unwrap(envelope)).toEqual(DEK); // pinned, although nothing is cached
});

test("the witness is of the current version: a rotation takes the first under the new one", async () => {
  const key4c = new FakeKey4C();
  const parts = await readyParts(key4c, { cacheSize: 0 });
  const former = parts.ring.snapshot;
  key4c.version = 2;
  const first = await renew(parts, key4c);
  await renew(parts, key4c);
  await settle();
  expect(former?.localKek.isDropped).toBe(true);
  key4c.replaceMaterial();
  expect(await parts.ring.missingKeks()).toEqual([parts.ring.snapshot as never, first]);
});

test("the former witness and the former current one stay in the cache after a rotation", async () => {
  const key4c = new FakeKey4C();
  const parts = await readyParts(key4c);
  const { ring } = parts;
  const witness = await ring.wrap(DEK);
  await renew(parts, key4c);
  const last = await ring.wrap(DEK);
  key4c.version = 2;
  await renew(parts, key4c);
  key4c.failure = new PluginError("unavailable", "fake");
  for (const { envelope } of [witness, last]) {
    expect(await ring.unwrap(envelope)).toEqual(DEK);
  }
  expect(ring.cache.size).toBe(2);
});

test("replaced material is noticed although each new local KEK is well: the witness is missing", async () => {
  const key4c = new FakeKey4C();
  const parts = await readyParts(key4c);
  const witness = parts.ring.snapshot;
  const restore = key4c.replaceMaterial();
  await renew(parts, key4c); // under the other material
  expect(await parts.ring.missingKeks()).toEqual([witness as never]);
  await parts.ring.tryAnother(parts.ring.snapshot as Snapshot);
  restore();
  expect(await parts.ring.missingKeks()).toEqual([]);
});

test("a renewal wants the witness given back before anything is wrapped", async () => {
  const { log, lines } = recordingLog();
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const { ring, standing } = await readyParts(key4c, { maxUses: 1, clock, log });
  const witness = ring.snapshot;
  await ring.wrap(DEK);
  key4c.replaceMaterial();
  key4c.calls.wrap = 0;
  await ring.wrap(DEK);
  expect([ring.snapshot, key4c.calls.wrap]).toEqual([witness, 0]);
  expect(lines).toContainEqual(expect.objectContaining({ level: "warn", kind: "mismatch" }));
  expect(standing.probeAfterMs(30_000)).toBe(250); // the probe is to look
});

test("of renewals that follow each other one a second asks for the witness; each asks for its own, on a new connection", async () => {
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const { ring } = await readyParts(key4c, { maxUses: 1, clock });
  const proofs = async () => {
    key4c.unwraps.length = 0;
    await ring.wrap(DEK);
    await ring.wrap(DEK);
    await ring.wrap(DEK);
    await turn();
    return key4c.unwraps.map(({ newConnection }) => newConnection);
  };
  await ring.wrap(DEK);
  expect(await proofs()).toEqual([true, true, true, true]); // the witness, the new one, two more
  await clock.pass(999);
  expect(await proofs()).toEqual([true, true, true]);
  await clock.pass(1);
  expect(await proofs()).toEqual([true, true, true, true]);
  await clock.pass(999);
  await ring.missingKeks(); // the probe has just proven
  await clock.pass(500);
  expect(await proofs()).toEqual([true, true, true]);
});

test("what says neither yes nor no is no mismatch", async () => {
  const key4c = new FakeKey4C();
  const { ring } = await readyParts(key4c);
  for (const kind of [
    "unavailable",
    "throttled",
    "denied",
    "keyUnusable",
    "keyNotFound",
  ] as const) {
    key4c.failure = new PluginError(kind, "fake");
    expect(await kindOf(ring.missingKeks())).toBe(kind);
    expect(await kindOf(ring.tryAnother(ring.snapshot as Snapshot))).toBe(kind);
    expect((await ring.audit("demo", "all")).found).toBe(0);
  }
  expect(ring.cache.orphans).toBe(0);
});

test("a Key4C that gives nothing back right is no mismatch either: the control fails", async () => {
  const key4c = new FakeKey4C();
  const { ring } = await readyParts(key4c);
  key4c.mangle = () => randomBytes(32);
  expect((await ring.missingKeks()).length).toBe(1);
  expect(await kindOf(ring.tryAnother(ring.snapshot as Snapshot))).toBe("unavailable");
});

/** A keyring that has unwrapped local KEKs of others, of both keys, and whose material is then replaced. */
async function orphaned({ cacheSize = 16 } = {}) {
  const key4c = new FakeKey4C();
  const former = await (await ready(key4c, { kmsKeyId: "former" })).wrap(DEK);
  const replicas: Envelope[] = [];
  for (let count = 0; count < 3; count++) {
    replicas.push((await (await ready(key4c)).wrap(DEK)).envelope);
  }
  const parts = await readyParts(key4c, {
    previousKeyIds: ["former"],
    cacheSize,
    revocationGraceMs: 0,
  });
  const { ring } = parts;
  const own = await ring.wrap(DEK);
  const all = [...replicas, own.envelope];
  for (const envelope of [...all, former.envelope]) {
    expect(await ring.unwrap(envelope)).toEqual(DEK);
  }
  const restore = key4c.replaceMaterial();
  const readable = async () => {
    const kinds = await Promise.all(all.map((envelope) => kindOf(ring.unwrap(envelope))));
    await settle();
    return new Set(kinds);
  };
  return { ...parts, key4c, former, all, own, restore, readable };
}

test("what is not given back is orphaned: of that key, once, and readable whatever else is kept", async () => {
  const { ring, key4c, former, readable, ...rest } = await orphaned({ cacheSize: 4 });
  expect((await ring.audit("demo", "all")).found).toBe(4);
  expect((await ring.audit("demo", "all")).found).toBe(0);
  expect([ring.cache.orphans, ring.cache.size]).toEqual([4, 1]); // the former key's is kept as it was
  for (let others = 0; others < 10; others++) {
    const { envelope } = await (await ready(key4c)).wrap(DEK);
    expect(await ring.unwrap(envelope)).toEqual(DEK);
  }
  expect(ring.cache.size).toBe(4);
  key4c.version = 2;
  await renew({ ring, ...rest }, key4c); // heals what is written, and not what was
  expect(await readable()).toEqual(new Set(["ok"]));
  expect(await kindOf(ring.unwrap(former.envelope))).toBe("invalid"); // forgotten: there was no room
});

test("what is given back again is orphaned no more, and only those are asked for", async () => {
  const { ring, key4c, restore, readable } = await orphaned();
  await ring.audit("demo", "all");
  key4c.calls.unwrap = 0;
  expect((await ring.audit("demo", "orphaned")).found).toBe(0);
  expect([key4c.calls.unwrap, ring.cache.orphans]).toEqual([4, 4]);
  restore();
  expect((await ring.audit("demo", "orphaned")).found).toBe(0);
  expect([key4c.calls.unwrap, ring.cache.orphans]).toEqual([8, 0]);
  expect((await ring.audit("demo", "orphaned")).found).toBe(0);
  expect(key4c.calls.unwrap).toBe(8);
  expect(await readable()).toEqual(new Set(["ok"]));
});

test("other bytes are as lost as a refusal", async () => {
  const { ring, restore, key4c, readable } = await orphaned();
  restore();
  key4c.mangle = () => randomBytes(32);
  expect((await ring.audit("demo", "all")).found).toBe(4);
  expect(await readable()).toEqual(new Set(["ok"]));
});

test("orphaned ones are withheld while the key is revoked, and not wiped", async () => {
  const { ring, key4c, former, own, readable, standing, ...rest } = await orphaned();
  await ring.audit("demo", "all");
  revoke({ ring, standing, ...rest }, "demo");
  await settle();
  expect(await readable()).toEqual(new Set(["keyUnusable"]));
  expect([ring.cache.orphans, ring.snapshot]).toEqual([4, undefined]);
  expect(await ring.unwrap(former.envelope)).toEqual(DEK);
  key4c.calls.unwrap = 0;
  standing.hear(undefined);
  expect(await readable()).toEqual(new Set(["ok"]));
  expect(key4c.calls.unwrap).toBe(0);
  expect(await ring.unwrap(own.envelope)).toEqual(DEK);
});

test("an audit asks eight at a time, and is no failure when a key is revoked meanwhile", async () => {
  const { ring, key4c, ...rest } = await orphaned();
  for (let others = 0; others < 12; others++) {
    const { envelope } = await (await ready(key4c)).wrap(DEK);
    await ring.unwrap(envelope);
  }
  key4c.calls.unwrap = 0;
  const { promise, resolve } = Promise.withResolvers<void>();
  key4c.gate = promise;
  const audit = ring.audit("demo", "all");
  await settle();
  expect(key4c.calls.unwrap).toBe(8);
  revoke({ ring, ...rest }, "demo");
  await settle();
  key4c.gate = Promise.resolve();
  resolve();
  expect((await audit).found).toBe(0); // nothing is left that could be orphaned
  expect(ring.cache.orphans).toBe(0);
});

test("an audit ends where Key4C says neither, and is not begun while callers are refused", async () => {
  const { ring, key4c, standing } = await orphaned();
  for (let others = 0; others < 20; others++) {
    const { envelope } = await (await ready(key4c)).wrap(DEK);
    await ring.unwrap(envelope);
  }
  key4c.calls.unwrap = 0;
  key4c.failure = new PluginError("throttled", "later");
  expect(await ring.audit("demo", "all")).toEqual({ found: 0, isComplete: false });
  expect(key4c.calls.unwrap).toBe(8);
  standing.hear(key4c.failure);
  expect((await ring.audit("demo", "all")).isComplete).toBe(false);
  expect(key4c.calls.unwrap).toBe(8);
});

test("a damaged object harms no other: whoever is known goes on, in an outage too", async () => {
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const replica = await (await ready(key4c)).wrap(DEK);
  const parts = await readyParts(key4c, { clock });
  const { ring, standing } = parts;
  const before = await ring.wrap(DEK);
  expect(await ring.unwrap(replica.envelope)).toEqual(DEK);
  key4c.version = 2;
  await renew(parts, key4c);
  await clock.pass(13_000);
  key4c.failure = new PluginError("unavailable", "fake");
  standing.hear(key4c.failure);
  for (const { envelope } of [before, replica]) {
    for (const damaged of [
      { ...envelope, iv: randomBytes(12) },
      { ...envelope, ciphertext: randomBytes(48) },
      { ...envelope, header: { ...envelope.header, keyVersion: 7 } },
    ]) {
      expect(await kindOf(ring.unwrap(damaged))).toBe("invalid");
      await settle();
      expect(await ring.unwrap(envelope)).toEqual(DEK);
    }
  }
});

test("one that has opened nothing yet is not evicted by a damaged object either", async () => {
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const { envelope } = await (await ready(key4c)).wrap(DEK);
  const { ring, standing } = await readyParts(key4c, { clock });
  const damaged = { ...envelope, iv: randomBytes(12) };
  expect(await kindOf(ring.unwrap(damaged))).toBe("invalid"); // fetches the local KEK
  await clock.pass(20_000);
  const failure = new PluginError("unavailable", "fake");
  key4c.failure = failure;
  standing.hear(failure);
  for (let round = 0; round < 3; round++) {
    expect(await kindOf(ring.unwrap(damaged))).toBe("invalid");
    await settle();
  }
  expect(await ring.unwrap(envelope)).toEqual(DEK);
});

test("a process to which local KEKs of the current key are refused counts them, and those given back", async () => {
  const key4c = new FakeKey4C();
  const lost = await (await ready(key4c)).wrap(DEK);
  key4c.version = 2;
  const newer = await (await ready(key4c)).wrap(DEK);
  key4c.version = 1;
  key4c.replaceMaterial();
  const { ring } = await readyParts(key4c); // starts well, with the same key_id
  expect(ring.snapshot?.keyId).toBe(lost.keyId);
  expect(await kindOf(ring.unwrap(lost.envelope))).toBe("invalid");
  expect(await kindOf(ring.unwrap(lost.envelope))).toBe("invalid"); // remembered: not counted again
  expect(await kindOf(ring.unwrap(newer.envelope))).toBe("invalid"); // of another version
  expect(ring.unwraps.ofCurrentKey).toEqual({ givenBack: 0, refused: 1 });
  const { envelope } = await (await ready(key4c)).wrap(DEK);
  await ring.unwrap(envelope);
  expect(ring.unwraps.ofCurrentKey).toEqual({ givenBack: 1, refused: 1 });
});
