/** One run of the loader: grpc-go's (main.go), or grpc-js's (load.ts) on a machine without Go. */
import { join } from "node:path";
import { median, type Target } from "./servers.ts";

/** A slice of a target in a round, as both loaders tell it. */
export interface Slice {
  readonly calls: number;
  readonly perSecond: number;
  readonly p50Micros: number;
  readonly p99Micros: number;
  readonly p999Micros: number;
  /** Of the server, a call. */
  readonly cpuMicros: number;
  readonly errors: number;
}

export interface Load {
  readonly api?: string;
  readonly operation: string;
  readonly callers: number;
  readonly connections?: number;
  readonly rounds: number;
  /** Such as `300ms`. */
  readonly slice: string;
}

/**
 * Loads the targets in turns, round after round, after a slice of each that warms up.
 * @param loader undefined: without Go
 * @returns the slices of each target
 */
export async function slices(
  loader: string | undefined,
  targets: readonly Target[],
  load: Load,
): Promise<Slice[][]> {
  const addresses = targets.map(({ socket, process: { pid } }) => `${socket}@${pid}`).join();
  const dashes = loader === undefined ? "--" : "-";
  const words = Object.entries({ ...load, targets: addresses }).flatMap(([name, value]) => [
    `${dashes}${name}`,
    `${value}`,
  ]);
  const command =
    loader === undefined ? [process.execPath, join(import.meta.dir, "load.ts")] : [loader];
  const child = Bun.spawn([...command, ...words], { stderr: "pipe" });
  const [text, problem] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  if ((await child.exited) !== 0) {
    throw new Error(`${targets.map(({ name }) => name).join()}: ${load.operation}: ${problem}`);
  }
  return JSON.parse(text) as Slice[][]; // as both loaders write it
}

export function medianOf(all: readonly Slice[], name: keyof Slice): number {
  return median(all.map((one) => one[name]));
}
