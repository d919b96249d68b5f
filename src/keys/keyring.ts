import { PluginError, toPluginError } from "../failures/plugin-error.ts";
import { type Clock, settledWithin, systemClock } from "../system/clock.ts";
import { describeError } from "../system/errors.ts";
import type { Log } from "../system/log.ts";
import { type Envelope, type KekHeader, type LocalKek, MAX_PLAINTEXT_BYTES } from "./envelope.ts";
import { fingerprintOf, HeldKeks, type Snapshot, snapshotOf } from "./held.ts";
import { cacheKey, type KekCache } from "./kek-cache.ts";
import { base32, formatKeyId } from "./key-id.ts";
import type { KeySet } from "./key-set.ts";
import { type Expected, isGivenBack, makeLocalKek, type ProvenKek } from "./local-kek.ts";
import { type Audit, auditKeks, missingKeks, tryAnother } from "./proofs.ts";
import { Renewals } from "./renewals.ts";
import type { Standing, Standings } from "./standing.ts";
import { type Caller, Unwraps } from "./unwraps.ts";
import type { WrappingService } from "./wrapping.ts";

/** NIST SP 800-38D §8.3: no more invocations under one key with random 96-bit IVs. */
export const MAX_USES_EVER = 2 ** 32;
/** Renewal starts at this part of either limit, so that no Encrypt waits for it. */
const RENEW_AT = 0.9;
/** Status waits this long for the first probe, then says why there is nothing yet. */
export const MAX_FIRST_PROBE_WAIT_MS = 2_000;
/**
 * A renewal wants the witness given back, unless a probe or another renewal has just seen that: else
 * KMS_LOCAL_KEK_MAX_USES=1 would cost one more call for each DEK. What a renewal itself makes is always proven.
 */
const RENEWAL_PROOF_INTERVAL_MS = 1_000;
/** A wrapped DEK and the key_id of what wrapped it. */
export interface Wrapped {
  readonly envelope: Envelope;
  readonly keyId: string;
}

export interface KeyringOptions {
  readonly service: WrappingService;
  readonly keys: KeySet;
  readonly standings: Standings;
  readonly maxUses: number;
  readonly maxAgeMs: number;
  /** How many unwrapped local KEKs are kept beside the pinned ones. */
  readonly cacheSize: number;
  readonly log: Log;
  readonly clock?: Clock;
}

/**
 * Wraps DEKs under the current local KEK, and unwraps them under those that are held. Calls Key4C only to make a local
 * KEK, and to unwrap one that it has not seen. What Key4C's answers lead to is not its business: it asks the
 * {@link Standing} of a key.
 */
export class Keyring {
  readonly #options: KeyringOptions;
  readonly #clock: Clock;
  /** Of the current key. */
  #standing: Standing;
  readonly #held: HeldKeks;
  readonly #unwraps: Unwraps;
  /** When Key4C last gave back what it must, or was asked to. */
  #provenAtMs = Number.NEGATIVE_INFINITY;
  /** By key, of those that were current: a revocation and a change of keys lead to no older one either. */
  readonly #highestVersions = new Map<string, number>();
  readonly #renewals: Renewals;
  /** Encrypts that went on above KMS_LOCAL_KEK_MAX_USES, because no new local KEK was to be had. */
  overLimit = 0;
  constructor(options: KeyringOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#standing = options.standings.of(options.keys.currentId);
    this.#held = new HeldKeks(options.cacheSize, this.#clock);
    this.#unwraps = new Unwraps({ ...options, held: this.#held, clock: this.#clock });
    this.#renewals = new Renewals({
      make: () => this.#renew(),
      maxUses: options.maxUses,
      isFutile: () => this.#standing.refusalOfCallers("thisKey") !== undefined,
      onFailure: (error) => this.#renewalFailed(error),
      clock: this.#clock,
    });
  }

  /** What Encrypt uses now; undefined until Key4C has wrapped and unwrapped a first local KEK. */
  get snapshot(): Snapshot | undefined {
    return this.#held.current;
  }

  /** For the metrics. */
  get cache(): Readonly<Pick<KekCache, "size" | "hits" | "misses" | "orphans">> {
    return this.#held.cache;
  }

  /** For the metrics. */
  get unwraps(): Readonly<Pick<Unwraps, "underWay" | "ofCurrentKey">> {
    return this.#unwraps;
  }

  /** On the clock of {@link Snapshot.createdAtMs}; undefined without a local KEK. */
  get ageMs(): number | undefined {
    return this.#held.current && this.#clock.nowMs() - this.#held.current.createdAtMs;
  }

  /** Whether a key_id's hash (parseKeyId) is that of a configured key. */
  knows(hashText: string): boolean {
    return this.#options.keys.idOf(hashText) !== undefined;
  }

  /**
   * What Status tells: the key_id that the next Encrypt will use; undefined while the first probe is under way, see
   * {@link acknowledged}. Never a sick text beside a key_id, which a v2 API server would take as leave to go on.
   * @throws PluginError when the next Encrypt would fail too
   */
  acknowledgedNow(): Snapshot | undefined {
    const standing = this.#standing;
    const { refusal } = standing;
    if (refusal !== undefined) {
      throw refusal;
    }
    if (this.#held.current === undefined && standing.firstProbe === undefined) {
      throw this.#absence();
    }
    return this.#held.current;
  }

  /** The same, and waits for the first probe for at most 2 s. */
  async acknowledged(): Promise<Snapshot> {
    await this.#firstProbe(MAX_FIRST_PROBE_WAIT_MS);
    const snapshot = this.acknowledgedNow();
    if (snapshot === undefined) {
      throw this.#absence();
    }
    return snapshot;
  }

  /** Why there is no local KEK: what the last probe met. */
  #absence(): PluginError {
    const cause = this.#standing.failure;
    return new PluginError(cause?.kind ?? "unavailable", "no local KEK", { cause });
  }

  async #firstProbe(maxMs: number): Promise<void> {
    const { firstProbe } = this.#standing;
    if (firstProbe !== undefined) {
      await settledWithin(this.#clock, firstProbe, maxMs);
    }
  }

  /**
   * Wraps a DEK at once, as nearly every time; undefined when the caller must wait, see {@link wrap}.
   * @param plaintext 0 to 512 bytes
   */
  wrapNow(plaintext: Uint8Array): Wrapped | undefined {
    if (plaintext.length > MAX_PLAINTEXT_BYTES) {
      throw new PluginError(
        "tooLarge",
        `"plaintext" expected at most ${MAX_PLAINTEXT_BYTES} bytes, got ${plaintext.length}`,
      );
    }
    const snapshot = this.acknowledgedNow();
    if (snapshot === undefined) {
      return undefined;
    }
    this.renewIfDue();
    if (snapshot.localKek.uses < this.#options.maxUses) {
      return seal(snapshot, plaintext);
    }
    return this.#renewals.isHopeful ? undefined : this.#sealOverLimit(snapshot, plaintext);
  }

  /** Wraps a DEK, and waits for a local KEK where it must. */
  async wrap(plaintext: Uint8Array, caller: Caller = {}): Promise<Wrapped> {
    if (this.#held.current === undefined) {
      // The probe makes the first one; an Encrypt that comes meanwhile waits for it, as long as its caller does.
      await this.#standing.firstProbe;
    }
    const hasLeft = () => caller.hasLeft?.() === true;
    const wrapped = hasLeft() ? undefined : this.wrapNow(plaintext);
    if (wrapped !== undefined) {
      return wrapped;
    }
    const fresh = hasLeft()
      ? undefined
      : await this.#renewals.wait((localKek) => {
          const snapshot = this.#held.current;
          return hasLeft() || snapshot?.localKek !== localKek
            ? undefined
            : seal(snapshot, plaintext);
        });
    if (fresh !== undefined) {
      return fresh;
    }
    if (hasLeft()) {
      throw new PluginError("cancelled", "nobody waits for it any more");
    }
    const snapshot = this.acknowledgedNow();
    if (snapshot === undefined) {
      throw this.#absence();
    }
    return this.#sealOverLimit(snapshot, plaintext);
  }

  /** A Status that is ok for an Encrypt that fails would cost a cluster more than a limit that is kept later. */
  #sealOverLimit(snapshot: Snapshot, plaintext: Uint8Array): Wrapped {
    if (snapshot.localKek.uses >= this.#options.maxUses) {
      this.overLimit += 1;
    }
    return seal(snapshot, plaintext);
  }

  /** Unwraps a DEK at once when its local KEK is known; else undefined, see {@link unwrap}. */
  unwrapNow(envelope: Envelope): Buffer | undefined {
    const localKek = this.#held.find(cacheKey(envelope.header));
    if (localKek === undefined) {
      return undefined;
    }
    this.#refuseIfRevoked(envelope.header);
    return this.#open(localKek, envelope);
  }

  /** Unwraps a DEK of the current key or of a previous one, and asks Key4C where it must. */
  async unwrap(envelope: Envelope, caller: Caller = {}): Promise<Buffer> {
    const plaintext = this.unwrapNow(envelope);
    if (plaintext !== undefined) {
      return plaintext;
    }
    return this.#open(await this.#unwraps.fetch(envelope.header, caller), envelope);
  }

  #refuseIfRevoked(header: KekHeader): void {
    if (!this.#options.standings.areAnyRevoked) {
      return;
    }
    const kmsKeyId = this.#options.keys.idOf(base32(header.keyNameHash));
    const revocation = kmsKeyId && this.#options.standings.of(kmsKeyId).revocation;
    if (revocation) {
      throw new PluginError(revocation.kind, "the key is revoked", { cause: revocation });
    }
  }

  #open(localKek: LocalKek, envelope: Envelope): Buffer {
    try {
      return localKek.open(envelope);
    } catch (error) {
      if (this.#held.cache.isDoubtful(cacheKey(envelope.header))) {
        // The known one goes on until Key4C has said whether it is the right one.
        this.#unwraps.fetch(envelope.header, {}).catch(() => {});
      }
      throw error;
    }
  }

  /** Drops the local KEKs of one key, and nobody else's: Key4C has revoked it. */
  revoke(kmsKeyId: string): void {
    this.#held.drop(kmsKeyId);
    this.#options.standings.of(kmsKeyId).hasLocalKek = false;
  }

  /**
   * Makes a local KEK under what describe told, and only when Key4C has given it back the current one: the first, of a
   * higher version, or of another key.
   * @throws PluginError when there is none; the current one stays
   */
  async adopt(kmsKeyId: string, expected: Expected): Promise<Snapshot> {
    const { revocation } = this.#options.standings.of(kmsKeyId);
    const made = await this.#make(kmsKeyId, expected);
    return this.#become(kmsKeyId, made, expected, revocation);
  }

  /** Where describe tells no version, a new one counts only if two encrypts tell the same. */
  async #make(kmsKeyId: string, expected: Expected): Promise<ProvenKek> {
    const { service } = this.#options;
    const made = await makeLocalKek(service, kmsKeyId, expected);
    const { keyVersion } = made.header;
    const isKnown = this.#held.current?.keyId === formatKeyId(made.header) || keyVersion === 0;
    if (expected.version === undefined && !isKnown) {
      const same = { ...expected, version: keyVersion };
      try {
        const again = await makeLocalKek(service, kmsKeyId, same);
        again.localKek.drop();
      } catch (error) {
        made.localKek.drop();
        throw error;
      }
    }
    return made;
  }

  /** See {@link missingKeks}. */
  async missingKeks(): Promise<readonly Snapshot[]> {
    const missing = await missingKeks(this.#options.service, this.#held);
    if (missing.length === 0) {
      this.#provenAtMs = this.#clock.nowMs();
    }
    return missing;
  }

  /** Whether a probe asks for it. */
  isPinned({ header }: Snapshot): boolean {
    return this.#held.isPinned(header);
  }

  /** See {@link tryAnother}. */
  tryAnother(snapshot: Snapshot): Promise<void> {
    return tryAnother(this.#options.service, snapshot);
  }

  /** See {@link auditKeks}; not while Key4C is not to be asked. */
  async audit(kmsKeyId: string, which: "orphaned" | "all"): Promise<Audit> {
    const { service, standings } = this.#options;
    return standings.of(kmsKeyId).refusalOfCallers("thisKey") === undefined
      ? auditKeks(service, this.#held, kmsKeyId, which)
      : { found: 0, isComplete: false };
  }

  /** Starts a renewal if the current local KEK is near one of its limits. Never throws. */
  renewIfDue(): void {
    if (this.#held.current !== undefined && this.#isDue(this.#held.current)) {
      this.#renewals.begin();
    }
  }

  /** A probe has succeeded: what failed before may be tried again at once. */
  keyIsWell(): void {
    this.#renewals.endPause();
    this.renewIfDue();
  }

  #isDue({ localKek, createdAtMs }: Snapshot): boolean {
    const { maxUses, maxAgeMs } = this.#options;
    return (
      localKek.uses >= Math.ceil(maxUses * RENEW_AT) ||
      this.#clock.nowMs() - createdAtMs >= maxAgeMs * RENEW_AT
    );
  }

  /** A new local KEK of the same key and version. */
  async #renew(): Promise<void> {
    const current = this.#held.current;
    if (current === undefined) {
      return; // revoked meanwhile
    }
    const nowMs = this.#clock.nowMs();
    const isProofDue = nowMs - this.#provenAtMs >= RENEWAL_PROOF_INTERVAL_MS;
    const { kmsKeyId, expected } = current;
    if (isProofDue) {
      this.#provenAtMs = nowMs; // those that are begun meanwhile do not ask too
      const witness = this.#held.witness ?? current;
      const { service } = this.#options;
      if (!(await isGivenBack(service, kmsKeyId, witness))) {
        throw new PluginError(
          "mismatch",
          `Key4C does not give back the local KEK ${fingerprintOf(witness)}`,
        );
      }
    }
    const made = await this.#make(kmsKeyId, expected);
    this.#become(kmsKeyId, made, expected, undefined);
  }

  #renewalFailed(error: unknown): void {
    const { kind } = toPluginError(error);
    this.#options.log.warn("no new local KEK: the current one goes on", {
      kind,
      cause: describeError(error),
      uses: this.#held.current?.localKek.uses,
    });
    this.#standing.need(toPluginError(error));
  }

  /** @param revocation as it was when it was begun */
  #become(
    kmsKeyId: string,
    made: ProvenKek,
    expected: Expected,
    revocation: PluginError | undefined,
  ): Snapshot {
    const { keys, standings, log } = this.#options;
    const standing = standings.of(kmsKeyId);
    const replaced = this.#held.current;
    const isOurs = replaced?.kmsKeyId === kmsKeyId;
    // The key may have been revoked, changed or rotated while Key4C was asked.
    const isWanted = isOurs || kmsKeyId === keys.configuredId;
    const { keyVersion } = made.header;
    const isOlder = keyVersion < (this.#highestVersions.get(kmsKeyId) ?? 0);
    if (standing.revocation !== revocation || !isWanted || isOlder) {
      made.localKek.drop();
      throw isOlder
        ? new PluginError("olderVersion", "Key4C wraps under an older version than before")
        : new PluginError("unavailable", "the key changed while a local KEK was made");
    }
    const keyId = formatKeyId(made.header);
    const createdAtMs = this.#clock.nowMs();
    const snapshot = snapshotOf(made, { kmsKeyId, expected, keyId, createdAtMs });
    this.#held.become(snapshot);
    this.#highestVersions.set(kmsKeyId, keyVersion);
    if (replaced !== undefined && !isOurs) {
      standings.of(replaced.kmsKeyId).hasLocalKek = false;
    }
    keys.becomeCurrent(kmsKeyId);
    this.#standing = standing;
    standing.hasLocalKek = true;
    // A rotation or another key is worth a line; with KMS_LOCAL_KEK_MAX_USES=1 a renewal is one a DEK.
    log[replaced?.keyId === keyId ? "debug" : "info"]("new local KEK", {
      keyId,
      kmsKeyId,
      fingerprint: fingerprintOf(snapshot),
    });
    this.#renewals.serve(snapshot.localKek);
    return snapshot;
  }
}

function seal({ header, localKek, keyId }: Snapshot, plaintext: Uint8Array): Wrapped {
  if (localKek.uses >= MAX_USES_EVER) {
    throw new PluginError("unavailable", "the local KEK is used up and has no successor");
  }
  return { envelope: localKek.seal(header, plaintext), keyId };
}
