/** KMS_LOCAL_KEK_MAX_USES=1 as a mode: a local KEK for each Encrypt, made side by side, and nobody waits for long. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { PluginError } from "../../src/failures/plugin-error.ts";
import { LocalKek } from "../../src/keys/envelope.ts";
import { Renewals } from "../../src/keys/renewals.ts";
import { sleep } from "../../src/system/clock.ts";
import { TestClock, turn, within } from "../clock.ts";
import { kindOf } from "../support.ts";
import { FakeKey4C, failUnwraps, readyParts, wellAgain } from "./fake-key4c.ts";

const DEK = randomBytes(32);
const UNAVAILABLE = new PluginError("unavailable", "fake");

/** A keyring with one use a local KEK, on a Key4C that is so far away. */
async function oneUse(latencyMs: number) {
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const parts = await readyParts(key4c, { maxUses: 1, cacheSize: 0, clock });
  key4c.pace = () => (latencyMs === 0 ? turn() : sleep(clock, latencyMs));
  return { ...parts, clock, key4c };
}

test.each([
  [64, 0],
  [64, 20],
  [64, 100],
  [64, 400],
  [1_000, 0],
  [1_000, 20],
])(
  "%d Encrypts at once, Key4C %d ms away: as many wraps as Encrypts, none above the limit",
  async (callers, latencyMs) => {
    const { ring, clock, key4c } = await oneUse(latencyMs);
    const wrapping = Promise.all(Array.from({ length: callers }, () => ring.wrap(DEK)));
    const wrapped = await within(clock, 2_000, wrapping);
    const localKeks = new Set(wrapped.map(({ envelope }) => envelope.header.wrappedLocalKek));
    expect([localKeks.size, key4c.calls.wrap, ring.overLimit]).toEqual([callers, callers, 0]);
    await clock.pass(10_000);
    expect([clock.timers, key4c.calls.wrap]).toEqual([0, callers]);
  },
);

test("64 callers that go on: as many wraps as Encrypts, and all of them at once", async () => {
  const { ring, clock, key4c } = await oneUse(100);
  const rounds = 20;
  const call = async () => {
    for (let round = 0; round < rounds; round++) {
      await ring.wrap(DEK);
    }
  };
  await within(clock, 60_000, Promise.all(Array.from({ length: 64 }, call)));
  expect([key4c.calls.wrap, ring.overLimit]).toEqual([64 * rounds, 0]);
  // A wrap and an unwrap each; one after the other would be 256 s, side by side they are 4 s and the proofs.
  expect(clock.nowMs()).toBeLessThan(8_000);
  await clock.pass(10_000);
  expect(clock.timers).toBe(0);
});

test("1,000 Encrypts at once, Key4C 400 ms away: whoever is not served in 2 s in all goes on without", async () => {
  const { ring, clock } = await oneUse(400);
  const ends: number[] = [];
  const call = () => ring.wrap(DEK).then(() => ends.push(clock.nowMs()));
  const wrapping = Promise.all(Array.from({ length: 1_000 }, call));
  await clock.pass(1_999);
  expect(ends.length).toBeGreaterThan(64);
  await clock.pass(1);
  await wrapping;
  expect(Math.max(...ends)).toBe(2_000);
  expect(ring.overLimit).toBeGreaterThan(0);
  expect(ring.overLimit).toBeLessThan(1_000 - 64);
  await clock.pass(10_000);
  expect(clock.timers).toBe(0);
});

test.each([1, 64, 1_000])(
  "%d Encrypts that a failing Key4C meets go on as soon as that is known",
  async (callers) => {
    const { ring, key, clock, key4c } = await oneUse(20);
    await ring.wrap(DEK);
    key4c.failure = UNAVAILABLE;
    const wrap = () => Promise.all(Array.from({ length: callers }, () => ring.wrap(DEK)));
    await within(clock, 100, wrap());
    expect([ring.overLimit, clock.timers]).toEqual([callers, 0]);
    const { unwrap } = key4c.calls;
    await within(clock, 1, wrap()); // nobody begins anew at once
    expect(key4c.calls.unwrap).toBe(unwrap);
    expect(key.health.probeAfterMs(30_000)).toBe(250); // the probe looks whether it is an outage
    failUnwraps(key, UNAVAILABLE);
    await clock.pass(60_000);
    await within(clock, 1, wrap()); // and while it is one, nobody begins at all
    expect(key4c.calls.unwrap).toBe(unwrap);
    key4c.failure = undefined;
    wellAgain(key);
    ring.keyIsWell();
    const { overLimit } = ring;
    await within(clock, 2_000, wrap());
    expect(ring.overLimit).toBe(overLimit);
  },
);

test("a renewal that fails among others fails nobody else's, and is told once", async () => {
  const { ring, clock, key4c } = await oneUse(20);
  const wrap = key4c.wrap.bind(key4c);
  let begun = 0;
  key4c.wrap = async (...args) => {
    begun += 1;
    const fails = begun % 2 === 0;
    const answer = await wrap(...args);
    if (fails) {
      throw UNAVAILABLE;
    }
    return answer;
  };
  const wrapping = Promise.all(Array.from({ length: 64 }, () => ring.wrap(DEK)));
  const wrapped = await within(clock, 2_000, wrapping);
  const localKeks = new Set(wrapped.map(({ envelope }) => envelope.header.wrappedLocalKek));
  expect(localKeks.size).toBeGreaterThan(16);
  expect(ring.overLimit).toBe(64 - localKeks.size);
  expect(clock.timers).toBe(0);
});

test("callers that left while they waited use nothing up", async () => {
  const { ring, clock, key4c } = await oneUse(20);
  await ring.wrap(DEK);
  let isGone = false;
  const gone = Array.from({ length: 8 }, () => kindOf(ring.wrap(DEK, { hasLeft: () => isGone })));
  const patient = ring.wrap(DEK);
  await clock.pass(10);
  isGone = true;
  await within(clock, 2_000, patient);
  expect(new Set(await within(clock, 2_000, Promise.all(gone)))).toEqual(new Set(["cancelled"]));
  await clock.pass(2_000);
  expect(ring.snapshot?.localKek.uses).toBe(0); // one that was made for them is there for the next
  const { wrap } = key4c.calls;
  const next = await ring.wrap(DEK);
  expect(next.envelope.header).toBe(ring.snapshot?.header as never);
  expect([key4c.calls.wrap, ring.overLimit, clock.timers]).toEqual([wrap, 0, 0]);
});

/** Renewals whose local KEKs the test hands out; `finish` ends the oldest that is under way. */
function byHand(maxUses: number) {
  const clock = new TestClock();
  const underWay: ((fail: boolean) => void)[] = [];
  const seen = { most: 0, made: 0, failures: 0 };
  let isFutile = false;
  const renewals: Renewals = new Renewals({
    maxUses,
    maxAgeMs: Number.POSITIVE_INFINITY,
    clock,
    isFutile: () => isFutile,
    onFailure: () => {
      seen.failures += 1;
    },
    async make() {
      seen.made += 1;
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      underWay.push((fail) => (fail ? reject(UNAVAILABLE) : resolve()));
      seen.most = Math.max(seen.most, underWay.length);
      await promise;
      renewals.serve(new LocalKek(randomBytes(32)));
    },
  });
  const finish = async (fail = false) => {
    underWay.shift()?.(fail);
    await turn();
  };
  const use = (fresh: LocalKek) => {
    fresh.uses += 1;
    return fresh;
  };
  const setFutile = () => {
    isFutile = true;
  };
  return { renewals, clock, underWay, seen, finish, use, setFutile };
}

test("at most 64 are made side by side, and as many as those who wait need", async () => {
  for (const [maxUses, waiting, expected] of [
    [1, 3, 3],
    [1, 64, 64],
    [1, 1_000, 64],
    [10, 25, 3],
    [2 ** 20, 1_000, 1],
  ] as const) {
    const { renewals, underWay, seen, finish, use } = byHand(maxUses);
    const all = Promise.all(Array.from({ length: waiting }, () => renewals.wait(use)));
    expect(underWay.length).toBe(expected);
    while (underWay.length > 0) {
      await finish();
    }
    const served = await all;
    expect([seen.most, seen.made]).toEqual([expected, Math.ceil(waiting / maxUses)]);
    expect(new Set(served).size).toBe(Math.ceil(waiting / maxUses));
    expect(served.every((one) => one !== undefined && one.uses <= maxUses)).toBe(true);
  }
});

test("who waits is served first come first served, in the moment in which the local KEK is there", async () => {
  const { renewals, finish } = byHand(1);
  const order: number[] = [];
  for (let caller = 0; caller < 5; caller++) {
    void renewals.wait((fresh) => {
      fresh.uses += 1;
      order.push(caller);
    });
  }
  await finish();
  await finish();
  expect(order).toEqual([0, 1]);
});

test("two seconds are a caller's, counted from when it came, and leave no timer", async () => {
  const { renewals, clock, use } = byHand(1);
  const ends: (readonly [number, unknown])[] = [];
  const wait = () => renewals.wait(use).then((got) => ends.push([clock.nowMs(), got] as const));
  void wait();
  await clock.pass(1_500);
  void wait();
  await clock.pass(3_000);
  expect(ends).toEqual([
    [2_000, undefined],
    [3_500, undefined],
  ]);
  expect([clock.timers, renewals.isUnderWay]).toEqual([0, true]);
});

test("after a failure only as many wait on as those under way can serve", async () => {
  const { renewals, clock, seen, finish, use } = byHand(1);
  const ends: unknown[] = [];
  for (let caller = 0; caller < 70; caller++) {
    void renewals.wait(use).then((got) => ends.push(got));
  }
  await finish(true);
  expect(ends).toEqual(Array(7).fill(undefined)); // 63 are under way, and none begins any more
  for (let left = 0; left < 63; left++) {
    await finish(left % 2 === 0);
  }
  expect(ends.length).toBe(70);
  expect([seen.made, seen.failures, clock.timers, renewals.isHopeful]).toEqual([64, 1, 0, false]);
  await clock.pass(4_999);
  renewals.begin();
  expect(seen.made).toBe(64);
  await clock.pass(1);
  renewals.begin();
  expect(seen.made).toBe(65);
});

test("a well probe ends the pause after a failure", async () => {
  const { renewals, seen, finish } = byHand(1);
  renewals.begin();
  await finish(true);
  renewals.begin();
  expect(seen.made).toBe(1);
  renewals.endPause();
  renewals.begin();
  renewals.begin(); // one is under way already
  expect(seen.made).toBe(2);
});

test("while Key4C is known not to answer none is begun, and nobody waits", async () => {
  const { renewals, clock, seen, use, setFutile } = byHand(1);
  setFutile();
  renewals.begin();
  expect([renewals.isHopeful, await renewals.wait(use)]).toEqual([false, undefined]);
  expect([seen.made, clock.timers]).toEqual([0, 0]);
});

test("a use that throws is that caller's own failure", async () => {
  const { renewals, finish, use } = byHand(1);
  const failing = renewals.wait(() => {
    throw UNAVAILABLE;
  });
  const other = renewals.wait(use);
  const kind = kindOf(failing);
  await finish();
  expect([await kind, (await other)?.uses]).toEqual(["unavailable", 1]);
});
