/**
 * `npm run test:mutants [-- CASE… | S1…]`: shows for the cases of test/conformance/cases.json that their test
 * fails when the thing it guards is broken. Each breaks one place in a copy of the sources, builds it,
 * runs the one test against it and wants to see it fail. Those of simulation.json are for the simulation to find,
 * by the rule that they name.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { type Breakage, shell, withBrokenSources, withMutant } from "./mutant.ts";

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

/** What one of the rules S1 to S8 of test/simulation must find. */
interface SimulationMutant {
  /** Those that may tell of it first: some things break more than one. */
  readonly rules: readonly string[];
  readonly guards: string;
  readonly break: Breakage;
}

/** As many as a run of the simulation meets at least. */
const SIMULATED_FAULTS = 20_000;

const cases: readonly Case[] = JSON.parse(
  readFileSync(join(import.meta.dir, "cases.json"), "utf8"),
);

const simulated: readonly SimulationMutant[] = JSON.parse(
  readFileSync(join(import.meta.dir, "simulation.json"), "utf8"),
);

const wanted = process.argv.slice(2);
let survived = 0;
let killed = 0;
for (const one of cases) {
  if (one.break === undefined || one.test === undefined) {
    continue;
  }
  if (wanted.length === 0 || wanted.includes(String(one.case))) {
    count(`case ${one.case}: ${one.guards}`, await run(one.break, one.test));
  }
}
for (const { rules, guards, break: broken } of simulated) {
  if (wanted.length === 0 || rules.some((rule) => wanted.includes(rule))) {
    const verdict = await withBrokenSources(broken, (copy) => simulate(rules, copy)).catch(String);
    count(`${rules.join(", ")}: ${guards}`, verdict);
  }
}
console.log(`${killed} passed, ${survived} failed`);
process.exit(survived === 0 && killed > 0 ? 0 : 1);

function count(what: string, verdict: string): void {
  console.log(`${verdict.startsWith("killed") ? "ok  " : "FAIL"} ${what}: ${verdict}`);
  if (verdict.startsWith("killed")) {
    killed += 1;
  } else {
    survived += 1;
  }
}

async function run(breakage: Breakage, test: NonNullable<Case["test"]>): Promise<string> {
  return withMutant(breakage, (copy) => testFails(test, copy)).catch(String);
}

/** "killed" when one of the rules is broken. */
async function simulate(rules: readonly string[], copy: string): Promise<string> {
  const command = `bun test/simulation/main.ts --as-found --faults ${SIMULATED_FAULTS}`;
  const { output } = await shell(command, copy);
  const [found, rule = ""] = /^FAIL seed \d+: (S\d): .*/m.exec(output) ?? [];
  if (rules.includes(rule)) {
    return `killed: ${found}`;
  }
  return found ? `found by another rule: ${found}` : `not found: ${output.slice(-500)}`;
}

/** "killed" when at least one test ran and failed. */
async function testFails({ file, name }: NonNullable<Case["test"]>, copy: string): Promise<string> {
  const isGo = file.startsWith("test/interop/");
  const command = isGo
    ? `go test -count=1 -json -run '^${name}$' ./...`
    : `node_modules/.bin/bun test ./${file} -t '${name}'`;
  const { exitCode, output } = await shell(command, isGo ? join(copy, file) : copy, {
    KEY4C_KMS_PLUGIN: join(copy, "dist/key4c-kms-plugin"),
  });
  const failed = isGo
    ? /"Action":"fail","Package":"[^"]*","Test"/.test(output)
    : /^\(fail\)/m.test(output);
  if (failed) {
    return "killed";
  }
  return exitCode === 0 ? "the test passes all the same" : `no test failed: ${output.slice(-500)}`;
}
