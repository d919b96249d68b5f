/**
 * Mutants that somebody chose, each to show that one thing guards another: those of test/conformance/cases.json are for
 * the one test that each names, those of simulation.json for the simulation, by the rule that they name.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Copy } from "./copy.ts";

export interface Breakage {
  /** In the sources; `find` stands in it once. */
  readonly file: string;
  readonly find: string;
  readonly replace: string;
}

interface Case {
  readonly case: number;
  readonly guards: string;
  /** Why there is no test, in words that the limits of REFERENCE.md have too. */
  readonly limit?: string;
  /** Why nothing of ours can be broken: the behaviour is a library's own. */
  readonly library?: string;
  /** A file of tests and a part of the name (Bun), or a module of test/interop and a name (Go). */
  readonly test?: { readonly file: string; readonly name: string };
  readonly break?: Breakage;
}

/** What a rule of test/simulation must find. */
interface SimulationMutant {
  /** Those that may tell of it first: some things break more than one. */
  readonly rules: readonly string[];
  readonly guards: string;
  readonly break: Breakage;
}

/** As many as a run of the simulation meets at least. */
const SIMULATED_FAULTS = 20_000;
const LIMIT_MS = 30 * 60_000;

const CONFORMANCE = join(import.meta.dir, "../conformance");
const cases: readonly Case[] = JSON.parse(readFileSync(join(CONFORMANCE, "cases.json"), "utf8"));
const simulated: readonly SimulationMutant[] = JSON.parse(
  readFileSync(join(CONFORMANCE, "simulation.json"), "utf8"),
);

/**
 * Plays the cases named, or all.
 * @param wanted numbers of cases, and rules
 * @returns whether there were some, and each was noticed
 */
export async function playCases(wanted: readonly string[]): Promise<boolean> {
  using copy = new Copy();
  let survived = 0;
  let killed = 0;
  const count = (what: string, verdict: string) => {
    const isKilled = verdict.startsWith("killed");
    console.log(`${isKilled ? "ok  " : "FAIL"} ${what}: ${verdict}`);
    killed += isKilled ? 1 : 0;
    survived += isKilled ? 0 : 1;
  };
  const isWanted = (...names: readonly string[]) =>
    wanted.length === 0 || names.some((name) => wanted.includes(name));
  for (const { case: number, guards, break: broken, test } of cases) {
    if (broken !== undefined && test !== undefined && isWanted(String(number))) {
      const judge = async () => {
        await copy.build();
        return testFails(test, copy);
      };
      count(`case ${number}: ${guards}`, await withBreakage(copy, broken, judge).catch(String));
    }
  }
  for (const { rules, guards, break: broken } of simulated) {
    if (isWanted(...rules)) {
      const verdict = withBreakage(copy, broken, () => simulate(rules, copy));
      count(`${rules.join(", ")}: ${guards}`, await verdict.catch(String));
    }
  }
  console.log(`${killed} passed, ${survived} failed`);
  return survived === 0 && killed > 0;
}

/** @throws Error when it cannot be broken so */
export async function withBreakage<T>(
  copy: Copy,
  { file, find, replace }: Breakage,
  judge: () => Promise<T>,
): Promise<T> {
  const source = readFileSync(join(copy.path, file), "utf8");
  const found = source.split(find).length - 1;
  if (found !== 1) {
    throw new Error(`the text to break stands ${found} times in ${file}`);
  }
  return copy.with(
    file,
    source.replace(find, () => replace),
    judge,
  );
}

/** "killed" when one of the rules is broken. */
async function simulate(rules: readonly string[], copy: Copy): Promise<string> {
  const { output } = await copy.run(
    ["bun", "test/simulation/main.ts", "--as-found", "--faults", String(SIMULATED_FAULTS)],
    LIMIT_MS,
  );
  const [found, rule = ""] = /^FAIL seed \d+: (S\d+): .*/m.exec(output) ?? [];
  if (rules.includes(rule)) {
    return `killed: ${found}`;
  }
  return found ? `found by another rule: ${found}` : `not found: ${output.slice(-500)}`;
}

/** "killed" when at least one test ran and failed. */
async function testFails({ file, name }: NonNullable<Case["test"]>, copy: Copy): Promise<string> {
  const isGo = file.startsWith("test/interop/");
  const { exitCode, output } = isGo
    ? await copy.run(
        ["go", "test", "-count=1", "-json", "-run", `^${name}$`, "./..."],
        LIMIT_MS,
        file,
      )
    : await copy.run(["bun", "test", `./${file}`, "-t", name], LIMIT_MS);
  const failed = isGo
    ? /"Action":"fail","Package":"[^"]*","Test"/.test(output)
    : /^\(fail\)/m.test(output);
  if (failed) {
    return "killed";
  }
  return exitCode === 0 ? "the test passes all the same" : `no test failed: ${output.slice(-500)}`;
}
