/** How a key hands its local KEKs to the next process. src/cache implements it; without it a key keeps nothing. */
import type { Kept } from "./kek-cache.ts";

/** The local KEKs that a later process may have. */
export interface Holding {
  /** Under which Encrypt wraps. */
  readonly current: Kept | undefined;
  readonly canary: Kept | undefined;
  /** All others, but those that Key4C does not unwrap any more; the last used first. */
  readonly others: readonly Kept[];
}

/** What an earlier process held, and Key4C confirmed within KMS_PERSISTENT_CACHE_MAX_AGE. */
export interface Handover extends Holding {
  /** How long ago Key4C last unwrapped local KEKs of this key. */
  readonly confirmedMsAgo: number;
  /** On the wall clock: a later process would have them until then. */
  readonly untilMs: number;
}

export interface Keeper {
  /** Resolves with what was kept, once it can be read; never rejects. Uses of the current one are charged. */
  readonly handover: Promise<Handover | undefined>;
  /** Key4C has unwrapped local KEKs of this key. */
  confirmed(): void;
  /** There is another local KEK; a new current one is written at once. */
  more(which: "current" | "other"): void;
  /** No later process must find all of them, or some: removed when this returns. What is left is written again. */
  fewer(which: "all" | "some"): void;
}
