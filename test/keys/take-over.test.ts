/** A key continues with what an earlier process kept; and says what the next one may have. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { PluginError } from "../../src/failures/plugin-error.ts";
import type { Envelope } from "../../src/keys/envelope.ts";
import { LocalKek } from "../../src/keys/envelope.ts";
import { Holdings } from "../../src/keys/holdings.ts";
import type { Handover, Holding } from "../../src/keys/keeper.ts";
import { CacheSpace, type Kept } from "../../src/keys/kek-cache.ts";
import { TestClock, within } from "../clock.ts";
import { kindOf } from "../support.ts";
import { FakeKey4C, plugin, type RingOptions, ready, verdict } from "./fake-key4c.ts";

const DEK = randomBytes(32);
const HOUR_MS = 3_600_000;
const UNAVAILABLE = new PluginError("unavailable", "fake");

/** Keeps what keys tell it, by key. */
class FakeKeeper {
  /** What keys called, in their order. */
  readonly calls: string[] = [];
  readonly holdings = new Map<string, () => Holding>();
  readonly #handed = new Map<string, PromiseWithResolvers<Handover | undefined>>();

  readonly keeper = (kmsKeyId: string, holding: () => Holding) => {
    this.holdings.set(kmsKeyId, holding);
    return {
      handover: this.#of(kmsKeyId).promise,
      confirmed: () => void this.calls.push("confirmed"),
      more: (which: string) => void this.calls.push(`more ${which}`),
      fewer: (which: string) => void this.calls.push(`fewer ${which}`),
    };
  };

  #of(kmsKeyId: string) {
    const handed = this.#handed.get(kmsKeyId) ?? Promise.withResolvers<Handover | undefined>();
    this.#handed.set(kmsKeyId, handed);
    return handed;
  }

  handOver(handover: Handover | undefined, kmsKeyId = "demo"): void {
    this.#of(kmsKeyId).resolve(handover);
  }

  holding(kmsKeyId = "demo"): Holding {
    return this.holdings.get(kmsKeyId)?.() ?? { current: undefined, canary: undefined, others: [] };
  }
}

/** As a file keeps it: other objects. */
function copy({ header, localKek }: Kept): Kept {
  const copied = new LocalKek(localKek.copyBytes());
  copied.isProven = true;
  return { header, localKek: copied };
}

/** What an earlier process held: a canary, another one, and a current one; and a DEK under each. */
async function earlier(key4c: FakeKey4C, kmsKeyId = "demo") {
  const former = await ready(key4c, { maxUses: 1, kmsKeyId });
  const envelopes: Envelope[] = [];
  for (const _ of [1, 2, 3]) {
    envelopes.push((await former.wrap(DEK)).envelope);
  }
  const { key } = former;
  const current = copy(key.current as Kept);
  const others = key.holds.filter((one) => one.header !== current.header).map(copy);
  const [canary, ...rest] = others;
  return {
    envelopes,
    handover: { current, canary, others: rest, confirmedMsAgo: 0, untilMs: 1e12 },
  };
}

/** A plugin that starts after it. */
async function restarted(options: RingOptions & { confirmedMsAgo?: number } = {}) {
  const { confirmedMsAgo = 0, ...rest } = options;
  const key4c = new FakeKey4C();
  const former = await earlier(key4c, rest.kmsKeyId);
  const keeper = new FakeKeeper();
  const started = plugin(key4c, { keeper: keeper.keeper, ...rest });
  const handover: Handover = { ...former.handover, confirmedMsAgo };
  const reads = async () => {
    const opened = former.envelopes.map((one) => started.ring.unwrap(one));
    return (await Promise.all(opened.map(kindOf))).filter((kind) => kind === "ok").length;
  };
  const states = () => started.lines.flatMap(({ state }) => (state ? [String(state)] : []));
  return { ...started, ...former, key4c, keeper, handover, reads, states };
}

test("the first probe fails: what was kept is used at once, degraded, and nothing says that there is nothing", async () => {
  const { key4c, keeper, handover, health, ring, clock, reads, lines, states, key } =
    await restarted();
  key4c.failure = UNAVAILABLE;
  keeper.handOver(handover);
  health.start();
  const told = await within(clock, 100, ring.status());
  expect(told.header).toBe((handover.current as Kept).header);
  expect(key.pinned.map(({ header }) => header)).toEqual(
    [handover.current, handover.canary].map((one) => (one as Kept).header),
  );
  expect(await reads()).toBe(3);
  const { envelope } = await ring.wrap(DEK);
  expect(await ring.unwrap(envelope)).toEqual(DEK);
  expect(states()).toEqual(["degraded"]);
  expect(lines).toContainEqual(
    expect.objectContaining({ level: "warn", localKeks: 3, confirmedSecondsAgo: 0, cause: "fake" }),
  );
  // Key4C is back: a new local KEK, and all is confirmed.
  key4c.failure = undefined;
  await clock.pass(10_000);
  expect(health.state).toBe("ok");
  expect(key.current?.header).not.toBe((handover.current as Kept).header);
  expect(key.takenOver).toBeUndefined();
  expect(keeper.calls).toContain("confirmed");
});

test("the first probe hangs: what was kept is used after 1.5 s, within the 2 s that Status waits", async () => {
  const { key4c, keeper, handover, health, ring, clock, reads, states } = await restarted();
  const { promise, resolve } = Promise.withResolvers<void>();
  key4c.gate = promise;
  keeper.handOver(handover);
  health.start();
  const status = ring.status();
  await clock.pass(1_499);
  expect(ring.isReady).toBe(false);
  await clock.pass(1);
  expect((await status).header).toBe((handover.current as Kept).header);
  expect(health.state).toBe("degraded");
  expect(await reads()).toBe(3);
  resolve();
  await clock.pass(100);
  expect(states()).toEqual(["degraded", "ok"]);
});

test("Key4C comes first: where it answers in time, what was kept is held for reads and nothing else", async () => {
  const { key4c, keeper, handover, health, clock, reads, key, states } = await restarted();
  key4c.pace = () => new Promise((resolve) => clock.after(300, () => resolve(undefined)));
  keeper.handOver(handover);
  health.start();
  await clock.pass(500);
  expect(key.holds).toEqual([]);
  await clock.pass(1_000);
  expect(key.current?.header).not.toBe((handover.current as Kept).header);
  expect(key.takenOver).toBeUndefined();
  key4c.calls.unwrap = 0;
  expect(await reads()).toBe(3);
  expect(key4c.calls.unwrap).toBe(0);
  expect(states()).toEqual(["ok"]);
});

test("what is not taken yet stays kept, whatever is written meanwhile", async () => {
  const { keeper, handover, health, clock, key } = await restarted();
  keeper.handOver(handover);
  await clock.pass(0);
  expect(keeper.holding().others).toHaveLength(3);
  health.start();
  await clock.pass(100);
  expect(key.current).toBeDefined();
  expect(keeper.holding().current).toBe(key.current as Kept);
  expect(keeper.holding().others).toHaveLength(3);
});

test("a local KEK that has opened nothing, such as a wrong answer, is not kept for the next process", async () => {
  const { handover } = await restarted();
  const [one] = handover.others as [Kept];
  const held = new Holdings(new CacheSpace(8, new TestClock()));
  one.localKek.isProven = false;
  held.keep(one);
  expect(held.holding.others).toEqual([]);
  one.localKek.isProven = true;
  expect(held.holding.others).toMatchObject([one]);
});

test("another key was configured before the restart: what is kept of the previous one is only read", async () => {
  const configured = { kmsKeyId: () => "next", previousIds: () => ["demo"] };
  const { key4c, keeper, handover, health, ring, clock, reads } = await restarted({ configured });
  key4c.failure = UNAVAILABLE;
  keeper.handOver(handover);
  keeper.handOver(undefined, "next");
  health.start();
  await clock.pass(10_000);
  expect(await kindOf(ring.status())).toBe("unavailable");
  expect(await reads()).toBe(3);
  key4c.failure = undefined;
  await clock.pass(60_000);
  expect((await ring.status()).kmsKeyId).toBe("next");
});

test("what comes late, such as a directory that another plugin had, is still used", async () => {
  const { key4c, keeper, handover, health, ring, clock, reads } = await restarted();
  key4c.failure = UNAVAILABLE;
  health.start();
  await clock.pass(60_000);
  expect(await kindOf(ring.status())).toBe("unavailable");
  keeper.handOver(handover);
  await clock.pass(0);
  expect(await kindOf(ring.status())).toBe("ok");
  expect(await reads()).toBe(3);
});

test("a key that is disabled meanwhile is pending as in a process that runs, and then revoked", async () => {
  const { key4c, keeper, handover, health, ring, clock, reads, key } = await restarted();
  key4c.failure = verdict("keyUnusable");
  keeper.handOver(handover);
  health.start();
  await clock.pass(59_000);
  expect(await kindOf(ring.status())).toBe("ok");
  expect(await reads()).toBe(3);
  expect(keeper.calls).not.toContain("fewer all");
  await clock.pass(5_000);
  expect(health.state).toBe("revoked");
  expect(keeper.calls.at(-1)).toBe("fewer all");
  expect(await reads()).toBe(0);
  expect(key.holds).toEqual([]);
  expect((handover.current as Kept).localKek.isDropped).toBe(true);
});

test.each(["before", "after"])(
  "with KMS_REVOCATION_GRACE 0s the first answer counts; what was kept came %s it",
  async (when) => {
    const { key4c, keeper, handover, health, clock, reads } = await restarted({
      revocationGraceMs: 0,
    });
    key4c.failure = verdict("keyUnusable");
    if (when === "before") {
      keeper.handOver(handover);
    }
    health.start();
    await clock.pass(2_000);
    keeper.handOver(handover);
    await clock.pass(2_000);
    expect(health.state).toBe("revoked");
    expect(await reads()).toBe(0);
    expect(keeper.calls.at(-1)).toBe("fewer all");
    const kept = [handover.current, handover.canary, ...handover.others] as Kept[];
    expect(kept.map(({ localKek }) => localKek.isDropped)).toEqual([true, true, true]);
  },
);

test("KMS_OUTAGE_GRACE counts from the last confirmation of the earlier process", async () => {
  const { key4c, keeper, handover, health, ring, clock, reads } = await restarted({
    outageGraceMs: HOUR_MS,
    confirmedMsAgo: HOUR_MS - 60_000,
  });
  key4c.failure = UNAVAILABLE;
  keeper.handOver(handover);
  health.start();
  await clock.pass(50_000);
  expect(await kindOf(ring.status())).toBe("ok");
  await clock.pass(20_000);
  expect(health.state).toBe("expired");
  expect(await kindOf(ring.status())).toBe("unavailable");
  expect(await reads()).toBe(3);
});

test("an outage that was already longer than KMS_OUTAGE_GRACE serves reads alone from the start", async () => {
  const { key4c, keeper, handover, health, ring, clock, reads, states } = await restarted({
    outageGraceMs: HOUR_MS,
    confirmedMsAgo: 2 * HOUR_MS,
  });
  key4c.failure = UNAVAILABLE;
  keeper.handOver(handover);
  health.start();
  await clock.pass(10);
  expect(states()).toEqual(["expired"]);
  expect(await kindOf(ring.status())).toBe("unavailable");
  expect(await reads()).toBe(3);
});

test("Key4C does not unwrap what was kept: a mismatch, as in a process that runs, and not a new local KEK over it", async () => {
  const { key4c, keeper, handover, health, ring, clock, reads, key } = await restarted();
  key4c.failure = UNAVAILABLE;
  keeper.handOver(handover);
  health.start();
  await clock.pass(1_000);
  key4c.failure = undefined;
  key4c.replaceMaterial();
  await clock.pass(60_000);
  expect(health.state).toBe("mismatch");
  expect(key.current?.header).toBe((handover.current as Kept).header);
  expect(await kindOf(ring.status())).toBe("mismatch");
  expect(await reads()).toBe(3);
  // What is orphaned is kept for no later process.
  expect(keeper.calls).toContain("fewer some");
  expect(keeper.holding().current).toBeUndefined();
});

test("a higher version that Key4C tells after it is followed", async () => {
  const { key4c, keeper, handover, health, clock, key } = await restarted();
  key4c.failure = UNAVAILABLE;
  keeper.handOver(handover);
  health.start();
  await clock.pass(1_000);
  key4c.failure = undefined;
  key4c.version = 2;
  await clock.pass(10_000);
  expect(health.state).toBe("ok");
  expect(key.current?.header.keyVersion).toBe(2);
});

test("where Key4C unwraps and does not wrap, what was kept goes on wrapping", async () => {
  const { key4c, keeper, handover, health, ring, clock } = await restarted();
  key4c.wrap = () => Promise.reject(new PluginError("denied", "fake: no right"));
  keeper.handOver(handover);
  health.start();
  await clock.pass(60_000);
  expect(health.state).toBe("degraded");
  expect(await kindOf(ring.wrap(DEK))).toBe("ok");
});

test("2^32 uses are those of all processes; KMS_LOCAL_KEK_MAX_USES is of this one", async () => {
  const { key4c, keeper, handover, health, ring, clock } = await restarted({ maxUses: 100 });
  key4c.failure = UNAVAILABLE;
  (handover.current as Kept).localKek.usesBefore = 2 ** 32 - 2;
  keeper.handOver(handover);
  health.start();
  await clock.pass(100);
  expect([
    await kindOf(ring.wrap(DEK)),
    await kindOf(ring.wrap(DEK)),
    await kindOf(ring.wrap(DEK)),
  ]).toEqual(["ok", "ok", "unavailable"]);
  expect(ring.overLimit).toBe(0);
});

test("a previous key is read from what was kept of it, and wraps nothing", async () => {
  const key4c = new FakeKey4C();
  const [former, current] = [await earlier(key4c, "old"), await earlier(key4c, "new")];
  const keeper = new FakeKeeper();
  const { ring, health, clock } = plugin(key4c, {
    kmsKeyId: "new",
    previousKeyIds: ["old"],
    keeper: keeper.keeper,
  });
  key4c.failure = UNAVAILABLE;
  keeper.handOver(former.handover, "old");
  keeper.handOver(current.handover, "new");
  health.start();
  await clock.pass(2_000);
  for (const envelope of [...former.envelopes, ...current.envelopes]) {
    expect(await kindOf(ring.unwrap(envelope))).toBe("ok");
  }
  const old = ring.member("old").key;
  expect([old.current, old.takenOver, old.health.failure?.kind]).toEqual([
    undefined,
    undefined,
    "unavailable",
  ]);
  expect(old.pinned.map(({ header }) => header)).toEqual([(former.handover.canary as Kept).header]);
  expect(ring.snapshot?.kmsKeyId).toBe("new");
});

test("a probe that had local KEKs unwrapped confirms them, and none that only described", async () => {
  const key4c = new FakeKey4C();
  const keeper = new FakeKeeper();
  keeper.handOver(undefined);
  keeper.handOver(undefined, "old");
  const { envelopes } = await earlier(key4c, "old");
  const { ring, health, clock } = plugin(key4c, { previousKeyIds: ["old"], keeper: keeper.keeper });
  health.start();
  await clock.pass(100);
  expect(keeper.calls).toEqual(["more current", "confirmed"]);
  keeper.calls.length = 0;
  await ring.unwrap(envelopes[0] as Envelope);
  expect(keeper.calls).toEqual(["more other"]);
  keeper.calls.length = 0;
  await clock.pass(30_000 * 20);
  // 20 or 21 probes of the current key, and a tenth of as many of the other one's canary.
  expect(keeper.calls.length).toBeGreaterThanOrEqual(21);
  expect(keeper.calls.length).toBeLessThanOrEqual(24);
  expect(new Set(keeper.calls)).toEqual(new Set(["confirmed"]));
  keeper.calls.length = 0;
  key4c.failure = UNAVAILABLE;
  await clock.pass(120_000);
  expect(keeper.calls).toEqual([]);
});
