import { PluginError } from "../failures/plugin-error.ts";

/** Runs at most `width` tasks at once, first come first served, and remembers at most `queue` more. */
export class Limiter {
  #running = 0;
  readonly #width: number;
  readonly #queue: number;
  readonly #waiting: (() => void)[] = [];

  constructor(width: number, queue: number) {
    this.#width = width;
    this.#queue = queue;
  }

  async run<T>(task: () => Promise<T>): Promise<T> {
    if (this.#running >= this.#width) {
      if (this.#waiting.length >= this.#queue) {
        throw new PluginError("throttled", "too many calls wait for Key4C");
      }
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    } else {
      this.#running += 1;
    }
    try {
      return await task();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) {
        this.#running -= 1;
      } else {
        next(); // passes its place to the next task
      }
    }
  }
}
