/** One probe of one key: what Key4C is asked, and what the key learns from the answers. */
import type { ErrorKind } from "../failures/kinds.ts";
import { PluginError, toPluginError } from "../failures/plugin-error.ts";
import type { Clock } from "../system/clock.ts";
import type { Snapshot } from "./holdings.ts";
import type { Kept } from "./kek-cache.ts";
import type { Key } from "./key.ts";
import { isConclusive } from "./key-health.ts";
import { fingerprintOf, isGivenBack } from "./local-kek.ts";
import { makeProven } from "./make-proven.ts";
import { LAG_MS, type Material, materialOf } from "./material.ts";
import type { WrappingService } from "./wrapping.ts";

/** While a mismatch lasts, Key4C wraps no more than one local KEK in this time to prove that it is well. */
const CONTROL_INTERVAL_MS = 60_000;
/** A renewal wants the canary unwrapped, unless a probe or another renewal has just seen that. */
const CANARY_INTERVAL_MS = 1_000;

export interface ProberOptions {
  readonly service: WrappingService;
  readonly clock: Clock;
  /** A local KEK became current. */
  readonly published: (key: Key, snapshot: Snapshot, former: Snapshot | undefined) => void;
}

/** Probes one key, and makes its local KEKs. Two probes of one key never run at a time. */
export class Prober {
  readonly #key: Key;
  readonly #options: ProberOptions;
  /** Since when describe has told an older version than the current one. */
  #olderSinceMs: number | undefined;
  /** When Key4C last unwrapped what it must, or was asked to. */
  #provenAtMs = Number.NEGATIVE_INFINITY;
  /** When a control last succeeded. */
  #controlledAtMs = Number.NEGATIVE_INFINITY;

  constructor(key: Key, options: ProberOptions) {
    this.#key = key;
    this.#options = options;
  }

  /** Never throws: what it meets is recorded. */
  async probe(): Promise<void> {
    const key = this.#key;
    if (key.health.isPaused) {
      key.health.passPause();
      return;
    }
    const { generation } = key;
    const met = await this.#meet().catch(toPluginError);
    if (key.generation === generation) {
      key.record(met);
    }
  }

  /** Describe and unwraps go side by side, because each fails by itself. @returns the failure that counts most */
  async #meet(): Promise<PluginError | undefined> {
    const key = this.#key;
    const toProve = key.takeWhatToProve();
    const [told, proofs] = await Promise.all([
      this.#describe(),
      Promise.all(toProve.map((one) => this.#prove(one))),
    ]);
    const failures = proofs.filter((one) => one instanceof PluginError);
    const unwrapFailure = failures.find(isConclusive) ?? failures[0];
    const missing = toProve.filter((_, at) => proofs[at] === false);
    if (toProve.length > 0) {
      // What Key4C says of the key is an answer too: the key's health refuses callers then.
      const isAnswer = (one: boolean | PluginError) =>
        typeof one === "boolean" || isConclusive(one);
      key.circuits.recordUnwrap(proofs.some(isAnswer) ? undefined : unwrapFailure);
    }
    if (missing.length === 0 && unwrapFailure === undefined && key.current !== undefined) {
      this.#provenAtMs = this.#options.clock.nowMs();
      key.circuits.isUnwrapDoubtful = false;
    }
    if (told instanceof PluginError && isConclusive(told)) {
      return told;
    }
    // The material first: after a rotation the former one may be gone, and with it the current local KEK.
    const doubt = told instanceof PluginError ? told : await this.#follow(told, missing);
    if (doubt === FOLLOWED) {
      return undefined;
    }
    const cannotWrap = doubt !== undefined && doubt !== told && !isConclusive(doubt);
    if (cannotWrap && key.health.revocation !== undefined) {
      key.record(undefined); // enabled again: reads must not wait until encrypt works, too
    }
    if (unwrapFailure !== undefined && isConclusive(unwrapFailure)) {
      return unwrapFailure;
    }
    if (told instanceof PluginError && SAYS_KEY_IS_GONE.includes(told.kind)) {
      return told; // a control would wrap under a key that is gone, and some services then make a new one
    }
    if (missing.length > 0) {
      key.missed(missing);
      return this.#explainMissing(missing, told, doubt);
    }
    return doubt ?? unwrapFailure;
  }

  /** On a new connection: a kept one may be dead, or lead to a replica that no other process reaches. */
  async #describe(): Promise<Material | PluginError> {
    const { kmsKeyId, health, materials } = this.#key;
    const { service, clock } = this.#options;
    const describe = () => service.describe(kmsKeyId, { newConnection: true });
    // Behind replicas in turn, a probe of always as many connections would meet one order of them for ever.
    const takeTurn = () => health.failure !== undefined && clock.random() < 0.5 && describe();
    try {
      await takeTurn();
      const told = materialOf(kmsKeyId, await describe());
      await takeTurn();
      materials.learn(told);
      return told;
    } catch (error) {
      return toPluginError(error);
    }
  }

  /** @returns whether Key4C unwraps it; its failure when it says neither */
  #prove(kept: Kept): Promise<boolean | PluginError> {
    return isGivenBack(this.#options.service, this.#key.kmsKeyId, kept).catch(toPluginError);
  }

  /**
   * Makes the first local KEK, and one under new material.
   * @returns {@link FOLLOWED} when one became current; undefined when there was nothing to follow; else why not
   */
  async #follow(
    told: Material,
    missing: readonly Kept[],
  ): Promise<typeof FOLLOWED | PluginError | undefined> {
    const key = this.#key;
    if (!key.wraps) {
      return undefined;
    }
    const { current } = key;
    if (current === undefined) {
      return this.#publishUnder(told);
    }
    const nowMs = this.#options.clock.nowMs();
    const before = current.header.keyVersion;
    const version = told.version ?? before;
    this.#olderSinceMs = version < before ? (this.#olderSinceMs ?? nowMs) : undefined;
    if (version < before) {
      return olderVersion(version, current);
    }
    const hasNewKcv = key.materials.isReplaced(told.kcvHash, current.header.kcvHash, nowMs);
    // Where the canary is lost too, it is a mismatch first: what is held must be looked through.
    const mayFollowKcv = missing.length === 0 || key.health.memory.finding !== undefined;
    // What an earlier process kept is replaced like a first one, once Key4C has unwrapped it.
    const isTakenOver = key.takenOver !== undefined && missing.length === 0;
    return version > before || (hasNewKcv && mayFollowKcv) || isTakenOver
      ? this.#publishUnder(withKcv(told, current))
      : undefined;
  }

  /** @returns {@link FOLLOWED} when it is current; else why it is not */
  async #publishUnder(told: Material): Promise<typeof FOLLOWED | PluginError> {
    try {
      await this.make(told);
      return FOLLOWED;
    } catch (error) {
      return toPluginError(error);
    }
  }

  /** Why Key4C does not unwrap what it wrapped: a mismatch only if it is well otherwise, and does not lag. */
  async #explainMissing(
    missing: readonly Kept[],
    told: Material | PluginError,
    doubt: PluginError | undefined,
  ): Promise<PluginError | undefined> {
    if (doubt?.kind === "olderVersion" && !this.#isLagOver()) {
      return doubt;
    }
    if (await this.#control(told instanceof PluginError ? undefined : told)) {
      return undefined;
    }
    const fingerprints = missing.map(fingerprintOf).join(", ");
    return new PluginError(
      "mismatch",
      `Key4C unwraps what it has just wrapped, and not the local KEK ${fingerprints}`,
    );
  }

  /**
   * The control of the experiment: has Key4C wrap a local KEK and unwrap it again. One under a higher version than the
   * current one shows a rotation that only encrypt tells, and is published.
   * @returns whether it was published
   * @throws PluginError when there is none. Then what is missing does not prove a mismatch
   */
  async #control(told: Material | undefined): Promise<boolean> {
    const key = this.#key;
    const { clock } = this.#options;
    const isEstablished = key.health.memory.finding !== undefined;
    if (isEstablished && clock.nowMs() - this.#controlledAtMs < CONTROL_INTERVAL_MS) {
      return false;
    }
    const { generation, current } = key;
    const kcvHash = told?.kcvHash.length ? told.kcvHash : (current?.header.kcvHash ?? NO_BYTES);
    const material = { version: undefined, kcvHash };
    const made = await makeProven(this.#options.service, key, material);
    this.#controlledAtMs = clock.nowMs();
    if (current !== undefined && made.header.keyVersion > current.header.keyVersion) {
      this.#publish(made, material, generation);
      return true;
    }
    made.localKek.drop();
    const { keyVersion } = made.header;
    if (current !== undefined && keyVersion < current.header.keyVersion && !this.#isLagOver()) {
      // A replica that lags proves nothing of the one that knows the newer version.
      throw olderVersion(keyVersion, current);
    }
    return false;
  }

  /** Whether Key4C has told an older version for so long that it is not a lag any more. */
  #isLagOver(): boolean {
    const nowMs = this.#options.clock.nowMs();
    this.#olderSinceMs ??= nowMs;
    return nowMs - this.#olderSinceMs >= LAG_MS;
  }

  /**
   * Makes a local KEK under what describe told, and only when Key4C has unwrapped it again the current one.
   * @throws PluginError when there is none; the current one stays
   */
  async make(told: Material): Promise<Snapshot> {
    const { generation } = this.#key;
    const made = await makeProven(this.#options.service, this.#key, told);
    return this.#publish(made, told, generation);
  }

  /** A new local KEK under the material of the current one. @throws PluginError; the current one stays */
  async renew(): Promise<void> {
    const key = this.#key;
    const { current } = key;
    if (current === undefined) {
      return; // revoked, or another key wraps meanwhile
    }
    const { generation } = key;
    const nowMs = this.#options.clock.nowMs();
    if (nowMs - this.#provenAtMs >= CANARY_INTERVAL_MS) {
      this.#provenAtMs = nowMs; // renewals that begin meanwhile do not ask too
      for (const canary of key.pinned.slice(-1)) {
        if (!(await isGivenBack(this.#options.service, key.kmsKeyId, canary))) {
          const message = `Key4C does not unwrap the local KEK ${fingerprintOf(canary)}`;
          throw new PluginError("mismatch", message);
        }
      }
    }
    const made = await makeProven(this.#options.service, key, current.material);
    this.#publish(made, current.material, generation);
  }

  #publish(made: Kept, material: Material, generation: number): Snapshot {
    const key = this.#key;
    const former = key.current;
    const snapshot = key.publish(made, material, generation);
    if (former?.keyId !== snapshot.keyId) {
      this.#olderSinceMs = undefined;
      if (former !== undefined) {
        key.lookThrough(); // the former material may be gone
      }
    }
    this.#options.published(key, snapshot, former);
    return snapshot;
  }
}

/** Without a code of the contract, too: those are no verdict, and no reason to wrap. */
const SAYS_KEY_IS_GONE: readonly ErrorKind[] = ["keyNotFound", "keyUnusable"];
/** A local KEK under what Key4C told became current. */
const FOLLOWED = Symbol("followed");
const NO_BYTES = new Uint8Array(0);

function olderVersion(version: number, { header }: Snapshot): PluginError {
  const message = `Key4C tells version ${version} of the key, after ${header.keyVersion}`;
  return new PluginError("olderVersion", message);
}

/** A describe that tells no key check value keeps the last one. */
function withKcv(told: Material, { header }: Snapshot): Material {
  return told.kcvHash.length === 0 ? { ...told, kcvHash: header.kcvHash } : told;
}
