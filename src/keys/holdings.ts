import type { LocalKek } from "./envelope.ts";
import type { Holding } from "./keeper.ts";
import { type CacheSpace, type KekCache, type Kept, kekName } from "./kek-cache.ts";
import { formatKeyId } from "./key-id.ts";
import type { Material } from "./material.ts";

/** What one Encrypt uses, all of it or nothing: key_id and local KEK can never disagree. */
export interface Snapshot extends Kept {
  /** Public key_id of KMS v2, derived from what Key4C answered when it wrapped the local KEK. */
  readonly keyId: string;
  readonly kmsKeyId: string;
  /** What its successors must be wrapped under. */
  readonly material: Material;
  /** On the monotonic clock. */
  readonly createdAtMs: number;
}

/**
 * The local KEKs of one key in memory: the current one, the canary, those that data needed, and orphaned ones. Each key
 * has its own and shows it to nobody, so that only key.ts can change one.
 */
export class Holdings {
  readonly #space: CacheSpace;
  readonly #cache: KekCache;
  /** What Key4C does not unwrap any more. Never forgotten: this process is the last that can read what they wrapped. */
  readonly #orphans = new Map<string, Kept>();
  #current: Snapshot | undefined;
  #canary: Kept | undefined;

  constructor(space: CacheSpace) {
    this.#space = space;
    this.#cache = space.cache();
  }

  get current(): Snapshot | undefined {
    return this.#current;
  }

  /** The oldest of the current key_id that this process used: Key4C must continue to unwrap it. */
  get canary(): Kept | undefined {
    return this.#canary;
  }

  get orphans(): readonly Kept[] {
    return [...this.#orphans.values()];
  }

  /** The current local KEK and the canary, once each. */
  get pinned(): readonly Kept[] {
    return [...new Set([this.#current, this.#canary])].filter((one) => one !== undefined);
  }

  /** Every one, orphaned ones too. */
  get all(): readonly Kept[] {
    return [...new Set([...this.#cache.all(), ...this.orphans, ...this.pinned])];
  }

  /**
   * For the next process: all but the orphaned ones, and those that have opened nothing yet, which may be a wrong answer.
   * Of the others the last used first.
   */
  get holding(): Holding {
    const [current, canary] = [this.#current, this.#canary].map((one) =>
      one === undefined || this.#orphans.has(kekName(one.header)) ? undefined : one,
    );
    const proven = this.#cache.all().filter(({ localKek }) => localKek.isProven);
    return { current, canary, others: proven.toReversed() };
  }

  /** By {@link kekName}. */
  find(name: string): LocalKek | undefined {
    if (this.#current !== undefined && name === kekName(this.#current.header)) {
      return this.#current.localKek;
    }
    if (this.#canary !== undefined && name === kekName(this.#canary.header)) {
      return this.#canary.localKek;
    }
    return this.#cache.get(name) ?? this.#orphans.get(name)?.localKek;
  }

  /** See {@link KekCache.isDoubtful}. */
  isDoubtful(name: string): boolean {
    return this.#cache.isDoubtful(name);
  }

  /**
   * Makes a local KEK current; undefined: there is none any more. What was current or the canary before is kept.
   * @param canary undefined: the canary so far if it has the same key_id, else the current one
   */
  setCurrent(current: Snapshot | undefined, canary?: Kept): void {
    const before = this.pinned;
    this.#current = current;
    const isOfKeyId = (one: Kept) => formatKeyId(one.header) === current?.keyId;
    if (canary !== undefined) {
      this.#canary = canary;
    } else if (current !== undefined && !(this.#canary && isOfKeyId(this.#canary))) {
      this.#canary = current;
    }
    for (const one of before.filter((former) => !this.pinned.includes(former))) {
      this.keep(one);
    }
  }

  setCanary(canary: Kept): void {
    this.#canary = canary;
  }

  keep({ header, localKek }: Kept): void {
    if (!this.#orphans.has(kekName(header))) {
      this.#cache.keep({ header, localKek });
    }
  }

  /** Key4C does not unwrap it any more. @returns whether that is new */
  orphan(kept: Kept): boolean {
    const name = kekName(kept.header);
    // One that was dropped while Key4C was asked for it is wiped in a moment.
    const isGone = kept.localKek.isDropped || this.#space.isToBeWiped(kept.localKek);
    if (isGone || this.#orphans.has(name)) {
      return false;
    }
    this.#orphans.set(name, kept);
    this.#cache.release(name);
    return true;
  }

  /** Key4C unwraps it again. */
  reinstate(kept: Kept): void {
    const name = kekName(kept.header);
    const wasOrphan = this.#orphans.delete(name);
    if (wasOrphan && !this.pinned.some((one) => kekName(one.header) === name)) {
      this.keep(kept);
    }
  }

  /** Wipes all but the orphaned ones, which nobody unwraps any more: they are only withheld. */
  drop(): void {
    this.#cache.dropAll();
    this.wipe(this.pinned.filter(({ header }) => !this.#orphans.has(kekName(header))));
    this.#current = undefined;
    this.#canary = undefined;
  }

  /** Wipes all. */
  dropOrphansToo(): void {
    const { orphans } = this;
    this.drop();
    this.#orphans.clear();
    this.wipe(orphans);
  }

  /** Of local KEKs that are not here, or not any more. */
  wipe(gone: readonly Kept[]): void {
    for (const { localKek } of gone) {
      this.#space.wipeSoon(localKek);
    }
  }
}
