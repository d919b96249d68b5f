/** What can notice a mutant, and in which order it is asked: what is likely and quick comes first. */
import { existsSync, readFileSync } from "node:fs";
import { basename, dirname, join, normalize } from "node:path";
import { ROOT } from "../run/shell.ts";
import type { Copy, Ended } from "./copy.ts";

/** Tests on the sources. */
const UNITS = ["test/keys", "test/health", "test/key4c", "test/socket"];
const SIMULATION = "test/simulation/worker.ts";
/** A few dozen histories: seconds. */
const SIMULATION_COMMAND = ["bun", "test/simulation/main.ts", "--as-found", "--faults", "300"];
/** Tests on the binary, by the folder that is broken: those that say the most of it, and take seconds. */
const ON_THE_BINARY: Readonly<Record<string, readonly string[]>> = {
  keys: ["rpc", "replicas", "mismatch"],
  health: ["http", "http-neighbours", "log", "mismatch"],
  key4c: ["rpc", "tls", "bad-days"],
  socket: ["rpc", "socket"],
};

/** Files of so little that they run in one process. */
const QUICK_MS = 1_500;
/** A mutant that takes so much longer hangs. */
const LIMIT_FACTOR = 6;
const LEAST_LIMIT_MS = 15_000;
const BASELINE_LIMIT_MS = 300_000;

/** One command, and how long it takes when nothing is broken. */
export interface Trial {
  /** A path of a file of tests, or of the simulation. */
  readonly file: string;
  readonly tookMs: number;
}

/** By file of the units and the simulation: all that it imports, and what that imports. */
export class Trials {
  readonly #units: readonly (Trial & { readonly imports: ReadonlySet<string> })[];

  private constructor(units: readonly (Trial & { readonly imports: ReadonlySet<string> })[]) {
    this.#units = units;
  }

  /** Runs each once on what is not broken. */
  static async measure(copies: readonly Copy[], files: readonly string[]): Promise<Trials> {
    const units = UNITS.flatMap((folder) =>
      [...new Bun.Glob(`${folder}/*.test.ts`).scanSync(ROOT)].sort(),
    );
    const wanted = [...units, SIMULATION]
      .map((file) => ({ file, imports: importsOf(file) }))
      .filter(({ imports }) => files.some((file) => imports.has(file)));
    const measured = await eachBeside(copies, wanted, async (copy, one) => {
      const tookMs = await baselineMs(copy, one.file);
      return tookMs === undefined ? [] : [{ ...one, tookMs }];
    });
    return new Trials(measured.flat());
  }

  /** Groups of files for a process each, in their order. */
  for(source: string): readonly (readonly Trial[])[] {
    const able = this.#units.filter(({ imports }) => imports.has(source));
    const isOwn = ({ file }: Trial) => stem(file) === stem(source);
    const own = able.filter(isOwn);
    const others = able.filter((one) => !isOwn(one) && one.file !== SIMULATION);
    const quick = others.filter(({ tookMs }) => tookMs < QUICK_MS);
    const slow = others.filter((one) => !quick.includes(one));
    const ordered = [...slow.toSorted((one, other) => one.tookMs - other.tookMs)];
    const simulation = able.filter(({ file }) => file === SIMULATION);
    return [own, quick, ...[...ordered, ...simulation].map((one) => [one])].filter(
      (group) => group.length > 0,
    );
  }
}

/** The tests on the binary for what is broken. */
export function binaryTrials(source: string): readonly string[] {
  const names = ON_THE_BINARY[source.split("/")[1] ?? ""] ?? [];
  return names.map((name) => `test/binary/${name}.test.ts`);
}

/** @returns what noticed; undefined when all passed */
export async function noticedBy(copy: Copy, group: readonly Trial[]): Promise<string | undefined> {
  const takesMs = group.reduce((sum, { tookMs }) => sum + tookMs, 0);
  const files = group.map(({ file }) => file);
  const ended = await copy.run(commandOf(files), Math.max(LEAST_LIMIT_MS, LIMIT_FACTOR * takesMs));
  return complaintOf(ended);
}

function complaintOf({ exitCode, output }: Ended): string | undefined {
  if (exitCode === 0) {
    return undefined;
  }
  return exitCode === undefined
    ? "a limit of time or memory"
    : (/^\(fail\) (.*?)(?: \[[\d.]+m?s\])?$/m.exec(output)?.[1] ??
        /^FAIL (seed \d+: S\d+: .{0,80})/m.exec(output)?.[1] ??
        /error: .{0,80}/.exec(output)?.[0] ??
        `exit code ${exitCode}`);
}

/** @returns undefined when it fails though nothing is broken: it would notice every mutant, so it is left out, loudly */
export async function baselineMs(copy: Copy, file: string): Promise<number | undefined> {
  const ended = await copy.run(commandOf([file]), BASELINE_LIMIT_MS);
  const complaint = complaintOf(ended);
  if (complaint !== undefined) {
    console.log(`LEFT OUT, because it fails though nothing is broken: ${file}: ${complaint}`);
    return undefined;
  }
  return ended.tookMs;
}

function commandOf(files: readonly string[]): readonly string[] {
  return files.includes(SIMULATION)
    ? SIMULATION_COMMAND
    : ["bun", "test", "--bail", ...files.map((file) => `./${file}`)];
}

/** Each task on the first copy that is free; the results in the order of the tasks. */
export async function eachBeside<T, R>(
  copies: readonly Copy[],
  tasks: readonly T[],
  run: (copy: Copy, task: T) => Promise<R>,
): Promise<readonly R[]> {
  const results: R[] = [];
  const left = tasks.entries();
  await Promise.all(
    copies.map(async (copy) => {
      for (const [index, task] of left) {
        results[index] = await run(copy, task);
      }
    }),
  );
  return results;
}

/** The files of ours that a file imports, and what these import. */
function importsOf(file: string): ReadonlySet<string> {
  const transpiler = new Bun.Transpiler({ loader: "ts" });
  const found = new Set<string>();
  const visit = (path: string) => {
    for (const one of transpiler.scanImports(readFileSync(join(ROOT, path), "utf8"))) {
      const target = normalize(join(dirname(path), one.path));
      const isOurs = one.path.startsWith(".") && target.endsWith(".ts");
      if (isOurs && !found.has(target) && existsSync(join(ROOT, target))) {
        found.add(target);
        visit(target);
      }
    }
  };
  visit(file);
  return found;
}

function stem(path: string): string {
  return basename(path).split(".")[0] ?? "";
}
