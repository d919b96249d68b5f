import { randomBytes } from "node:crypto";
import { describeError, KINDS, PluginError, toPluginError } from "../system/errors.ts";
import type { Log } from "../system/log.ts";
import {
  type Envelope,
  type KekHeader,
  kekHeader,
  LocalKek,
  MAX_PLAINTEXT_BYTES,
} from "./envelope.ts";
import { cacheKey, KekCache } from "./kek-cache.ts";
import { base32, formatKeyId, keyNameHash } from "./key-id.ts";
import { Limiter } from "./limiter.ts";
import { LOCAL_KEK_BYTES, type WrappingService } from "./wrapping.ts";

/** NIST SP 800-38D §8.3: no more invocations under one key with random 96-bit IVs. */
const MAX_USES_EVER = 2 ** 32;
/** Renewal starts at this part of either limit, so that no Encrypt waits for it. */
const RENEW_AT = 0.9;
/** After a renewal failed, the current local KEK goes on and the next attempt waits this long. */
const RENEWAL_PAUSE_MS = 5_000;
/** An Encrypt above the limit of uses waits this long for a successor, then goes on without. */
const MAX_RENEWAL_WAIT_MS = 2_000;
/** More than three restarting control planes need, less than what hurts an HSM. */
const MAX_CONCURRENT_UNWRAPS = 64;
/** Unwraps that wait for one of those; past it a flood is refused instead of remembered. */
const MAX_WAITING_UNWRAPS = 1_024;
/** Tells Key4C what it wraps; the key name hash follows. Frozen: data in etcd depend on it. */
const KEY4C_AAD_PURPOSE = Buffer.from("key4c-kms-plugin/local-kek/v1:", "latin1");

/** What one Encrypt uses, all of it or nothing: key_id and local KEK can never disagree. */
export interface Snapshot {
  /** Public key_id of KMS v2, derived from what Key4C answered when it wrapped the local KEK. */
  readonly keyId: string;
  readonly header: KekHeader;
  readonly localKek: LocalKek;
  readonly cacheKey: string;
  /** On the monotonic clock. */
  readonly createdAtMs: number;
}

/** A wrapped DEK and the key_id of what wrapped it. */
export interface Wrapped {
  readonly envelope: Envelope;
  readonly keyId: string;
}

export interface KeyringOptions {
  readonly key4c: WrappingService;
  readonly kmsKeyId: string;
  /** Keys whose data are still decrypted. */
  readonly previousKeyIds: readonly string[];
  readonly maxUses: number;
  readonly maxAgeMs: number;
  /** How many unwrapped local KEKs are kept beside the current one. */
  readonly cacheSize: number;
  readonly log: Log;
  /** Why the last probe failed. While Key4C is away, it is not asked on behalf of callers. */
  readonly probeFailure?: () => PluginError | undefined;
  /** The first probe while it is under way; it never rejects. */
  readonly firstProbe?: () => Promise<void> | undefined;
  /** Told when a call on behalf of a caller fails for want of Key4C. */
  readonly suspect?: () => void;
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
  /** Why the last renewal failed. */
  #renewalFailure: PluginError | undefined;
  /** Until when no renewal is tried, after one that came to nothing. */
  #renewalPausedUntilMs = Number.NEGATIVE_INFINITY;
  readonly #cache: KekCache;
  readonly #unwrapping = new Map<string, Promise<LocalKek>>();
  /** For callers only: the probe and a renewal, few as they are, must not wait behind a flood. */
  readonly #limiter = new Limiter(MAX_CONCURRENT_UNWRAPS, MAX_WAITING_UNWRAPS);
  /** From base32(key name hash) to why Key4C refuses the key. */
  readonly #revoked = new Map<string, PluginError>();

  constructor(options: KeyringOptions) {
    this.#options = options;
    this.#nowMs = options.nowMs ?? (() => performance.now());
    this.#cache = new KekCache(options.cacheSize, this.#nowMs);
    this.#kmsKeyIds = new Map(
      [options.kmsKeyId, ...options.previousKeyIds].map((id) => [base32(keyNameHash(id)), id]),
    );
  }

  /** What Encrypt uses now; undefined until Key4C has wrapped and unwrapped a first local KEK. */
  get snapshot(): Snapshot | undefined {
    return this.#snapshot;
  }

  /** For the metrics. */
  get cache(): Readonly<Pick<KekCache, "size" | "hits" | "misses">> {
    return this.#cache;
  }

  /** Unwraps that callers wait for. */
  get unwrapsUnderWay(): number {
    return this.#unwrapping.size;
  }

  /** On the clock of {@link Snapshot.createdAtMs}; undefined without a local KEK. */
  get ageMs(): number | undefined {
    return this.#snapshot && this.#nowMs() - this.#snapshot.createdAtMs;
  }

  /** Whether a key_id's hash (parseKeyId) is that of a configured key. */
  knows(hashText: string): boolean {
    return this.#kmsKeyIds.has(hashText);
  }

  /**
   * Wraps a DEK at once, as nearly every time; undefined when the caller must wait, see {@link wrap}.
   * @param plaintext 0 to 512 bytes
   */
  wrapNow(plaintext: Uint8Array): Wrapped | undefined {
    if (plaintext.length > MAX_PLAINTEXT_BYTES) {
      throw new PluginError(
        "invalid",
        `"plaintext" expected at most ${MAX_PLAINTEXT_BYTES} bytes, got ${plaintext.length}`,
      );
    }
    if (this.isRevoked(this.#options.kmsKeyId)) {
      throw this.absence();
    }
    const snapshot = this.#snapshot;
    if (snapshot === undefined) {
      return undefined;
    }
    this.renewIfDue();
    const { keyId, header, localKek } = snapshot;
    if (localKek.uses >= MAX_USES_EVER) {
      throw new PluginError("unavailable", "the local KEK is used up and has no successor");
    }
    const isWithinLimit = localKek.uses < this.#options.maxUses;
    return isWithinLimit || this.#renewal === undefined || this.#renewalFailure !== undefined
      ? { envelope: localKek.seal(header, plaintext), keyId }
      : undefined;
  }

  /** Wraps a DEK, and waits for a local KEK where it must. */
  async wrap(plaintext: Uint8Array, caller: Caller = {}): Promise<Wrapped> {
    for (;;) {
      if (caller.hasLeft?.()) {
        throw new PluginError("cancelled", "nobody waits for it any more");
      }
      const wrapped = this.wrapNow(plaintext);
      if (wrapped !== undefined) {
        return wrapped;
      }
      const renewal = this.#renewal;
      if (this.#snapshot === undefined) {
        // The probe makes the first one; an Encrypt that comes meanwhile waits for it.
        await (this.#options.firstProbe?.() ?? renewal ?? Promise.reject(this.absence()));
        continue;
      }
      const slow = Bun.sleep(MAX_RENEWAL_WAIT_MS).then(() => {
        if (this.#renewal === renewal) {
          this.#renewalFailure ??= new PluginError("unavailable", "a new local KEK takes long");
        }
      });
      await Promise.race([renewal?.catch(() => {}), slow]);
    }
  }

  /** Unwraps a DEK at once when its local KEK is known; else undefined, see {@link unwrap}. */
  unwrapNow(envelope: Envelope): Buffer | undefined {
    const { header } = envelope;
    const revocation =
      this.#revoked.size > 0 ? this.#revoked.get(base32(header.keyNameHash)) : undefined;
    if (revocation !== undefined) {
      throw new PluginError(revocation.kind, "the key is revoked", { cause: revocation });
    }
    const key = cacheKey(header);
    const localKek = this.#known(key);
    return localKek && this.#open(key, localKek, envelope);
  }

  /** Unwraps a DEK of the current key or of a previous one, and asks Key4C where it must. */
  async unwrap(envelope: Envelope, caller: Caller = {}): Promise<Buffer> {
    const plaintext = this.unwrapNow(envelope);
    if (plaintext !== undefined) {
      return plaintext;
    }
    const key = cacheKey(envelope.header);
    return this.#open(key, await this.#fetch(key, envelope.header, caller), envelope);
  }

  #open(key: string, localKek: LocalKek, envelope: Envelope): Buffer {
    try {
      return localKek.open(envelope);
    } catch (error) {
      this.#cache.doubt(key);
      throw error;
    }
  }

  /** Why there is no local KEK: the key is revoked, or what the last probe met. */
  absence(): PluginError {
    const revocation = this.#revoked.get(base32(keyNameHash(this.#options.kmsKeyId)));
    const cause = revocation ?? this.#options.probeFailure?.();
    return new PluginError(cause?.kind ?? "unavailable", "no local KEK", { cause });
  }

  isRevoked(kmsKeyId: string): boolean {
    return this.#revoked.size > 0 && this.#revoked.has(base32(keyNameHash(kmsKeyId)));
  }

  /** Drops the local KEKs of one key, and nobody else's; RPCs on its data fail until {@link restore}. */
  revoke(kmsKeyId: string, reason: PluginError): void {
    const hash = keyNameHash(kmsKeyId);
    this.#revoked.set(base32(hash), reason);
    this.#cache.dropKey(hash);
    if (kmsKeyId === this.#options.kmsKeyId) {
      this.#snapshot?.localKek.drop();
      this.#snapshot = undefined;
    }
  }

  /** @returns whether the key was revoked */
  restore(kmsKeyId: string): boolean {
    return this.#revoked.delete(base32(keyNameHash(kmsKeyId)));
  }

  /** Asks Key4C to unwrap the current local KEK again. @throws PluginError when it does not */
  async verifyCurrent(): Promise<void> {
    const snapshot = this.#snapshot;
    if (snapshot !== undefined) {
      await this.#verify(snapshot.header, snapshot.localKek);
    }
  }

  /** Starts a renewal if the current local KEK is near one of its limits. Never throws. */
  renewIfDue(): void {
    const snapshot = this.#snapshot;
    const pausing =
      this.#renewal !== undefined || // whose end is told once, however many Encrypts meet it
      this.#nowMs() < this.#renewalPausedUntilMs ||
      this.#outage() !== undefined;
    if (snapshot !== undefined && !pausing && this.#isDue(snapshot)) {
      this.renew().catch((error) => {
        const { kind } = toPluginError(error);
        this.#options.log.warn("no new local KEK: the current one goes on", {
          kind,
          cause: describeError(error),
          uses: snapshot.localKek.uses,
        });
        this.#options.suspect?.();
      });
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
          this.#renewalFailure = undefined;
          return snapshot;
        },
        (error) => {
          this.#renewalFailure = toPluginError(error);
          throw error;
        },
      )
      .finally(() => {
        this.#renewal = undefined;
      });
    return this.#renewal;
  }

  #isDue({ localKek, createdAtMs }: Snapshot): boolean {
    const { maxUses, maxAgeMs } = this.#options;
    return (
      localKek.uses >= Math.ceil(maxUses * RENEW_AT) ||
      this.#nowMs() - createdAtMs >= maxAgeMs * RENEW_AT
    );
  }

  async #make(): Promise<Snapshot> {
    const { key4c, kmsKeyId, log } = this.#options;
    const hash = keyNameHash(kmsKeyId);
    const bytes = randomBytes(LOCAL_KEK_BYTES);
    // Whatever comes to nothing is not tried again at once; a success takes the pause back.
    this.#renewalPausedUntilMs = this.#nowMs() + RENEWAL_PAUSE_MS;
    try {
      const wrapped = await key4c.wrap(kmsKeyId, bytes, key4cAad(hash));
      const keyVersion = wrapped.version ?? 0;
      const previous = this.#snapshot;
      if (previous !== undefined && !this.#isProgress(previous, keyVersion)) {
        log.warn("Key4C still wraps under the former version of the key", { kmsKeyId, keyVersion });
        return previous;
      }
      const header = kekHeader({
        keyNameHash: hash,
        keyVersion,
        aadSent: wrapped.aadSent,
        wrappedLocalKek: wrapped.ciphertext,
      });
      const localKek = new LocalKek(Buffer.from(bytes));
      await this.#verify(header, localKek);
      const keyId = formatKeyId(hash, keyVersion);
      const snapshot = Object.freeze({
        keyId,
        header,
        localKek,
        cacheKey: cacheKey(header),
        createdAtMs: this.#nowMs(),
      });
      // Not `previous`: it may have been revoked, and thus dropped, while Key4C was asked.
      const replaced = this.#snapshot;
      this.#snapshot = snapshot;
      this.#renewalPausedUntilMs = Number.NEGATIVE_INFINITY;
      if (replaced !== undefined) {
        this.#cache.keep(replaced.cacheKey, replaced.localKek);
      }
      const fingerprint = Buffer.from(header.fingerprint).toString("hex").slice(0, 16);
      log.info("new local KEK", { keyId, kmsKeyId, fingerprint });
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
    const doesNot = "Key4C does not give back the local KEK it wrapped";
    const bytes = await this.#unwrapRemotely(header).catch((cause) => {
      // What it wrapped itself cannot be invalid input.
      throw toPluginError(cause).kind === "invalid"
        ? new PluginError("unavailable", doesNot, { cause })
        : cause;
    });
    // One that was replaced and dropped meanwhile has nothing left to be compared with.
    const same = localKek.isDropped || localKek.equals(bytes);
    bytes.fill(0);
    if (!same) {
      throw new PluginError("unavailable", doesNot);
    }
  }

  async #unwrapRemotely(header: KekHeader, requestId?: string): Promise<Buffer> {
    const kmsKeyId = this.#kmsKeyIds.get(base32(header.keyNameHash));
    if (kmsKeyId === undefined) {
      throw new PluginError("unknownKey", "the ciphertext belongs to a key that is not configured");
    }
    const aad = header.aadSent ? key4cAad(header.keyNameHash) : undefined;
    return this.#options.key4c.unwrap(kmsKeyId, header.wrappedLocalKek, aad, requestId);
  }

  /** The breaker: set while the last probe says that Key4C is away, and not that it refuses. */
  #outage(): PluginError | undefined {
    const failure = this.#options.probeFailure?.();
    return failure !== undefined && KINDS[failure.kind].retry ? failure : undefined;
  }

  /** @throws PluginError when Key4C is not to be asked for a local KEK now */
  #refuseIfFutile(header: KekHeader): void {
    if (this.#cache.isFlooded) {
      throw new PluginError("throttled", "Key4C has just refused too many wrapped local KEKs");
    }
    const outage = this.#outage();
    if (outage !== undefined && this.knows(base32(header.keyNameHash))) {
      throw new PluginError(outage.kind, "Key4C is away", { cause: outage });
    }
  }

  #known(key: string): LocalKek | undefined {
    const current = this.#snapshot;
    return key === current?.cacheKey ? current.localKek : this.#cache.get(key);
  }

  async #fetch(key: string, header: KekHeader, caller: Caller): Promise<LocalKek> {
    this.#cache.misses += 1;
    const underWay = this.#unwrapping.get(key);
    if (underWay !== undefined) {
      return underWay;
    }
    if (this.#cache.isRefused(key)) {
      throw new PluginError("invalid", "Key4C has just refused this wrapped local KEK");
    }
    this.#refuseIfFutile(header);
    const unwrapping = this.#unwrapAndKeep(key, header, caller);
    this.#unwrapping.set(key, unwrapping);
    return unwrapping;
  }

  async #unwrapAndKeep(key: string, header: KekHeader, caller: Caller): Promise<LocalKek> {
    try {
      const bytes = await this.#limiter.run(async () => {
        this.#refuseIfFutile(header); // as it may be by the time that there is a place
        return this.#unwrapRemotely(header, caller.requestId);
      });
      const localKek = new LocalKek(bytes);
      if (!this.#revoked.has(base32(header.keyNameHash))) {
        this.#cache.keep(key, localKek);
      }
      return localKek;
    } catch (error) {
      const { kind } = toPluginError(error);
      if (kind === "invalid") {
        this.#cache.refuse(key);
      } else if (kind !== "unknownKey" && !this.#cache.isFlooded) {
        this.#options.suspect?.();
      }
      throw error;
    } finally {
      this.#unwrapping.delete(key);
    }
  }
}

function key4cAad(hash: Uint8Array): Buffer {
  return Buffer.concat([KEY4C_AAD_PURPOSE, hash]);
}
