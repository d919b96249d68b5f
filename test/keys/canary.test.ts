/** What is acknowledged must be readable: the canary, what is missing, and the local KEKs that nobody gives back. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { PluginError } from "../../src/failures/plugin-error.ts";
import type { Envelope } from "../../src/keys/envelope.ts";
import type { Snapshot } from "../../src/keys/holdings.ts";
import { TestClock, turn } from "../clock.ts";
import { kindOf, recordingLog } from "../support.ts";
import {
  adopt,
  FakeKey4C,
  failUnwraps,
  type RingParts,
  ready,
  readyParts,
  revoke,
  type TestKeyring,
} from "./fake-key4c.ts";

const DEK = randomBytes(32);

const settle = async () => {
  await turn();
  await Bun.sleep(2); // what was dropped is wiped by a timer
};

/** Makes a local KEK of the same key and version current. */
async function renew({ ring }: RingParts, key4c: FakeKey4C): Promise<Snapshot> {
  return adopt(ring, key4c);
}

test("whatever a probe asks is asked on a new connection: a kept one may lead to a replica that no other process reaches", async () => {
  const key4c = new FakeKey4C();
  const { ring } = await readyParts(key4c, {});
  await ring.keys.current.prober.probe();
  expect(key4c.describes.length).toBeGreaterThan(0);
  for (const options of [...key4c.describes, ...key4c.unwraps]) {
    expect(options).toEqual({ newConnection: true });
  }
});

test("the oldest local KEK of this version is the canary, however many follow it", async () => {
  const key4c = new FakeKey4C();
  const parts = await readyParts(key4c, { cacheSize: 0 });
  const { ring } = parts;
  const { envelope } = await ring.wrap(DEK);
  for (let renewals = 0; renewals < 10; renewals++) {
    await renew(parts, key4c);
  }
  await settle();
  key4c.unwraps.length = 0;
  expect(await ring.missing()).toEqual([]);
  expect(key4c.unwraps).toEqual([{ newConnection: true }, { newConnection: true }]); // it and the current one
  key4c.failure = new PluginError("unavailable", "fake");
  expect(await ring.unwrap(envelope)).toEqual(DEK); // pinned, although nothing is cached
});

test("the canary is of the current version: a rotation takes the first under the new one", async () => {
  const key4c = new FakeKey4C();
  const parts = await readyParts(key4c, { cacheSize: 0 });
  const former = parts.ring.snapshot;
  key4c.version = 2;
  const first = await renew(parts, key4c);
  await renew(parts, key4c);
  await settle();
  expect(former?.localKek.isDropped).toBe(true);
  key4c.replaceMaterial();
  expect(await parts.ring.missing()).toEqual([parts.ring.snapshot as never, first]);
});

test("the former canary and the former current one stay in the cache after a rotation", async () => {
  const key4c = new FakeKey4C();
  const parts = await readyParts(key4c);
  const { ring } = parts;
  const canary = await ring.wrap(DEK);
  await renew(parts, key4c);
  const last = await ring.wrap(DEK);
  key4c.version = 2;
  await renew(parts, key4c);
  key4c.failure = new PluginError("unavailable", "fake");
  for (const { envelope } of [canary, last]) {
    expect(await ring.unwrap(envelope)).toEqual(DEK);
  }
  expect(ring.cache.size).toBe(2);
});

/** One probe, as the loop has it. @returns what it met */
async function probe({ ring }: { readonly ring: TestKeyring }) {
  await ring.keys.current.prober.probe();
  return ring.key.health.failure?.kind ?? "ok";
}

test("replaced material is noticed although each new local KEK is well: the canary is missing", async () => {
  const key4c = new FakeKey4C();
  const parts = await readyParts(key4c);
  const canary = parts.ring.snapshot;
  const restore = key4c.replaceMaterial();
  await renew(parts, key4c); // under the other material
  expect(await parts.ring.missing()).toEqual([canary as never]);
  expect(await probe(parts)).toBe("mismatch");
  restore();
  expect([await parts.ring.missing(), await probe(parts)]).toEqual([[], "ok"]);
});

test("a renewal wants the canary given back before anything is wrapped", async () => {
  const { log, lines } = recordingLog();
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const { ring, key } = await readyParts(key4c, { maxUses: 1, clock, log });
  const canary = ring.snapshot;
  await ring.wrap(DEK);
  key4c.replaceMaterial();
  key4c.calls.wrap = 0;
  await ring.wrap(DEK);
  expect([ring.snapshot, key4c.calls.wrap]).toEqual([canary, 0]);
  expect(lines).toContainEqual(expect.objectContaining({ level: "warn", kind: "mismatch" }));
  expect(key.health.probeAfterMs(30_000)).toBe(250); // the probe is to look
});

test("of renewals that follow each other one a second asks for the canary; all prove on new connections", async () => {
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const { ring } = await readyParts(key4c, { maxUses: 1, clock });
  const unwraps = async () => {
    key4c.unwraps.length = 0;
    await ring.wrap(DEK);
    await ring.wrap(DEK);
    await ring.wrap(DEK);
    await turn();
    expect(key4c.unwraps.every(({ newConnection }) => newConnection === true)).toBe(true);
    return key4c.unwraps.length;
  };
  await ring.wrap(DEK);
  expect(await unwraps()).toBe(4); // the canary, and three new ones
  await clock.pass(999);
  expect(await unwraps()).toBe(3);
  await clock.pass(1);
  expect(await unwraps()).toBe(4);
  await clock.pass(999);
  await ring.keys.current.prober.probe(); // it has just seen the canary
  await clock.pass(500);
  expect(await unwraps()).toBe(3);
});

/** Has Key4C asked for these, and waits until that is over. @returns how many it was asked for */
async function lookThrough({ ring, key4c, clock }: Pick<Orphaned, "ring" | "key4c" | "clock">) {
  const before = key4c.calls.unwrap;
  ring.key.lookThrough();
  ring.lookThrough.resume(ring.keys.members.map(({ key }) => key));
  await clock.pass(60_000);
  return key4c.calls.unwrap - before;
}

/** After five minutes: asks again for what is orphaned or was not judged. */
async function again({ ring, key4c, clock }: Pick<Orphaned, "ring" | "key4c" | "clock">) {
  const before = key4c.calls.unwrap;
  await clock.pass(5 * 60_000);
  ring.lookThrough.resume(ring.keys.members.map(({ key }) => key));
  await clock.pass(60_000);
  return key4c.calls.unwrap - before;
}

test("what says neither yes nor no is no mismatch", async () => {
  const key4c = new FakeKey4C();
  const { ring } = await readyParts(key4c);
  const unwrap = key4c.unwrap.bind(key4c);
  for (const kind of [
    "unavailable",
    "throttled",
    "denied",
    "keyUnusable",
    "keyNotFound",
  ] as const) {
    key4c.unwrap = async () => {
      throw new PluginError(kind, "fake"); // and describe is well
    };
    ring.key.record(undefined); // so that no pause is under way
    expect(await probe({ ring })).toBe(kind);
    expect(ring.orphans).toBe(0);
  }
  key4c.unwrap = unwrap;
});

test("a Key4C that gives nothing back right is no mismatch either: the control fails", async () => {
  const key4c = new FakeKey4C();
  const { ring } = await readyParts(key4c);
  key4c.mangle = () => randomBytes(32);
  expect((await ring.missing()).length).toBe(1);
  expect(await probe({ ring })).toBe("unavailable");
});

/** A keyring that has unwrapped local KEKs of others, of both keys, and whose material is then replaced. */
async function orphaned({ cacheSize = 16 } = {}) {
  const clock = new TestClock();
  const { log, lines } = recordingLog();
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
    clock,
    log,
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
    await clock.pass(1);
    return new Set(kinds);
  };
  return { ...parts, clock, lines, key4c, former, all, own, restore, readable };
}

type Orphaned = Awaited<ReturnType<typeof orphaned>>;

test("what is not given back is orphaned: of that key, once, and readable whatever else is kept", async () => {
  const parts = await orphaned({ cacheSize: 4 });
  const { ring, key4c, clock, former, readable, lines } = parts;
  expect(await lookThrough(parts)).toBe(4);
  expect([ring.orphans, ring.cache.size]).toEqual([4, 0]); // the former key's is its canary
  await lookThrough(parts);
  const told = lines.filter(({ level }) => level === "error");
  expect(told).toEqual([expect.objectContaining({ kmsKeyId: "demo", found: 4, orphans: 4 })]);
  for (let others = 0; others < 10; others++) {
    const { envelope } = await (await ready(key4c)).wrap(DEK);
    expect(await ring.unwrap(envelope)).toEqual(DEK);
  }
  expect(ring.cache.size).toBe(4);
  key4c.version = 2;
  await renew(parts, key4c); // makes well what is written, and not what was
  expect(await readable()).toEqual(new Set(["ok"]));
  await clock.pass(1);
  expect(await ring.unwrap(former.envelope)).toEqual(DEK);
});

test("what is given back again is orphaned no more, and only those are asked for", async () => {
  const parts = await orphaned();
  const { ring, restore, readable } = parts;
  await lookThrough(parts);
  expect([await again(parts), ring.orphans]).toEqual([4, 4]);
  restore();
  expect([await again(parts), ring.orphans]).toEqual([4, 0]);
  expect(await again(parts)).toBe(0);
  expect(await readable()).toEqual(new Set(["ok"]));
});

test("other bytes are as lost as a refusal", async () => {
  const parts = await orphaned();
  parts.restore();
  parts.key4c.mangle = () => randomBytes(32);
  await lookThrough(parts);
  expect([parts.ring.orphans, await parts.readable()]).toEqual([4, new Set(["ok"])]);
});

test("orphaned ones are withheld while the key is revoked, and not wiped", async () => {
  const parts = await orphaned();
  const { ring, key, key4c, clock, former, own, readable } = parts;
  await lookThrough(parts);
  revoke(parts, "demo");
  await clock.pass(1);
  expect(await readable()).toEqual(new Set(["keyUnusable"]));
  expect([ring.orphans, ring.snapshot]).toEqual([4, undefined]);
  expect(await ring.unwrap(former.envelope)).toEqual(DEK);
  key4c.calls.unwrap = 0;
  key.record(undefined);
  expect(await readable()).toEqual(new Set(["ok"]));
  expect(key4c.calls.unwrap).toBe(0);
  expect(await ring.unwrap(own.envelope)).toEqual(DEK);
});

/** Holds so many more of other replicas. */
async function holdMore({ ring, key4c }: Orphaned, count: number): Promise<void> {
  for (let others = 0; others < count; others++) {
    const { envelope } = await (await ready(key4c)).wrap(DEK);
    await ring.unwrap(envelope);
  }
}

test("looking through asks 50 times a second, and is no failure when a key is revoked meanwhile", async () => {
  const parts = await orphaned({ cacheSize: 200 });
  const { ring, key4c, clock } = parts;
  await holdMore(parts, 96);
  const before = key4c.calls.unwrap;
  ring.key.lookThrough();
  ring.lookThrough.resume([ring.key]);
  await clock.pass(999);
  expect(key4c.calls.unwrap - before).toBe(50);
  revoke(parts, "demo");
  await clock.pass(60_000);
  expect(key4c.calls.unwrap - before).toBeLessThanOrEqual(55); // nothing is left that could be asked for
});

test("looking through stops where Key4C answers nothing, and continues where it was", async () => {
  const parts = await orphaned({ cacheSize: 200 });
  const { ring, key4c } = parts;
  await holdMore(parts, 20);
  key4c.failure = new PluginError("unavailable", "later");
  expect([await lookThrough(parts), ring.orphans]).toEqual([5, 0]);
  key4c.failure = undefined;
  const before = key4c.calls.unwrap;
  ring.lookThrough.resume([ring.key]);
  await parts.clock.pass(10_000);
  expect([key4c.calls.unwrap - before, ring.orphans]).toEqual([24, 4]);
});

test("looking through asks nothing of a key that Key4C does not answer for, and all of another", async () => {
  const parts = await orphaned({ cacheSize: 200 });
  const { ring, key4c, clock } = parts;
  parts.restore();
  await holdMore(parts, 20);
  const formerKey = ring.member("former").key;
  const asked = async () => {
    const before = key4c.calls.unwrap;
    ring.key.lookThrough();
    formerKey.lookThrough();
    ring.lookThrough.resume([ring.key, formerKey]);
    await clock.pass(10_000);
    return key4c.calls.unwrap - before;
  };
  const pause = new PluginError("throttled", "not now", { retryAfterMs: 200_000 });
  ring.key.record(pause);
  expect(await asked()).toBe(1); // the former key's
  ring.key.record(undefined);
  ring.key.circuits.recordUnwrap(new PluginError("unavailable", "fake"));
  expect(await asked()).toBe(1);
  ring.key.circuits.recordUnwrap(undefined);
  const unwrap = key4c.unwrap.bind(key4c);
  key4c.unwrap = async (...args) => {
    const bytes = await unwrap(...args);
    if (args[0] === "demo") {
      throw new PluginError("unavailable", "always");
    }
    return bytes;
  };
  expect(await asked()).toBe(6); // five at once, and no more of that key
});

test("one that Key4C never judges is asked for every five minutes, and not with each probe", async () => {
  const parts = await orphaned({ cacheSize: 200 });
  const { ring, key4c, all } = parts;
  parts.restore();
  await holdMore(parts, 20);
  const sick = all[0]?.header.wrappedLocalKek;
  const unwrap = key4c.unwrap.bind(key4c);
  key4c.unwrap = async (...args) => {
    const bytes = await unwrap(...args);
    if (args[1] === sick) {
      throw new PluginError("unavailable", "always");
    }
    return bytes;
  };
  expect(await lookThrough(parts)).toBe(24);
  ring.lookThrough.resume([ring.key]);
  await parts.clock.pass(60_000);
  let asked = 0;
  for (let probes = 0; probes < 120; probes++) {
    const before = key4c.calls.unwrap;
    ring.lookThrough.resume([ring.key]);
    await parts.clock.pass(30_000);
    asked += key4c.calls.unwrap - before;
  }
  expect(asked).toBeGreaterThanOrEqual(11); // in an hour
  expect(asked).toBeLessThanOrEqual(13);
});

test("a damaged object harms no other: whoever is known goes on, in an outage too", async () => {
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const replica = await (await ready(key4c)).wrap(DEK);
  const parts = await readyParts(key4c, { clock });
  const { ring, key } = parts;
  const before = await ring.wrap(DEK);
  expect(await ring.unwrap(replica.envelope)).toEqual(DEK);
  key4c.version = 2;
  await renew(parts, key4c);
  await clock.pass(13_000);
  key4c.failure = new PluginError("unavailable", "fake");
  failUnwraps(key, key4c.failure);
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
  const { ring, key } = await readyParts(key4c, { clock });
  const damaged = { ...envelope, iv: randomBytes(12) };
  expect(await kindOf(ring.unwrap(damaged))).toBe("invalid"); // fetches the local KEK
  await clock.pass(20_000);
  const failure = new PluginError("unavailable", "fake");
  key4c.failure = failure;
  failUnwraps(key, failure);
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
  expect(await kindOf(ring.unwrap(newer.envelope))).toBe("unavailable"); // of another version: a replica may lag
  expect(ring.key.asked).toEqual({ givenBack: 0, refused: 1 });
  const { envelope } = await (await ready(key4c)).wrap(DEK);
  await ring.unwrap(envelope);
  expect(ring.key.asked).toEqual({ givenBack: 1, refused: 1 });
});
