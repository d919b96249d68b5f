import { type Clock, sleep } from "../system/clock.ts";
import type { Log } from "../system/log.ts";
import type { Kept } from "./kek-cache.ts";
import type { Key } from "./key.ts";
import { isGivenBack } from "./local-kek.ts";
import type { WrappingService } from "./wrapping.ts";

/** A rotation may find thousands of local KEKs held: 50 calls a second, each on a new connection, leave an HSM its work. */
export const BATCH = 5;
export const BATCH_INTERVAL_MS = 100;
/** Orphaned local KEKs, and those that Key4C could not judge, are asked for again this often: material may be restored. */
const AGAIN_INTERVAL_MS = 5 * 60_000;

type Asked = readonly [Key, Kept];

/**
 * Asks Key4C for local KEKs that are held and may be lost. Those that it does not unwrap become orphaned, and orphaned
 * ones that it unwraps cease to be. One list for all keys; it remembers what is left.
 */
export class LookThrough {
  readonly #service: WrappingService;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #left = new Map<Kept, Key>();
  /** Key4C answered neither yes nor no. */
  readonly #unjudged = new Map<Kept, Key>();
  #isRunning = false;
  #isStopped = false;
  #againAtMs = Number.NEGATIVE_INFINITY;

  constructor(service: WrappingService, clock: Clock, log: Log) {
    this.#service = service;
    this.#clock = clock;
    this.#log = log;
  }

  add(key: Key, kept: readonly Kept[]): void {
    for (const one of kept) {
      this.#left.set(one, key);
    }
  }

  /** The key is not configured any more. */
  forget(key: Key): void {
    for (const asked of [this.#left, this.#unjudged]) {
      for (const [kept, of] of asked) {
        if (of === key) {
          asked.delete(kept);
        }
      }
    }
  }

  /** Key4C answers for a key: continues, and asks again for what was orphaned or not judged. No probe waits for it. */
  resume(keys: readonly Key[]): void {
    const nowMs = this.#clock.nowMs();
    const again: Asked[] = [
      ...[...this.#unjudged].map(([kept, key]) => [key, kept] as const),
      ...keys.flatMap((key) => key.orphans.map((kept) => [key, kept] as const)),
    ];
    if (again.length > 0 && nowMs >= this.#againAtMs) {
      this.#againAtMs = nowMs + AGAIN_INTERVAL_MS;
      this.#unjudged.clear();
      for (const [key, kept] of again) {
        this.#left.set(kept, key);
      }
    }
    if (!this.#isRunning && !this.#isStopped && this.#left.size > 0) {
      this.#isRunning = true;
      void this.#run().finally(() => {
        this.#isRunning = false;
      });
    }
  }

  stop(): void {
    this.#isStopped = true;
  }

  async #run(): Promise<void> {
    this.#againAtMs = this.#clock.nowMs() + AGAIN_INTERVAL_MS;
    const found = new Map<Key, number>();
    /** Key4C judges nothing of them: the next probe that succeeds continues. */
    const silent = new Set<Key>();
    while (!this.#isStopped) {
      const batch = [...this.#left]
        .filter(([, key]) => mayBeAsked(key) && !silent.has(key))
        .slice(0, BATCH);
      if (batch.length === 0) {
        break;
      }
      const beganMs = this.#clock.nowMs();
      const judged = await Promise.all(batch.map(([kept, key]) => this.#ask(key, kept, found)));
      for (const key of new Set(batch.map(([, of]) => of))) {
        const ofKey = batch.flatMap(([kept, of], at) => (of === key ? [{ kept, at }] : []));
        if (ofKey.length > 1 && ofKey.every(({ at }) => !judged[at])) {
          silent.add(key); // not these local KEKs, but Key4C
          continue;
        }
        for (const { kept, at } of ofKey) {
          this.#left.delete(kept);
          if (!judged[at]) {
            this.#unjudged.set(kept, key);
          }
        }
      }
      await sleep(this.#clock, Math.max(0, beganMs + BATCH_INTERVAL_MS - this.#clock.nowMs()));
    }
    for (const [key, count] of found) {
      this.#log.error(
        "local KEKs are orphaned: Key4C does not unwrap them, this process can still read",
        {
          kmsKeyId: key.kmsKeyId,
          found: count,
          orphans: key.orphans.length,
          remedy:
            "rewrite all objects now, prove it with inspect --verify; do not restart the plugin before",
        },
      );
    }
  }

  /** @returns whether Key4C said yes or no */
  async #ask(key: Key, kept: Kept, found: Map<Key, number>): Promise<boolean> {
    if (kept.localKek.isDropped) {
      return true;
    }
    let isGiven: boolean;
    try {
      isGiven = await isGivenBack(this.#service, key.kmsKeyId, kept);
    } catch {
      return false;
    }
    if (isGiven) {
      key.reinstate(kept);
    } else if (key.orphan(kept)) {
      found.set(key, (found.get(key) ?? 0) + 1);
    }
    return true;
  }
}

/** What is known of one key stops no call of another: each is asked for as its own health allows. */
function mayBeAsked({ health, circuits }: Key): boolean {
  return health.refusalOfCallers === undefined && !health.isPaused && !circuits.isUnwrapOpen;
}
