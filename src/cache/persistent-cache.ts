/**
 * What one process hands to the next of its local KEKs, so that a restart while Key4C is unreachable comes up
 * (KMS_PERSISTENT_CACHE). Here are files and ages; what a key makes of what was kept is its own business.
 */
import { join } from "node:path";
import type { Holding, Keeper } from "../keys/keeper.ts";
import { type Clock, settledWithin, systemClock } from "../system/clock.ts";
import { describeError, ExitError } from "../system/errors.ts";
import { readSmallBytes } from "../system/files.ts";
import type { Log } from "../system/log.ts";
import { ageOf, type Moment, readMoment } from "./age.ts";
import { decodeHead } from "./form.ts";
import { fileName, KeyFile, NOT_KEPT, type OpenCache, type Outlook } from "./key-file.ts";
import { makePlace, type PlaceOptions } from "./place.ts";
import { namesIn, readStored, Store } from "./store.ts";

/** What cannot be used now, such as a directory that another plugin has, is tried again so often. */
const RETRY_MS = 1_000;
/** In this time no process uses up the half of a block: 50,000 Encrypts a second would. */
const CHARGE_INTERVAL_MS = 10_000;
/** Files of keys that are not configured any more are looked at so often. */
const SWEEP_INTERVAL_MS = 3_600_000;
/** At its end the process waits so long for a disk. */
const MAX_FLUSH_MS = 2_000;
/** The security strength of AES-256. */
const MIN_SEALING_KEY_BYTES = 32;

interface PersistentCacheOptions extends Omit<PlaceOptions, "isSealed"> {
  /** KMS_PERSISTENT_CACHE_KEY_FILE. */
  readonly keyFile: string | undefined;
  /** KMS_PERSISTENT_CACHE_MAX_AGE. */
  readonly maxAgeMs: number;
  readonly log: Log;
  readonly clock?: Clock;
}

/** The directory, as soon as it is usable and no other plugin has it. */
export class PersistentCache {
  readonly #options: PersistentCacheOptions;
  readonly #clock: Clock;
  readonly #files = new Map<string, KeyFile>();
  readonly #opened = Promise.withResolvers<OpenCache>();
  #store: Store | undefined;
  #problem: string | undefined;
  #sweptAtMs: number;
  #isStopped = false;

  constructor(options: PersistentCacheOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#sweptAtMs = this.#clock.nowMs();
  }

  /**
   * Opens the directory, now or as soon as it is usable. No start waits for a disk.
   * @throws ExitError where the options can never work
   */
  start(): void {
    const { directory, keyFile, socket } = this.#options;
    try {
      const place = makePlace({ directory, socket, isSealed: keyFile !== undefined });
      void this.#open(place, keyFile).catch((error: unknown) => this.#tryAgain(error));
    } catch (error) {
      if (error instanceof ExitError) {
        throw error;
      }
      this.#tryAgain(error);
    }
  }

  async #open(place: string, keyFile: string | undefined): Promise<void> {
    const sealingKey = keyFile === undefined ? undefined : readSealingKey(keyFile);
    readMoment();
    const store = await Store.open(place);
    if (store === undefined) {
      throw new Error(`another plugin keeps its local KEKs in ${place}`);
    }
    this.#store = store;
    this.#opened.resolve({ store, sealingKey });
    const form = sealingKey === undefined ? "in memory" : "sealed";
    this.#options.log.info("local KEKs are kept for the next process", { directory: place, form });
    this.#chargeInTime();
  }

  #tryAgain(error: unknown): void {
    const problem = describeError(error);
    if (problem !== this.#problem) {
      this.#problem = problem;
      this.#options.log.error(NOT_KEPT, { cause: problem });
    }
    this.#clock.after(RETRY_MS, () => {
      try {
        if (!this.#isStopped) {
          this.start();
        }
      } catch (never) {
        this.#tryAgain(never);
      }
    });
  }

  /** Writes what is not written yet, and lets the next process have the directory. */
  async stop(): Promise<void> {
    this.#isStopped = true;
    const flushed = Promise.all([...this.#files.values()].map((file) => file.flush()));
    await settledWithin(this.#clock, flushed, MAX_FLUSH_MS);
    await this.#store?.close();
  }

  /** The keeper of one key. @param holding what the key holds now */
  keeper(kmsKeyId: string, holding: () => Holding): Keeper {
    const { maxAgeMs, log } = this.#options;
    const file = new KeyFile({
      kmsKeyId,
      holding,
      opened: this.#opened.promise,
      maxAgeMs,
      now: readMoment,
      clock: this.#clock,
      log,
      onConfirmed: () => this.#sweep(),
    });
    this.#files.set(file.name, file);
    return file;
  }

  /** What a process that started now would have of one key; undefined: nothing. */
  outlook(kmsKeyId: string): Outlook | undefined {
    return this.#files.get(fileName(kmsKeyId))?.outlook;
  }

  /** Key4C answers, so nobody needs what is older than it may be. Whose key is not configured any more ends so. */
  #sweep(): void {
    const { maxAgeMs, log } = this.#options;
    const nowMs = this.#clock.nowMs();
    if (this.#store !== undefined && nowMs - this.#sweptAtMs >= SWEEP_INTERVAL_MS) {
      this.#sweptAtMs = nowMs;
      removeOld(this.#store, [...this.#files.keys()], maxAgeMs).catch((error: unknown) =>
        log.error("old files of the persistent cache are not removed", {
          cause: describeError(error),
        }),
      );
    }
  }

  #chargeInTime(): void {
    for (const file of this.#files.values()) {
      file.chargeInTime();
    }
    this.#clock.after(CHARGE_INTERVAL_MS, () => this.#chargeInTime());
  }
}

/** @throws Error with a sentence for the user, never with the content */
export function readSealingKey(path: string): Uint8Array {
  const key = readSmallBytes(path);
  if (key.length < MIN_SEALING_KEY_BYTES) {
    throw new Error(
      `${path} has ${key.length} bytes, and a sealing key has at least ${MIN_SEALING_KEY_BYTES}`,
    );
  }
  return key;
}

async function removeOld(store: Store, used: readonly string[], maxAgeMs: number): Promise<void> {
  const moment = readMoment();
  for (const name of namesIn(store.directory).filter((one) => !used.includes(one))) {
    const bytes = await readStored(join(store.directory, name));
    if (bytes !== undefined && !isOfUse(bytes, moment, maxAgeMs)) {
      store.remove(name);
    }
  }
}

function isOfUse(bytes: Buffer, now: Moment, maxAgeMs: number): boolean {
  try {
    return ageOf(decodeHead(bytes).confirmed, now, maxAgeMs) !== undefined;
  } catch {
    return false;
  }
}
