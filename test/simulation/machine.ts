/** What a node has besides its processes: a directory that outlives them, and a boot. */
import { ageOf, type Moment } from "../../src/cache/age.ts";
import { decodeStored, type StoredKey } from "../../src/cache/form.ts";
import { fileName, KeyFile } from "../../src/cache/key-file.ts";
import type { KeyOptions } from "../../src/keys/key.ts";
import { keyNameHash } from "../../src/keys/key-id.ts";
import type { Log } from "../../src/system/log.ts";
import { EPOCH_MS, HOUR, type ProcessClock, type SimulatedTime } from "./clock.ts";
import { KEY_IDS } from "./faults.ts";

export const CACHE_MAX_AGE_MS = 24 * HOUR;
/** How long a disk takes to write a file. */
const WRITE_MS = 5;
const READ_MS = 1;
const SEALING_KEY = Buffer.alloc(32, 7);

/** Where local KEKs are kept. */
export type Keeps = "in memory" | "sealed";

export class Machine {
  readonly #time: SimulatedTime;
  readonly #keeps: Keeps | undefined;
  readonly #files = new Map<string, Buffer>();
  #boots = 0;
  #bootedAtMs = 0;

  constructor(time: SimulatedTime, keeps: Keeps | undefined) {
    this.#time = time;
    this.#keeps = keeps;
  }

  reboot(): void {
    this.#boots += 1;
    this.#bootedAtMs = this.#time.nowMs;
    if (this.#keeps === "in memory") {
      this.#files.clear();
    }
  }

  moment(): Moment {
    const { nowMs, wallOffsetMs } = this.#time;
    return {
      wallMs: EPOCH_MS + nowMs + wallOffsetMs,
      bootId: `boot ${this.#boots}`,
      bootMs: nowMs - this.#bootedAtMs,
    };
  }

  /** What hands local KEKs from one process of this machine to the next; undefined: nothing does. */
  keeper(clock: ProcessClock, log: Log): KeyOptions["keeper"] {
    const after = (ms: number, task: () => void) =>
      new Promise<void>((resolve) => {
        clock.after(ms, () => {
          task();
          resolve();
        });
      });
    const store = {
      directory: "simulated",
      read: async (name: string) => {
        await after(READ_MS, () => {});
        return this.#files.has(name) ? Buffer.from(this.#files.get(name) ?? "") : undefined;
      },
      write: (name: string, bytes: Buffer, isWanted: () => boolean) => {
        const copy = Buffer.from(bytes);
        return after(WRITE_MS, () => isWanted() && this.#files.set(name, copy));
      },
      remove: (name: string) => void this.#files.delete(name),
    };
    const opened = Promise.resolve({ store, sealingKey: this.#sealingKey });
    return this.#keeps === undefined
      ? undefined
      : (kmsKeyId, holding) =>
          new KeyFile({
            ...{ kmsKeyId, holding, opened, clock, log, maxAgeMs: CACHE_MAX_AGE_MS },
            now: () => this.moment(),
            onConfirmed: () => {},
          });
  }

  get #sealingKey(): Buffer | undefined {
    return this.#keeps === "sealed" ? SEALING_KEY : undefined;
  }

  /** What is kept of a key, and is not too old. */
  kept(kmsKeyId: string): StoredKey | undefined {
    const bytes = this.#files.get(fileName(kmsKeyId));
    const now = this.moment();
    const kept =
      bytes &&
      decodeStored(Buffer.from(bytes), keyNameHash(kmsKeyId), this.#sealingKey, now.bootId);
    return kept && ageOf(kept.confirmed, now, CACHE_MAX_AGE_MS) ? kept : undefined;
  }

  /** The wrapped forms of all local KEKs that are kept. */
  keptKeks(): ReadonlySet<string> {
    const all = KEY_IDS.flatMap((id) => this.kept(id)?.keks ?? []);
    return new Set(all.map(({ header }) => header.wrappedLocalKek));
  }
}
