/** Callers in a machine, as kube-apiserver calls: test/bench/callers, every method, every answer verified. */
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Machine } from "./machine.ts";

export interface Calls {
  readonly calls: number;
  readonly failed: number;
  /** The longest time without a call that succeeded. */
  readonly longestGapMs: number;
  readonly failures: readonly string[];
}

const PROGRAM = "/usr/local/bin/callers";

/** Compiles them. @returns the file for a machine */
export function callersFile(): Readonly<Record<string, string>> {
  const program = join(mkdtempSync(join(tmpdir(), "k4c-callers-")), "callers");
  const go = Bun.spawnSync(["go", "build", "-o", program, "./callers"], {
    cwd: join(import.meta.dir, "../bench"),
  });
  if (go.exitCode !== 0) {
    throw new Error(`go build of the callers failed: ${go.stderr}`);
  }
  return { [PROGRAM]: program };
}

/** What callers saw from before `meanwhile` until after it. */
export async function callersDuring(
  machine: Machine,
  meanwhile: () => Promise<unknown>,
): Promise<Calls> {
  const callers = machine.start(`${PROGRAM} -socket /run/key4c-kms/kms.sock -duration 10m`);
  await Bun.sleep(1_000);
  await meanwhile();
  await Bun.sleep(1_000);
  callers.stdin.end();
  return JSON.parse(await callers.stdout.text()) as Calls; // their own words
}
