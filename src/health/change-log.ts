import type { HealthRecord } from "../keys/health-record.ts";
import type { State } from "../keys/key-health.ts";
import type { Clock } from "../system/clock.ts";
import { describeError } from "../system/errors.ts";
import type { Log } from "../system/log.ts";
import { headline, remedyOf } from "./words.ts";

/** The same cause is not logged again within this time: two causes in turns would fill the log. */
const SAME_CAUSE_INTERVAL_MS = 10_000;
/** Texts of causes vary, so only so many are remembered. The oldest is forgotten first. */
const MAX_CAUSES = 16;

/** The level of the line that reports a state. */
export const LEVELS: Readonly<Record<State, "info" | "warn" | "error">> = {
  starting: "warn",
  ok: "info",
  degraded: "warn",
  expired: "error",
  mismatch: "error",
  revoked: "error",
};

/** What the log tells of a key. */
interface LoggedKey {
  readonly kmsKeyId: string;
  readonly current: { readonly keyId: string } | undefined;
  readonly health: Pick<HealthRecord, "state" | "memory">;
}

/** Logs one line for each change of state, and for each change of its cause. */
export class ChangeLog {
  /** When the state was entered, by the wall clock. */
  since = new Date();
  readonly #log: Log;
  readonly #clock: Clock;
  readonly #renewal: string | undefined;
  #state: State | undefined;
  #cause = "";
  /** When each cause was logged last, the oldest first. */
  readonly #toldAtMs = new Map<string, number>();

  /** @param renewal how this process comes by another credential, in words */
  constructor(log: Log, clock: Clock, renewal?: string) {
    this.#log = log;
    this.#clock = clock;
    this.#renewal = renewal;
  }

  /** Called after each probe of the current key. */
  note({ kmsKeyId, current, health }: LoggedKey): void {
    const { state, memory } = health;
    const failure = memory.finding?.cause ?? memory.failure;
    const cause = failure === undefined ? "" : describeError(failure);
    const isNewState = state !== this.#state;
    if (isNewState) {
      this.since = new Date();
      this.#toldAtMs.clear();
    }
    const nowMs = this.#clock.nowMs();
    const toldMs = this.#toldAtMs.get(cause) ?? Number.NEGATIVE_INFINITY;
    if (!isNewState && (cause === this.#cause || nowMs - toldMs < SAME_CAUSE_INTERVAL_MS)) {
      return;
    }
    this.#state = state;
    this.#cause = cause;
    this.#toldAtMs.delete(cause);
    this.#toldAtMs.set(cause, nowMs);
    for (const oldest of this.#toldAtMs.keys()) {
      if (this.#toldAtMs.size <= MAX_CAUSES) {
        break;
      }
      this.#toldAtMs.delete(oldest);
    }
    this.#log[LEVELS[state]](headline(state, failure), {
      state,
      kmsKeyId,
      keyId: current?.keyId,
      ...(failure && {
        kind: failure.kind,
        cause,
        remedy: failure.remedy ?? remedyOf(failure.kind, state, this.#renewal),
      }),
    });
  }
}
