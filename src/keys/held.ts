import type { Clock } from "../system/clock.ts";
import type { KekHeader, LocalKek } from "./envelope.ts";
import { cacheKey, KekCache, type Kept } from "./kek-cache.ts";
import { keyNameHash } from "./key-id.ts";
import type { Expected, ProvenKek } from "./local-kek.ts";

/** What one Encrypt uses, all of it or nothing: key_id and local KEK can never disagree. */
export interface Snapshot extends ProvenKek {
  /** Public key_id of KMS v2, derived from what Key4C answered when it wrapped the local KEK. */
  readonly keyId: string;
  readonly kmsKeyId: string;
  /** What its successors must be wrapped under. */
  readonly expected: Expected;
  readonly cacheKey: string;
  /** On the monotonic clock. */
  readonly createdAtMs: number;
}

/** The local KEKs in memory: the current one, the witness, and those that data in etcd needed. */
export class HeldKeks {
  readonly cache: KekCache;
  #current: Snapshot | undefined;
  #witness: Snapshot | undefined;

  /** @param cacheSize how many are kept beside those two and the orphaned ones */
  constructor(cacheSize: number, clock: Clock) {
    this.cache = new KekCache(cacheSize, clock);
  }

  /** What Encrypt uses now; undefined until Key4C has wrapped and unwrapped a first local KEK. */
  get current(): Snapshot | undefined {
    return this.#current;
  }

  /** The oldest of the current key and version that this process used: Key4C must go on giving it back. */
  get witness(): Snapshot | undefined {
    return this.#witness;
  }

  /** Both, once each. */
  get pinned(): readonly Snapshot[] {
    return [...new Set([this.#current, this.#witness])].filter((one) => one !== undefined);
  }

  isPinned(header: KekHeader): boolean {
    const key = cacheKey(header);
    return this.pinned.some((one) => one.cacheKey === key);
  }

  find(key: string): LocalKek | undefined {
    if (key === this.#current?.cacheKey) {
      return this.#current.localKek;
    }
    return key === this.#witness?.cacheKey ? this.#witness.localKek : this.cache.get(key);
  }

  /** Every one of a key, orphaned ones too. */
  ofKey(kmsKeyId: string): readonly (Kept | Snapshot)[] {
    const pinned = this.pinned.filter((one) => one.kmsKeyId === kmsKeyId);
    return [...this.cache.keptFor(keyNameHash(kmsKeyId)), ...pinned];
  }

  become(snapshot: Snapshot): void {
    const before = this.pinned;
    this.#current = snapshot;
    if (this.#witness?.keyId !== snapshot.keyId) {
      this.#witness = snapshot;
    }
    for (const { header, localKek } of before.filter((one) => !this.pinned.includes(one))) {
      this.cache.keep(header, localKek);
    }
  }

  /** Drops those of a key, and of no other; orphaned ones, which nobody gives back, are kept. */
  drop(kmsKeyId: string): void {
    this.cache.dropKey(keyNameHash(kmsKeyId));
    if (this.#current?.kmsKeyId !== kmsKeyId) {
      return;
    }
    for (const { cacheKey, localKek } of this.pinned) {
      if (!this.cache.isOrphaned(cacheKey)) {
        localKek.drop();
      }
    }
    this.#current = undefined;
    this.#witness = undefined;
  }
}

/** What logs call a local KEK: 16 hexadecimal digits of the hash of its wrapped form, as `inspect` shows them. */
export function fingerprintOf({ header }: { readonly header: KekHeader }): string {
  return Buffer.from(header.fingerprint).toString("hex").slice(0, 16);
}

/** A proven local KEK as the current one. */
export function snapshotOf(
  made: ProvenKek,
  of: Pick<Snapshot, "kmsKeyId" | "expected" | "keyId" | "createdAtMs">,
): Snapshot {
  return Object.freeze({ ...made, ...of, cacheKey: cacheKey(made.header) });
}
