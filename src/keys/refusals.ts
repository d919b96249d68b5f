import { PluginError } from "../failures/plugin-error.ts";
import { type Clock, sleep } from "../system/clock.ts";

/** How long the plugin itself refuses a wrapped local KEK that Key4C has called invalid, without asking again. */
export const INVALID_MS = 10_000;
/** The same where the next answer may be another one: a replica that lags, or a code that the profile does not list. */
export const UNCERTAIN_MS = 1_000;
/** How many refusals are remembered. So many in that time mean an attack, or a LIST of objects under a destroyed version. */
export const MAX_REFUSALS = 1_024;
/** Above that, one unknown local KEK is asked for in this time: honest ones still come through, and no HSM is flooded. */
export const FLOODED_INTERVAL_MS = 10;
/** A caller whose turn is further away is refused at once. */
const MAX_TURN_MS = 2_000;

interface Refusal {
  readonly failure: PluginError;
  readonly untilMs: number;
}

/** The wrapped local KEKs that Key4C lately did not unwrap. Keeps invented ones from causing a storm of calls. */
export class Refusals {
  readonly #clock: Clock;
  /** In the order in which they were added. */
  readonly #refused = new Map<string, Refusal>();
  #nextTurnMs = Number.NEGATIVE_INFINITY;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  add(name: string, failure: PluginError): void {
    const forMs = failure.kind === "invalid" ? INVALID_MS : UNCERTAIN_MS;
    this.#refused.delete(name);
    this.#refused.set(name, { failure, untilMs: this.#clock.nowMs() + forMs });
    for (const oldest of this.#refused.keys()) {
      if (this.#refused.size <= MAX_REFUSALS) {
        break;
      }
      this.#refused.delete(oldest);
    }
  }

  /** Why it was refused; undefined when that was too long ago. */
  of(name: string): PluginError | undefined {
    const refusal = this.#refused.get(name);
    if (refusal !== undefined && refusal.untilMs <= this.#clock.nowMs()) {
      this.#refused.delete(name);
      return undefined;
    }
    return refusal?.failure;
  }

  /** Whether so many are remembered that unknown local KEKs are asked for one after the other. */
  get #areMany(): boolean {
    if (this.#refused.size < MAX_REFUSALS) {
      return false;
    }
    const nowMs = this.#clock.nowMs();
    for (const [name, { untilMs }] of this.#refused) {
      if (untilMs <= nowMs) {
        this.#refused.delete(name);
      }
    }
    return this.#refused.size >= MAX_REFUSALS;
  }

  /** Waits until the next unknown local KEK may be asked for. @throws PluginError `throttled` instead of a long wait */
  async turn(): Promise<void> {
    if (!this.#areMany) {
      return;
    }
    const nowMs = this.#clock.nowMs();
    const turnMs = Math.max(nowMs, this.#nextTurnMs);
    if (turnMs - nowMs > MAX_TURN_MS) {
      throw new PluginError("throttled", "Key4C has just refused too many wrapped local KEKs");
    }
    this.#nextTurnMs = turnMs + FLOODED_INTERVAL_MS;
    await sleep(this.#clock, turnMs - nowMs);
  }
}
