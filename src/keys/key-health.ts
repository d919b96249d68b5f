/**
 * The health of one key: what Key4C's answers lead to. {@link RULES} and {@link step} are the whole of it. `step` is pure
 * and says what is to be done; the key does it (key.ts). Everything else only reads the state.
 */
import type { ErrorKind } from "../failures/kinds.ts";
import { PluginError } from "../failures/plugin-error.ts";

export const STATES = ["starting", "ok", "degraded", "expired", "mismatch", "revoked"] as const;
/**
 * When several apply, the last one in this list counts:
 * - `ok`: the last probe succeeded.
 * - `degraded`: it failed; everything continues with the local KEKs that are known.
 * - `expired`: Key4C has been unreachable for longer than KMS_OUTAGE_GRACE. Status and Encrypt fail.
 * - `mismatch`: Key4C is well but not the one that wrapped: other key material, or no such key. What would be written
 *   now could not be read later, so Status and Encrypt fail. Decrypt of known local KEKs continues, none is dropped.
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

/** So many answers, with no success between them, make a finding. A single one may be a mistake, or a replica that lags. */
export const FINDING_ANSWERS = 3;
/** For a mismatch, those answers must span at least this time. */
export const MISMATCH_MS = 10_000;
/** Where Key4C throttles without a Retry-After, or with a shorter one, the pause doubles from the first to the second. */
const FIRST_THROTTLED_PAUSE_MS = 1_000;
const MAX_THROTTLED_PAUSE_MS = 30_000;
/** What follows from one kind of failure of a probe. */
interface Rule {
  /** Whether it counts towards KMS_OUTAGE_GRACE. What {@link leadsTo} something, but is not conclusive, counts too. */
  readonly isOutage: boolean;
  /**
   * Whether callers of this key that need Key4C are refused at once until a probe succeeds. Where they are not, the
   * circuit of decrypt decides (key.ts): a failing describe or encrypt says nothing about decrypt.
   */
  readonly refusesCallers: boolean;
  /** The state after FINDING_ANSWERS over at least so long. */
  readonly leadsTo?: Finding["state"];
  readonly afterMs?: (limits: Limits) => number;
}

/**
 * Answer by answer. `revoked` alone drops local KEKs, and only a code or a state of the contract leads to it. What is
 * not listed counts as `unavailable`.
 */
const RULES: { readonly [K in ErrorKind]?: Rule } & { readonly unavailable: Rule } = {
  unavailable: { isOutage: true, refusesCallers: false },
  throttled: { isOutage: true, refusesCallers: true },
  denied: { isOutage: true, refusesCallers: false },
  keyUnusable: {
    isOutage: false,
    refusesCallers: true,
    leadsTo: "revoked",
    afterMs: ({ revocationGraceMs }) => revocationGraceMs,
  },
  keyNotFound: {
    isOutage: false,
    refusesCallers: true,
    leadsTo: "mismatch",
    afterMs: ({ revocationGraceMs }) => Math.max(revocationGraceMs, MISMATCH_MS),
  },
  mismatch: {
    isOutage: false,
    refusesCallers: false,
    leadsTo: "mismatch",
    afterMs: () => MISMATCH_MS,
  },
  olderVersion: { isOutage: false, refusesCallers: false },
};

/** What lasting answers have led to. Only a success ends it. */
export interface Finding {
  readonly state: "revoked" | "mismatch";
  readonly cause: PluginError;
}

/** How long answers of this kind must last to become a finding; undefined: they never do. */
export function findingAfterMs(failure: PluginError, limits: Limits): number | undefined {
  return isConclusive(failure) ? (RULES[failure.kind]?.afterMs?.(limits) ?? 0) : undefined;
}

/** A finding needs a code or a state of the contract. A mismatch is the plugin's own, so it always counts. */
export function isConclusive(error: PluginError): boolean {
  return (
    RULES[error.kind]?.leadsTo !== undefined && (error.isByContract || error.kind === "mismatch")
  );
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
  /** Answers that may become a finding, since a success. */
  readonly pending: {
    readonly [K in ErrorKind]?: { readonly answers: number; readonly sinceMs: number };
  };
  readonly finding?: Finding;
  readonly throttledAnswers: number;
  /** Key4C is not asked for this key until the pause is over. */
  readonly pausedFromMs?: number;
  readonly pauseMs?: number;
}

export const NOTHING_MET: Memory = {
  failures: 0,
  isExpired: false,
  pending: {},
  throttledAnswers: 0,
};

/**
 * What the key must do, in this order: drop all its local KEKs, or ask Key4C for each one that it holds, because some
 * may be lost (look through).
 */
export type Effect = "drop" | "lookThrough";

/**
 * The one transition of the state machine.
 * @param met undefined for a success, which resets everything
 */
export function step(
  memory: Memory,
  met: PluginError | undefined,
  nowMs: number,
  limits: Limits,
): { readonly memory: Memory; readonly effects: readonly Effect[] } {
  const before = memory.finding?.state;
  const next = met === undefined ? afterSuccess(nowMs) : afterFailure(memory, met, nowMs, limits);
  const after = next.finding?.state;
  const effects: Effect[] = [];
  if (after === "revoked" && before !== "revoked") {
    effects.push("drop");
  }
  if (before !== after && (before === "mismatch" || after === "mismatch") && after !== "revoked") {
    effects.push("lookThrough");
  }
  return { memory: next, effects };
}

function afterSuccess(nowMs: number): Memory {
  return { ...NOTHING_MET, lastSuccessMs: nowMs };
}

function afterFailure(memory: Memory, met: PluginError, nowMs: number, limits: Limits): Memory {
  const rule = RULES[met.kind] ?? RULES.unavailable;
  const mayBeFinding = isConclusive(met);
  // The kind of a finding without a code or state of the contract, as from a gateway, counts as an outage.
  const isOutage = rule.isOutage || (rule.leadsTo !== undefined && !mayBeFinding);
  const outageSinceMs = isOutage ? (memory.outageSinceMs ?? nowMs) : undefined;
  const before = memory.pending[met.kind];
  const counted = { answers: (before?.answers ?? 0) + 1, sinceMs: before?.sinceMs ?? nowMs };
  const finding = findingOf(memory, met, counted, nowMs, limits);
  const throttledAnswers = met.kind === "throttled" ? memory.throttledAnswers + 1 : 0;
  return {
    ...(memory.lastSuccessMs !== undefined && { lastSuccessMs: memory.lastSuccessMs }),
    failure: met,
    failures: memory.failures + 1,
    failingSinceMs: memory.failingSinceMs ?? nowMs,
    ...(outageSinceMs !== undefined && { outageSinceMs }),
    isExpired:
      outageSinceMs === undefined
        ? memory.isExpired && mayBeFinding // while a finding is pending, an expired key stays expired
        : isOver(outageSinceMs, nowMs, limits),
    pending: mayBeFinding ? { ...memory.pending, [met.kind]: counted } : memory.pending,
    ...(finding && { finding }),
    throttledAnswers,
    ...(met.kind === "throttled" && {
      pausedFromMs: nowMs,
      pauseMs: throttledPauseMs(met, throttledAnswers),
    }),
  };
}

function isOver(outageSinceMs: number, nowMs: number, { outageGraceMs }: Limits): boolean {
  return outageGraceMs !== undefined && nowMs - outageSinceMs >= outageGraceMs;
}

/** A pause pauses calls; KMS_OUTAGE_GRACE ends an outage all the same. */
export function afterPause(memory: Memory, nowMs: number, limits: Limits): Memory {
  const { outageSinceMs } = memory;
  return outageSinceMs !== undefined && isOver(outageSinceMs, nowMs, limits)
    ? { ...memory, isExpired: true }
    : memory;
}

/** A revocation wins over a mismatch. */
function findingOf(
  memory: Memory,
  met: PluginError,
  { answers, sinceMs }: { readonly answers: number; readonly sinceMs: number },
  nowMs: number,
  limits: Limits,
): Finding | undefined {
  const state = RULES[met.kind]?.leadsTo;
  const afterMs = findingAfterMs(met, limits);
  if (memory.finding?.state === "revoked" || state === undefined || afterMs === undefined) {
    return memory.finding;
  }
  const isEstablished = afterMs === 0 || (answers >= FINDING_ANSWERS && nowMs - sinceMs >= afterMs);
  return isEstablished ? { state, cause: met } : memory.finding;
}

/** @param hasLocalKek whether there is a current one of this key */
export function stateOf({ finding, isExpired, failure }: Memory, hasLocalKek: boolean): State {
  if (finding?.state === "revoked") {
    return "revoked";
  }
  if (!hasLocalKek) {
    return "starting";
  }
  if (finding !== undefined) {
    return "mismatch";
  }
  return isExpired ? "expired" : failure === undefined ? "ok" : "degraded";
}

/** Why Status and Encrypt must fail, although there may be a local KEK. */
export function refusalOf({ finding, isExpired, failure }: Memory): PluginError | undefined {
  if (finding !== undefined) {
    const { state, cause } = finding;
    const message =
      state === "revoked" ? "the key is revoked" : "what would be written could not be read";
    return new PluginError(cause.kind, message, { cause });
  }
  return isExpired
    ? new PluginError("unavailable", "the outage has lasted longer than KMS_OUTAGE_GRACE", {
        cause: failure,
      })
    : undefined;
}

/** Why a caller of this key must not make Key4C be asked now, whatever its circuits say. */
export function refusalOfCallers({ failure }: Memory): PluginError | undefined {
  return failure !== undefined && (RULES[failure.kind] ?? RULES.unavailable).refusesCallers
    ? failure
    : undefined;
}

/** @param answers the number of throttled answers in a row, with this one */
function throttledPauseMs({ retryAfterMs = 0 }: PluginError, answers: number): number {
  return retryAfterMs >= FIRST_THROTTLED_PAUSE_MS
    ? retryAfterMs
    : Math.min(MAX_THROTTLED_PAUSE_MS, FIRST_THROTTLED_PAUSE_MS * 2 ** (answers - 1));
}
