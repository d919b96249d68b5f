import { PluginError } from "../failures/plugin-error.ts";
import { type Clock, sleep } from "../system/clock.ts";

/** How long the plugin itself refuses a wrapped local KEK that Key4C has refused, without asking again. */
export const REFUSAL_MS = 10_000;
/** How many refusals are remembered. So many in that time mean an attack, or a LIST of objects under a destroyed version. */
export const MAX_REFUSALS = 1_024;
/** Above that, one unknown local KEK is asked for in this time: honest ones still come through, and no HSM is flooded. */
export const FLOODED_INTERVAL_MS = 10;
/** A caller whose turn is further away is refused at once. */
const MAX_TURN_MS = 2_000;

/** The wrapped local KEKs that Key4C lately called invalid. Keeps invented ones from causing a storm of calls. */
export class Refusals {
  readonly #clock: Clock;
  /** When each ends, oldest first. */
  readonly #untilMs = new Map<string, number>();
  #nextTurnMs = Number.NEGATIVE_INFINITY;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  add(key: string): void {
    this.#untilMs.delete(key);
    this.#untilMs.set(key, this.#clock.nowMs() + REFUSAL_MS);
    for (const oldest of this.#untilMs.keys()) {
      if (this.#untilMs.size <= MAX_REFUSALS) {
        break;
      }
      this.#untilMs.delete(oldest);
    }
  }

  has(key: string): boolean {
    const untilMs = this.#untilMs.get(key);
    if (untilMs !== undefined && untilMs <= this.#clock.nowMs()) {
      this.#untilMs.delete(key);
      return false;
    }
    return untilMs !== undefined;
  }

  /** Whether so many are remembered that unknown local KEKs are asked for one after the other. */
  get areMany(): boolean {
    const nowMs = this.#clock.nowMs();
    for (const [key, untilMs] of this.#untilMs) {
      if (untilMs > nowMs) {
        break;
      }
      this.#untilMs.delete(key);
    }
    return this.#untilMs.size >= MAX_REFUSALS;
  }

  /** Waits until the next unknown local KEK may be asked for. @throws PluginError `throttled` instead of a long wait */
  async turn(): Promise<void> {
    if (!this.areMany) {
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
