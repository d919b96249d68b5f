import type { Clock } from "../src/system/clock.ts";

/** Lets everything happen that needs no time to pass. */
export const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

interface Timer {
  readonly atMs: number;
  readonly task: () => void;
}

/** Time that only the test moves. */
export class TestClock implements Clock {
  #nowMs = 0;
  readonly #timers = new Set<Timer>();
  /** What random() gives; a half moves no probe. */
  chance = 0.5;

  nowMs(): number {
    return this.#nowMs;
  }

  after(ms: number, task: () => void): () => void {
    const timer = { atMs: this.#nowMs + Math.max(0, ms), task };
    this.#timers.add(timer);
    return () => this.#timers.delete(timer);
  }

  random(): number {
    return this.chance;
  }

  /** Those that have not run and are not cancelled. */
  get timers(): number {
    return this.#timers.size;
  }

  /** The same for what has no timers, at no cost. */
  skip(ms: number): void {
    this.#nowMs += ms;
  }

  /** Runs what comes due in this time, in its order, each with all that follows from it. */
  async pass(ms: number): Promise<void> {
    const endMs = this.#nowMs + ms;
    await turn();
    for (let next = this.#next(endMs); next !== undefined; next = this.#next(endMs)) {
      this.#timers.delete(next);
      this.#nowMs = next.atMs;
      next.task();
      await turn();
    }
    this.#nowMs = endMs;
  }

  #next(endMs: number): Timer | undefined {
    let first: Timer | undefined;
    for (const timer of this.#timers) {
      if (timer.atMs <= endMs && (first === undefined || timer.atMs < first.atMs)) {
        first = timer;
      }
    }
    return first;
  }
}

/** Waits for a promise while time passes, in steps. @throws Error when `maxMs` have passed */
export async function within<T>(clock: TestClock, maxMs: number, promise: Promise<T>): Promise<T> {
  let isSettled = false;
  const settle = () => {
    isSettled = true;
  };
  promise.then(settle, settle);
  const endMs = clock.nowMs() + maxMs;
  await clock.pass(0);
  while (!isSettled) {
    if (clock.nowMs() >= endMs) {
      throw new Error(`not settled after ${maxMs} ms`);
    }
    await clock.pass(1);
  }
  return promise;
}
