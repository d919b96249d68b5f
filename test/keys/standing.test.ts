/**
 * The table of answers, cell by cell: what each leads to in each state, what it refuses, when the next probe comes,
 * and what becomes of it when it stays for a week.
 */
import { expect, test } from "bun:test";
import fc from "fast-check";
import type { ErrorKind } from "../../src/failures/kinds.ts";
import { PluginError } from "../../src/failures/plugin-error.ts";
import {
  type Limits,
  MISMATCH_MS,
  STATES,
  Standing,
  Standings,
  type State,
  VERDICT_ANSWERS,
} from "../../src/keys/standing.ts";
import { TestClock } from "../clock.ts";
import { holds } from "../properties.ts";

const SECOND_MS = 1_000;
const MINUTE_MS = 60_000;
const WEEK_MS = 7 * 24 * 60 * MINUTE_MS;
const INTERVAL_MS = 30 * SECOND_MS;

/** KMS_OUTAGE_GRACE without limit, KMS_REVOCATION_GRACE 60s. */
const DEFAULTS: Limits = { outageGraceMs: undefined, revocationGraceMs: MINUTE_MS };

/** What a probe can hear, by the name of its row; `ok` is a success. */
const HEARD = {
  ok: undefined,
  unavailable: new PluginError("unavailable", "fake"),
  throttled: new PluginError("throttled", "fake"),
  "throttled for 90s": new PluginError("throttled", "fake", { retryAfterMs: 90 * SECOND_MS }),
  denied: new PluginError("denied", "fake"),
  "denied by its code": new PluginError("denied", "fake", { isVerdict: true }),
  keyUnusable: new PluginError("keyUnusable", "fake", { isVerdict: true }),
  "keyUnusable by a status": new PluginError("keyUnusable", "fake"),
  keyNotFound: new PluginError("keyNotFound", "fake", { isVerdict: true }),
  "keyNotFound by a status": new PluginError("keyNotFound", "fake"),
  mismatch: new PluginError("mismatch", "fake"),
  olderVersion: new PluginError("olderVersion", "fake"),
  invalid: new PluginError("invalid", "fake", { isVerdict: true }),
  internal: new PluginError("internal", "fake"),
} as const;
type Heard = keyof typeof HEARD;

/** A standing on a clock that the test moves. */
function stand(limits: Partial<Limits> = {}, hasLocalKek = true) {
  const clock = new TestClock();
  const standing = new Standing("demo", { ...DEFAULTS, ...limits }, clock);
  standing.hasLocalKek = hasLocalKek;
  return { clock, standing };
}

/**
 * Hears the same at every probe for so long, as often as the standing wants to be probed, and does what the keyring
 * does on a revocation.
 * @returns the states, each with the second it was entered in, and the number of probes
 */
function stays(
  { clock, standing }: ReturnType<typeof stand>,
  heard: Heard,
  forMs: number,
  intervalMs = INTERVAL_MS,
) {
  const beganMs = clock.nowMs();
  const states: string[] = [];
  let probes = 0;
  let last: State | undefined;
  while (clock.nowMs() - beganMs <= forMs) {
    standing.hear(HEARD[heard]);
    standing.hasLocalKek &&= standing.revocation === undefined;
    probes += 1;
    if (standing.state !== last) {
      last = standing.state;
      states.push(`${last} ${(clock.nowMs() - beganMs) / SECOND_MS}s`);
    }
    const afterMs = standing.probeAfterMs(intervalMs);
    if (!(afterMs >= 50)) {
      throw new Error(`${heard}: the next probe comes after ${afterMs} ms`);
    }
    clock.skip(afterMs);
  }
  return { states: states.join(", "), probes };
}

/** Brings a standing into a state, by the shortest way. */
const MET: Readonly<Record<State, () => ReturnType<typeof stand>>> = {
  starting() {
    return stand({ outageGraceMs: MINUTE_MS }, false);
  },
  ok() {
    const met = stand({ outageGraceMs: MINUTE_MS });
    met.standing.hear(undefined);
    return met;
  },
  degraded() {
    const met = MET.ok();
    met.standing.hear(HEARD.unavailable);
    return met;
  },
  expired() {
    const met = MET.ok();
    stays(met, "unavailable", MINUTE_MS);
    return met;
  },
  mismatch() {
    const met = MET.ok();
    stays(met, "mismatch", MISMATCH_MS);
    return met;
  },
  revoked() {
    const met = MET.ok();
    stays(met, "keyUnusable", MINUTE_MS);
    return met;
  },
};

/** One answer in each state; KMS_OUTAGE_GRACE 60s. In the order of STATES: starting, ok, degraded, expired, … */
const AFTER_ONE: Readonly<Record<Heard, readonly State[]>> = {
  ok: ["starting", "ok", "ok", "ok", "ok", "starting"],
  unavailable: ["starting", "degraded", "degraded", "expired", "mismatch", "revoked"],
  throttled: ["starting", "degraded", "degraded", "expired", "mismatch", "revoked"],
  "throttled for 90s": ["starting", "degraded", "degraded", "expired", "mismatch", "revoked"],
  denied: ["starting", "degraded", "degraded", "expired", "mismatch", "revoked"],
  "denied by its code": ["starting", "degraded", "degraded", "expired", "mismatch", "revoked"],
  keyUnusable: ["starting", "degraded", "degraded", "expired", "mismatch", "revoked"],
  "keyUnusable by a status": ["starting", "degraded", "degraded", "expired", "mismatch", "revoked"],
  keyNotFound: ["starting", "degraded", "degraded", "expired", "mismatch", "revoked"],
  "keyNotFound by a status": ["starting", "degraded", "degraded", "expired", "mismatch", "revoked"],
  mismatch: ["starting", "degraded", "degraded", "expired", "mismatch", "revoked"],
  olderVersion: ["starting", "degraded", "degraded", "degraded", "mismatch", "revoked"],
  invalid: ["starting", "degraded", "degraded", "expired", "mismatch", "revoked"],
  internal: ["starting", "degraded", "degraded", "expired", "mismatch", "revoked"],
};

test.each(Object.keys(AFTER_ONE) as Heard[])("one answer in each state: %s", (heard) => {
  const after: State[] = [];
  for (const state of STATES) {
    const { standing, clock } = MET[state]();
    expect(standing.state).toBe(state);
    standing.hear(HEARD[heard]);
    after.push(standing.state);
    const { refusal, revocation, memory } = standing;
    // What is acknowledged, and what is dropped, follows from the state alone.
    const isRefused = ["expired", "mismatch", "revoked"].includes(standing.state);
    expect([state, refusal !== undefined]).toEqual([state, isRefused]);
    expect([state, revocation !== undefined]).toEqual([state, standing.state === "revoked"]);
    expect(memory.failure).toBe(HEARD[heard]);
    expect(memory.lastSuccessMs).toBe(
      heard === "ok" ? clock.nowMs() : state === "starting" ? undefined : 0,
    );
  }
  expect(STATES.map((state, at) => `${state}: ${after[at]}`)).toEqual(
    STATES.map((state, at) => `${state}: ${AFTER_ONE[heard][at]}`),
  );
});

/** After the first such answer: whom it refuses, and after how many milliseconds the next probe comes; needed, too. */
const FIRST: Readonly<Record<Heard, readonly ["ofThisKey" | "ofAllKeys" | "no", number, number]>> =
  {
    ok: ["no", 30_000, 250],
    unavailable: ["ofAllKeys", 250, 250],
    throttled: ["ofThisKey", 1_000, 1_000],
    "throttled for 90s": ["ofThisKey", 90_000, 90_000],
    denied: ["ofAllKeys", 2_000, 2_000],
    "denied by its code": ["ofAllKeys", 2_000, 2_000],
    keyUnusable: ["ofThisKey", 2_000, 2_000],
    "keyUnusable by a status": ["ofThisKey", 250, 250],
    keyNotFound: ["ofThisKey", 2_000, 2_000],
    "keyNotFound by a status": ["ofThisKey", 250, 250],
    mismatch: ["no", 2_000, 2_000],
    olderVersion: ["no", 250, 250],
    invalid: ["ofAllKeys", 250, 250],
    internal: ["ofAllKeys", 250, 250],
  };

test.each(Object.keys(FIRST) as Heard[])(
  "whom it refuses, and when it is asked again: %s",
  (heard) => {
    const [refuses, afterMs, neededAfterMs] = FIRST[heard];
    const { standing } = stand();
    standing.hear(undefined);
    standing.hear(HEARD[heard]);
    const isRefused = {
      thisKey: standing.refusalOfCallers("thisKey"),
      anotherKey: standing.refusalOfCallers("anotherKey"),
    };
    expect(isRefused).toEqual({
      thisKey: refuses === "no" ? undefined : HEARD[heard],
      anotherKey: refuses === "ofAllKeys" ? HEARD[heard] : undefined,
    });
    expect(standing.probeAfterMs(INTERVAL_MS)).toBe(afterMs);
    expect(standing.probeAfterMs(100)).toBe(heard.startsWith("throttled") ? afterMs : 100);
    standing.need();
    expect(standing.probeAfterMs(INTERVAL_MS)).toBe(neededAfterMs);
    // Whoever needs it, and however often: what callers met is no answer to a probe.
    expect(standing.failure).toBe(HEARD[heard]);
  },
);

/** KMS_OUTAGE_GRACE and KMS_REVOCATION_GRACE, and what becomes of a well key that hears one thing for a week. */
const GRACES = {
  "unlimited, 60s": DEFAULTS,
  "60s, 60s": { outageGraceMs: MINUTE_MS, revocationGraceMs: MINUTE_MS },
  "0s, 0s": { outageGraceMs: 0, revocationGraceMs: 0 },
  "1h, 1h": { outageGraceMs: 60 * MINUTE_MS, revocationGraceMs: 60 * MINUTE_MS },
} as const;

const FOR_A_WEEK: Readonly<Record<Heard, readonly [string, string, string, string]>> = {
  ok: ["ok 0s", "ok 0s", "ok 0s", "ok 0s"],
  unavailable: [
    "degraded 0s",
    "degraded 0s, expired 60s",
    "expired 0s",
    "degraded 0s, expired 3600s",
  ],
  throttled: [
    "degraded 0s",
    "degraded 0s, expired 61s", // 1 + 2 + 4 + 8 + 16 + 30: it is not asked at 60 s
    "expired 0s",
    "degraded 0s, expired 3601s",
  ],
  "throttled for 90s": [
    "degraded 0s",
    "degraded 0s, expired 90s",
    "expired 0s",
    "degraded 0s, expired 3600s",
  ],
  denied: ["degraded 0s", "degraded 0s, expired 60s", "expired 0s", "degraded 0s, expired 3600s"],
  "denied by its code": [
    "degraded 0s",
    "degraded 0s, expired 60s",
    "expired 0s",
    "degraded 0s, expired 3600s",
  ],
  keyUnusable: [
    "degraded 0s, revoked 60s",
    "degraded 0s, revoked 60s",
    "revoked 0s",
    "degraded 0s, revoked 3600s",
  ],
  "keyUnusable by a status": [
    "degraded 0s",
    "degraded 0s, expired 60s",
    "expired 0s",
    "degraded 0s, expired 3600s",
  ],
  keyNotFound: [
    "degraded 0s, mismatch 60s",
    "degraded 0s, mismatch 60s",
    "degraded 0s, mismatch 10s",
    "degraded 0s, mismatch 3600s",
  ],
  "keyNotFound by a status": [
    "degraded 0s",
    "degraded 0s, expired 60s",
    "expired 0s",
    "degraded 0s, expired 3600s",
  ],
  mismatch: [
    "degraded 0s, mismatch 10s",
    "degraded 0s, mismatch 10s",
    "degraded 0s, mismatch 10s",
    "degraded 0s, mismatch 10s",
  ],
  olderVersion: ["degraded 0s", "degraded 0s", "degraded 0s", "degraded 0s"],
  invalid: ["degraded 0s", "degraded 0s, expired 60s", "expired 0s", "degraded 0s, expired 3600s"],
  internal: ["degraded 0s", "degraded 0s, expired 60s", "expired 0s", "degraded 0s, expired 3600s"],
};

test.each(Object.keys(FOR_A_WEEK) as Heard[])(
  "what if it stays for a week: %s",
  (heard) => {
    for (const [at, [graces, limits]] of Object.entries(GRACES).entries()) {
      const met = stand(limits);
      met.standing.hear(undefined);
      const { states, probes } = stays(met, heard, WEEK_MS);
      expect([graces, states]).toEqual([graces, FOR_A_WEEK[heard][at] as string]);
      expect(probes).toBeLessThan(WEEK_MS / (2 * SECOND_MS) + 100); // nowhere more than one in 2 s
      met.standing.hear(undefined);
      met.standing.hasLocalKek = true;
      expect([met.standing.state, met.standing.refusal]).toEqual(["ok", undefined]);
    }
  },
  60_000,
);

test("there is no way out of revoked and mismatch but a success", () => {
  for (const [state, answers] of [
    ["revoked", Object.keys(HEARD)],
    ["mismatch", Object.keys(HEARD).filter((one) => one !== "keyUnusable")],
  ] as const) {
    for (const heard of answers.filter((one) => one !== "ok") as Heard[]) {
      const met = MET[state]();
      met.standing.hasLocalKek = true;
      const { states } = stays(met, heard, 60 * MINUTE_MS);
      expect([heard, states]).toEqual([heard, `${state} 0s`]);
    }
  }
});

test("a revoked key says why to whom, whatever is heard after it", () => {
  const { standing } = MET.revoked();
  standing.hear(HEARD.unavailable);
  expect(standing.revocation).toBe(HEARD.keyUnusable);
  expect(standing.refusal).toMatchObject({ kind: "keyUnusable", message: "the key is revoked" });
  expect(standing.failure?.kind).toBe("unavailable");
});

test("three answers make a verdict, however long the grace has been over, and two never do", () => {
  const { standing, clock } = stand();
  standing.hear(HEARD.keyUnusable);
  clock.skip(WEEK_MS);
  standing.hear(HEARD.keyUnusable);
  expect(standing.state).toBe("degraded");
  standing.hear(HEARD.keyUnusable);
  expect(standing.state).toBe("revoked");
});

test("a success between starts all counts anew, an outage between none", () => {
  for (const heard of ["keyUnusable", "keyNotFound", "mismatch"] as const) {
    const { standing, clock } = stand();
    for (let round = 0; round < 10; round++) {
      standing.hear(HEARD[heard]);
      standing.hear(HEARD[heard]);
      clock.skip(MINUTE_MS);
      standing.hear(undefined);
    }
    standing.hear(HEARD[heard]);
    standing.hear(HEARD[heard]);
    clock.skip(MINUTE_MS);
    standing.hear(HEARD.unavailable);
    expect(standing.state).toBe("degraded");
    standing.hear(HEARD[heard]);
    expect(standing.state).toBe(heard === "keyUnusable" ? "revoked" : "mismatch");
  }
});

test("an outage that another answer interrupts is counted from its new beginning", () => {
  const { standing, clock } = stand({ outageGraceMs: MINUTE_MS });
  standing.hear(HEARD.unavailable);
  clock.skip(50 * SECOND_MS);
  standing.hear(HEARD.olderVersion); // Key4C was reached
  clock.skip(50 * SECOND_MS);
  standing.hear(HEARD.unavailable);
  expect(standing.state).toBe("degraded");
  clock.skip(MINUTE_MS);
  expect(standing.state).toBe("degraded"); // not before a probe has failed
  standing.hear(HEARD.denied);
  expect(standing.state).toBe("expired");
});

test("without a local KEK a Retry-After is obeyed for 15 s, with one for five minutes", () => {
  const heard = new PluginError("throttled", "fake", { retryAfterMs: 3_600_000 });
  for (const [hasLocalKek, ms] of [
    [false, 15_000],
    [true, 300_000],
  ] as const) {
    const { standing } = stand({}, hasLocalKek);
    standing.hear(heard);
    expect(standing.probeAfterMs(INTERVAL_MS)).toBe(ms);
  }
});

test("a Retry-After of nothing is no leave to ask without a pause", () => {
  const { standing, clock } = stand();
  const heard = new PluginError("throttled", "fake", { retryAfterMs: 0 });
  standing.hear(heard);
  expect(standing.probeAfterMs(INTERVAL_MS)).toBe(1_000);
  clock.skip(1_000);
  standing.hear(heard);
  expect(standing.probeAfterMs(INTERVAL_MS)).toBeGreaterThanOrEqual(1_000);
});

test("a pause that is over, with no probe since, lets the next one come soon and not at once", () => {
  const { standing, clock } = stand();
  standing.hear(HEARD.throttled);
  clock.skip(MINUTE_MS);
  expect(standing.probeAfterMs(INTERVAL_MS)).toBeGreaterThanOrEqual(250);
});

test("who needs an away Key4C makes the probe come every 0.5 s in the first minute, then every 2 s", () => {
  const { standing, clock } = stand();
  const wantedMs: number[] = [];
  for (let probes = 0; probes < 200; probes++) {
    standing.hear(HEARD.unavailable);
    expect(standing.probeAfterMs(INTERVAL_MS)).toBe(Math.min(5_000, 250 * 2 ** probes)); // nobody needs it
    standing.need();
    const ms = standing.probeAfterMs(INTERVAL_MS);
    wantedMs[Math.floor(clock.nowMs() / MINUTE_MS)] = ms;
    clock.skip(ms);
  }
  expect(wantedMs.slice(0, 4)).toEqual([500, 2_000, 2_000, 2_000]);
});

test("a probe is planned anew when a caller first needs it, and not for each that follows", () => {
  const { standing } = stand();
  let plans = 0;
  standing.onChange = () => {
    plans += 1;
  };
  standing.hear(undefined);
  for (let callers = 0; callers < 100; callers++) {
    standing.need(HEARD.unavailable);
  }
  expect([plans, standing.state, standing.failure]).toEqual([1, "ok", undefined]);
  standing.hear(undefined);
  standing.need();
  expect(plans).toBe(2);
});

test("who is throttled tells it for all, and the first alone", () => {
  const { standing } = stand();
  standing.hear(undefined);
  standing.need(HEARD["throttled for 90s"]);
  expect(standing.failure).toBe(HEARD["throttled for 90s"]);
  expect(standing.probeAfterMs(INTERVAL_MS)).toBe(90_000);
  standing.need(HEARD.throttled);
  expect(standing.failure).toBe(HEARD["throttled for 90s"]);
});

test("each key has a standing of its own, and always the same", () => {
  const standings = new Standings({ ...DEFAULTS, revocationGraceMs: 0 }, new TestClock());
  expect(standings.of("a")).toBe(standings.of("a"));
  expect(standings.areAnyRevoked).toBe(false);
  standings.of("a").hear(HEARD.keyUnusable);
  expect([standings.areAnyRevoked, standings.of("b").revocation]).toEqual([true, undefined]);
  standings.of("a").hear(undefined);
  expect(standings.areAnyRevoked).toBe(false);
});

/** A history: what was heard, and how long after the one before. */
const gapMs = fc.oneof(
  fc.constantFrom(0, 50, 250, 2_000, 10_000, MINUTE_MS),
  fc.nat(5 * MINUTE_MS),
);
const limits = fc.record<Limits>({
  outageGraceMs: fc.constantFrom(undefined, 0, 3_000, MINUTE_MS),
  revocationGraceMs: fc.constantFrom(0, 3_000, MINUTE_MS),
});
const KINDS = Object.keys(HEARD) as Heard[];
const historyOf = (kinds: readonly Heard[]) =>
  fc.array(fc.tuple(fc.constantFrom(...kinds), gapMs), { maxLength: 40 });
const hasLocalKek = fc.oneof({ weight: 4, arbitrary: fc.constant(true) }, fc.constant(false));

/** Plays a history; `look` sees each moment. */
function play(
  history: readonly (readonly [Heard, number])[],
  given: Limits,
  hasKek: boolean,
  look: (standing: Standing, heard: Heard, nowMs: number) => void,
): void {
  let nowMs = 0;
  const clock = { nowMs: () => nowMs, after: () => () => {}, random: () => 0 };
  const standing = new Standing("demo", given, clock);
  standing.hasLocalKek = hasKek;
  for (const [heard, ms] of history) {
    nowMs += ms;
    standing.hear(HEARD[heard]);
    look(standing, heard, nowMs);
  }
}

holds(
  "without a verdict that the key is unusable, nothing is ever revoked",
  3_000,
  fc.property(
    historyOf(KINDS.filter((kind) => kind !== "keyUnusable")),
    limits,
    hasLocalKek,
    (history, given, hasKek) =>
      play(history, given, hasKek, ({ state, revocation }) => {
        expect([state === "revoked", revocation]).toEqual([false, undefined]);
      }),
  ),
);

holds(
  "without a verdict that there is no such key, and without a finding of ours, nothing is ever a mismatch",
  3_000,
  fc.property(
    historyOf(KINDS.filter((kind) => kind !== "keyNotFound" && kind !== "mismatch")),
    limits,
    hasLocalKek,
    (history, given, hasKek) =>
      play(history, given, hasKek, ({ state }) => {
        expect(state).not.toBe("mismatch");
      }),
  ),
);

const OUTAGES: readonly ErrorKind[] = ["unavailable", "throttled", "denied", "invalid", "internal"];
const isOutage = (heard: Heard) => {
  const error = HEARD[heard];
  return error !== undefined && (OUTAGES.includes(error.kind) || / by a status$/.test(heard));
};

holds(
  "the states, by counting: what was heard since the last success, how often and since when",
  5_000,
  fc.property(historyOf(KINDS), limits, hasLocalKek, (history, given, hasKek) => {
    const { outageGraceMs = Number.POSITIVE_INFINITY, revocationGraceMs } = given;
    const mismatchMs = {
      keyNotFound: Math.max(revocationGraceMs, MISMATCH_MS),
      mismatch: MISMATCH_MS,
    };
    const atMs: Record<"keyUnusable" | "keyNotFound" | "mismatch", number[]> = {
      keyUnusable: [],
      keyNotFound: [],
      mismatch: [],
    };
    let outageSinceMs: number | undefined;
    let isExpired = false;
    let isRevoked = false;
    let isMismatch = false;
    return play(history, given, hasKek, ({ state, memory, refusal }, heard, nowMs) => {
      if (heard === "ok") {
        outageSinceMs = undefined;
        isExpired = isRevoked = isMismatch = false;
        atMs.keyUnusable = [];
        atMs.keyNotFound = [];
        atMs.mismatch = [];
      } else if (isOutage(heard)) {
        outageSinceMs ??= nowMs;
        isExpired = nowMs - outageSinceMs >= outageGraceMs;
      } else {
        outageSinceMs = undefined;
        isExpired &&= heard !== "olderVersion";
      }
      if (heard === "keyUnusable" || heard === "keyNotFound" || heard === "mismatch") {
        const all = atMs[heard];
        all.push(nowMs);
        const spanMs = nowMs - (all[0] ?? nowMs);
        const graceMs = heard === "keyUnusable" ? revocationGraceMs : mismatchMs[heard];
        if (graceMs === 0 || (all.length >= VERDICT_ANSWERS && spanMs >= graceMs)) {
          isRevoked ||= heard === "keyUnusable";
          isMismatch ||= heard !== "keyUnusable";
        }
      }
      const withKek = isMismatch
        ? "mismatch"
        : isExpired
          ? "expired"
          : heard === "ok"
            ? "ok"
            : "degraded";
      expect(state).toBe(isRevoked ? "revoked" : hasKek ? withKek : "starting");
      expect(refusal !== undefined).toBe(isRevoked || isMismatch || isExpired);
      expect(memory.failure).toBe(HEARD[heard]);
    });
  }),
);

holds(
  "the next probe comes in a bounded time, and never at once",
  3_000,
  fc.property(
    historyOf(KINDS),
    limits,
    hasLocalKek,
    fc.integer({ min: 100, max: 60 * MINUTE_MS }),
    fc.boolean(),
    (history, given, hasKek, intervalMs, isNeeded) =>
      play(history, given, hasKek, (standing) => {
        if (isNeeded) {
          standing.need();
        }
        const ms = standing.probeAfterMs(intervalMs);
        expect(ms).toBeGreaterThanOrEqual(50);
        expect(ms).toBeLessThanOrEqual(Math.max(intervalMs, hasKek ? 5 * MINUTE_MS : 15_000));
      }),
  ),
);
