import { type Clock, settledWithin, systemClock } from "../system/clock.ts";
import { describeError, KINDS, PluginError, toPluginError } from "../system/errors.ts";
import type { Log } from "../system/log.ts";
import { type Envelope, type KekHeader, LocalKek, MAX_PLAINTEXT_BYTES } from "./envelope.ts";
import { cacheKey, KekCache } from "./kek-cache.ts";
import { base32, formatKeyId, keyNameHash } from "./key-id.ts";
import type { KeySet } from "./key-set.ts";
import { Limiter } from "./limiter.ts";
import {
  type Expected,
  isGivenBack,
  makeLocalKek,
  type ProvenKek,
  unwrapLocalKek,
} from "./local-kek.ts";
import { Refusals } from "./refusals.ts";
import { Renewals } from "./renewals.ts";
import type { Standing, Standings } from "./standing.ts";
import type { WrappingService } from "./wrapping.ts";

/** NIST SP 800-38D §8.3: no more invocations under one key with random 96-bit IVs. */
const MAX_USES_EVER = 2 ** 32;
/** Renewal starts at this part of either limit, so that no Encrypt waits for it. */
const RENEW_AT = 0.9;
/** Status waits this long for the first probe, then says why there is nothing yet. */
const MAX_FIRST_PROBE_WAIT_MS = 2_000;
/** More than three restarting control planes need, less than what hurts an HSM. */
const MAX_CONCURRENT_UNWRAPS = 64;
/** Unwraps that wait for one of those; past it a flood is refused instead of remembered. */
const MAX_WAITING_UNWRAPS = 1_024;
/**
 * A renewal wants the witness given back, and verifies on a new connection, unless another one has just done so:
 * else KMS_LOCAL_KEK_MAX_USES=1 would cost two more calls and a TLS handshake for each DEK.
 */
const RENEWAL_PROOF_INTERVAL_MS = 1_000;
/** Local KEKs that are asked for at once when all of them are. */
const AUDIT_WIDTH = 8;

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

/** Who asks, and whether it still waits. */
export interface Caller {
  readonly requestId?: string | undefined;
  readonly hasLeft?: () => boolean;
}

/**
 * Holds the local KEKs: the current one, which wraps new DEKs, and those that data in etcd need. Calls Key4C only to
 * make one and to unwrap one it has not seen; concurrent needs share one call. What Key4C's answers lead to is not its
 * business: it asks the {@link Standing} of a key.
 */
export class Keyring {
  readonly #options: KeyringOptions;
  readonly #clock: Clock;
  /** Of the current key. */
  #standing: Standing;
  #snapshot: Snapshot | undefined;
  /** The oldest local KEK of the current key and version that this process used: pinned, asked for at each probe. */
  #witness: Snapshot | undefined;
  #provenAtMs = Number.NEGATIVE_INFINITY;
  readonly #renewals: Renewals;
  readonly #cache: KekCache;
  readonly #refusals: Refusals;
  readonly #unwrapping = new Map<string, Promise<LocalKek>>();
  /** For callers only: the probe and a renewal, few as they are, must not wait behind a flood. */
  readonly #limiter = new Limiter(MAX_CONCURRENT_UNWRAPS, MAX_WAITING_UNWRAPS);
  /** Encrypts that went on above KMS_LOCAL_KEK_MAX_USES, because no new local KEK was to be had. */
  overLimit = 0;
  /** Local KEKs of the current key and version that callers asked for: how many Key4C gave back, and refused. */
  readonly currentKeyUnwraps = { givenBack: 0, refused: 0 };

  constructor(options: KeyringOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#standing = options.standings.of(options.keys.currentId);
    this.#cache = new KekCache(options.cacheSize, this.#clock);
    this.#refusals = new Refusals(this.#clock);
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
    return this.#snapshot;
  }

  /** For the metrics. */
  get cache(): Readonly<Pick<KekCache, "size" | "hits" | "misses" | "orphans">> {
    return this.#cache;
  }

  /** Unwraps that callers wait for. */
  get unwrapsUnderWay(): number {
    return this.#unwrapping.size;
  }

  /** On the clock of {@link Snapshot.createdAtMs}; undefined without a local KEK. */
  get ageMs(): number | undefined {
    return this.#snapshot && this.#clock.nowMs() - this.#snapshot.createdAtMs;
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
    if (this.#snapshot === undefined && standing.firstProbe === undefined) {
      throw this.#absence();
    }
    return this.#snapshot;
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
        "invalid",
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
    if (this.#snapshot === undefined) {
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
          const { snapshot } = this;
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
    const key = cacheKey(envelope.header);
    const localKek = this.#known(key);
    if (localKek === undefined) {
      return undefined;
    }
    this.#refuseIfRevoked(envelope.header);
    return this.#open(key, localKek, envelope);
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

  #open(key: string, localKek: LocalKek, envelope: Envelope): Buffer {
    try {
      return localKek.open(envelope);
    } catch (error) {
      if (this.#cache.isDoubtful(key)) {
        // The known one goes on until Key4C has said whether it is the right one.
        this.#fetch(key, envelope.header, {}).catch(() => {});
      }
      throw error;
    }
  }

  #known(key: string): LocalKek | undefined {
    if (key === this.#snapshot?.cacheKey) {
      return this.#snapshot.localKek;
    }
    return key === this.#witness?.cacheKey ? this.#witness.localKek : this.#cache.get(key);
  }

  /** Drops the local KEKs of one key, and nobody else's: Key4C has revoked it. */
  revoke(kmsKeyId: string): void {
    this.#cache.dropKey(keyNameHash(kmsKeyId));
    if (kmsKeyId === this.#snapshot?.kmsKeyId) {
      for (const pinned of [this.#snapshot, this.#witness]) {
        if (pinned !== undefined && !this.#cache.isOrphaned(pinned.cacheKey)) {
          pinned.localKek.drop();
        }
      }
      this.#snapshot = undefined;
      this.#witness = undefined;
      this.#options.standings.of(kmsKeyId).hasLocalKek = false;
    }
  }

  /**
   * Makes a local KEK under what describe told, and only when Key4C has given it back the current one: the first, of a
   * higher version, or of another key.
   * @throws PluginError when there is none; the current one stays
   */
  async adopt(kmsKeyId: string, expected: Expected): Promise<Snapshot> {
    const { revocation } = this.#options.standings.of(kmsKeyId);
    const made = await this.#make(kmsKeyId, expected, true);
    return this.#become(kmsKeyId, made, expected, revocation);
  }

  /** Where describe tells no version, a new one counts only if two encrypts tell the same. */
  async #make(kmsKeyId: string, expected: Expected, newConnection: boolean): Promise<ProvenKek> {
    const { service } = this.#options;
    const made = await makeLocalKek(service, kmsKeyId, expected, { newConnection });
    const { keyVersion } = made.header;
    const isKnown = this.#snapshot?.keyId === formatKeyId(made.header) || keyVersion === 0;
    if (expected.version === undefined && !isKnown) {
      const same = { ...expected, version: keyVersion };
      const again = await makeLocalKek(service, kmsKeyId, same, { newConnection });
      again.localKek.drop();
    }
    return made;
  }

  /**
   * Has Key4C give back the current local KEK and the witness, on new connections.
   * @returns those that it does not give back
   * @throws PluginError when it says neither
   */
  async examine(): Promise<readonly Snapshot[]> {
    const pinned = [...new Set([this.#snapshot, this.#witness])].filter((one) => one !== undefined);
    const options = { newConnection: true };
    const results = await Promise.all(
      pinned.map(async (one) => {
        const { service } = this.#options;
        return (await isGivenBack(service, one.kmsKeyId, one, options)) ? undefined : one;
      }),
    );
    const missing = results.filter((one) => one !== undefined);
    if (missing.length === 0) {
      this.#provenAtMs = this.#clock.nowMs();
    }
    return missing;
  }

  /** Whether Key4C gives back a local KEK that it has just wrapped. @throws PluginError when it does not */
  async tryAnother({ kmsKeyId, header }: Snapshot): Promise<void> {
    const expected = { version: undefined, kcvHash: header.kcvHash };
    const { localKek } = await makeLocalKek(this.#options.service, kmsKeyId, expected, {
      newConnection: true,
    });
    localKek.drop();
  }

  /**
   * Asks Key4C for every local KEK that is held for a key. What it does not give back is orphaned.
   * @param which only those that are orphaned already, or all
   * @returns how many are new among the orphaned
   */
  async audit(kmsKeyId: string, which: "orphaned" | "all"): Promise<number> {
    const hash = keyNameHash(kmsKeyId);
    const pinned = [this.#snapshot, this.#witness].filter(
      (one) => one !== undefined && one.kmsKeyId === kmsKeyId,
    );
    const limiter = new Limiter(AUDIT_WIDTH, Number.POSITIVE_INFINITY);
    let found = 0;
    const held = which === "orphaned" ? this.#cache.orphansFor(hash) : this.#cache.keptFor(hash);
    await Promise.all(
      [...held, ...(which === "all" ? pinned : [])].map((one) =>
        limiter.run(async () => {
          if (one === undefined || one.localKek.isDropped) {
            return;
          }
          const isGiven = await isGivenBack(this.#options.service, kmsKeyId, one, {}).catch(
            () => undefined, // asked again the next time
          );
          if (isGiven === true) {
            this.#cache.adopt(one.header);
          } else if (isGiven === false && !one.localKek.isDropped) {
            found += this.#cache.orphan(one.header, one.localKek) ? 1 : 0;
          }
        }),
      ),
    );
    return found;
  }

  /** Starts a renewal if the current local KEK is near one of its limits. Never throws. */
  renewIfDue(): void {
    if (this.#snapshot !== undefined && this.#isDue(this.#snapshot)) {
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
    const current = this.#snapshot;
    if (current === undefined) {
      return; // revoked meanwhile
    }
    const nowMs = this.#clock.nowMs();
    const isProofDue = nowMs - this.#provenAtMs >= RENEWAL_PROOF_INTERVAL_MS;
    const { kmsKeyId, expected } = current;
    if (isProofDue) {
      this.#provenAtMs = nowMs; // those that are begun meanwhile do not ask too
      const witness = this.#witness ?? current;
      const { service } = this.#options;
      if (!(await isGivenBack(service, kmsKeyId, witness, { newConnection: true }))) {
        throw new PluginError(
          "mismatch",
          `Key4C does not give back the local KEK ${fingerprintOf(witness)}`,
        );
      }
    }
    const made = await this.#make(kmsKeyId, expected, isProofDue);
    this.#become(kmsKeyId, made, expected, undefined);
  }

  #renewalFailed(error: unknown): void {
    const { kind } = toPluginError(error);
    this.#options.log.warn("no new local KEK: the current one goes on", {
      kind,
      cause: describeError(error),
      uses: this.#snapshot?.localKek.uses,
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
    const replaced = this.#snapshot;
    const isOurs = replaced?.kmsKeyId === kmsKeyId;
    // The key may have been revoked, changed or rotated while Key4C was asked.
    const isWanted = isOurs || kmsKeyId === keys.configuredId;
    const isOlder = isOurs && made.header.keyVersion < replaced.header.keyVersion;
    if (standing.revocation !== revocation || !isWanted || isOlder) {
      made.localKek.drop();
      throw isOlder
        ? new PluginError("olderVersion", "Key4C wraps under an older version than before")
        : new PluginError("unavailable", "the key changed while a local KEK was made");
    }
    const snapshot: Snapshot = Object.freeze({
      ...made,
      kmsKeyId,
      expected,
      keyId: formatKeyId(made.header),
      cacheKey: cacheKey(made.header),
      createdAtMs: this.#clock.nowMs(),
    });
    this.#snapshot = snapshot;
    const witness = this.#witness;
    if (witness?.keyId !== snapshot.keyId) {
      this.#witness = snapshot;
      if (witness !== undefined && witness !== replaced) {
        this.#cache.keep(witness.header, witness.localKek);
      }
    }
    if (replaced !== undefined && replaced !== this.#witness) {
      this.#cache.keep(replaced.header, replaced.localKek);
    }
    if (replaced !== undefined && !isOurs) {
      standings.of(replaced.kmsKeyId).hasLocalKek = false;
    }
    keys.becomeCurrent(kmsKeyId);
    this.#standing = standing;
    standing.hasLocalKek = true;
    log.info("new local KEK", {
      keyId: snapshot.keyId,
      kmsKeyId,
      fingerprint: fingerprintOf(snapshot),
    });
    this.#renewals.serve(snapshot.localKek);
    return snapshot;
  }

  /** @throws PluginError when Key4C is not to be asked for a local KEK of this key now */
  #refuseIfFutile(own: Standing): void {
    const ofThisKey = own.refusalOfCallers("thisKey");
    const refusal =
      ofThisKey ??
      (own === this.#standing ? undefined : this.#standing.refusalOfCallers("anotherKey"));
    if (refusal !== undefined) {
      // Whoever fails for want of Key4C has the probe look soon that would end it.
      (ofThisKey === undefined ? this.#standing : own).need();
      throw new PluginError(refusal.kind, "Key4C is not asked: the last probe failed", {
        cause: refusal,
      });
    }
  }

  /** Why a caller's unwrap failed. */
  #heard(own: Standing, header: KekHeader, error: unknown): void {
    const failure = toPluginError(error);
    if (failure.kind === "invalid") {
      this.#refusals.add(cacheKey(header));
      this.#count(header, "refused");
      return;
    }
    own.need(failure);
    if (own !== this.#standing && KINDS[failure.kind].retry) {
      this.#standing.need(); // Key4C may be away as a whole
    }
  }

  async #fetch(key: string, header: KekHeader, caller: Caller): Promise<LocalKek> {
    this.#cache.misses += 1;
    const underWay = this.#unwrapping.get(key);
    if (underWay !== undefined) {
      return underWay;
    }
    this.#refuseIfRevoked(header);
    const kmsKeyId = this.#options.keys.idOf(base32(header.keyNameHash));
    if (kmsKeyId === undefined) {
      throw new PluginError("unknownKey", "the ciphertext belongs to a key that is not configured");
    }
    if (this.#refusals.has(key)) {
      throw new PluginError("invalid", "Key4C has just refused this wrapped local KEK");
    }
    const own = this.#options.standings.of(kmsKeyId);
    this.#refuseIfFutile(own);
    const unwrapping = this.#unwrapAndKeep(key, own, header, caller);
    this.#unwrapping.set(key, unwrapping);
    return unwrapping;
  }

  async #unwrapAndKeep(
    key: string,
    own: Standing,
    header: KekHeader,
    caller: Caller,
  ): Promise<LocalKek> {
    try {
      const bytes = await this.#limiter.run(async () => {
        await this.#refusals.turn();
        this.#refuseIfFutile(own); // as it may be by the time that there is a place
        try {
          return await unwrapLocalKek(this.#options.service, own.kmsKeyId, header, {
            requestId: caller.requestId,
            isForCaller: true,
            onFailedAttempt: () => own.need(),
          });
        } catch (error) {
          this.#heard(own, header, error);
          throw error;
        }
      });
      return this.#keep(own, key, header, bytes);
    } finally {
      this.#unwrapping.delete(key);
    }
  }

  #keep(own: Standing, key: string, header: KekHeader, bytes: Buffer): LocalKek {
    const known = this.#known(key);
    if (known?.isDropped === false && known.equals(bytes)) {
      known.isProven = true; // Key4C gave the same twice
      bytes.fill(0);
      return known;
    }
    const localKek = new LocalKek(bytes);
    if (own.revocation === undefined) {
      this.#cache.keep(header, localKek);
    }
    this.#count(header, "givenBack");
    return localKek;
  }

  #count(header: KekHeader, outcome: "givenBack" | "refused"): void {
    if (this.#snapshot?.keyId === formatKeyId(header)) {
      this.currentKeyUnwraps[outcome] += 1;
    }
  }
}

function seal({ header, localKek, keyId }: Snapshot, plaintext: Uint8Array): Wrapped {
  if (localKek.uses >= MAX_USES_EVER) {
    throw new PluginError("unavailable", "the local KEK is used up and has no successor");
  }
  return { envelope: localKek.seal(header, plaintext), keyId };
}

/** What logs call a local KEK: 16 hexadecimal digits of the hash of its wrapped form, as `inspect` shows them. */
export function fingerprintOf({ header }: { readonly header: KekHeader }): string {
  return Buffer.from(header.fingerprint).toString("hex").slice(0, 16);
}
