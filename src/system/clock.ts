/**
 * Time and chance in one place. Everything that waits, times out or is jittered uses it, so that a test can simulate a
 * fault of a week. Keys and IVs never come from here.
 */
export interface Clock {
  /** Monotonic, in milliseconds: jumps of the wall clock do not move it. */
  nowMs(): number;
  /** Runs the task once, after so long. @returns what cancels it */
  after(ms: number, task: () => void): () => void;
  /** 0 ≤ x < 1, for jitter. */
  random(): number;
}

/** setTimeout takes 31 bits and fires a longer timer at once. So a longer one is cut to this: about 25 days. */
const MAX_TIMER_MS = 2 ** 31 - 1;

export const systemClock: Clock = {
  nowMs: () => performance.now(),
  after(ms, task) {
    const timer = setTimeout(task, Math.min(ms, MAX_TIMER_MS));
    return () => clearTimeout(timer);
  },
  random: Math.random,
};

export function sleep(clock: Clock, ms: number): Promise<void> {
  return new Promise((resolve) => {
    clock.after(ms, resolve);
  });
}

/** Resolves when the promise is settled either way, or after so long. No timer outlives it. */
export function settledWithin(clock: Clock, promise: Promise<unknown>, ms: number): Promise<void> {
  return new Promise((resolve) => {
    const cancel = clock.after(ms, resolve);
    const done = () => {
      cancel();
      resolve();
    };
    promise.then(done, done);
  });
}
