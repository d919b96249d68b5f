/**
 * `npm run test:mutants [-- CASE…]`: shows for the cases of test/conformance/cases.json that their test
 * fails when the thing it guards is broken. Each breaks one place in a copy of the sources, builds it,
 * runs the one test against it and wants to see it fail.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { type Breakage, shell, withMutant } from "./mutant.ts";

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

const cases: readonly Case[] = JSON.parse(
  readFileSync(join(import.meta.dir, "cases.json"), "utf8"),
);

const wanted = process.argv.slice(2).map(Number);
let survived = 0;
let killed = 0;
for (const one of cases) {
  if (one.break === undefined || one.test === undefined) {
    continue;
  }
  if (wanted.length > 0 && !wanted.includes(one.case)) {
    continue;
  }
  const verdict = await run(one.break, one.test);
  console.log(
    `${verdict === "killed" ? "ok  " : "FAIL"} case ${one.case}: ${one.guards}: ${verdict}`,
  );
  if (verdict === "killed") {
    killed += 1;
  } else {
    survived += 1;
  }
}
console.log(`${killed} passed, ${survived} failed`);
process.exit(survived === 0 && killed > 0 ? 0 : 1);

async function run(breakage: Breakage, test: NonNullable<Case["test"]>): Promise<string> {
  return withMutant(breakage, (copy) => testFails(test, copy)).catch(String);
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
