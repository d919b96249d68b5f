/**
 * `npm run test:mutants [-- CASE…]`: shows for the cases of test/conformance/cases.json that their test
 * fails when the thing it guards is broken. Each breaks one place in a copy of the sources, builds it,
 * runs the one test against it and wants to see it fail.
 */
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

interface Case {
  readonly case: number;
  readonly guards: string;
  /** Why there is no test, in words that the limits of REFERENCE.md have too. */
  readonly limit?: string;
  /** Why nothing of ours can be broken: the behaviour is a library's own. */
  readonly library?: string;
  /** A file of tests and a part of the name (Bun), or a module of test/interop and a name (Go). */
  readonly test?: { readonly file: string; readonly name: string };
  readonly break?: { readonly file: string; readonly find: string; readonly replace: string };
}

const ROOT = join(import.meta.dir, "../..");
const COPIED = ["src", "test", "proto", "package.json", "tsconfig.json", "bunfig.toml"];
const DOCUMENTS = [...new Bun.Glob("*.md").scanSync(ROOT)]; // tests compare them with the source
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

async function run(
  { file, find, replace }: NonNullable<Case["break"]>,
  test: NonNullable<Case["test"]>,
): Promise<string> {
  const copy = mkdtempSync(join(tmpdir(), "k4c-mutant-"));
  try {
    for (const name of [...COPIED, ...DOCUMENTS]) {
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
    const build = await shell("npm run --silent build", copy);
    if (build.exitCode !== 0) {
      return `does not build: ${build.output.slice(0, 500)}`;
    }
    return await testFails(test, copy);
  } finally {
    rmSync(copy, { recursive: true });
  }
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
