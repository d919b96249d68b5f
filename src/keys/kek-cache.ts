import type { Clock } from "../system/clock.ts";
import { oncePer } from "../system/once-per.ts";
import type { KekHeader, LocalKek } from "./envelope.ts";

/** Names a local KEK among those of its key. Without the version: whatever a ciphertext claims, it is one entry. */
export const kekName = oncePer(
  ({ aadSent, fingerprint }: KekHeader) =>
    `${aadSent ? 1 : 0}${Buffer.from(fingerprint).toString("latin1")}`,
);

/** How long a local KEK that has never opened anything is believed before it is unwrapped anew. */
const DOUBT_MS = 10_000;
/** A key that is revoked may have had thousands: callers are answered between two batches. */
const WIPED_AT_ONCE = 4_096;

/** A local KEK that is kept, with what Key4C is asked for it. */
export interface Kept {
  readonly header: KekHeader;
  readonly localKek: LocalKek;
}

interface Entry extends Kept {
  readonly keptAtMs: number;
  /** Counts up with each use of any entry. */
  lastUse: number;
}

/** The room that the caches of all keys share, and the wiping of what leaves them. */
export class CacheSpace {
  hits = 0;
  misses = 0;
  readonly #capacity: number;
  readonly #clock: Clock;
  readonly #caches = new Set<KekCache>();
  /** Dropped, and not wiped yet. */
  readonly #toWipe = new Set<LocalKek>();
  #uses = 0;

  /** @param capacity how many local KEKs are kept together */
  constructor(capacity: number, clock: Clock) {
    this.#capacity = capacity;
    this.#clock = clock;
  }

  get size(): number {
    let size = 0;
    for (const cache of this.#caches) {
      size += cache.size;
    }
    return size;
  }

  get nowMs(): number {
    return this.#clock.nowMs();
  }

  /** A cache for one key. */
  cache(): KekCache {
    const cache = new KekCache(this);
    this.#caches.add(cache);
    return cache;
  }

  countUse(): number {
    this.#uses += 1;
    return this.#uses;
  }

  /** Gives up the longest unused, of whatever key, until there is room. */
  makeRoom(): void {
    for (let tooMany = this.size - this.#capacity; tooMany > 0; tooMany--) {
      let oldest: KekCache | undefined;
      for (const cache of this.#caches) {
        if (cache.oldestUse < (oldest?.oldestUse ?? Number.POSITIVE_INFINITY)) {
          oldest = cache;
        }
      }
      oldest?.dropOldest();
    }
  }

  /** Not before those who were just given it have used it, which they do in this turn. */
  wipeSoon(localKek: LocalKek): void {
    if (this.#toWipe.add(localKek).size === 1) {
      this.#clock.after(0, () => this.#wipe());
    }
  }

  isToBeWiped(localKek: LocalKek): boolean {
    return this.#toWipe.has(localKek);
  }

  #wipe(): void {
    let left = WIPED_AT_ONCE;
    for (const localKek of this.#toWipe) {
      if (left-- === 0) {
        break;
      }
      localKek.drop();
      this.#toWipe.delete(localKek);
    }
    if (this.#toWipe.size > 0) {
      this.#clock.after(0, () => this.#wipe());
    }
  }
}

/** The unwrapped local KEKs of one key by {@link kekName}. The longest unused is forgotten first. */
export class KekCache {
  readonly #space: CacheSpace;
  /** In the order of their last use, oldest first. */
  readonly #entries = new Map<string, Entry>();

  constructor(space: CacheSpace) {
    this.#space = space;
  }

  get size(): number {
    return this.#entries.size;
  }

  /** See {@link CacheSpace.countUse}; infinite when nothing is kept. */
  get oldestUse(): number {
    const [oldest] = this.#entries.values();
    return oldest?.lastUse ?? Number.POSITIVE_INFINITY;
  }

  get(name: string): LocalKek | undefined {
    const entry = this.#entries.get(name);
    if (entry === undefined) {
      return undefined;
    }
    this.#space.hits += 1;
    entry.lastUse = this.#space.countUse();
    this.#entries.delete(name);
    this.#entries.set(name, entry);
    return entry.localKek;
  }

  all(): readonly Kept[] {
    return [...this.#entries.values()];
  }

  /** Keeps a local KEK, at the cost of the longest unused one when there is no room. */
  keep({ header, localKek }: Kept): void {
    const name = kekName(header);
    if (this.#entries.get(name)?.localKek !== localKek) {
      this.#drop(name);
    }
    this.#entries.delete(name);
    const entry = { header, localKek, keptAtMs: this.#space.nowMs };
    this.#entries.set(name, { ...entry, lastUse: this.#space.countUse() });
    this.#space.makeRoom();
  }

  /** Forgets it without wiping: somebody else holds it from now on. */
  release(name: string): void {
    this.#entries.delete(name);
  }

  /**
   * Whether a local KEK under which a ciphertext did not open should be unwrapped once more. Mostly that is the
   * ciphertext's fault, and a damaged object must harm no other; but Key4C may have answered with a wrong key, which
   * would make honest data unreadable until the next restart.
   */
  isDoubtful(name: string): boolean {
    const entry = this.#entries.get(name);
    return (
      entry !== undefined &&
      !entry.localKek.isProven &&
      this.#space.nowMs - entry.keptAtMs >= DOUBT_MS
    );
  }

  dropOldest(): void {
    const [name] = this.#entries.keys();
    if (name !== undefined) {
      this.#drop(name);
    }
  }

  dropAll(): void {
    for (const { localKek } of this.#entries.values()) {
      this.#space.wipeSoon(localKek);
    }
    this.#entries.clear(); // to delete thousands one by one takes several times as long
  }

  #drop(name: string): void {
    const entry = this.#entries.get(name);
    if (entry !== undefined) {
      this.#entries.delete(name);
      this.#space.wipeSoon(entry.localKek);
    }
  }
}
