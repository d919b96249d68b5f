/** What a run of `npm run bench -- peers` found. The stored one is where the documents have their figures from. */
import { readFileSync } from "node:fs";
import { join } from "node:path";

const STORED = join(import.meta.dir, "../results/peers.json");

export const OPERATIONS = ["encrypt", "decrypt", "status"] as const;
export type Operation = (typeof OPERATIONS)[number];
/** How far away the KMS was. */
export const DISTANCES_MS = [0, 20, 100] as const;
export const CALLERS = [1, 64] as const;

/** Medians of the slices. */
export interface Rate {
  readonly perSecond: number;
  readonly p50Micros: number;
  readonly p99Micros: number;
  /** Of the server, a call. */
  readonly cpuMicros: number;
  /** Of all slices. */
  readonly errors: number;
}

/** The KMS hangs, or refuses connections, for a while. */
export interface Outage {
  /** Parts of the calls that were made meanwhile. */
  readonly answered: Readonly<Record<Operation, number>>;
  /** From the end of the outage to the first answer of a call that needs the KMS; null: not within the time that was waited. */
  readonly usedAfterMs: number | null;
  /** Whether its own liveness probe would have had it restarted; null: its documents have no such probe. */
  readonly isRestarted: boolean | null;
}

/** The key is disabled, and enabled again. */
export interface Disabled {
  /** The last Decrypt that was answered, after the key was disabled; null: it was never refused. */
  readonly obeyedAfterMs: number | null;
  readonly usedAfterMs: number | null;
}

/** Secrets of KMS v1, read one at a time after plugin and API server have restarted. */
export interface Secrets {
  readonly count: number;
  readonly seconds: number;
  /** Decrypts that the KMS was asked for. */
  readonly kmsCalls: number;
}

export interface Figures {
  readonly version: string;
  readonly binaryMB: number;
  /** By operation, distance and callers: `encrypt 20/64`. A server without a KMS has 0 only. */
  readonly rates: Readonly<Record<string, Rate>>;
  readonly rssMiB: { readonly idle: number; readonly loaded: number; readonly later: number };
  /** From exec to the first Status ok, by distance. */
  readonly readyMs: Readonly<Record<string, number>>;
  /** A call of the plugin; empty for a server without a KMS. */
  readonly kmsCalls: Readonly<Partial<Record<Operation, number>>>;
  readonly outages: { readonly hang?: Outage; readonly refuse?: Outage };
  readonly disabled?: Disabled;
  readonly secrets?: Secrets;
}

export interface Result {
  readonly date: string;
  readonly commit: string;
  readonly machine: string;
  /** The load average when the run began: what else the machine did. */
  readonly load: number;
  readonly isQuick: boolean;
  /** After which the loaded RSS was read. */
  readonly encrypts: number;
  readonly outageSeconds: number;
  /** Plugins whose binary was not given. */
  readonly absent: readonly string[];
  readonly figures: Readonly<Record<string, Figures>>;
  /** How far a second run of the same binaries was from this one: the largest ratio of ours, and the median one. */
  readonly spread?: Readonly<Record<string, { readonly largest: number; readonly median: number }>>;
}

export const rowOf = (operation: Operation, distanceMs: number, callers: number) =>
  `${operation} ${distanceMs}/${callers}`;

/** @throws Error when none is stored */
export function readStored(): Result {
  return JSON.parse(readFileSync(STORED, "utf8")) as Result; // written below
}

export async function store(result: Result): Promise<void> {
  await Bun.write(STORED, `${JSON.stringify(result, null, 2)}\n`);
}
