import { PluginError } from "../failures/plugin-error.ts";
import type { Clock } from "../system/clock.ts";
import { Circuits } from "./circuits.ts";
import type { LocalKek } from "./envelope.ts";
import { HealthRecord } from "./health-record.ts";
import { Holdings, type Snapshot } from "./holdings.ts";
import { allOf, Inheritance } from "./inheritance.ts";
import type { Handover, Holding, Keeper } from "./keeper.ts";
import type { CacheSpace, Kept } from "./kek-cache.ts";
import type { Effect, Limits } from "./key-health.ts";
import { formatKeyId } from "./key-id.ts";
import { type Material, Materials } from "./material.ts";
import { Proofs } from "./proofs.ts";

export interface KeyOptions {
  readonly limits: Limits;
  readonly space: CacheSpace;
  /** Has Key4C asked for these local KEKs, because some may be lost. */
  readonly lookThrough: (key: Key, kept: readonly Kept[]) => void;
  /** Hands local KEKs to the next process; undefined: nothing does. */
  readonly keeper?: (kmsKeyId: string, holding: () => Holding) => Keeper;
  /** It continues under a current local KEK of an earlier process. */
  readonly tookOver?: (key: Key, handover: Handover) => void;
  readonly clock: Clock;
}

/**
 * One Key4C key: its health, its current local KEK, its canary, and every local KEK that this process holds of it. Nobody
 * else publishes, keeps or drops one. A key that wraps and one whose data are only read are the same, but for
 * {@link wraps}.
 */
export class Key {
  readonly kmsKeyId: string;
  readonly health: HealthRecord;
  readonly circuits: Circuits;
  readonly materials: Materials;
  /** Of the local KEKs of the current key_id that callers needed: how many Key4C unwrapped, and how many it refused. */
  readonly asked = { givenBack: 0, refused: 0 };
  readonly #options: KeyOptions;
  readonly #held: Holdings;
  readonly #proofs = new Proofs();
  #wraps = false;
  /** Counts what makes the result of a call that is under way unwanted: a revocation, or the end of the configuration. */
  #generation = 0;
  #hasDropped = false;
  readonly #keeper: Keeper | undefined;
  readonly #inheritance: Inheritance;
  /** Whose current local KEK is used, because Key4C has not answered well since the start. */
  takenOver: Handover | undefined;

  constructor(kmsKeyId: string, options: KeyOptions) {
    this.kmsKeyId = kmsKeyId;
    this.#options = options;
    this.health = new HealthRecord(options.limits, options.clock);
    this.materials = new Materials(kmsKeyId);
    this.circuits = new Circuits(options.clock);
    this.#held = new Holdings(options.space);
    this.#keeper = options.keeper?.(kmsKeyId, () => this.#holding);
    this.#inheritance = new Inheritance(this.#keeper?.handover, () => this.#takeOver());
  }

  /** What the next process may have. */
  get #holding(): Holding {
    const { others, ...pinned } = this.#held.holding;
    return { ...pinned, others: [...others, ...allOf(this.#inheritance.waiting)] };
  }

  /** Resolves when what an earlier process kept is there, or is known not to be; maybe never. */
  get handedOver(): Promise<void> {
    return this.#inheritance.arrived;
  }

  /** Key4C comes first. From now on, whether or not it has answered, what an earlier process kept may be used. */
  allowTakeOver(): void {
    this.#inheritance.allow();
    this.#takeOver();
  }

  /**
   * Takes over what an earlier process held. Where Key4C has answered well, it is only held. Where it has not, for
   * whatever reason but an established revocation, the key continues as if that process had never ended.
   */
  #takeOver(): void {
    if (this.#inheritance.waiting !== undefined && this.health.revocation !== undefined) {
      this.#dropAll();
    }
    const handover = this.#inheritance.take();
    if (handover === undefined) {
      return;
    }
    const { current, canary = current } = handover;
    if (this.health.memory.lastSuccessMs === undefined) {
      this.health.resume(handover.confirmedMsAgo);
    }
    const isUsed = this.#wraps && this.current === undefined && current !== undefined;
    if (isUsed) {
      const { keyVersion, kcvHash } = current.header;
      this.takenOver = handover;
      this.#becomeCurrent(current, { version: keyVersion || undefined, kcvHash }, canary);
    } else if (!this.#wraps && this.#held.canary === undefined && canary !== undefined) {
      this.#held.setCanary(canary);
    }
    const pinned = this.pinned.map(({ localKek }) => localKek);
    for (const one of allOf(handover).filter(({ localKek }) => !pinned.includes(localKek))) {
      this.#held.keep(one);
    }
    if (isUsed) {
      this.#options.tookOver?.(this, handover);
    }
  }

  /** What Encrypt uses now; undefined until Key4C has wrapped and unwrapped a first local KEK. */
  get current(): Snapshot | undefined {
    return this.#held.current;
  }

  /** Compared before and after a call: another one means that its result is not wanted any more. */
  get generation(): number {
    return this.#generation;
  }

  get orphans(): readonly Kept[] {
    return this.#held.orphans;
  }

  /** Whether a revocation has cost this process a local KEK of the key. */
  get hasDropped(): boolean {
    return this.#hasDropped;
  }

  /** Whether it wrapped in this process. */
  get hasWrapped(): boolean {
    return this.materials.arePublished;
  }

  /** Whether it is to have a current local KEK. Without the right a key keeps what it holds, and publishes nothing. */
  get wraps(): boolean {
    return this.#wraps;
  }

  set wraps(wraps: boolean) {
    if (this.#wraps === wraps) {
      return;
    }
    this.#wraps = wraps;
    if (!wraps) {
      this.materials.endWatch();
      this.#held.setCurrent(undefined);
      this.health.hasLocalKek = false;
    }
  }

  /** Takes over what a probe met; undefined for a success. */
  record(met: PluginError | undefined): void {
    const effects = this.health.record(met);
    for (const effect of effects) {
      this.#apply(effect);
    }
    if (met === undefined) {
      this.takenOver = undefined;
      const { hasProven, replaced } = this.#proofs.succeed(this.pinned);
      if (hasProven) {
        this.#keeper?.confirmed();
      }
      if (replaced.length > 0 && effects.length === 0) {
        this.#options.lookThrough(this, replaced);
      }
    }
  }

  /** The only place that does what the health asks for. */
  #apply(effect: Effect): void {
    if (effect === "drop") {
      this.#hasDropped ||= this.holds.length > 0;
      this.#dropAll();
    } else {
      this.lookThrough();
    }
  }

  /** Has Key4C asked for every local KEK that is held. */
  lookThrough(): void {
    this.#options.lookThrough(this, this.holds);
  }

  /** Orphaned local KEKs, which nobody unwraps any more, are only withheld. */
  #dropAll(): void {
    this.#keeper?.fewer("all"); // before anything else
    this.#held.wipe(allOf(this.#inheritance.take()));
    this.takenOver = undefined;
    this.#generation += 1;
    this.#held.drop();
    this.health.hasLocalKek = false;
    this.#proofs.forget();
  }

  /** The key left the configuration: what is under way answers nobody. What it holds is withheld, and may come back. */
  close(): void {
    this.wraps = false;
    this.#generation += 1;
  }

  /** The key left the configuration for good: wipes all, orphaned local KEKs too. */
  wipe(): void {
    this.#dropAll();
    this.#held.dropOrphansToo();
  }

  /** The current local KEK and the canary, once each. */
  get pinned(): readonly Kept[] {
    return this.#held.pinned;
  }

  /** Every one that is held, orphaned ones too. */
  get holds(): readonly Kept[] {
    return this.#held.all;
  }

  /** What the next probe must have unwrapped. */
  takeWhatToProve(): readonly Kept[] {
    const isDue =
      this.current !== undefined || this.circuits.isUnwrapOpen || this.health.failure !== undefined;
    return this.#proofs.take(this.pinned, isDue);
  }

  /** A probe did not get these back. */
  missed(missing: readonly Kept[]): void {
    this.#proofs.miss(missing);
  }

  /**
   * Makes a proven local KEK current.
   * @param generation that of the key when it was begun
   * @throws PluginError when it is not wanted any more: it is dropped, and the current one stays
   */
  publish(made: Kept, material: Material, generation: number): Snapshot {
    const { keyVersion } = made.header;
    const isOlder = keyVersion < this.materials.highestPublished;
    if (generation !== this.#generation || !this.#wraps || isOlder) {
      made.localKek.drop();
      throw isOlder
        ? new PluginError("olderVersion", "Key4C wraps under an older version than before")
        : new PluginError("unavailable", "the key changed while a local KEK was made");
    }
    this.takenOver = undefined;
    this.#proofs.made();
    const snapshot = this.#becomeCurrent(made, material);
    this.#keeper?.more("current");
    return snapshot;
  }

  /** @param canary undefined: the one so far, if it has the same key_id */
  #becomeCurrent(kept: Kept, material: Material, canary?: Kept): Snapshot {
    const { kmsKeyId } = this;
    const keyId = formatKeyId(kept.header);
    const createdAtMs = this.#options.clock.nowMs();
    const snapshot = Object.freeze({ ...kept, keyId, kmsKeyId, material, createdAtMs });
    this.#held.setCurrent(snapshot, canary === kept ? snapshot : canary);
    this.health.hasLocalKek = true;
    this.materials.publish(kept.header);
    return snapshot;
  }

  /** A local KEK that is held, by {@link kekName}. */
  find(name: string): LocalKek | undefined {
    return this.#held.find(name);
  }

  /** Keeps a local KEK that a caller needed. The first of a key that does not wrap is its canary. */
  keep(kept: Kept): void {
    this.#keeper?.more("other");
    if (!this.#wraps && this.#held.canary === undefined) {
      this.#held.setCanary(kept);
    } else {
      this.#held.keep(kept);
    }
  }

  isDoubtful(name: string): boolean {
    return this.#held.isDoubtful(name);
  }

  /** Key4C does not unwrap it any more. @returns whether that is new */
  orphan(kept: Kept): boolean {
    const isNew = this.#held.orphan(kept);
    if (isNew) {
      this.#keeper?.fewer("some");
    }
    return isNew;
  }

  /** Key4C unwraps it again. */
  reinstate(kept: Kept): void {
    this.#held.reinstate(kept);
    this.#keeper?.more("other");
  }
}
