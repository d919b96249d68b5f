import type { KekHeader, LocalKek } from "./envelope.ts";

/** How long a wrapped KEK that Key4C refused is refused without asking again. */
const REFUSAL_MS = 10_000;
/** So many refusals in that time are an attack: until the oldest is forgotten, Key4C is asked no more. */
const MAX_REFUSALS = 1_024;

/** Names a wrapped local KEK. Without the version: whatever a ciphertext claims, it is one entry. */
export function cacheKey({ keyNameHash, aadSent, fingerprint }: KekHeader): string {
  return `${keyPrefix(keyNameHash)}${aadSent ? 1 : 0}${Buffer.from(fingerprint).toString("latin1")}`;
}

function keyPrefix(keyNameHash: Uint8Array): string {
  return Buffer.from(keyNameHash).toString("latin1");
}

/** How long a local KEK that has never opened anything is believed before it is unwrapped anew. */
const DOUBT_MS = 10_000;

interface Entry {
  readonly localKek: LocalKek;
  readonly keptAtMs: number;
}

/**
 * Unwrapped local KEKs by their wrapped form, the longest unused forgotten first, and the wrapped forms
 * that Key4C lately refused.
 */
export class KekCache {
  hits = 0;
  misses = 0;
  readonly #capacity: number;
  readonly #nowMs: () => number;
  /** In the order of their last use, oldest first. */
  readonly #kept = new Map<string, Entry>();
  /** When each refusal ends, oldest first. */
  readonly #refused = new Map<string, number>();

  constructor(capacity: number, nowMs: () => number) {
    this.#capacity = capacity;
    this.#nowMs = nowMs;
  }

  get size(): number {
    return this.#kept.size;
  }

  get(key: string): LocalKek | undefined {
    const entry = this.#kept.get(key);
    if (entry === undefined) {
      return undefined; // whoever then goes on to Key4C counts the miss
    }
    this.hits += 1;
    this.#kept.delete(key);
    this.#kept.set(key, entry);
    return entry.localKek;
  }

  /** Keeps a local KEK, at the cost of the longest unused one when there is no room. */
  keep(key: string, localKek: LocalKek): void {
    this.#kept.delete(key);
    this.#kept.set(key, { localKek, keptAtMs: this.#nowMs() });
    for (const oldest of this.#kept.keys()) {
      if (this.#kept.size <= this.#capacity) {
        break;
      }
      this.#drop(oldest);
    }
  }

  /**
   * Told when a ciphertext did not open. Mostly that is the ciphertext's fault; but a wrong answer of
   * Key4C must not make honest data unreadable until the next restart.
   */
  doubt(key: string): void {
    const entry = this.#kept.get(key);
    if (entry && !entry.localKek.isProven && this.#nowMs() - entry.keptAtMs >= DOUBT_MS) {
      this.#drop(key);
    }
  }

  /** Drops the local KEKs of one Key4C key. */
  dropKey(keyNameHash: Uint8Array): void {
    const prefix = keyPrefix(keyNameHash);
    for (const key of this.#kept.keys()) {
      if (key.startsWith(prefix)) {
        this.#drop(key);
      }
    }
  }

  refuse(key: string): void {
    this.#refused.delete(key);
    this.#refused.set(key, this.#nowMs() + REFUSAL_MS);
    for (const oldest of this.#refused.keys()) {
      if (this.#refused.size <= MAX_REFUSALS) {
        break;
      }
      this.#refused.delete(oldest);
    }
  }

  /** Whether whoever invents wrapped KEKs has had enough calls to Key4C for now. */
  get isFlooded(): boolean {
    const nowMs = this.#nowMs();
    for (const [key, untilMs] of this.#refused) {
      if (untilMs > nowMs) {
        break;
      }
      this.#refused.delete(key);
    }
    return this.#refused.size >= MAX_REFUSALS;
  }

  isRefused(key: string): boolean {
    const untilMs = this.#refused.get(key);
    if (untilMs !== undefined && untilMs <= this.#nowMs()) {
      this.#refused.delete(key);
      return false;
    }
    return untilMs !== undefined;
  }

  #drop(key: string): void {
    const entry = this.#kept.get(key);
    this.#kept.delete(key);
    // Not before those who were just given it have used it, which they do in this turn.
    setImmediate(() => entry?.localKek.drop());
  }
}
