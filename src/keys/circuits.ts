import type { ErrorKind } from "../failures/kinds.ts";
import type { PluginError } from "../failures/plugin-error.ts";
import type { Clock } from "../system/clock.ts";

/** A failing encrypt is tried again after so long, then twice as long each time, up to the second value. */
const FIRST_WRAP_PAUSE_MS = 250;
const MAX_WRAP_PAUSE_MS = 5_000;
/** The same where Key4C answers that it does not wrap: a right that is missing, not a fault that passes. */
const FIRST_REFUSED_WRAP_PAUSE_MS = 5_000;
const MAX_REFUSED_WRAP_PAUSE_MS = 30_000;
const REFUSALS: readonly ErrorKind[] = ["denied", "keyUnusable", "keyNotFound"];

/**
 * Whether Key4C is asked to wrap and to unwrap under one key. Each has a circuit of its own: rights are given by
 * operation, and a failing encrypt must not stop reads.
 */
export class Circuits {
  readonly #clock: Clock;
  #unwrapFailure: PluginError | undefined;
  #unwrapsUnderWay = 0;
  /** Whether the last attempt showed that Key4C does not unwrap what it has just wrapped. */
  isUnwrapDoubtful = false;
  #wrapFailure: PluginError | undefined;
  #wrapFailures = 0;
  #nextWrapAtMs = Number.NEGATIVE_INFINITY;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Whether the last unwrap failed, so that callers are refused at once. */
  get isUnwrapOpen(): boolean {
    return this.#unwrapFailure !== undefined;
  }

  /**
   * Why a caller's unwrap is refused; undefined when Key4C may be asked.
   * @param isProbed whether probes have something unwrapped; else one caller at a time finds out
   */
  refusalToUnwrap(isProbed: boolean): PluginError | undefined {
    return isProbed || this.#unwrapsUnderWay > 0 ? this.#unwrapFailure : undefined;
  }

  /** Counts the unwraps of callers that are under way. */
  async during<T>(unwrap: () => Promise<T>): Promise<T> {
    this.#unwrapsUnderWay += 1;
    try {
      return await unwrap();
    } finally {
      this.#unwrapsUnderWay -= 1;
    }
  }

  /** @param failure undefined when Key4C answered, whatever it said of the ciphertext */
  recordUnwrap(failure: PluginError | undefined): void {
    this.#unwrapFailure = failure;
  }

  /** Why no local KEK is to be wrapped now; undefined when one may be. */
  get refusalToWrap(): PluginError | undefined {
    return this.#clock.nowMs() < this.#nextWrapAtMs ? this.#wrapFailure : undefined;
  }

  recordWrap(failure: PluginError | undefined): void {
    this.#wrapFailure = failure;
    this.#wrapFailures = failure === undefined ? 0 : this.#wrapFailures + 1;
    if (failure === undefined) {
      this.#nextWrapAtMs = Number.NEGATIVE_INFINITY;
      return;
    }
    const isRefused = failure.isUnlisted || REFUSALS.includes(failure.kind);
    const firstMs = isRefused ? FIRST_REFUSED_WRAP_PAUSE_MS : FIRST_WRAP_PAUSE_MS;
    const maxMs = isRefused ? MAX_REFUSED_WRAP_PAUSE_MS : MAX_WRAP_PAUSE_MS;
    const pauseMs = Math.min(maxMs, firstMs * 2 ** (this.#wrapFailures - 1));
    this.#nextWrapAtMs = this.#clock.nowMs() + pauseMs;
  }
}
