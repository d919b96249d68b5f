/** Faults that last, in the test's time: keyring and probes together, as `serve` joins them. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { PluginError } from "../../src/failures/plugin-error.ts";
import type { State } from "../../src/keys/key-health.ts";
import type { Wrapped } from "../../src/keys/keyring.ts";
import { within } from "../clock.ts";
import { changing, FakeKey4C, plugin, ready, verdict } from "../keys/fake-key4c.ts";
import { kindOf } from "../support.ts";

const DEK = randomBytes(32);
const SECOND_MS = 1_000;
const MINUTE_MS = 60_000;
const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const UNAVAILABLE = new PluginError("unavailable", "fake");
/** Interval with jitter, the ten seconds of a mismatch, and a probe more. */
const MISMATCH_BOUND_MS = 1.1 * 30_000 + 10_000 + 3_000;

/** A plugin that is well. */
async function well(...[key4c, options]: Parameters<typeof plugin>) {
  const parts = plugin(key4c, options);
  const { health, clock, ring } = parts;
  health.start();
  await clock.pass(0);
  expect(health.state).toBe("ok");
  /** Whether Status and Encrypt say the same, and what. */
  const answers = async () => {
    const status = await kindOf(ring.status());
    const encrypt = await kindOf(within(clock, 3_000, ring.wrap(DEK)));
    expect(status).toBe(encrypt);
    return status;
  };
  /** Passes time until the state is entered. @returns how much */
  const until = async (state: State, maxMs: number) => {
    const beganMs = clock.nowMs();
    while (health.state !== state) {
      if (clock.nowMs() - beganMs >= maxMs) {
        throw new Error(`still ${health.state} after ${maxMs} ms`);
      }
      await clock.pass(Math.min(100, maxMs));
    }
    return clock.nowMs() - beganMs;
  };
  return { ...parts, answers, until };
}

function hasNo(key4c: FakeKey4C, missing: string): void {
  const describe = key4c.describe.bind(key4c);
  key4c.describe = async (kmsKeyId) => {
    if (kmsKeyId === missing) {
      throw verdict("keyNotFound");
    }
    return describe(kmsKeyId);
  };
}

/** What a plugin that is started now can read of it. */
async function readByFresh(key4c: FakeKey4C, wrapped: readonly Wrapped[]): Promise<string[]> {
  const ring = await ready(key4c);
  return Promise.all(wrapped.map(({ envelope }) => kindOf(ring.unwrap(envelope))));
}

test("replaced material: a mismatch within its bound, nothing written after it, what is known is read", async () => {
  const key4c = new FakeKey4C();
  const { ring, health, clock, lines, answers, until } = await well(key4c);
  const before = await ring.wrap(DEK);
  key4c.replaceMaterial();
  await until("mismatch", MISMATCH_BOUND_MS);
  expect(await answers()).toBe("mismatch");
  expect(await ring.unwrap(before.envelope)).toEqual(DEK);
  await clock.pass(SECOND_MS);
  expect(ring.orphans).toBe(1);
  const errors = lines.filter(({ level }) => level === "error");
  const fingerprint = Buffer.from(before.envelope.header.fingerprint).toString("hex").slice(0, 16);
  expect(errors.map(({ msg }) => msg)).toEqual([
    "Key4C does not unwrap a local KEK that it wrapped; Status and Encrypt fail, so that nothing more is lost; known local KEKs still decrypt",
    "local KEKs are orphaned: Key4C does not unwrap them, this process can still read",
  ]);
  expect(errors[0]).toMatchObject({
    kind: "mismatch",
    cause: expect.stringContaining(fingerprint),
  });
  await clock.pass(DAY_MS);
  expect([health.state, await answers()]).toEqual(["mismatch", "mismatch"]);
  expect(await ring.unwrap(before.envelope)).toEqual(DEK);
  expect(lines.filter(({ level }) => level === "error").length).toBe(2); // in a day
});

test("replaced material is found although every tenth Encrypt has a new local KEK", async () => {
  const key4c = new FakeKey4C();
  const { ring, clock, health } = await well(key4c, { maxUses: 10 });
  const written: (Wrapped & { readonly atMs: number })[] = [];
  const write = async (forMs: number) => {
    for (const endMs = clock.nowMs() + forMs; clock.nowMs() < endMs; await clock.pass(200)) {
      const wrapped = await within(clock, 3_000, ring.wrap(DEK)).catch(() => undefined);
      written.push(...(wrapped ? [{ ...wrapped, atMs: clock.nowMs() }] : []));
    }
  };
  await write(20 * SECOND_MS);
  key4c.replaceMaterial();
  const replacedAtMs = clock.nowMs();
  await write(MISMATCH_BOUND_MS);
  expect(health.state).toBe("mismatch");
  await write(10 * MINUTE_MS);
  const fresh = await readByFresh(key4c, written);
  const lost = written.filter((_, at) => fresh[at] !== "ok");
  expect(lost.length).toBeGreaterThan(10);
  for (const { atMs, envelope } of lost) {
    expect(atMs - replacedAtMs).toBeLessThanOrEqual(MISMATCH_BOUND_MS);
    expect(await ring.unwrap(envelope)).toEqual(DEK); // as long as the process lives
  }
});

test("a mismatch heals when Key4C gives the bytes back, and nothing is orphaned any more", async () => {
  const key4c = new FakeKey4C();
  const { ring, clock, answers, until } = await well(key4c);
  const { keyId } = await ring.wrap(DEK);
  const restore = key4c.replaceMaterial();
  await until("mismatch", MISMATCH_BOUND_MS);
  await clock.pass(HOUR_MS);
  restore();
  await until("ok", 6 * SECOND_MS);
  await clock.pass(SECOND_MS);
  expect([await answers(), ring.orphans]).toEqual(["ok", 0]);
  expect((await ring.wrap(DEK)).keyId).toBe(keyId);
});

test("a mismatch heals by a rotation; the orphaned are read on, and asked for every five minutes", async () => {
  const key4c = new FakeKey4C();
  const { ring, clock, answers, until } = await well(key4c);
  const lost = await ring.wrap(DEK);
  const restore = key4c.replaceMaterial();
  await until("mismatch", MISMATCH_BOUND_MS);
  key4c.version = 2;
  await until("ok", 6 * SECOND_MS);
  const after = await ring.wrap(DEK);
  expect([await answers(), after.keyId.slice(-3)]).toEqual(["ok", ".v2"]);
  expect(await ring.unwrap(lost.envelope)).toEqual(DEK);
  expect(await readByFresh(key4c, [lost, after])).toEqual(["invalid", "ok"]);
  await clock.pass(MINUTE_MS);
  key4c.calls = { describe: 0, wrap: 0, unwrap: 0 };
  await clock.pass(HOUR_MS);
  const asked = key4c.calls.unwrap - key4c.calls.describe; // a probe asks for one
  expect(asked).toBeGreaterThanOrEqual(10);
  expect(asked).toBeLessThanOrEqual(12);
  expect([key4c.calls.wrap, ring.orphans]).toEqual([0, 1]);
  restore();
  await clock.pass(6 * MINUTE_MS);
  expect(ring.orphans).toBe(0);
});

test("a mismatch heals when another key is named; nothing is restarted", async () => {
  const key4c = new FakeKey4C();
  const { now, configured } = changing("demo");
  const { ring, lines, answers, until } = await well(key4c, { configured });
  const lost = await ring.wrap(DEK);
  key4c.replaceMaterial();
  await until("mismatch", MISMATCH_BOUND_MS);
  now.current = "other";
  await until("ok", 6 * SECOND_MS);
  expect([await answers(), ring.key.kmsKeyId]).toEqual(["ok", "other"]);
  expect(lines.map(({ msg }) => msg)).toContain("another key wraps from now on");
  expect(await ring.unwrap(lost.envelope)).toEqual(DEK);
});

test("a Key4C that gives back nothing at all is an outage, for however long", async () => {
  const key4c = new FakeKey4C();
  const { ring, health, clock, answers, until } = await well(key4c);
  const before = await ring.wrap(DEK);
  key4c.mangle = () => randomBytes(32);
  await until("degraded", 34 * SECOND_MS);
  await clock.pass(DAY_MS);
  expect([health.state, ring.key.health.failure?.kind]).toEqual(["degraded", "unavailable"]);
  expect([await answers(), ring.orphans]).toEqual(["ok", 0]);
  key4c.mangle = (bytes) => bytes;
  await until("ok", 6 * SECOND_MS);
  expect(await readByFresh(key4c, [before])).toEqual(["ok"]);
});

test("after a 503 of 3 s only version 2 is there: it becomes current, and not a mismatch", async () => {
  const key4c = new FakeKey4C();
  const { ring, clock, answers, until, lines } = await well(key4c);
  key4c.failure = UNAVAILABLE;
  await until("degraded", 34 * SECOND_MS);
  await clock.pass(3 * SECOND_MS);
  key4c.replaceMaterial(); // version 1 was destroyed
  key4c.version = 2;
  key4c.failure = undefined;
  await until("ok", 6 * SECOND_MS);
  expect([await answers(), (await ring.wrap(DEK)).keyId.slice(-3)]).toEqual(["ok", ".v2"]);
  await clock.pass(SECOND_MS);
  expect(ring.orphans).toBe(1);
  expect(lines.filter(({ state }) => state === "mismatch")).toEqual([]);
});

test("a replica that lags is no mismatch for ten minutes, and says what it is", async () => {
  const key4c = new FakeKey4C();
  key4c.version = 2;
  const { ring, health, clock, answers, until } = await well(key4c);
  const restore = key4c.replaceMaterial(); // it does not know version 2 yet
  key4c.version = 1;
  await until("degraded", 34 * SECOND_MS);
  await clock.pass(9 * MINUTE_MS);
  expect([health.state, ring.key.health.failure?.kind]).toEqual(["degraded", "olderVersion"]);
  expect([await answers(), (await ring.wrap(DEK)).keyId.slice(-3)]).toEqual(["ok", ".v2"]);
  restore();
  key4c.version = 2;
  await until("ok", 6 * SECOND_MS);
  expect(ring.orphans).toBe(0);
});

test("an older version that stays, and does not unwrap, is a mismatch after ten minutes", async () => {
  const key4c = new FakeKey4C();
  key4c.version = 2;
  const { until, answers } = await well(key4c);
  key4c.replaceMaterial();
  key4c.version = 1;
  await until("degraded", 34 * SECOND_MS);
  const afterMs = await until("mismatch", 11 * MINUTE_MS);
  expect(afterMs).toBeGreaterThanOrEqual(10 * MINUTE_MS);
  expect(await answers()).toBe("mismatch");
});

test("an older version that gives back lets all go on, under the version that was, and is told", async () => {
  const key4c = new FakeKey4C();
  key4c.version = 3;
  const { ring, health, clock, answers, lines } = await well(key4c, { maxUses: 10 });
  key4c.version = 2;
  await clock.pass(DAY_MS);
  expect([health.state, ring.key.health.failure?.kind]).toEqual(["degraded", "olderVersion"]);
  for (let round = 0; round < 50; round++) {
    expect(await answers()).toBe("ok");
    await clock.pass(SECOND_MS);
  }
  expect([ring.snapshot?.header.keyVersion, ring.overLimit > 0]).toEqual([3, true]);
  expect(lines).toContainEqual(
    expect.objectContaining({
      level: "warn",
      state: "degraded",
      kind: "olderVersion",
      cause: "Key4C tells version 2 of the key, after 3",
    }),
  );
});

test("an absurd version, told once by describe, changes nothing; the probe says so and heals", async () => {
  const key4c = new FakeKey4C();
  const { ring, clock, until } = await well(key4c);
  key4c.told = () => 2 ** 32 - 1;
  await until("degraded", 34 * SECOND_MS);
  expect(ring.key.health.failure?.kind).toBe("olderVersion");
  key4c.told = () => key4c.version;
  await until("ok", SECOND_MS);
  await clock.pass(DAY_MS);
  expect((await ring.wrap(DEK)).keyId).toEndWith(".v1");
});

test.each(["unavailable", "throttled", "denied"] as const)(
  "%s for a day revokes nothing, of the current key or a previous one",
  async (kind) => {
    const key4c = new FakeKey4C();
    const old = await (await ready(key4c, { kmsKeyId: "old" })).wrap(DEK);
    const { ring, health, clock, answers, until } = await well(key4c, { previousKeyIds: ["old"] });
    const before = await ring.wrap(DEK);
    expect(await ring.unwrap(old.envelope)).toEqual(DEK);
    key4c.failure = new PluginError(kind, "fake");
    key4c.calls = { describe: 0, wrap: 0, unwrap: 0 };
    await clock.pass(DAY_MS);
    expect([health.state, await answers()]).toEqual(["degraded", "ok"]);
    for (const { envelope } of [before, old]) {
      expect(await ring.unwrap(envelope)).toEqual(DEK);
    }
    key4c.failure = undefined;
    await until("ok", 33 * SECOND_MS);
    expect(await readByFresh(key4c, [before])).toEqual(["ok"]);
  },
  120_000,
);

test("Retry-After: 3600 is obeyed for five minutes at a time, and Decrypts do not ask between", async () => {
  const key4c = new FakeKey4C();
  const unknown = await (await ready(key4c)).wrap(DEK);
  const { ring, clock, until } = await well(key4c);
  key4c.failure = new PluginError("throttled", "fake", { retryAfterMs: HOUR_MS });
  await until("degraded", 34 * SECOND_MS);
  key4c.calls = { describe: 0, wrap: 0, unwrap: 0 };
  for (let minute = 0; minute < 60; minute++) {
    expect(await kindOf(ring.unwrap(unknown.envelope))).toBe("throttled");
    await clock.pass(MINUTE_MS);
  }
  expect(key4c.calls.describe).toBeGreaterThanOrEqual(11);
  expect(key4c.calls.describe).toBeLessThanOrEqual(12);
  expect(key4c.calls.unwrap).toBe(key4c.calls.describe); // those of the probes
});

test("a disabled key is revoked within its bound, by its grace, and healed when it is enabled", async () => {
  for (const [revocationGraceMs, boundMs] of [
    [0, 33 * SECOND_MS],
    [MINUTE_MS, 33 * SECOND_MS + MINUTE_MS + 6 * SECOND_MS],
  ] as const) {
    const key4c = new FakeKey4C();
    const { ring, answers, until } = await well(key4c, { revocationGraceMs });
    const { envelope } = await ring.wrap(DEK);
    key4c.failure = verdict("keyUnusable");
    await until("revoked", boundMs);
    expect([await answers(), await kindOf(ring.unwrap(envelope))]).toEqual([
      "keyUnusable",
      "keyUnusable",
    ]);
    key4c.failure = undefined;
    await until("ok", 6 * SECOND_MS);
    expect(await ring.unwrap(envelope)).toEqual(DEK);
  }
});

test("no such key, for a day: nothing is dropped, nothing acknowledged after the grace", async () => {
  const key4c = new FakeKey4C();
  const { ring, clock, lines, answers, until } = await well(key4c);
  const { envelope } = await ring.wrap(DEK);
  key4c.failure = verdict("keyNotFound");
  const afterMs = await until("mismatch", 33 * SECOND_MS + MINUTE_MS + 6 * SECOND_MS);
  expect(afterMs).toBeGreaterThanOrEqual(MINUTE_MS);
  expect(await answers()).toBe("keyNotFound");
  await clock.pass(DAY_MS);
  expect(await ring.unwrap(envelope)).toEqual(DEK);
  expect(ring.orphans).toBe(0);
  expect(lines.at(-1)).toMatchObject({
    level: "error",
    msg: "Key4C knows no such key; Status and Encrypt fail, so that nothing more is lost; known local KEKs still decrypt",
  });
  key4c.failure = undefined;
  await until("ok", 6 * SECOND_MS);
});

test("an outage that ends is noticed in half a second by who waits, in 2 s after a long one", async () => {
  const key4c = new FakeKey4C();
  const unknown = await (await ready(key4c)).wrap(DEK);
  for (const [outageMs, boundMs] of [
    [10 * SECOND_MS, 500],
    [HOUR_MS, 2_000],
  ] as const) {
    const { ring, clock, until } = await well(key4c, { cacheSize: 0 });
    key4c.failure = UNAVAILABLE;
    const decrypt = () => kindOf(ring.unwrap(unknown.envelope));
    for (const endMs = clock.nowMs() + outageMs; clock.nowMs() < endMs; await clock.pass(100)) {
      expect(await decrypt()).toBe("unavailable");
    }
    key4c.failure = undefined;
    const beganMs = clock.nowMs();
    while ((await decrypt()) !== "ok") {
      await clock.pass(10);
    }
    expect(clock.nowMs() - beganMs).toBeLessThanOrEqual(boundMs);
    await until("ok", 1);
  }
});

test("a previous key is looked after while the current one is revoked, or a mismatch", async () => {
  const old = (kmsKeyId: string) => kmsKeyId === "old";
  for (const kind of ["keyUnusable", "keyNotFound"] as const) {
    const key4c = new FakeKey4C();
    const { clock, ring, until } = await well(key4c, { previousKeyIds: ["old"] });
    const failures = new Map<boolean, PluginError>([[false, verdict(kind)]]);
    const describe = key4c.describe.bind(key4c);
    key4c.describe = async (kmsKeyId) => {
      const failure = failures.get(old(kmsKeyId));
      if (failure !== undefined) {
        throw failure;
      }
      return describe(kmsKeyId);
    };
    await until(kind === "keyUnusable" ? "revoked" : "mismatch", 2 * MINUTE_MS);
    failures.set(true, UNAVAILABLE); // a short fault
    await clock.pass(MINUTE_MS);
    expect(ring.member("old").key.health.failure).toBe(UNAVAILABLE);
    failures.delete(true);
    await clock.pass(6 * SECOND_MS);
    expect(ring.member("old").key.health.failure).toBeUndefined();
    failures.set(true, verdict("keyUnusable"));
    await clock.pass(2 * MINUTE_MS);
    expect(ring.member("old").key.health.revocation).toBeDefined();
  }
});

test("a previous key that was throttled costs nothing while the current one is away", async () => {
  const key4c = new FakeKey4C();
  const { clock, ring, until } = await well(key4c, { previousKeyIds: ["old"] });
  ring.member("old").key.record(new PluginError("throttled", "fake"));
  key4c.failure = UNAVAILABLE;
  await until("degraded", 34 * SECOND_MS);
  let plans = 0;
  const after = clock.after.bind(clock);
  clock.after = (...args) => {
    plans += 1;
    return after(...args);
  };
  await clock.pass(MINUTE_MS);
  expect(plans).toBeLessThan(5 * 60); // not a thousand a second
});

test("a previous key that hangs keeps nobody waiting at the start", async () => {
  const key4c = new FakeKey4C();
  const describe = key4c.describe.bind(key4c);
  key4c.describe = (kmsKeyId) => (kmsKeyId === "old" ? new Promise(() => {}) : describe(kmsKeyId));
  const { health, ring, clock } = plugin(key4c, { previousKeyIds: ["old"] });
  health.start();
  await within(clock, 1, Promise.all([ring.status(), ring.wrap(DEK)]));
  expect(health.state).toBe("ok");
});

test("a configured key that cannot become current leaves the former one, and one line a cause", async () => {
  const key4c = new FakeKey4C();
  const { now, configured } = changing("demo");
  const { ring, health, clock, lines, answers } = await well(key4c, { configured });
  hasNo(key4c, "typo");
  now.current = "typo";
  await clock.pass(HOUR_MS);
  expect([health.keyChangeFailure?.kind, health.state, await answers()]).toEqual([
    "keyNotFound",
    "ok",
    "ok",
  ]);
  const failed = lines.filter(({ msg }) => String(msg).startsWith("the configured key does not"));
  expect(failed).toEqual([
    expect.objectContaining({
      level: "error",
      kmsKeyId: "typo",
      former: "demo",
      kind: "keyNotFound",
    }),
  ]);
  now.current = "right";
  await clock.pass(34 * SECOND_MS);
  expect([health.keyChangeFailure, ring.key.kmsKeyId, ring.snapshot?.kmsKeyId]).toEqual([
    undefined,
    "right",
    "right",
  ]);
});

test("a configured key that is taken back is no failure any more", async () => {
  const key4c = new FakeKey4C();
  const { now, configured } = changing("demo");
  const { health, clock } = await well(key4c, { configured });
  hasNo(key4c, "typo");
  now.current = "typo";
  await clock.pass(34 * SECOND_MS);
  expect(health.keyChangeFailure?.kind).toBe("keyNotFound");
  now.current = "demo";
  await clock.pass(34 * SECOND_MS);
  expect(health.keyChangeFailure).toBeUndefined();
});

test("a fresh process to which the local KEKs of its key are refused says so once", async () => {
  const key4c = new FakeKey4C();
  const lost: Wrapped[] = [];
  for (let count = 0; count < 5; count++) {
    lost.push(await (await ready(key4c)).wrap(DEK));
  }
  key4c.replaceMaterial();
  const { ring, clock, lines } = await well(key4c);
  for (const { envelope } of lost) {
    expect(await kindOf(ring.unwrap(envelope))).toBe("invalid");
    await clock.pass(MINUTE_MS);
  }
  const told = lines.filter(({ msg }) => String(msg).startsWith("Key4C has refused local KEKs"));
  expect(told).toEqual([expect.objectContaining({ level: "error", refused: 1 })]);
});

test("at rest a probe is one describe and one unwrap, or two where there is a witness", async () => {
  const key4c = new FakeKey4C();
  const { ring, clock } = await well(key4c, { maxUses: 2 });
  key4c.calls = { describe: 0, wrap: 0, unwrap: 0 };
  await clock.pass(DAY_MS);
  const { describe } = key4c.calls;
  expect(describe).toBeGreaterThan(2_870);
  expect(describe).toBeLessThanOrEqual(2_881);
  expect(key4c.calls).toEqual({ describe, wrap: 0, unwrap: describe });
  await ring.wrap(DEK);
  await ring.wrap(DEK);
  await ring.wrap(DEK); // another local KEK is current now
  await clock.pass(0);
  key4c.calls = { describe: 0, wrap: 0, unwrap: 0 };
  await clock.pass(HOUR_MS);
  expect(key4c.calls).toEqual({ describe: 120, wrap: 0, unwrap: 240 });
});

test("after stop there is no timer left", async () => {
  const key4c = new FakeKey4C();
  const { health, clock } = await well(key4c, { previousKeyIds: ["old", "older"] });
  await clock.pass(HOUR_MS);
  health.stop();
  await clock.pass(0);
  expect(clock.timers).toBe(0);
});
