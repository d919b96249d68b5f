import { PluginError, toPluginError } from "../failures/plugin-error.ts";
import { type Clock, settledWithin, systemClock } from "../system/clock.ts";
import { describeError } from "../system/errors.ts";
import type { Log } from "../system/log.ts";
import { callerFailed, isWrappingFutile, revoked } from "./admission.ts";
import { type Envelope, type LocalKek, MAX_PLAINTEXT_BYTES } from "./envelope.ts";
import type { Snapshot } from "./holdings.ts";
import { CacheSpace, kekName } from "./kek-cache.ts";
import type { Key, KeyOptions } from "./key.ts";
import type { Limits } from "./key-health.ts";
import { type ConfiguredKeys, KeySet } from "./key-set.ts";
import { fingerprintOf } from "./local-kek.ts";
import { LookThrough } from "./look-through.ts";
import { Renewals } from "./renewals.ts";
import type { Soon } from "./soon.ts";
import { type Caller, Unwraps } from "./unwraps.ts";
import type { WrappingService } from "./wrapping.ts";

/** NIST SP 800-38D §8.3: no more invocations under one key with random 96-bit IVs. */
export const MAX_USES_EVER = 2 ** 32;
/** Status waits this long for the first probe, then says why there is nothing yet. */
export const MAX_FIRST_PROBE_WAIT_MS = 2_000;

/** A wrapped DEK and the key_id of what wrapped it. */
export interface Wrapped {
  readonly envelope: Envelope;
  readonly keyId: string;
}

export interface KeyringOptions {
  readonly service: WrappingService;
  readonly configured: ConfiguredKeys;
  readonly limits: Limits;
  readonly maxUses: number;
  readonly maxAgeMs: number;
  /** How many unwrapped local KEKs are kept beside the pinned ones. */
  readonly cacheSize: number;
  /** Hands local KEKs to the next process; undefined: nothing does. */
  readonly keeper?: KeyOptions["keeper"] | undefined;
  readonly log: Log;
  readonly clock?: Clock;
}

/**
 * Wraps DEKs under the current local KEK of the key that wraps, and unwraps them under those of all configured keys.
 * Calls Key4C only to make a local KEK, and to unwrap one that it does not hold.
 */
export class Keyring {
  readonly keys: KeySet;
  readonly lookThrough: LookThrough;
  readonly cache: CacheSpace;
  readonly unwraps: Unwraps;
  /** Encrypts that continued above KMS_LOCAL_KEK_MAX_USES, because no new local KEK was to be had. */
  overLimit = 0;
  /** The first probe while it is under way; it never rejects. Calls that come meanwhile wait for it. */
  firstProbe: Promise<void> | undefined;
  readonly #options: KeyringOptions;
  readonly #clock: Clock;
  readonly #renewals: Renewals;

  constructor(options: KeyringOptions) {
    const { service, configured, limits, cacheSize, log, clock = systemClock } = options;
    this.#options = options;
    this.#clock = clock;
    this.cache = new CacheSpace(cacheSize, clock);
    this.lookThrough = new LookThrough(service, clock, log);
    this.unwraps = new Unwraps({ service, space: this.cache, clock });
    this.keys = new KeySet({
      configured,
      key: {
        limits,
        space: this.cache,
        lookThrough: (key, kept) => this.lookThrough.add(key, kept),
        ...(options.keeper && { keeper: options.keeper }),
        clock,
      },
      prober: { service, clock, published: (...args) => this.#published(...args) },
      left: (key) => this.lookThrough.forget(key),
      clock,
      log,
    });
    this.#renewals = new Renewals({
      make: () => this.keys.current.prober.renew(),
      maxUses: options.maxUses,
      maxAgeMs: options.maxAgeMs,
      isFutile: () => isWrappingFutile(this.keys.current.key),
      onFailure: (error) => this.#renewalFailed(error),
      clock,
    });
  }

  /** The key that wraps. */
  get #key(): Key {
    return this.keys.current.key;
  }

  /** What Encrypt uses now; undefined until Key4C has wrapped and unwrapped a first local KEK. */
  get snapshot(): Snapshot | undefined {
    return this.#key.current;
  }

  /** On the clock of {@link Snapshot.createdAtMs}; undefined without a local KEK. */
  get ageMs(): number | undefined {
    return this.snapshot && this.#clock.nowMs() - this.snapshot.createdAtMs;
  }

  /** Whether a key_id's hash (parseKeyId) is that of a configured key. */
  knows(hashText: string): boolean {
    return this.keys.byHashText(hashText) !== undefined;
  }

  /**
   * What Status tells: the key_id that the next Encrypt will use. Waits for the first probe for at most 2 s. Never a sick
   * text beside a key_id, which a v2 API server would take as leave to continue.
   * @throws PluginError when the next Encrypt would fail too
   */
  status(): Soon<Snapshot> {
    return (
      this.#usable() ??
      settledWithin(this.#clock, this.#firstProbe, MAX_FIRST_PROBE_WAIT_MS).then(() =>
        this.#usableOrAbsent(),
      )
    );
  }

  /** Whether Status is ok now. */
  get isReady(): boolean {
    try {
      return this.#usable() !== undefined;
    } catch {
      return false;
    }
  }

  /** @returns undefined while the first probe is under way @throws PluginError */
  #usable(): Snapshot | undefined {
    const { health, current } = this.#key;
    if (health.refusal !== undefined) {
      throw health.refusal;
    }
    if (current === undefined && this.firstProbe === undefined) {
      throw this.#absence();
    }
    return current;
  }

  #usableOrAbsent(): Snapshot {
    const snapshot = this.#usable();
    if (snapshot === undefined) {
      throw this.#absence();
    }
    return snapshot;
  }

  get #firstProbe(): Promise<void> {
    return this.firstProbe ?? Promise.resolve();
  }

  /** Why there is no local KEK: what the last probe met. Whoever asks for one makes the next probe come. */
  #absence(): PluginError {
    const { health } = this.#key;
    const cause = health.failure;
    health.wantProbe();
    return new PluginError(cause?.kind ?? "unavailable", "no local KEK", { cause });
  }

  /**
   * Wraps a DEK, and waits for a local KEK where it must.
   * @param plaintext 0 to 512 bytes
   * @throws PluginError
   */
  wrap(plaintext: Uint8Array, caller: Caller = {}): Soon<Wrapped> {
    if (plaintext.length > MAX_PLAINTEXT_BYTES) {
      throw new PluginError(
        "tooLarge",
        `"plaintext" expected at most ${MAX_PLAINTEXT_BYTES} bytes, got ${plaintext.length}`,
      );
    }
    const snapshot = this.#usable();
    if (snapshot === undefined) {
      // The probe makes the first one; an Encrypt that comes meanwhile waits for it, as long as its caller does.
      return this.#firstProbe.then(() => {
        refuseIfLeft(caller);
        this.#usableOrAbsent();
        return this.wrap(plaintext, caller);
      });
    }
    this.renewIfDue();
    const isUsedUp = snapshot.localKek.uses >= this.#options.maxUses;
    return isUsedUp && this.#renewals.isHopeful
      ? this.#wrapUnderFresh(plaintext, caller)
      : this.#seal(snapshot, plaintext);
  }

  async #wrapUnderFresh(plaintext: Uint8Array, caller: Caller): Promise<Wrapped> {
    const fresh = await this.#renewals.wait((localKek) => {
      const { snapshot } = this;
      return caller.hasLeft?.() || snapshot?.localKek !== localKek
        ? undefined
        : this.#seal(snapshot, plaintext);
    });
    if (fresh !== undefined) {
      return fresh;
    }
    refuseIfLeft(caller);
    return this.#seal(this.#usableOrAbsent(), plaintext);
  }

  /** A Status that is ok for an Encrypt that fails would cost a cluster more than a limit that is kept later. */
  #seal({ header, localKek, keyId }: Snapshot, plaintext: Uint8Array): Wrapped {
    if (localKek.usesBefore + localKek.uses >= MAX_USES_EVER) {
      throw new PluginError("unavailable", "the local KEK is used up and has no successor");
    }
    if (localKek.uses >= this.#options.maxUses) {
      this.overLimit += 1;
    }
    return { envelope: localKek.seal(header, plaintext), keyId };
  }

  /**
   * Unwraps a DEK of any configured key, and asks Key4C where its local KEK is not held.
   * @throws PluginError
   */
  unwrap(envelope: Envelope, caller: Caller = {}): Soon<Buffer> {
    const { header } = envelope;
    const key = this.keys.of(header);
    if (key === undefined) {
      throw new PluginError("unknownKey", "the ciphertext belongs to a key that is not configured");
    }
    if (key.health.revocation !== undefined) {
      throw revoked(key.health.revocation);
    }
    const held = key.find(kekName(header));
    return held === undefined
      ? this.unwraps
          .fetch(key, header, caller)
          .then((fetched) => this.#open(key, fetched, envelope))
      : this.#open(key, held, envelope);
  }

  #open(key: Key, localKek: LocalKek, envelope: Envelope): Buffer {
    try {
      return localKek.open(envelope);
    } catch (error) {
      if (key.isDoubtful(kekName(envelope.header))) {
        // The known one stays in use until Key4C has said whether it is the right one.
        this.unwraps.fetch(key, envelope.header, {}).catch(() => {});
      }
      if (key.circuits.isUnwrapDoubtful && !localKek.isProven) {
        throw new PluginError("unavailable", "Key4C may have unwrapped another local KEK", {
          cause: error,
        });
      }
      throw error;
    }
  }

  /** Starts a renewal if the current local KEK is near one of its limits. Never throws. */
  renewIfDue(): void {
    const { snapshot } = this;
    if (snapshot !== undefined && this.#renewals.isDue(snapshot)) {
      this.#renewals.begin();
    }
  }

  #renewalFailed(error: unknown): void {
    const failure = toPluginError(error);
    this.#options.log.warn("no new local KEK: the current one continues", {
      kind: failure.kind,
      cause: describeError(error),
      uses: this.snapshot?.localKek.uses,
    });
    callerFailed(this.#key, failure);
  }

  /** A probe of the key that wraps has succeeded: what failed before may be tried again at once. */
  keyIsWell(): void {
    this.#renewals.endPause();
    this.renewIfDue();
  }

  #published(key: Key, snapshot: Snapshot, former: Snapshot | undefined): void {
    // A rotation or another key is worth a line; with KMS_LOCAL_KEK_MAX_USES=1 a renewal is one a DEK.
    this.#options.log[former?.keyId === snapshot.keyId ? "debug" : "info"]("new local KEK", {
      keyId: snapshot.keyId,
      kmsKeyId: key.kmsKeyId,
      fingerprint: fingerprintOf(snapshot),
      formerKeyId: former?.keyId === snapshot.keyId ? undefined : former?.keyId,
    });
    this.keys.followPublished(key);
    this.#renewals.serve(snapshot.localKek);
  }
}

function refuseIfLeft({ hasLeft }: Caller): void {
  if (hasLeft?.()) {
    throw new PluginError("cancelled", "nobody waits for it any more");
  }
}
