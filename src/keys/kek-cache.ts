import type { Clock } from "../system/clock.ts";
import { oncePer } from "../system/once-per.ts";
import type { KekHeader, LocalKek } from "./envelope.ts";

/** Names a wrapped local KEK. Without the version: whatever a ciphertext claims, it is one entry. */
export const cacheKey = oncePer(
  ({ keyNameHash, aadSent, fingerprint }: KekHeader) =>
    `${keyPrefix(keyNameHash)}${aadSent ? 1 : 0}${Buffer.from(fingerprint).toString("latin1")}`,
);

function keyPrefix(keyNameHash: Uint8Array): string {
  return Buffer.from(keyNameHash).toString("latin1");
}

/** How long a local KEK that has never opened anything is believed before it is unwrapped anew. */
const DOUBT_MS = 10_000;

/** A key that is revoked may have had thousands: callers are answered between two batches. */
const WIPED_AT_ONCE = 4_096;

/** A local KEK that is kept, with what Key4C is asked for it. */
export interface Kept {
  readonly header: KekHeader;
  readonly localKek: LocalKek;
  readonly keptAtMs: number;
}

/**
 * Unwrapped local KEKs by their wrapped form. The longest unused is forgotten first; an *orphaned* one, which Key4C
 * does not give back any more, is never forgotten: this process is the last that can read what it wrapped.
 */
export class KekCache {
  hits = 0;
  misses = 0;
  readonly #capacity: number;
  readonly #clock: Clock;
  /** In the order of their last use, oldest first. */
  readonly #kept = new Map<string, Kept>();
  readonly #orphaned = new Map<string, Kept>();
  /** Dropped, and not wiped yet. */
  readonly #toWipe = new Set<LocalKek>();

  constructor(capacity: number, clock: Clock) {
    this.#capacity = capacity;
    this.#clock = clock;
  }

  get size(): number {
    return this.#kept.size;
  }

  get orphans(): number {
    return this.#orphaned.size;
  }

  get(key: string): LocalKek | undefined {
    const kept = this.#kept.get(key);
    if (kept === undefined) {
      const orphan = this.#orphaned.get(key)?.localKek;
      this.hits += orphan === undefined ? 0 : 1; // whoever goes on to Key4C counts the miss
      return orphan;
    }
    this.hits += 1;
    this.#kept.delete(key);
    this.#kept.set(key, kept);
    return kept.localKek;
  }

  /** Keeps a local KEK, at the cost of the longest unused one when there is no room. */
  keep(header: KekHeader, localKek: LocalKek): void {
    const key = cacheKey(header);
    if (this.#orphaned.has(key)) {
      return;
    }
    const former = this.#kept.get(key);
    if (former !== undefined && former.localKek !== localKek) {
      this.#drop(key);
    }
    this.#kept.delete(key);
    this.#kept.set(key, { header, localKek, keptAtMs: this.#clock.nowMs() });
    for (const oldest of this.#kept.keys()) {
      if (this.#kept.size <= this.#capacity) {
        break;
      }
      this.#drop(oldest);
    }
  }

  /** Every one that is kept for a key, orphaned ones too. */
  keptFor(keyNameHash: Uint8Array): readonly Kept[] {
    return [...ofKey(keyNameHash, this.#kept), ...this.orphansFor(keyNameHash)];
  }

  orphansFor(keyNameHash: Uint8Array): readonly Kept[] {
    return ofKey(keyNameHash, this.#orphaned);
  }

  /** Key4C does not give it back. @returns whether that is new */
  orphan(header: KekHeader, localKek: LocalKek): boolean {
    const key = cacheKey(header);
    // One that was dropped while Key4C was asked for it is wiped in a moment.
    const isNew = !this.#orphaned.has(key) && !this.#toWipe.has(localKek);
    if (isNew) {
      this.#orphaned.set(key, { header, localKek, keptAtMs: this.#clock.nowMs() });
      this.#kept.delete(key);
    }
    return isNew;
  }

  isOrphaned(key: string): boolean {
    return this.#orphaned.has(key);
  }

  /** Key4C gives it back again. @param isPinned whether somebody else holds it, who must not lose it for want of room */
  adopt(header: KekHeader, isPinned: boolean): void {
    const key = cacheKey(header);
    const orphan = this.#orphaned.get(key);
    this.#orphaned.delete(key);
    if (orphan !== undefined && !isPinned) {
      this.keep(header, orphan.localKek);
    }
  }

  /**
   * Whether a local KEK under which a ciphertext did not open should be unwrapped once more. Mostly that is the
   * ciphertext's fault, and a damaged object must harm no other; but Key4C may have answered with a wrong key, which
   * would make honest data unreadable until the next restart.
   */
  isDoubtful(key: string): boolean {
    const kept = this.#kept.get(key);
    return (
      kept !== undefined &&
      !kept.localKek.isProven &&
      this.#clock.nowMs() - kept.keptAtMs >= DOUBT_MS
    );
  }

  /** Drops the local KEKs of one Key4C key; orphaned ones, which nobody gives back, are only withheld. */
  dropKey(keyNameHash: Uint8Array): void {
    const prefix = keyPrefix(keyNameHash);
    const all = [...this.#kept];
    this.#kept.clear(); // to delete thousands one by one takes several times as long
    for (const [key, kept] of all) {
      if (key.startsWith(prefix)) {
        this.#wipeSoon(kept.localKek);
      } else {
        this.#kept.set(key, kept);
      }
    }
  }

  #drop(key: string): void {
    const kept = this.#kept.get(key);
    if (kept !== undefined) {
      this.#kept.delete(key);
      this.#wipeSoon(kept.localKek);
    }
  }

  /** Not before those who were just given it have used it, which they do in this turn. */
  #wipeSoon(localKek: LocalKek): void {
    if (this.#toWipe.add(localKek).size === 1) {
      this.#clock.after(0, () => this.#wipe());
    }
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

function ofKey(keyNameHash: Uint8Array, among: ReadonlyMap<string, Kept>): readonly Kept[] {
  const prefix = keyPrefix(keyNameHash);
  const found: Kept[] = [];
  for (const [key, kept] of among) {
    if (key.startsWith(prefix)) {
      found.push(kept);
    }
  }
  return found;
}
