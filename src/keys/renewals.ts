import type { Clock } from "../system/clock.ts";
import type { LocalKek } from "./envelope.ts";
import type { Snapshot } from "./holdings.ts";

/** Renewal starts at this part of either limit, so that no Encrypt waits for it. */
const RENEW_AT = 0.9;
/** Renewals at the same time. With KMS_LOCAL_KEK_MAX_USES=1 each Encrypt needs one, and an HSM must not be flooded. */
export const MAX_CONCURRENT_RENEWALS = 64;
/** After a failed renewal the current local KEK continues. The next attempt waits this long, or for a successful probe. */
const RENEWAL_PAUSE_MS = 5_000;
/** An Encrypt above the limit of uses waits this long for a new local KEK, and then uses the current one. */
export const MAX_RENEWAL_WAIT_MS = 2_000;

interface RenewalsOptions {
  /** Makes a local KEK; {@link Renewals.serve} is told when it is current. */
  readonly make: () => Promise<unknown>;
  readonly maxUses: number;
  readonly maxAgeMs: number;
  /** Whether Key4C is known not to answer. Then no renewal begins. */
  readonly isFutile: () => boolean;
  /** Called for a renewal that failed, but not for those that fail in the pause after it. */
  readonly onFailure: (error: unknown) => void;
  readonly clock: Clock;
}

/** Makes new local KEKs while the current one continues, and hands them to the Encrypts that wait for one. */
export class Renewals {
  readonly #options: RenewalsOptions;
  readonly #waiting = new Set<(fresh: LocalKek | undefined) => void>();
  #underWay = 0;
  #pausedUntilMs = Number.NEGATIVE_INFINITY;

  constructor(options: RenewalsOptions) {
    this.#options = options;
  }

  /** Whether a local KEK is near one of its limits. @param createdAtMs on the monotonic clock */
  isDue({ localKek, createdAtMs }: Snapshot): boolean {
    const { maxUses, maxAgeMs, clock } = this.#options;
    return (
      localKek.uses >= Math.ceil(maxUses * RENEW_AT) ||
      clock.nowMs() - createdAtMs >= maxAgeMs * RENEW_AT
    );
  }

  get isUnderWay(): boolean {
    return this.#underWay > 0;
  }

  /** Whether it makes sense for an Encrypt above the limit to wait for a new local KEK. */
  get isHopeful(): boolean {
    return this.isUnderWay || this.#mayBegin;
  }

  /** Begins a renewal, unless one is under way, a pause is not over, or Key4C is known not to answer. */
  begin(): void {
    if (this.#underWay === 0 && this.#mayBegin) {
      this.#start();
    }
  }

  /** A probe has succeeded, so a renewal that failed before may be tried again. */
  endPause(): void {
    this.#pausedUntilMs = Number.NEGATIVE_INFINITY;
  }

  /**
   * Waits for a new local KEK, first come first served; at most 2 s.
   * @param use called with it in the same turn, so that no other Encrypt uses it up
   * @returns what `use` returned; undefined when no new local KEK came
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

  /** Hands a new local KEK to waiting Encrypts, up to its limit of uses. */
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

  /** Begins as many renewals as the waiting Encrypts need. Those that no renewal can serve continue without. */
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
