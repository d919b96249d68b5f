/** Files of tests under Bun, one process each: a crash is that file's, and none disturbs another. */
import { existsSync, mkdtempSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { MISSING_FILE } from "../needs.ts";
import { linesOf } from "./lines.ts";
import { cpuSecondsOf, type Done, type Job } from "./pool.ts";
import { noteMissing, noteSkipped, tell } from "./report.ts";
import { ROOT } from "./shell.ts";

/**
 * @param scratch a directory
 * @param show whether what the tests print is to be seen while they run: figures, or where a long one is
 */
export function bunTests(
  globs: readonly string[],
  scratch: string,
  { show = false } = {},
): readonly Job[] {
  const files = globs.flatMap((glob) => [...new Bun.Glob(glob).scanSync(ROOT)]).sort();
  return files.map((file) => ({
    name: file.replace(/^test\/|(?:\.test)?\.ts$/g, ""),
    run: () => bunTest(file, mkdtempSync(join(scratch, "file-")), show),
  }));
}

async function bunTest(file: string, scratch: string, show: boolean): Promise<Done> {
  const report = join(scratch, "junit.xml");
  const missingFile = join(scratch, "missing");
  const flags = [
    "--no-orphans",
    "--only-failures",
    "--reporter=junit",
    `--reporter-outfile=${report}`,
  ];
  const child = Bun.spawn(
    ["sh", "-c", 'exec "$@" 2>&1', "sh", process.execPath, "test", ...flags, `./${file}`],
    {
      cwd: ROOT,
      env: { ...process.env, [MISSING_FILE]: missingFile },
      stdout: "pipe",
    },
  );
  let output = "";
  for await (const line of linesOf(child.stdout)) {
    output += `${line}\n`;
    if (show) {
      tell(`${file}: ${line}`);
    }
  }
  const exitCode = await child.exited;
  const xml = existsSync(report) ? readFileSync(report, "utf8") : "";
  const head = xml.match(/<testsuites [^>]*>/)?.[0] ?? "";
  const number = (name: string) => Number(head.match(` ${name}="(\\d+)"`)?.[1] ?? 0);
  for (const [, name = ""] of xml.matchAll(/<testcase name="([^"]*)"[^>]*>\s*<skipped/g)) {
    noteSkipped(`${file}: ${unescaped(name)}`);
  }
  if (existsSync(missingFile)) {
    noteMissing(readFileSync(missingFile, "utf8").trim().split("\n"));
  }
  const [failed, skipped] = [number("failures"), number("skipped")];
  // A crash outside of any test shows in the exit code only.
  const crashed = exitCode !== 0 && failed === 0 ? 1 : 0;
  return {
    count: { passed: number("tests") - failed - skipped, failed: failed + crashed, skipped },
    output,
    cpuSeconds: cpuSecondsOf(child),
  };
}

const ENTITIES: Readonly<Record<string, string>> = {
  "&quot;": '"',
  "&apos;": "'",
  "&lt;": "<",
  "&gt;": ">",
  "&amp;": "&",
};
const unescaped = (text: string) => text.replace(/&\w+;/g, (one) => ENTITIES[one] ?? one);
