/** Time and chance of a simulation: nothing passes but when an event ends, and a seed repeats everything. */
import type { Clock } from "../../src/system/clock.ts";

export const SECOND = 1_000;
export const MINUTE = 60 * SECOND;
export const HOUR = 60 * MINUTE;
export const DAY = 24 * HOUR;
/** What the wall clock showed at the beginning of every history. */
export const EPOCH_MS = Date.UTC(2026, 0, 1);

/** mulberry32: small, fast, the same everywhere. Never for keys. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 0;
  }

  /** 0 ≤ x < 1. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let x = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  }

  /** 0 ≤ n < limit. */
  int(limit: number): number {
    return Math.floor(this.next() * limit);
  }

  chance(probability: number): boolean {
    return this.next() < probability;
  }

  pick<T>(list: readonly T[]): T {
    if (list.length === 0) {
      throw new RangeError("nothing to pick from");
    }
    return list[this.int(list.length)] as T; // there is one
  }

  between(low: number, high: number): number {
    return low + this.next() * (high - low);
  }

  /** As likely between 1 and 10 as between 10 and 100. */
  logBetween(low: number, high: number): number {
    return low * (high / low) ** this.next();
  }
}

interface Event {
  readonly atMs: number;
  readonly order: number;
  task: (() => void) | undefined;
}

/** What happens, one after the other; all promises that an event settles have run before the next one. */
export class SimulatedTime {
  #nowMs = 0;
  #order = 0;
  /** A binary heap: the soonest first, equal ones in the order in which they were planned. */
  readonly #heap: Event[] = [];
  /** How far the wall clock of the plugins' hosts is from the truth. */
  wallOffsetMs = 0;
  steps = 0;

  get nowMs(): number {
    return this.#nowMs;
  }

  /** @returns what cancels it */
  after(ms: number, task: () => void): () => void {
    const event: Event = { atMs: this.#nowMs + Math.max(0, ms), order: this.#order++, task };
    this.#push(event);
    return () => {
      event.task = undefined;
    };
  }

  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      this.after(ms, resolve);
    });
  }

  /** Runs what is due until then. @param afterStep called after each event and what it settled */
  async runUntil(endMs: number, afterStep: () => void): Promise<void> {
    for (let next = this.#heap[0]; next !== undefined && next.atMs <= endMs; next = this.#heap[0]) {
      this.#pop();
      if (next.task === undefined) {
        continue;
      }
      this.#nowMs = next.atMs;
      next.task();
      await drained();
      this.steps += 1;
      afterStep();
    }
    this.#nowMs = endMs;
  }

  #push(event: Event): void {
    const heap = this.#heap;
    let at = heap.length;
    heap.push(event);
    while (at > 0) {
      const parentAt = (at - 1) >> 1;
      const parent = heap[parentAt];
      if (parent === undefined || isSooner(parent, event)) {
        break;
      }
      heap[at] = parent;
      at = parentAt;
    }
    heap[at] = event;
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop();
    if (last === undefined || heap.length === 0) {
      return;
    }
    let at = 0;
    for (;;) {
      let childAt = 2 * at + 1;
      let child = heap[childAt];
      if (child === undefined) {
        break;
      }
      const right = heap[childAt + 1];
      if (right !== undefined && isSooner(right, child)) {
        childAt += 1;
        child = right;
      }
      if (isSooner(last, child)) {
        break;
      }
      heap[at] = child;
      at = childAt;
    }
    heap[at] = last;
  }
}

function isSooner(one: Event, other: Event): boolean {
  return one.atMs < other.atMs || (one.atMs === other.atMs && one.order < other.order);
}

/** Every promise that can be settled is: a macrotask comes after all microtasks. */
function drained(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}

/** The clock of one process, which may be paused (SIGSTOP, a host without CPU) and ends with it. */
export class ProcessClock implements Clock {
  /** Whose code runs: everything happens in an event of one process. */
  static running: ProcessClock | undefined;
  readonly #time: SimulatedTime;
  readonly #random: Random;
  readonly #timers = new Set<object>();
  #backlog: (() => void)[] | undefined;
  #isDead = false;
  /** When it was paused last; for ever ago at first. */
  resumedAtMs = Number.NEGATIVE_INFINITY;

  constructor(time: SimulatedTime, random: Random) {
    this.#time = time;
    this.#random = random;
  }

  /** Timers that have neither run nor been cancelled. */
  get pendingTimers(): number {
    return this.#timers.size;
  }

  get isPaused(): boolean {
    return this.#backlog !== undefined;
  }

  get isDead(): boolean {
    return this.#isDead;
  }

  nowMs(): number {
    return this.#time.nowMs;
  }

  random(): number {
    return this.#random.next();
  }

  after(ms: number, task: () => void): () => void {
    const timer = {};
    this.#timers.add(timer);
    const cancel = this.#time.after(ms, () =>
      this.deliver(() => {
        if (this.#timers.delete(timer)) {
          task();
        }
      }),
    );
    return () => {
      this.#timers.delete(timer);
      cancel();
    };
  }

  /** Something from outside reaches the process: at once, when it goes on, or never. */
  deliver(task: () => void): void {
    if (this.#isDead) {
      return;
    }
    if (this.#backlog !== undefined) {
      this.#backlog.push(task);
      return;
    }
    ProcessClock.running = this;
    task();
  }

  pause(): void {
    this.#backlog ??= [];
  }

  resume(): void {
    const backlog = this.#backlog ?? [];
    this.#backlog = undefined;
    this.resumedAtMs = this.#time.nowMs;
    for (const task of backlog) {
      this.#time.after(0, () => this.deliver(task));
    }
  }

  /** kill -9: nothing of it ever runs again. */
  kill(): void {
    this.#isDead = true;
    this.#timers.clear();
  }
}
