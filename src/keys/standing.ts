/**
 * The state of one key: what Key4C's answers lead to, and what they drop. {@link RULES} and {@link hear} are the whole of
 * it. The probe reports what it heard; everything else only reads the state.
 */

import type { ErrorKind } from "../failures/kinds.ts";
import { PluginError } from "../failures/plugin-error.ts";
import { type Clock, systemClock } from "../system/clock.ts";

export const STATES = ["starting", "ok", "degraded", "expired", "mismatch", "revoked"] as const;
/**
 * When several apply, the last one in this list counts:
 * - `ok`: the last probe succeeded.
 * - `degraded`: it failed; everything goes on with the local KEKs that are known.
 * - `expired`: Key4C has been away for longer than KMS_OUTAGE_GRACE. Status and Encrypt fail.
 * - `mismatch`: Key4C is well but not the one that wrapped: other key material, or no such key. What would be written
 *   now could not be read later, so Status and Encrypt fail. Decrypt of known local KEKs goes on, none is dropped.
 * - `starting`: there is no local KEK yet. Status and Encrypt fail.
 * - `revoked`: Key4C says that the key is disabled or deleted. Its local KEKs are dropped, every RPC on it fails.
 */
export type State = (typeof STATES)[number];

export interface Limits {
  /** KMS_OUTAGE_GRACE; undefined: no limit. */
  readonly outageGraceMs: number | undefined;
  /** KMS_REVOCATION_GRACE. */
  readonly revocationGraceMs: number;
}

/** So many answers, with no success between them, make a verdict. A single one may be a mistake, or a replica that lags. */
export const VERDICT_ANSWERS = 3;
/** For a mismatch, those answers must span at least this time. */
export const MISMATCH_MS = 10_000;
/** While describe tells an older version than before, we assume a replica that lags, for at most this long. */
export const OLDER_VERSION_MS = 600_000;
/** Probes while a verdict is pending come at least this often. */
const MAX_VERDICT_INTERVAL_MS = 2_000;
const MIN_VERDICT_INTERVAL_MS = 50;
/** How often the probe comes while Key4C is away and a caller needs it: in the first minute, and after it. */
const NEEDED_INTERVAL_MS = 500;
const NEEDED_LATER_INTERVAL_MS = 2_000;
const FIRST_MINUTE_MS = 60_000;
/** While no caller needs Key4C: so soon after the first failure, then twice as long each time, up to the second value. */
const FIRST_PROBE_AFTER_FAILURE_MS = 250;
const MAX_FAILING_INTERVAL_MS = 5_000;
/** Failures of callers bring the probe of an ok key forward, but not more often than this. */
const MIN_PROBE_INTERVAL_MS = 250;
/** Where Key4C throttles without a Retry-After, or with a shorter one, the pause doubles from the first to the second. */
const FIRST_THROTTLED_PAUSE_MS = 1_000;
const MAX_THROTTLED_PAUSE_MS = 30_000;
/** A Retry-After is obeyed up to the first value; without a local KEK to go on with, up to the second. */
export const MAX_RETRY_AFTER_MS = 300_000;
export const MAX_RETRY_AFTER_WITHOUT_KEK_MS = 15_000;
/** The client tries a refused secret only every 30 s. The probe comes this often, so that a changed one is used soon. */
const DENIED_INTERVAL_MS = 2_000;

/** What follows from one kind of failure of a probe. */
interface Rule {
  /** Whether it counts towards KMS_OUTAGE_GRACE. What {@link becomes} something, but is not a verdict, counts too. */
  readonly isOutage: boolean;
  /** Whether calls that need Key4C are refused at once until a probe succeeds: those for this key, or for all keys. */
  readonly refusesCallers: "ofThisKey" | "ofAllKeys" | "no";
  /** What the key becomes after VERDICT_ANSWERS over at least so long. */
  readonly becomes?: "revoked" | "mismatch";
  readonly afterMs?: (limits: Limits) => number;
}

/**
 * Answer by answer. `revoked` alone drops local KEKs, and only a verdict leads to it: a code or a state of the
 * contract. What is not listed counts as `unavailable`.
 */
const RULES: { readonly [K in ErrorKind]?: Rule } & { readonly unavailable: Rule } = {
  unavailable: { isOutage: true, refusesCallers: "ofAllKeys" },
  throttled: { isOutage: true, refusesCallers: "ofThisKey" },
  denied: { isOutage: true, refusesCallers: "ofAllKeys" },
  keyUnusable: {
    isOutage: false,
    refusesCallers: "ofThisKey",
    becomes: "revoked",
    afterMs: ({ revocationGraceMs }) => revocationGraceMs,
  },
  keyNotFound: {
    isOutage: false,
    refusesCallers: "ofThisKey",
    becomes: "mismatch",
    afterMs: ({ revocationGraceMs }) => Math.max(revocationGraceMs, MISMATCH_MS),
  },
  mismatch: {
    isOutage: false,
    refusesCallers: "no",
    becomes: "mismatch",
    afterMs: () => MISMATCH_MS,
  },
  olderVersion: { isOutage: false, refusesCallers: "no" },
};

/** A verdict needs a code or a state of the contract. A mismatch is the plugin's own finding, so it always is one. */
function isVerdict(error: PluginError): boolean {
  return RULES[error.kind]?.becomes !== undefined && (error.isVerdict || error.kind === "mismatch");
}

/** What is remembered of Key4C's answers for one key. */
export interface Memory {
  readonly lastSuccessMs?: number;
  /** Why the last probe failed; undefined if it succeeded, or before the first. */
  readonly failure?: PluginError;
  readonly failures: number;
  /** The first failure since a success. */
  readonly failingSinceMs?: number;
  /** When the current row of failures that count as an outage began, see {@link Rule.isOutage}. */
  readonly outageSinceMs?: number;
  readonly isExpired: boolean;
  /** Answers that may become a verdict, since a success. */
  readonly pending: {
    readonly [K in ErrorKind]?: { readonly answers: number; readonly sinceMs: number };
  };
  /** What such answers have led to. */
  readonly verdict?: { readonly state: "revoked" | "mismatch"; readonly cause: PluginError };
  readonly throttledAnswers: number;
  /** Key4C is not asked for this key until the pause is over. */
  readonly pausedFromMs?: number;
  readonly pauseMs?: number;
}

export const NOTHING_HEARD: Memory = {
  failures: 0,
  isExpired: false,
  pending: {},
  throttledAnswers: 0,
};

/**
 * The one transition of the state machine.
 * @param heard undefined for a success, which resets everything
 */
export function hear(
  memory: Memory,
  heard: PluginError | undefined,
  nowMs: number,
  limits: Limits,
): Memory {
  if (heard === undefined) {
    return { ...NOTHING_HEARD, lastSuccessMs: nowMs };
  }
  const rule = RULES[heard.kind] ?? RULES.unavailable;
  const mayBecomeVerdict = isVerdict(heard);
  // The kind of a verdict without a code or state of the contract, as from a gateway, counts as an outage.
  const isOutage = rule.isOutage || (rule.becomes !== undefined && !mayBecomeVerdict);
  const outageSinceMs = isOutage ? (memory.outageSinceMs ?? nowMs) : undefined;
  const { outageGraceMs } = limits;
  const before = memory.pending[heard.kind];
  const counted = { answers: (before?.answers ?? 0) + 1, sinceMs: before?.sinceMs ?? nowMs };
  const pending = mayBecomeVerdict ? { ...memory.pending, [heard.kind]: counted } : memory.pending;
  const verdict = verdictOf(memory, heard, counted, nowMs, limits);
  const throttledAnswers = heard.kind === "throttled" ? memory.throttledAnswers + 1 : 0;
  return {
    ...(memory.lastSuccessMs !== undefined && { lastSuccessMs: memory.lastSuccessMs }),
    failure: heard,
    failures: memory.failures + 1,
    failingSinceMs: memory.failingSinceMs ?? nowMs,
    ...(outageSinceMs !== undefined && { outageSinceMs }),
    isExpired:
      outageSinceMs === undefined
        ? memory.isExpired && mayBecomeVerdict // while a verdict is pending, an expired key stays expired
        : outageGraceMs !== undefined && nowMs - outageSinceMs >= outageGraceMs,
    pending,
    ...(verdict && { verdict }),
    throttledAnswers,
    ...(heard.kind === "throttled" && {
      pausedFromMs: nowMs,
      pauseMs: throttledPauseMs(heard, throttledAnswers),
    }),
  };
}

/** A revocation wins over a mismatch, and only a success ends either. */
function verdictOf(
  memory: Memory,
  heard: PluginError,
  { answers, sinceMs }: { readonly answers: number; readonly sinceMs: number },
  nowMs: number,
  limits: Limits,
): Memory["verdict"] {
  const rule = RULES[heard.kind];
  if (memory.verdict?.state === "revoked" || !isVerdict(heard) || rule?.becomes === undefined) {
    return memory.verdict;
  }
  const afterMs = rule.afterMs?.(limits) ?? 0;
  const isEstablished = afterMs === 0 || (answers >= VERDICT_ANSWERS && nowMs - sinceMs >= afterMs);
  return isEstablished ? { state: rule.becomes, cause: heard } : memory.verdict;
}

/** @param hasLocalKek whether there is a current one of this key */
export function stateOf(memory: Memory, hasLocalKek: boolean): State {
  if (memory.verdict?.state === "revoked") {
    return "revoked";
  }
  if (!hasLocalKek) {
    return "starting";
  }
  if (memory.verdict !== undefined) {
    return "mismatch";
  }
  return memory.isExpired ? "expired" : memory.failure === undefined ? "ok" : "degraded";
}

/** @param answers the number of throttled answers in a row, with this one */
function throttledPauseMs({ retryAfterMs = 0 }: PluginError, answers: number): number {
  return retryAfterMs >= FIRST_THROTTLED_PAUSE_MS
    ? retryAfterMs
    : Math.min(MAX_THROTTLED_PAUSE_MS, FIRST_THROTTLED_PAUSE_MS * 2 ** (answers - 1));
}

/** When the key may be asked again; 0: at any time. */
function pausedUntilMs({ pausedFromMs, pauseMs }: Memory, hasLocalKek: boolean): number {
  const maxMs = hasLocalKek ? MAX_RETRY_AFTER_MS : MAX_RETRY_AFTER_WITHOUT_KEK_MS;
  return pausedFromMs === undefined ? 0 : pausedFromMs + Math.min(pauseMs ?? 0, maxMs);
}

export interface Pace {
  /** KMS_PROBE_INTERVAL. */
  readonly intervalMs: number;
  /** Whether a caller has failed since the last probe because Key4C did not answer. */
  readonly isNeeded: boolean;
  readonly hasLocalKek: boolean;
}

/**
 * How long after the last probe the next one comes, before jitter.
 * @param endedAtMs when the last probe ended; the result is relative to it, so it does not depend on when this is called
 */
export function probeAfterMs(
  memory: Memory,
  endedAtMs: number,
  limits: Limits,
  pace: Pace,
): number {
  const { failure, outageSinceMs, isExpired } = memory;
  const { intervalMs, isNeeded, hasLocalKek } = pace;
  if (failure === undefined) {
    return isNeeded ? Math.min(intervalMs, MIN_PROBE_INTERVAL_MS) : intervalMs;
  }
  const pauseMs = pausedUntilMs(memory, hasLocalKek) - endedAtMs;
  if (pauseMs > 0) {
    return pauseMs;
  }
  const { outageGraceMs } = limits;
  const graceEndsInMs =
    outageSinceMs === undefined || outageGraceMs === undefined || isExpired
      ? Number.POSITIVE_INFINITY
      : Math.max(MIN_VERDICT_INTERVAL_MS, outageSinceMs + outageGraceMs - endedAtMs);
  return Math.min(graceEndsInMs, failingAfterMs(memory, failure, endedAtMs, limits, pace));
}

function failingAfterMs(
  { verdict, failures, failingSinceMs = 0 }: Memory,
  failure: PluginError,
  endedAtMs: number,
  limits: Limits,
  { intervalMs, isNeeded }: Pace,
): number {
  if (failure.kind === "denied") {
    return Math.min(intervalMs, DENIED_INTERVAL_MS);
  }
  if (isVerdict(failure) && verdict === undefined) {
    const graceMs = RULES[failure.kind]?.afterMs?.(limits) ?? 0;
    const wantedMs = Math.min(intervalMs, MAX_VERDICT_INTERVAL_MS, graceMs / VERDICT_ANSWERS);
    return Math.max(MIN_VERDICT_INTERVAL_MS, wantedMs);
  }
  // This is reached after a pause too: the probe of a previous key may have been put off.
  const doubledMs = FIRST_PROBE_AFTER_FAILURE_MS * 2 ** (failures - 1);
  const restingMs = Math.min(intervalMs, doubledMs, MAX_FAILING_INTERVAL_MS);
  const isFresh = endedAtMs - failingSinceMs < FIRST_MINUTE_MS;
  return isNeeded
    ? Math.min(restingMs, isFresh ? NEEDED_INTERVAL_MS : NEEDED_LATER_INTERVAL_MS)
    : restingMs;
}

function refusalOf({ verdict, isExpired, failure }: Memory): PluginError | undefined {
  if (verdict !== undefined) {
    return verdict.state === "revoked"
      ? new PluginError(verdict.cause.kind, "the key is revoked", { cause: verdict.cause })
      : new PluginError(verdict.cause.kind, "what would be written could not be read", {
          cause: verdict.cause,
        });
  }
  return isExpired
    ? new PluginError("unavailable", "the outage has lasted longer than KMS_OUTAGE_GRACE", {
        cause: failure,
      })
    : undefined;
}

/** The standing of one key. Keyring and health both read it. */
export class Standing {
  readonly kmsKeyId: string;
  readonly #limits: Limits;
  readonly #clock: Clock;
  #memory = NOTHING_HEARD;
  #isNeeded = false;
  /** Called when the next probe should be planned again. */
  onChange: () => void = () => {};
  /** The first probe while it is under way; it never rejects. Calls that come meanwhile wait for it. */
  firstProbe: Promise<void> | undefined;
  /** Why the key is revoked. */
  revocation: PluginError | undefined;
  /** Why Status and Encrypt must fail, although there may be a local KEK. */
  refusal: PluginError | undefined;
  /** Whether a local KEK of this key is at hand; set by the keyring. */
  hasLocalKek = false;

  constructor(kmsKeyId: string, limits: Limits, clock: Clock = systemClock) {
    this.kmsKeyId = kmsKeyId;
    this.#limits = limits;
    this.#clock = clock;
  }

  get memory(): Memory {
    return this.#memory;
  }

  get state(): State {
    return stateOf(this.#memory, this.hasLocalKek);
  }

  /** Why the last probe failed. */
  get failure(): PluginError | undefined {
    return this.#memory.failure;
  }

  /** Takes over what a probe heard, or a caller that was throttled. */
  hear(heard: PluginError | undefined): void {
    this.#memory = hear(this.#memory, heard, this.#clock.nowMs(), this.#limits);
    this.#isNeeded = false;
    const { verdict } = this.#memory;
    this.revocation = verdict?.state === "revoked" ? verdict.cause : undefined;
    this.refusal = refusalOf(this.#memory);
  }

  /**
   * Why Key4C must not be asked for a local KEK that a caller needs; undefined if it may be asked.
   * @param of whether the local KEK is of this key or of another one
   */
  refusalOfCallers(of: "thisKey" | "anotherKey"): PluginError | undefined {
    const { failure } = this.#memory;
    if (failure === undefined) {
      return undefined;
    }
    const { refusesCallers } = RULES[failure.kind] ?? RULES.unavailable;
    const isRefused =
      refusesCallers === "ofAllKeys" || (refusesCallers === "ofThisKey" && of === "thisKey");
    return isRefused ? failure : undefined;
  }

  /** A caller failed because Key4C did not answer: the next probe comes soon. A throttled answer changes the state at once. */
  need(error?: PluginError): void {
    if (error?.kind === "throttled" && this.#memory.failure === undefined) {
      this.hear(error);
    } else if (this.#isNeeded) {
      return;
    } else {
      this.#isNeeded = true;
    }
    this.onChange();
  }

  /** How long after the end of the last probe the next one comes, before jitter. */
  probeAfterMs(intervalMs: number, endedAtMs = this.#clock.nowMs()): number {
    const { hasLocalKek } = this;
    return probeAfterMs(this.#memory, endedAtMs, this.#limits, {
      intervalMs,
      isNeeded: this.#isNeeded,
      hasLocalKek,
    });
  }
}

/** The standings of all keys, made when they are first asked for. */
export class Standings {
  readonly #limits: Limits;
  readonly #clock: Clock;
  readonly #byKey = new Map<string, Standing>();

  constructor(limits: Limits, clock: Clock = systemClock) {
    this.#limits = limits;
    this.#clock = clock;
  }

  /** Nearly always false, which saves each Decrypt a look at its key. */
  get areAnyRevoked(): boolean {
    for (const { revocation } of this.#byKey.values()) {
      if (revocation !== undefined) {
        return true;
      }
    }
    return false;
  }

  of(kmsKeyId: string): Standing {
    const found = this.#byKey.get(kmsKeyId);
    if (found !== undefined) {
      return found;
    }
    const standing = new Standing(kmsKeyId, this.#limits, this.#clock);
    this.#byKey.set(kmsKeyId, standing);
    return standing;
  }
}
