/**
 * `npm run test:mutants [-- CASE… | S1…]`: shows for the cases of test/conformance/cases.json that their test
 * fails when the thing it guards is broken. Each breaks one place in a copy of the sources, builds it,
 * runs the one test against it and wants to see it fail. Those of simulation.json are for the simulation to find,
 * by the rule that they name.
 */
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

interface Case {
  readonly case: number;
  readonly guards: string;
  /** Why there is no test, in words that the README's limits have too. */
  readonly limit?: string;
  /** Why nothing of ours can be broken: the behaviour is a library's own. */
  readonly library?: string;
  /** A file of tests and a part of the name (Bun), or a module of test/interop and a name (Go). */
  readonly test?: { readonly file: string; readonly name: string };
  readonly break?: { readonly file: string; readonly find: string; readonly replace: string };
}

/** What one of the rules S1 to S8 of test/simulation must find. */
interface SimulationMutant {
  /** The one that tells of it first. */
  readonly rule: string;
  readonly guards: string;
  readonly break: NonNullable<Case["break"]>;
}

/** A tenth of what a run of the simulation meets would do for most; chance decides when it meets what it must. */
const SIMULATED_FAULTS = 20_000;

const ROOT = join(import.meta.dir, "../..");
const COPIED = [
  "src",
  "test",
  "proto",
  "package.json",
  "tsconfig.json",
  "bunfig.toml",
  "README.md",
];
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
  if (wanted.length > 0 && !wanted.includes(String(one.case))) {
    continue;
  }
  const { break: broken, test } = one;
  count(`case ${one.case}: ${one.guards}`, await inBrokenCopy(broken, (copy) => built(test, copy)));
}
for (const { rule, guards, break: broken } of simulated) {
  if (wanted.length === 0 || wanted.includes(rule)) {
    count(`${rule}: ${guards}`, await inBrokenCopy(broken, (copy) => simulationFinds(rule, copy)));
  }
}
console.log(`${killed} passed, ${survived} failed`);
process.exit(survived === 0 && killed > 0 ? 0 : 1);

function count(what: string, verdict: string): void {
  console.log(`${verdict === "killed" ? "ok  " : "FAIL"} ${what}: ${verdict}`);
  if (verdict === "killed") {
    killed += 1;
  } else {
    survived += 1;
  }
}

async function inBrokenCopy(
  { file, find, replace }: NonNullable<Case["break"]>,
  judge: (copy: string) => Promise<string>,
): Promise<string> {
  const copy = mkdtempSync(join(tmpdir(), "k4c-mutant-"));
  try {
    for (const name of COPIED) {
      cpSync(join(ROOT, name), join(copy, name), { recursive: true });
    }
    symlinkSync(join(ROOT, "node_modules"), join(copy, "node_modules"));
    const source = readFileSync(join(copy, file), "utf8");
    const found = source.split(find).length - 1;
    if (found !== 1) {
      return `the text to break stands ${found} times in ${file}`;
    }
    writeFileSync(
      join(copy, file),
      source.replace(find, () => replace),
    );
    return await judge(copy);
  } finally {
    rmSync(copy, { recursive: true });
  }
}

async function built(test: NonNullable<Case["test"]>, copy: string): Promise<string> {
  const build = await shell("npm run --silent build", copy);
  return build.exitCode === 0
    ? testFails(test, copy)
    : `does not build: ${build.output.slice(0, 500)}`;
}

async function simulationFinds(rule: string, copy: string): Promise<string> {
  const command = `bun test/simulation/main.ts --as-found --faults ${SIMULATED_FAULTS}`;
  const { output } = await shell(command, copy);
  const found = /^FAIL seed \d+: (S\d): .*/m.exec(output);
  if (found?.[1] === rule) {
    return "killed";
  }
  return found ? `found by another rule: ${found[0]}` : `not found: ${output.slice(-500)}`;
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

async function shell(command: string, cwd: string, env: Record<string, string> = {}) {
  const path = `${join(ROOT, "node_modules/.bin")}:${process.env["PATH"]}`;
  const child = Bun.spawn(["sh", "-c", `${command} 2>&1`], {
    cwd,
    env: { ...process.env, ...env, PATH: path },
    stdout: "pipe",
  });
  const output = await child.stdout.text();
  return { exitCode: await child.exited, output };
}
