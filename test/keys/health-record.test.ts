/**
 * The table of answers, cell by cell: what each leads to in each state, what it refuses, when the next probe comes,
 * and what becomes of it when it stays for a week.
 */
import { expect, test } from "bun:test";
import fc from "fast-check";
import type { ErrorKind } from "../../src/failures/kinds.ts";
import { PluginError } from "../../src/failures/plugin-error.ts";
import { HealthRecord } from "../../src/keys/health-record.ts";
import {
  FINDING_ANSWERS,
  type Limits,
  MISMATCH_MS,
  STATES,
  type State,
} from "../../src/keys/key-health.ts";
import { TestClock } from "../clock.ts";
import { holds } from "../properties.ts";

const SECOND_MS = 1_000;
const MINUTE_MS = 60_000;
const WEEK_MS = 7 * 24 * 60 * MINUTE_MS;
const INTERVAL_MS = 30 * SECOND_MS;

/** KMS_OUTAGE_GRACE without limit, KMS_REVOCATION_GRACE 60s. */
const DEFAULTS: Limits = { outageGraceMs: undefined, revocationGraceMs: MINUTE_MS };

/** What a probe can hear, by the name of its row; `ok` is a success. */
const ANSWERS = {
  ok: undefined,
  unavailable: new PluginError("unavailable", "fake"),
  throttled: new PluginError("throttled", "fake"),
  "throttled for 90s": new PluginError("throttled", "fake", { retryAfterMs: 90 * SECOND_MS }),
  denied: new PluginError("denied", "fake"),
  "denied by its code": new PluginError("denied", "fake", { isByContract: true }),
  keyUnusable: new PluginError("keyUnusable", "fake", { isByContract: true }),
  "keyUnusable by a status": new PluginError("keyUnusable", "fake"),
  keyNotFound: new PluginError("keyNotFound", "fake", { isByContract: true }),
  "keyNotFound by a status": new PluginError("keyNotFound", "fake"),
  mismatch: new PluginError("mismatch", "fake"),
  olderVersion: new PluginError("olderVersion", "fake"),
  invalid: new PluginError("invalid", "fake", { isByContract: true }),
  internal: new PluginError("internal", "fake"),
} as const;
type Answer = keyof typeof ANSWERS;

/** A record on a clock that the test moves. */
function stand(limits: Partial<Limits> = {}, hasLocalKek = true) {
  const clock = new TestClock();
  const health = new HealthRecord({ ...DEFAULTS, ...limits }, clock);
  health.hasLocalKek = hasLocalKek;
  return { clock, health };
}

/**
 * Hears the same at every probe for so long, as often as the health wants to be probed, and does what the keyring
 * does on a revocation.
 * @returns the states, each with the second it was entered in, and the number of probes
 */
function stays(
  { clock, health }: ReturnType<typeof stand>,
  answer: Answer,
  forMs: number,
  intervalMs = INTERVAL_MS,
) {
  const beganMs = clock.nowMs();
  const states: string[] = [];
  let probes = 0;
  let last: State | undefined;
  while (clock.nowMs() - beganMs <= forMs) {
    if (health.isPaused) {
      health.passPause();
    } else {
      health.record(ANSWERS[answer]);
      probes += 1;
    }
    health.hasLocalKek &&= health.revocation === undefined;
    if (health.state !== last) {
      last = health.state;
      states.push(`${last} ${(clock.nowMs() - beganMs) / SECOND_MS}s`);
    }
    const afterMs = health.probeAfterMs(intervalMs);
    if (!(afterMs >= 50)) {
      throw new Error(`${answer}: the next probe comes after ${afterMs} ms`);
    }
    clock.skip(afterMs);
  }
  return { states: states.join(", "), probes };
}

/** Brings a health into a state, by the shortest way. */
const MET: Readonly<Record<State, () => ReturnType<typeof stand>>> = {
  starting() {
    return stand({ outageGraceMs: MINUTE_MS }, false);
  },
  ok() {
    const met = stand({ outageGraceMs: MINUTE_MS });
    met.health.record(undefined);
    return met;
  },
  degraded() {
    const met = MET.ok();
    met.health.record(ANSWERS.unavailable);
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
const AFTER_ONE: Readonly<Record<Answer, readonly State[]>> = {
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

test.each(Object.keys(AFTER_ONE) as Answer[])("one answer in each state: %s", (answer) => {
  const after: State[] = [];
  for (const state of STATES) {
    const { health, clock } = MET[state]();
    expect(health.state).toBe(state);
    health.record(ANSWERS[answer]);
    after.push(health.state);
    const { refusal, revocation, memory } = health;
    // What is acknowledged, and what is dropped, follows from the state alone.
    const isRefused = ["expired", "mismatch", "revoked"].includes(health.state);
    expect([state, refusal !== undefined]).toEqual([state, isRefused]);
    expect([state, revocation !== undefined]).toEqual([state, health.state === "revoked"]);
    expect(memory.failure).toBe(ANSWERS[answer]);
    expect(memory.lastSuccessMs).toBe(
      answer === "ok" ? clock.nowMs() : state === "starting" ? undefined : 0,
    );
  }
  expect(STATES.map((state, at) => `${state}: ${after[at]}`)).toEqual(
    STATES.map((state, at) => `${state}: ${AFTER_ONE[answer][at]}`),
  );
});

/**
 * After the first such answer: whether callers of the key are refused whatever its circuits say, and after how many
 * milliseconds the next probe comes; needed, too.
 */
const FIRST: Readonly<Record<Answer, readonly [boolean, number, number]>> = {
  ok: [false, 30_000, 250],
  unavailable: [false, 250, 250],
  throttled: [true, 1_000, 1_000],
  "throttled for 90s": [true, 30_000, 30_000], // it comes, and asks nothing
  denied: [false, 2_000, 2_000],
  "denied by its code": [false, 2_000, 2_000],
  keyUnusable: [true, 2_000, 2_000],
  "keyUnusable by a status": [true, 250, 250],
  keyNotFound: [true, 2_000, 2_000],
  "keyNotFound by a status": [true, 250, 250],
  mismatch: [false, 2_000, 2_000],
  olderVersion: [false, 250, 250],
  invalid: [false, 250, 250],
  internal: [false, 250, 250],
};

test.each(Object.keys(FIRST) as Answer[])(
  "whom it refuses, and when it is asked again: %s",
  (answer) => {
    const [refuses, afterMs, neededAfterMs] = FIRST[answer];
    const { health } = stand();
    health.record(undefined);
    health.record(ANSWERS[answer]);
    expect(health.refusalOfCallers).toBe(refuses ? ANSWERS[answer] : undefined);
    expect(health.isPaused).toBe(answer.startsWith("throttled"));
    expect(health.probeAfterMs(INTERVAL_MS)).toBe(afterMs);
    expect(health.probeAfterMs(100)).toBe(100);
    health.wantProbe();
    expect(health.probeAfterMs(INTERVAL_MS)).toBe(neededAfterMs);
    // Whoever needs it, and however often: what callers answer is no answer to a probe.
    expect(health.failure).toBe(ANSWERS[answer]);
  },
);

/** KMS_OUTAGE_GRACE and KMS_REVOCATION_GRACE, and what becomes of a well key that hears one thing for a week. */
const GRACES = {
  "unlimited, 60s": DEFAULTS,
  "60s, 60s": { outageGraceMs: MINUTE_MS, revocationGraceMs: MINUTE_MS },
  "0s, 0s": { outageGraceMs: 0, revocationGraceMs: 0 },
  "1h, 1h": { outageGraceMs: 60 * MINUTE_MS, revocationGraceMs: 60 * MINUTE_MS },
} as const;

const FOR_A_WEEK: Readonly<Record<Answer, readonly [string, string, string, string]>> = {
  ok: ["ok 0s", "ok 0s", "ok 0s", "ok 0s"],
  unavailable: [
    "degraded 0s",
    "degraded 0s, expired 60s",
    "expired 0s",
    "degraded 0s, expired 3600s",
  ],
  throttled: [
    "degraded 0s",
    "degraded 0s, expired 60s", // in a pause
    "expired 0s",
    "degraded 0s, expired 3600s",
  ],
  "throttled for 90s": [
    "degraded 0s",
    "degraded 0s, expired 60s",
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

test.each(Object.keys(FOR_A_WEEK) as Answer[])(
  "what if it stays for a week: %s",
  (answer) => {
    for (const [at, [graces, limits]] of Object.entries(GRACES).entries()) {
      const met = stand(limits);
      met.health.record(undefined);
      const { states, probes } = stays(met, answer, WEEK_MS);
      expect([graces, states]).toEqual([graces, FOR_A_WEEK[answer][at] as string]);
      expect(probes).toBeLessThan(WEEK_MS / (2 * SECOND_MS) + 100); // nowhere more than one in 2 s
      met.health.record(undefined);
      met.health.hasLocalKek = true;
      expect([met.health.state, met.health.refusal]).toEqual(["ok", undefined]);
    }
  },
  60_000,
);

test("there is no way out of revoked and mismatch but a success", () => {
  for (const [state, names] of [
    ["revoked", Object.keys(ANSWERS)],
    ["mismatch", Object.keys(ANSWERS).filter((one) => one !== "keyUnusable")],
  ] as const) {
    for (const answer of names.filter((one) => one !== "ok") as Answer[]) {
      const met = MET[state]();
      met.health.hasLocalKek = true;
      const { states } = stays(met, answer, 60 * MINUTE_MS);
      expect([answer, states]).toEqual([answer, `${state} 0s`]);
    }
  }
});

test("a revoked key says why to whom, whatever is answer after it", () => {
  const { health } = MET.revoked();
  health.record(ANSWERS.unavailable);
  expect(health.revocation).toBe(ANSWERS.keyUnusable);
  expect(health.refusal).toMatchObject({ kind: "keyUnusable", message: "the key is revoked" });
  expect(health.failure?.kind).toBe("unavailable");
});

test("three answers make a verdict, however long the grace has been over, and two never do", () => {
  const { health, clock } = stand();
  health.record(ANSWERS.keyUnusable);
  clock.skip(WEEK_MS);
  health.record(ANSWERS.keyUnusable);
  expect(health.state).toBe("degraded");
  health.record(ANSWERS.keyUnusable);
  expect(health.state).toBe("revoked");
});

test("a success between starts all counts anew, an outage between none", () => {
  for (const answer of ["keyUnusable", "keyNotFound", "mismatch"] as const) {
    const { health, clock } = stand();
    for (let round = 0; round < 10; round++) {
      health.record(ANSWERS[answer]);
      health.record(ANSWERS[answer]);
      clock.skip(MINUTE_MS);
      health.record(undefined);
    }
    health.record(ANSWERS[answer]);
    health.record(ANSWERS[answer]);
    clock.skip(MINUTE_MS);
    health.record(ANSWERS.unavailable);
    expect(health.state).toBe("degraded");
    health.record(ANSWERS[answer]);
    expect(health.state).toBe(answer === "keyUnusable" ? "revoked" : "mismatch");
  }
});

test("an outage that another answer interrupts is counted from its new beginning", () => {
  const { health, clock } = stand({ outageGraceMs: MINUTE_MS });
  health.record(ANSWERS.unavailable);
  clock.skip(50 * SECOND_MS);
  health.record(ANSWERS.olderVersion); // Key4C was reached
  clock.skip(50 * SECOND_MS);
  health.record(ANSWERS.unavailable);
  expect(health.state).toBe("degraded");
  clock.skip(MINUTE_MS);
  expect(health.state).toBe("degraded"); // not before a probe has failed
  health.record(ANSWERS.denied);
  expect(health.state).toBe("expired");
});

test("without a local KEK a Retry-After is obeyed for 15 s, with one for five minutes", () => {
  const answer = new PluginError("throttled", "fake", { retryAfterMs: 3_600_000 });
  for (const [hasLocalKek, ms] of [
    [false, 15_000],
    [true, 300_000],
  ] as const) {
    const { health } = stand({}, hasLocalKek);
    health.record(answer);
    expect(health.probeAfterMs(WEEK_MS)).toBe(ms);
    expect(health.probeAfterMs(INTERVAL_MS)).toBe(Math.min(ms, INTERVAL_MS));
  }
});

test("a Retry-After of nothing is no leave to ask without a pause", () => {
  const { health, clock } = stand();
  const answer = new PluginError("throttled", "fake", { retryAfterMs: 0 });
  health.record(answer);
  expect(health.probeAfterMs(INTERVAL_MS)).toBe(1_000);
  clock.skip(1_000);
  health.record(answer);
  expect(health.probeAfterMs(INTERVAL_MS)).toBeGreaterThanOrEqual(1_000);
});

test("a pause that is over, with no probe since, lets the next one come soon and not at once", () => {
  const { health, clock } = stand();
  health.record(ANSWERS.throttled);
  clock.skip(MINUTE_MS);
  expect(health.probeAfterMs(INTERVAL_MS)).toBeGreaterThanOrEqual(250);
});

test("who needs an away Key4C makes the probe come every 0.5 s in the first minute, then every 2 s", () => {
  const { health, clock } = stand();
  const wantedMs: number[] = [];
  for (let probes = 0; probes < 200; probes++) {
    health.record(ANSWERS.unavailable);
    expect(health.probeAfterMs(INTERVAL_MS)).toBe(Math.min(5_000, 250 * 2 ** probes)); // nobody needs it
    health.wantProbe();
    const ms = health.probeAfterMs(INTERVAL_MS);
    wantedMs[Math.floor(clock.nowMs() / MINUTE_MS)] = ms;
    clock.skip(ms);
  }
  expect(wantedMs.slice(0, 4)).toEqual([500, 2_000, 2_000, 2_000]);
});

test("where a right is missing on one call, the others are not made every two seconds", () => {
  const { health } = stand();
  for (const [about, wantedMs] of [
    ["secret", 2_000],
    [undefined, 2_000],
    ["call", INTERVAL_MS],
  ] as const) {
    health.record(new PluginError("denied", "fake", { about }));
    expect([about, health.probeAfterMs(INTERVAL_MS)]).toEqual([about, wantedMs]);
  }
});

test("a key that does not wrap, and whose canary is lost, is probed at the interval", () => {
  for (const hasLocalKek of [true, false]) {
    const parts = stand({}, hasLocalKek);
    stays(parts, "mismatch", MINUTE_MS);
    const wantedMs = hasLocalKek ? 5_000 : INTERVAL_MS;
    expect(parts.health.probeAfterMs(INTERVAL_MS)).toBe(wantedMs);
    parts.health.record(ANSWERS.unavailable);
    expect(parts.health.probeAfterMs(INTERVAL_MS)).toBe(5_000);
  }
});

test("a probe is planned anew when a caller first needs it, and not for each that follows", () => {
  const { health } = stand();
  let plans = 0;
  health.onChange = () => {
    plans += 1;
  };
  health.record(undefined);
  for (let callers = 0; callers < 100; callers++) {
    health.wantProbe();
  }
  expect([plans, health.state, health.failure]).toEqual([1, "ok", undefined]);
  health.record(undefined);
  health.wantProbe();
  expect(plans).toBe(2);
});

/** A history: what was answer, and how long after the one before. */
const gapMs = fc.oneof(
  fc.constantFrom(0, 50, 250, 2_000, 10_000, MINUTE_MS),
  fc.nat(5 * MINUTE_MS),
);
const limits = fc.record<Limits>({
  outageGraceMs: fc.constantFrom(undefined, 0, 3_000, MINUTE_MS),
  revocationGraceMs: fc.constantFrom(0, 3_000, MINUTE_MS),
});
const KINDS = Object.keys(ANSWERS) as Answer[];
const historyOf = (kinds: readonly Answer[]) =>
  fc.array(fc.tuple(fc.constantFrom(...kinds), gapMs), { maxLength: 40 });
const hasLocalKek = fc.oneof({ weight: 4, arbitrary: fc.constant(true) }, fc.constant(false));

/** Plays a history; `look` sees each moment. */
function play(
  history: readonly (readonly [Answer, number])[],
  given: Limits,
  hasKek: boolean,
  look: (health: HealthRecord, answer: Answer, nowMs: number) => void,
): void {
  let nowMs = 0;
  const clock = { nowMs: () => nowMs, after: () => () => {}, random: () => 0 };
  const health = new HealthRecord(given, clock);
  health.hasLocalKek = hasKek;
  for (const [answer, ms] of history) {
    nowMs += ms;
    health.record(ANSWERS[answer]);
    look(health, answer, nowMs);
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
const isOutage = (answer: Answer) => {
  const error = ANSWERS[answer];
  return error !== undefined && (OUTAGES.includes(error.kind) || / by a status$/.test(answer));
};

holds(
  "the states, by counting: what was answer since the last success, how often and since when",
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
    return play(history, given, hasKek, ({ state, memory, refusal }, answer, nowMs) => {
      if (answer === "ok") {
        outageSinceMs = undefined;
        isExpired = isRevoked = isMismatch = false;
        atMs.keyUnusable = [];
        atMs.keyNotFound = [];
        atMs.mismatch = [];
      } else if (isOutage(answer)) {
        outageSinceMs ??= nowMs;
        isExpired = nowMs - outageSinceMs >= outageGraceMs;
      } else {
        outageSinceMs = undefined;
        isExpired &&= answer !== "olderVersion";
      }
      if (answer === "keyUnusable" || answer === "keyNotFound" || answer === "mismatch") {
        const all = atMs[answer];
        all.push(nowMs);
        const spanMs = nowMs - (all[0] ?? nowMs);
        const graceMs = answer === "keyUnusable" ? revocationGraceMs : mismatchMs[answer];
        if (graceMs === 0 || (all.length >= FINDING_ANSWERS && spanMs >= graceMs)) {
          isRevoked ||= answer === "keyUnusable";
          isMismatch ||= answer !== "keyUnusable";
        }
      }
      const withKek = isMismatch
        ? "mismatch"
        : isExpired
          ? "expired"
          : answer === "ok"
            ? "ok"
            : "degraded";
      expect(state).toBe(isRevoked ? "revoked" : hasKek ? withKek : "starting");
      expect(refusal !== undefined).toBe(isRevoked || isMismatch || isExpired);
      expect(memory.failure).toBe(ANSWERS[answer]);
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
      play(history, given, hasKek, (health) => {
        if (isNeeded) {
          health.wantProbe();
        }
        const ms = health.probeAfterMs(intervalMs);
        expect(ms).toBeGreaterThanOrEqual(50);
        expect(ms).toBeLessThanOrEqual(Math.max(intervalMs, hasKek ? 5 * MINUTE_MS : 15_000));
      }),
  ),
);
