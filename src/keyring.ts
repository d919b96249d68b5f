import { randomBytes } from "node:crypto";
import {
  type Envelope,
  type KekHeader,
  kekHeader,
  LOCAL_KEK_BYTES,
  LocalKek,
  MAX_PLAINTEXT_BYTES,
} from "./envelope.ts";
import { PluginError, toPluginError } from "./errors.ts";
import { base32, formatKeyId, keyNameHash } from "./key-id.ts";
import type { Key4C } from "./key4c.ts";
import type { Log } from "./observe.ts";

/** NIST SP 800-38D §8.3: no more invocations under one key with random 96-bit IVs. */
const MAX_USES_EVER = 2 ** 32;
/** Renewal starts at this part of either limit, so that no Encrypt waits for it. */
const RENEW_AT = 0.9;
/** After a renewal failed, the current local KEK goes on and the next attempt waits this long. */
const RENEWAL_PAUSE_MS = 5_000;
/** Tells Key4C what it wraps; the key name hash follows. Frozen: data in etcd depend on it. */
const KEY4C_AAD_PURPOSE = Buffer.from("key4c-kms-plugin/local-kek/v1:", "latin1");

/** What one Encrypt uses, all of it or nothing: key_id and local KEK can never disagree. */
export interface Snapshot {
  /** Public key_id of KMS v2, derived from what Key4C answered when it wrapped the local KEK. */
  readonly keyId: string;
  readonly header: KekHeader;
  readonly localKek: LocalKek;
  /** On the monotonic clock. */
  readonly createdAtMs: number;
}

export interface KeyringOptions {
  readonly key4c: Pick<Key4C, "wrap" | "unwrap">;
  readonly kmsKeyId: string;
  /** Keys whose data are still decrypted. */
  readonly previousKeyIds: readonly string[];
  readonly maxUses: number;
  readonly maxAgeMs: number;
  /** How many unwrapped local KEKs are kept beside the current one. */
  readonly cacheSize: number;
  readonly log: Log;
  /** Monotonic clock; tests replace it. */
  readonly nowMs?: () => number;
}

/** Who asks, and whether it still waits. */
export interface Caller {
  readonly requestId?: string | undefined;
  readonly hasLeft?: () => boolean;
}

/**
 * Holds the local KEKs: the current one, which wraps new DEKs, and those that data in etcd need. Calls
 * Key4C only to make one and to unwrap one it has not seen; concurrent needs share one call.
 */
export class Keyring {
  readonly #options: KeyringOptions;
  readonly #nowMs: () => number;
  /** From base32(key name hash) to the ID of the Key4C key. */
  readonly #kmsKeyIds: ReadonlyMap<string, string>;
  #snapshot: Snapshot | undefined;
  #renewal: Promise<Snapshot> | undefined;
  #lastRenewalFailure: { readonly atMs: number; readonly error: PluginError } | undefined;
  /** In the order of their last use, oldest first. */
  readonly #cache = new Map<string, LocalKek>();
  readonly #unwrapping = new Map<string, Promise<LocalKek>>();

  constructor(options: KeyringOptions) {
    this.#options = options;
    this.#nowMs = options.nowMs ?? (() => performance.now());
    this.#kmsKeyIds = new Map(
      [options.kmsKeyId, ...options.previousKeyIds].map((id) => [base32(keyNameHash(id)), id]),
    );
  }

  /** What Encrypt uses now; undefined until Key4C has wrapped and unwrapped a first local KEK. */
  get snapshot(): Snapshot | undefined {
    return this.#snapshot;
  }

  /** Whether a key_id's hash (parseKeyId) is that of a configured key. */
  knows(hashText: string): boolean {
    return this.#kmsKeyIds.has(hashText);
  }

  /**
   * Wraps a DEK.
   * @param plaintext 0 to 512 bytes
   */
  async wrap(
    plaintext: Uint8Array,
    caller: Caller = {},
  ): Promise<{ readonly envelope: Envelope; readonly keyId: string }> {
    if (plaintext.length > MAX_PLAINTEXT_BYTES) {
      throw new PluginError(
        "invalid",
        `"plaintext" expected at most ${MAX_PLAINTEXT_BYTES} bytes, got ${plaintext.length}`,
      );
    }
    for (;;) {
      if (caller.hasLeft?.()) {
        throw new PluginError("cancelled", "nobody waits for it any more");
      }
      const snapshot = this.#snapshot;
      if (snapshot === undefined) {
        // The probe makes the first one; an Encrypt that comes meanwhile waits for it.
        await (this.#renewal ?? Promise.reject(this.#noneYet()));
        continue;
      }
      this.renewIfDue();
      const { keyId, header, localKek } = snapshot;
      if (localKek.uses >= MAX_USES_EVER) {
        throw new PluginError("unavailable", "the local KEK is used up and has no successor");
      }
      if (localKek.uses < this.#options.maxUses || this.#renewal === undefined) {
        return { envelope: localKek.seal(header, plaintext), keyId };
      }
      await this.#renewal.catch(() => {}); // while Key4C is away the current one goes on
    }
  }

  /** Unwraps a DEK of the current key or of a previous one. */
  async unwrap(envelope: Envelope, caller: Caller = {}): Promise<Buffer> {
    const localKek = this.#known(envelope.header) ?? (await this.#fetch(envelope.header, caller));
    return localKek.open(envelope);
  }

  /** Asks Key4C to unwrap the current local KEK again. @throws PluginError when it does not */
  async verifyCurrent(): Promise<void> {
    if (this.#snapshot !== undefined) {
      await this.#verify(this.#snapshot.header, this.#snapshot.localKek);
    }
  }

  /** Starts a renewal if the current local KEK is near one of its limits. Never throws. */
  renewIfDue(): void {
    const snapshot = this.#snapshot;
    if (snapshot !== undefined && this.#isDue(snapshot) && !this.#pausing()) {
      this.renew().catch(() => {}); // kept and logged there; the current one goes on
    }
  }

  /**
   * Makes a new local KEK, has Key4C wrap and unwrap it, and only then makes it current. Concurrent
   * calls share one renewal.
   * @throws PluginError when there is none; the current one stays
   */
  renew(): Promise<Snapshot> {
    this.#renewal ??= this.#make()
      .then(
        (snapshot) => {
          this.#lastRenewalFailure = undefined;
          return snapshot;
        },
        (cause) => {
          const error = toPluginError(cause);
          this.#lastRenewalFailure = { atMs: this.#nowMs(), error };
          throw error;
        },
      )
      .finally(() => {
        this.#renewal = undefined;
      });
    return this.#renewal;
  }

  #noneYet(): PluginError {
    const last = this.#lastRenewalFailure?.error;
    return new PluginError(last?.kind ?? "unavailable", "no local KEK yet", { cause: last });
  }

  #isDue({ localKek, createdAtMs }: Snapshot): boolean {
    const { maxUses, maxAgeMs } = this.#options;
    return (
      localKek.uses >= Math.ceil(maxUses * RENEW_AT) ||
      this.#nowMs() - createdAtMs >= maxAgeMs * RENEW_AT
    );
  }

  #pausing(): boolean {
    const last = this.#lastRenewalFailure;
    return last !== undefined && this.#nowMs() - last.atMs < RENEWAL_PAUSE_MS;
  }

  async #make(): Promise<Snapshot> {
    const { key4c, kmsKeyId, log } = this.#options;
    const hash = keyNameHash(kmsKeyId);
    const bytes = randomBytes(LOCAL_KEK_BYTES);
    try {
      const wrapped = await key4c.wrap(kmsKeyId, bytes, key4cAad(hash));
      const keyVersion = wrapped.version ?? 0;
      const header = kekHeader({
        keyNameHash: hash,
        keyVersion,
        aadSent: wrapped.aadSent,
        wrappedLocalKek: wrapped.ciphertext,
      });
      const localKek = new LocalKek(Buffer.from(bytes));
      await this.#verify(header, localKek);
      const previous = this.#snapshot;
      if (previous !== undefined && !this.#isProgress(previous, keyVersion)) {
        throw new PluginError("unavailable", `Key4C still wraps under version ${keyVersion}`);
      }
      const snapshot: Snapshot = Object.freeze({
        keyId: formatKeyId(hash, keyVersion),
        header,
        localKek,
        createdAtMs: this.#nowMs(),
      });
      this.#snapshot = snapshot;
      if (previous !== undefined) {
        this.#remember(cacheKey(previous.header), previous.localKek);
      }
      log.info("new local KEK", {
        keyId: snapshot.keyId,
        kmsKeyId,
        fingerprint: Buffer.from(snapshot.header.fingerprint).toString("hex").slice(0, 16),
      });
      return snapshot;
    } finally {
      bytes.fill(0);
    }
  }

  /**
   * A backend may lag behind the rotation that made us ask. To go back would make every object in etcd
   * look stale, and a switch that changes nothing is not worth a new local KEK.
   */
  #isProgress(previous: Snapshot, keyVersion: number): boolean {
    const { keyVersion: before } = previous.header;
    return keyVersion > before || (keyVersion === before && this.#isDue(previous));
  }

  /** Key4C must give back the very bytes; otherwise what is wrapped under them would be lost. */
  async #verify(header: KekHeader, localKek: LocalKek): Promise<void> {
    const bytes = await this.#unwrapRemotely(header);
    const same = localKek.equals(bytes);
    bytes.fill(0);
    if (!same) {
      throw new PluginError("unavailable", "Key4C does not give back the local KEK it wrapped");
    }
  }

  #unwrapRemotely(header: KekHeader, requestId?: string): Promise<Buffer> {
    const kmsKeyId = this.#kmsKeyIds.get(base32(header.keyNameHash));
    if (kmsKeyId === undefined) {
      throw new PluginError("unknownKey", "the ciphertext belongs to a key that is not configured");
    }
    const aad = header.aadSent ? key4cAad(header.keyNameHash) : undefined;
    return this.#options.key4c.unwrap(kmsKeyId, header.wrappedLocalKek, aad, requestId);
  }

  #known(header: KekHeader): LocalKek | undefined {
    const key = cacheKey(header);
    const current = this.#snapshot;
    if (current !== undefined && key === cacheKey(current.header)) {
      return current.localKek;
    }
    const cached = this.#cache.get(key);
    if (cached !== undefined) {
      this.#remember(key, cached);
    }
    return cached;
  }

  async #fetch(header: KekHeader, caller: Caller): Promise<LocalKek> {
    const key = cacheKey(header);
    let unwrapping = this.#unwrapping.get(key);
    if (unwrapping === undefined) {
      unwrapping = this.#unwrapRemotely(header, caller.requestId)
        .then((bytes) => {
          const localKek = new LocalKek(bytes);
          this.#remember(key, localKek);
          return localKek;
        })
        .finally(() => this.#unwrapping.delete(key));
      this.#unwrapping.set(key, unwrapping);
    }
    return unwrapping;
  }

  /** Puts a local KEK at the young end of the cache and drops what no longer fits. */
  #remember(key: string, localKek: LocalKek): void {
    this.#cache.delete(key);
    this.#cache.set(key, localKek);
    for (const [oldest, dropped] of this.#cache) {
      if (this.#cache.size <= this.#options.cacheSize) {
        break;
      }
      this.#cache.delete(oldest);
      // Not before those who were just given it have used it, which they do in this turn.
      setImmediate(() => dropped.drop());
    }
  }
}

function key4cAad(hash: Uint8Array): Buffer {
  return Buffer.concat([KEY4C_AAD_PURPOSE, hash]);
}

/** Without the version: whatever a ciphertext claims, one wrapped local KEK is one entry. */
function cacheKey({ keyNameHash, aadSent, fingerprint }: KekHeader): string {
  return `${Buffer.from(keyNameHash).toString("latin1")}${aadSent ? 1 : 0}${Buffer.from(fingerprint).toString("latin1")}`;
}
