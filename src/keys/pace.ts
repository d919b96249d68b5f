/** How soon Key4C is asked again about a key. */
import type { PluginError } from "../failures/plugin-error.ts";
import { FINDING_ANSWERS, findingAfterMs, type Limits, type Memory } from "./key-health.ts";

/** Probes while a finding is pending come at least this often. */
export const MAX_FINDING_INTERVAL_MS = 2_000;
const MIN_FINDING_INTERVAL_MS = 50;
/** How often the probe comes while Key4C is unreachable and a caller needs it: in the first minute, and after it. */
const NEEDED_INTERVAL_MS = 500;
const NEEDED_LATER_INTERVAL_MS = 2_000;
const FIRST_MINUTE_MS = 60_000;
/** While no caller needs Key4C: so soon after the first failure, then twice as long each time, up to the second value. */
const FIRST_PROBE_AFTER_FAILURE_MS = 250;
const MAX_FAILING_INTERVAL_MS = 5_000;
/** Failures of callers bring the probe of an ok key forward, but not more often than this. */
const MIN_PROBE_INTERVAL_MS = 250;
/** A Retry-After is obeyed up to the first value; without a local KEK to continue with, up to the second. */
export const MAX_RETRY_AFTER_MS = 300_000;
export const MAX_RETRY_AFTER_WITHOUT_KEK_MS = 15_000;
/** The client tries a refused secret only every 30 s. The probe comes this often, so that a changed one is used soon. */
const DENIED_INTERVAL_MS = 2_000;

/** When the key may be asked again; 0: at any time. */
export function pausedUntilMs({ pausedFromMs, pauseMs }: Memory, hasLocalKek: boolean): number {
  const maxMs = hasLocalKek ? MAX_RETRY_AFTER_MS : MAX_RETRY_AFTER_WITHOUT_KEK_MS;
  return pausedFromMs === undefined ? 0 : pausedFromMs + Math.min(pauseMs ?? 0, maxMs);
}

export interface Pace {
  /** KMS_PROBE_INTERVAL. */
  readonly intervalMs: number;
  /** Whether a caller has failed since the last probe because Key4C did not answer. */
  readonly isNeeded: boolean;
  readonly hasLocalKek: boolean;
  /** Whether the last describe told what must be told again soon: another key check value. */
  readonly isWatching: boolean;
}

/**
 * How long after the last probe the next one comes, before jitter. In a pause it comes too, and asks Key4C nothing.
 * @param endedAtMs when the last probe ended; the result is relative to it, so it does not depend on when this is called
 */
export function probeAfterMs(
  memory: Memory,
  endedAtMs: number,
  limits: Limits,
  pace: Pace,
): number {
  const { failure, outageSinceMs, isExpired } = memory;
  const { intervalMs, isNeeded, hasLocalKek, isWatching } = pace;
  if (failure === undefined) {
    const wantedMs = isWatching ? Math.min(intervalMs, MAX_FINDING_INTERVAL_MS) : intervalMs;
    return isNeeded ? Math.min(wantedMs, MIN_PROBE_INTERVAL_MS) : wantedMs;
  }
  const { outageGraceMs } = limits;
  const graceEndsInMs =
    outageSinceMs === undefined || outageGraceMs === undefined || isExpired
      ? Number.POSITIVE_INFINITY
      : Math.max(MIN_FINDING_INTERVAL_MS, outageSinceMs + outageGraceMs - endedAtMs);
  const pauseMs = pausedUntilMs(memory, hasLocalKek) - endedAtMs;
  return Math.min(
    graceEndsInMs,
    pauseMs > 0
      ? Math.min(pauseMs, intervalMs)
      : failingAfterMs(memory, failure, endedAtMs, limits, pace),
  );
}

function failingAfterMs(
  { finding, failures, failingSinceMs = 0 }: Memory,
  failure: PluginError,
  endedAtMs: number,
  limits: Limits,
  { intervalMs, isNeeded, hasLocalKek }: Pace,
): number {
  if (failure.kind === "denied") {
    // Where one call lacks its right, the others are made in each probe, and no file of ours will change that.
    return failure.about === "call" ? intervalMs : Math.min(intervalMs, DENIED_INTERVAL_MS);
  }
  const graceMs = findingAfterMs(failure, limits);
  if (graceMs !== undefined && finding === undefined) {
    const wantedMs = Math.min(intervalMs, MAX_FINDING_INTERVAL_MS, graceMs / FINDING_ANSWERS);
    return Math.max(MIN_FINDING_INTERVAL_MS, wantedMs);
  }
  if (finding?.state === "mismatch" && failure.kind === "mismatch" && !hasLocalKek) {
    return intervalMs; // it has no current local KEK, so nothing that is written now waits for its end
  }
  const doubledMs = FIRST_PROBE_AFTER_FAILURE_MS * 2 ** (failures - 1);
  const restingMs = Math.min(intervalMs, doubledMs, MAX_FAILING_INTERVAL_MS);
  const isFresh = endedAtMs - failingSinceMs < FIRST_MINUTE_MS;
  return isNeeded
    ? Math.min(restingMs, isFresh ? NEEDED_INTERVAL_MS : NEEDED_LATER_INTERVAL_MS)
    : restingMs;
}
