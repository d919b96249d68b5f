/** Which key material stands behind a Key4C key: its version and key check value, as far as Key4C tells them. */
import type { KekHeader } from "./envelope.ts";
import { FINDING_ANSWERS, MISMATCH_MS } from "./key-health.ts";
import { formatKeyId, type KeyIdentity, kcvHash, keyNameHash } from "./key-id.ts";
import type { KeyDescription } from "./wrapping.ts";

/** While Key4C reports an older version than before, or a former key check value, we assume a replica that lags. */
export const LAG_MS = 600_000;
/** So many claims of unknown material are remembered. What an object claims is not authenticated before it is opened. */
const MAX_CLAIMS = 64;

/** What describe told of a key. */
export interface Material {
  /** undefined: describe tells none, so whatever encrypt tells counts. */
  readonly version: number | undefined;
  /** Of the key check value; empty when none is told. */
  readonly kcvHash: Uint8Array;
}

export function materialOf(
  kmsKeyId: string,
  { version, kcv }: Pick<KeyDescription, "version" | "kcv">,
): Material {
  return { version, kcvHash: kcvHash(kmsKeyId, kcv) };
}

/** @param after a describe that tells no key check value keeps the last one */
export function isSameMaterial(before: Material, after: Material): boolean {
  const { kcvHash } = after;
  return (
    before.version === after.version && (kcvHash.length === 0 || isSameKcv(before.kcvHash, kcvHash))
  );
}

function isSameKcv(one: Uint8Array, other: Uint8Array): boolean {
  return Buffer.compare(one, other) === 0;
}

/** Another key check value than the current one, as long as no describe tells the current one. */
interface Candidate {
  readonly kcvHash: Uint8Array;
  readonly answers: number;
  readonly sinceMs: number;
}

/**
 * What one key's material was and is. A replica of Key4C may lag in both directions, so a key check value counts only
 * after several answers, and what an object claims counts as unknown before it counts as damaged.
 */
export class Materials {
  #highestVersion = 0;
  /** The key check values that were told or that opened something, as key_ids without version. */
  readonly #known = new Set<string>();
  /** Those under which something became current. */
  readonly #published = new Set<string>();
  #candidate: Candidate | undefined;
  /** When an object first claimed material that nobody has told, by its key_id. */
  readonly #claims = new Map<string, number>();
  readonly #keyNameHash: Uint8Array;

  constructor(kmsKeyId: string) {
    this.#keyNameHash = keyNameHash(kmsKeyId);
  }

  /** Of those that became current: nothing older does after it. */
  highestPublished = 0;

  /** Whether anything became current in this process. */
  get arePublished(): boolean {
    return this.#published.size > 0;
  }

  /** Whether another key check value was told, and must be told again before it counts. */
  get isWatching(): boolean {
    return this.#candidate !== undefined;
  }

  /** The key does not wrap any more, so no other key check value is waited for. */
  endWatch(): void {
    this.#candidate = undefined;
  }

  /** Key4C told this material, or unwrapped under it. */
  learn({ version, kcvHash }: Material): void {
    this.#highestVersion = Math.max(this.#highestVersion, version ?? 0);
    if (kcvHash.length > 0) {
      this.#known.add(this.#nameOf(kcvHash));
    }
  }

  /** A local KEK under it became current. */
  publish({ keyVersion, kcvHash }: KeyIdentity): void {
    this.highestPublished = keyVersion;
    this.learn({ version: keyVersion, kcvHash });
    this.#published.add(this.#nameOf(kcvHash));
    this.#candidate = undefined;
  }

  /**
   * Takes note of a describe on a new connection. A rotation that no version tells is one that FINDING_ANSWERS describes
   * over MISMATCH_MS tell while none tells the current key check value; a former one must be told for LAG_MS.
   * @param current the key check value hash of what wraps now
   * @returns whether the told key check value is that of new material
   */
  isReplaced(told: Uint8Array, current: Uint8Array, nowMs: number): boolean {
    if (told.length === 0 || isSameKcv(told, current)) {
      this.#candidate = undefined;
      return false;
    }
    const before = this.#candidate;
    const isSame = before !== undefined && isSameKcv(before.kcvHash, told);
    const { answers, sinceMs } = isSame ? before : { answers: 0, sinceMs: nowMs };
    this.#candidate = { kcvHash: told, answers: answers + 1, sinceMs };
    const forMs = this.#published.has(this.#nameOf(told)) ? LAG_MS : MISMATCH_MS;
    return answers + 1 >= FINDING_ANSWERS && nowMs - sinceMs >= forMs;
  }

  /**
   * Key4C may call a local KEK invalid because the replica that was asked lags: where the material that the object claims
   * is above everything that this process has been told.
   * @returns how long ago that was first claimed; undefined: it is no lag, or has lasted for LAG_MS
   */
  lagMs({ keyVersion, kcvHash }: KekHeader, nowMs: number): number | undefined {
    const isKnownKcv = kcvHash.length === 0 || this.#known.has(this.#nameOf(kcvHash));
    if (keyVersion <= this.#highestVersion && isKnownKcv) {
      return undefined;
    }
    const claim = formatKeyId({ keyNameHash: this.#keyNameHash, keyVersion, kcvHash });
    const sinceMs = this.#claims.get(claim) ?? nowMs;
    if (this.#claims.size < MAX_CLAIMS) {
      this.#claims.set(claim, sinceMs);
    }
    const lagMs = nowMs - sinceMs;
    return this.#claims.has(claim) && lagMs < LAG_MS ? lagMs : undefined;
  }

  #nameOf(kcvHash: Uint8Array): string {
    return formatKeyId({ keyNameHash: this.#keyNameHash, keyVersion: 0, kcvHash });
  }
}
