import { type KekHeader, LocalKek } from "../keys/envelope.ts";
import type { Handover, Holding, Keeper } from "../keys/keeper.ts";
import { base32, keyNameHash } from "../keys/key-id.ts";
import type { Clock } from "../system/clock.ts";
import { describeError } from "../system/errors.ts";
import type { Log } from "../system/log.ts";
import { ageOf, type Moment } from "./age.ts";
import {
  decodeStored,
  encodeStored,
  type StoredKek,
  type StoredKey,
  USES_PER_BLOCK,
} from "./form.ts";
import type { Store } from "./store.ts";

/** How soon after the last write the next one comes: for a new current local KEK, as which several may come in a second, */
const NOW_MS = 1_000;
/** for one that data needed: an API server that starts may need many, one after the other, */
const SOON_MS = 5_000;
/** and for a confirmation, of which each probe is one. */
const LATER_MS = 60_000;
/** NIST SP 800-38D §8.3: uses of one key with random 96-bit IVs, in blocks. */
const MAX_BLOCKS = 2 ** 32 / USES_PER_BLOCK;

export const NOT_KEPT =
  "local KEKs are not kept: a restart while Key4C is unreachable may not have them; trying again";

/** A directory that is ours. */
export interface OpenCache {
  readonly store: Pick<Store, "directory" | "read" | "write" | "remove">;
  /** undefined: in memory, so in the clear. */
  readonly sealingKey: Uint8Array | undefined;
}

interface KeyFileOptions {
  readonly kmsKeyId: string;
  /** What the key holds now. */
  readonly holding: () => Holding;
  /** Resolves when there is a directory; maybe never. */
  readonly opened: Promise<OpenCache>;
  readonly maxAgeMs: number;
  readonly now: () => Moment;
  readonly clock: Clock;
  readonly log: Log;
  /** Called at each confirmation. */
  readonly onConfirmed: () => void;
}

/** What a process that started now would have. */
export interface Outlook {
  readonly kekCount: number;
  /** Whether the local KEK is among them under which Encrypt wraps. */
  readonly isComplete: boolean;
  /** On the wall clock: when Key4C must have confirmed them again. */
  readonly untilMs: number;
}

interface Facts extends Pick<StoredKey, "confirmed" | "chargedBlocks"> {
  readonly kekCount: number;
  /** Its fingerprint. */
  readonly current: string | undefined;
}

/** The file of one Key4C key: read once, and written as the key changes. */
export class KeyFile implements Keeper {
  readonly name: string;
  readonly handover: Promise<Handover | undefined>;
  readonly #options: KeyFileOptions;
  readonly #keyNameHash: Uint8Array;
  #cache: OpenCache | undefined;
  /** Before the file was read, nothing is written over it. */
  #isLoaded = false;
  #confirmed: Moment | undefined;
  /** How long after the last write the next one is wanted. */
  #wantedMs: number | undefined;
  #writing: Promise<void> | undefined;
  #cancel: (() => void) | undefined;
  #writtenAtMs = Number.NEGATIVE_INFINITY;
  /** Counts what makes a write that is under way unwanted. */
  #generation = 0;
  /** Of the file as it is, without the local KEKs themselves. */
  #stored: Facts | undefined;
  #problem: string | undefined;

  constructor(options: KeyFileOptions) {
    this.#options = options;
    this.#keyNameHash = keyNameHash(options.kmsKeyId);
    this.name = fileName(options.kmsKeyId);
    this.handover = options.opened.then((cache) => this.#load(cache));
  }

  confirmed(): void {
    try {
      this.#confirmed = this.#options.now();
    } catch {
      return; // opening the directory has told it
    }
    this.#options.onConfirmed();
    this.#want(LATER_MS);
  }

  more(which: "current" | "other"): void {
    this.#want(which === "current" ? NOW_MS : SOON_MS);
  }

  fewer(which: "all" | "some"): void {
    this.#generation += 1;
    this.#remove();
    if (which === "all") {
      this.#confirmed = undefined;
      this.#wantedMs = undefined;
    } else {
      this.#want(NOW_MS);
    }
  }

  /** What a process that started now would have; undefined: nothing. */
  get outlook(): Outlook | undefined {
    const { now, maxAgeMs, holding } = this.#options;
    const age = this.#stored && ageOf(this.#stored.confirmed, now(), maxAgeMs);
    if (this.#stored === undefined || age === undefined) {
      return undefined;
    }
    const { kekCount, current } = this.#stored;
    const isComplete = current !== undefined && current === nameOf(holding().current?.header);
    return { kekCount, isComplete, untilMs: age.untilMs };
  }

  /** Charges another block before the uses reach the end of what the file says. */
  chargeInTime(): void {
    if (this.#isChargeDue) {
      this.#want(NOW_MS);
    }
  }

  /** Writes what is due later. */
  async flush(): Promise<void> {
    await this.#writing;
    if (this.#wantedMs !== undefined && this.#isLoaded) {
      this.#cancel?.();
      await this.#write();
    }
  }

  get #isChargeDue(): boolean {
    const uses = usesOf(this.#options.holding());
    return this.#stored !== undefined && uses > (this.#stored.chargedBlocks - 0.5) * USES_PER_BLOCK;
  }

  async #load(cache: OpenCache): Promise<Handover | undefined> {
    const { kmsKeyId, log } = this.#options;
    this.#cache = cache;
    try {
      const handover = await this.#read(cache);
      if (this.#generation === 0) {
        return handover;
      }
      this.#remove(); // revoked before or while it was read
    } catch (error) {
      const cause = describeError(error);
      log.warn("what a previous process kept is not used", { kmsKeyId, file: this.name, cause });
    } finally {
      this.#isLoaded = true;
      this.#plan();
    }
    return undefined;
  }

  async #read({ store, sealingKey }: OpenCache): Promise<Handover | undefined> {
    const { kmsKeyId, now, maxAgeMs, log } = this.#options;
    const bytes = await store.read(this.name);
    if (bytes === undefined) {
      return undefined;
    }
    const moment = now();
    const stored = decodeStored(bytes, this.#keyNameHash, sealingKey, moment.bootId);
    bytes.fill(0);
    const age = ageOf(stored.confirmed, moment, maxAgeMs);
    const confirmedAt = new Date(stored.confirmed.wallMs).toISOString();
    if (age === undefined) {
      throw new Error(
        `confirmed at ${confirmedAt}, which is longer ago than KMS_PERSISTENT_CACHE_MAX_AGE, or in the future`,
      );
    }
    if (age.aheadMs > 0) {
      log.warn("the clock was set back: what a previous process kept counts as confirmed now", {
        kmsKeyId,
        confirmedAt,
      });
    }
    this.#confirmed ??= stored.confirmed;
    const chargedBlocks = stored.chargedBlocks + 1;
    const mayWrap =
      chargedBlocks <= MAX_BLOCKS &&
      (await this.#replace({ ...stored, chargedBlocks }, "uncharged"));
    const keks = stored.keks.map(({ header, bytes: own, isCurrent, isCanary }) => {
      const localKek = new LocalKek(own);
      localKek.isProven = true; // no other is kept
      localKek.usesBefore = isCurrent ? stored.chargedBlocks * USES_PER_BLOCK : 0;
      return { header, localKek, isCurrent: isCurrent && mayWrap, isCanary };
    });
    const current = keks.find(({ isCurrent }) => isCurrent);
    const canary = keks.find(({ isCanary }) => isCanary);
    const others = keks.filter((one) => one !== current && one !== canary);
    return { current, canary, others, confirmedMsAgo: age.ms, untilMs: age.untilMs };
  }

  /**
   * @param former what the former file is, where this one cannot be written: still true, or without the charge
   * @returns whether no file is left that says too little
   */
  async #replace(stored: StoredKey, former: "true" | "uncharged"): Promise<boolean> {
    const generation = this.#generation;
    const { store, sealingKey } = this.#cache as OpenCache; // nothing is written before it is there
    const bytes = encodeStored(stored, sealingKey);
    try {
      await store.write(this.name, bytes, () => generation === this.#generation);
    } catch (error) {
      this.#tell(describeError(error));
      this.#want(former === "true" ? LATER_MS : NOW_MS);
      return former === "true" || this.#remove();
    } finally {
      bytes.fill(0);
    }
    if (generation === this.#generation) {
      const { keks, confirmed, chargedBlocks } = stored;
      const current = nameOf(keks.find(({ isCurrent }) => isCurrent)?.header);
      this.#stored = { confirmed, chargedBlocks, kekCount: keks.length, current };
      this.#tell(undefined);
    }
    return true;
  }

  #remove(): boolean {
    try {
      this.#cache?.store.remove(this.name);
      this.#stored = undefined;
      return true;
    } catch (error) {
      this.#options.log.error("what no later process must find cannot be removed", {
        kmsKeyId: this.#options.kmsKeyId,
        cause: describeError(error),
        remedy: "remove the file by hand",
      });
      return false;
    }
  }

  #tell(problem: string | undefined): void {
    const { kmsKeyId, log } = this.#options;
    if (problem !== undefined && this.#problem === undefined) {
      log.error(NOT_KEPT, { kmsKeyId, cause: problem });
    } else if (problem === undefined && this.#problem !== undefined) {
      log.info("local KEKs are kept again", { kmsKeyId });
    }
    this.#problem = problem;
  }

  #want(afterMs: number): void {
    this.#wantedMs = Math.min(this.#wantedMs ?? afterMs, afterMs);
    this.#plan();
  }

  #plan(): void {
    this.#cancel?.();
    if (this.#wantedMs !== undefined && this.#isLoaded && this.#writing === undefined) {
      const { clock } = this.#options;
      const inMs = Math.max(0, this.#writtenAtMs + this.#wantedMs - clock.nowMs());
      this.#cancel = clock.after(inMs, () => void this.#write());
    }
  }

  #write(): Promise<void> {
    const held = this.#options.holding();
    const uses = usesOf(held);
    const confirmed = this.#confirmed;
    this.#wantedMs = undefined;
    const keks = storedKeks(held);
    if (confirmed === undefined || keks.length === 0) {
      return Promise.resolve(); // the next confirmation comes back to it
    }
    this.#writtenAtMs = this.#options.clock.nowMs();
    const chargedBlocks = Math.min(MAX_BLOCKS, Math.ceil(uses / USES_PER_BLOCK) + 1);
    const stored = { keyNameHash: this.#keyNameHash, confirmed, keks, chargedBlocks };
    const former = this.#isChargeDue ? "uncharged" : "true";
    this.#writing = this.#replace(stored, former).then(() => {
      for (const { bytes } of keks) {
        bytes.fill(0);
      }
      this.#writing = undefined;
      this.#plan();
    });
    return this.#writing;
  }
}

/** Those that matter most first. One that was dropped in this turn is left out. */
function storedKeks({ current, canary, others }: Holding): StoredKek[] {
  return [...new Set([current, canary, ...others])].flatMap((one) =>
    one === undefined || one.localKek.isDropped
      ? []
      : {
          header: one.header,
          bytes: one.localKek.copyBytes(),
          isCurrent: one === current,
          isCanary: one === canary,
        },
  );
}

/** Of the current local KEK, in all processes. */
function usesOf({ current }: Holding): number {
  return current === undefined ? 0 : current.localKek.usesBefore + current.localKek.uses;
}

export function fileName(kmsKeyId: string): string {
  return base32(keyNameHash(kmsKeyId));
}

function nameOf(header: KekHeader | undefined): string | undefined {
  return header && Buffer.from(header.fingerprint).toString("hex");
}
