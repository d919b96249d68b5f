import type { Clock } from "../system/clock.ts";
import type { LocalKek } from "./envelope.ts";

/** Renewals side by side; with KMS_LOCAL_KEK_MAX_USES=1 each Encrypt needs one, and an HSM is not flooded. */
const MAX_CONCURRENT_RENEWALS = 64;
/** After a renewal failed the current local KEK goes on, and the next attempt waits this long or for a well probe. */
const RENEWAL_PAUSE_MS = 5_000;
/** An Encrypt above the limit of uses waits this long for a new local KEK, then goes on without. */
const MAX_RENEWAL_WAIT_MS = 2_000;

interface RenewalsOptions {
  /** Makes a local KEK; {@link Renewals.serve} is told when it is current. */
  readonly make: () => Promise<unknown>;
  readonly maxUses: number;
  /** Whether Key4C is known not to answer: then none is begun. */
  readonly isFutile: () => boolean;
  /** Told of one that failed, and not of those that fail in the pause after it. */
  readonly onFailure: (error: unknown) => void;
  readonly clock: Clock;
}

/** Makes new local KEKs while the current one goes on, and hands them to the Encrypts that wait for one. */
export class Renewals {
  readonly #options: RenewalsOptions;
  readonly #waiting = new Set<(fresh: LocalKek | undefined) => void>();
  #underWay = 0;
  #pausedUntilMs = Number.NEGATIVE_INFINITY;

  constructor(options: RenewalsOptions) {
    this.#options = options;
  }

  get isUnderWay(): boolean {
    return this.#underWay > 0;
  }

  /** Whether an Encrypt above the limit may hope for a new local KEK. */
  get isHopeful(): boolean {
    return this.isUnderWay || this.#mayBegin;
  }

  /** Begins one if none is under way and nothing speaks against it. */
  begin(): void {
    if (this.#underWay === 0 && this.#mayBegin) {
      this.#start();
    }
  }

  /** A probe has found Key4C well: what failed before may be tried again. */
  endPause(): void {
    this.#pausedUntilMs = Number.NEGATIVE_INFINITY;
  }

  /**
   * Waits for a new local KEK, first come first served; at most 2 s.
   * @param use called with it at once, so that no other Encrypt comes between
   * @returns what `use` returned; undefined when the wait was in vain
   */
  wait<T>(use: (fresh: LocalKek) => T): Promise<T | undefined> {
    const { promise, resolve, reject } = Promise.withResolvers<T | undefined>();
    const serve = (fresh: LocalKek | undefined) => {
      this.#waiting.delete(serve);
      cancel();
      try {
        resolve(fresh && use(fresh));
      } catch (error) {
        reject(error);
      }
    };
    const cancel = this.#options.clock.after(MAX_RENEWAL_WAIT_MS, () => serve(undefined));
    this.#waiting.add(serve);
    this.#fill();
    return promise;
  }

  /** Hands a new local KEK to as many as it may wrap for. */
  serve(fresh: LocalKek): void {
    for (const serve of this.#waiting) {
      if (fresh.uses >= this.#options.maxUses) {
        break;
      }
      serve(fresh);
    }
  }

  get #mayBegin(): boolean {
    const { isFutile, clock } = this.#options;
    return clock.nowMs() >= this.#pausedUntilMs && !isFutile();
  }

  /** As many as those who wait need; whoever cannot be served any more goes on without. */
  #fill(): void {
    const { maxUses } = this.#options;
    const wanted = Math.min(MAX_CONCURRENT_RENEWALS, Math.ceil(this.#waiting.size / maxUses));
    while (this.#underWay < wanted && this.#mayBegin) {
      this.#start();
    }
    if (!this.#mayBegin) {
      for (const serve of this.#waiting) {
        if (this.#waiting.size <= this.#underWay * maxUses) {
          break;
        }
        serve(undefined);
      }
    }
  }

  #start(): void {
    this.#underWay += 1;
    this.#options
      .make()
      .catch((error: unknown) => {
        const nowMs = this.#options.clock.nowMs();
        const isFirst = nowMs >= this.#pausedUntilMs; // of those side by side
        this.#pausedUntilMs = nowMs + RENEWAL_PAUSE_MS;
        if (isFirst) {
          this.#options.onFailure(error);
        }
      })
      .finally(() => {
        this.#underWay -= 1;
        this.#fill();
      });
  }
}
