/** Files of tests under Bun, one process each: a crash is that file's, and one sees how far the run is. */
import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { MISSING_FILE } from "../needs.ts";
import { type Count, noteMissing, noteSkipped, sum, tell, tellResult } from "./report.ts";
import { ROOT } from "./shell.ts";

/**
 * @param show whether what the tests print is to be seen when they pass too: figures, or where a long one is
 * @param scratch a directory
 */
export async function bunTests(
  globs: readonly string[],
  scratch: string,
  { show = false } = {},
): Promise<Count> {
  const files = globs.flatMap((glob) => [...new Bun.Glob(glob).scanSync(ROOT)]).sort();
  const counts: Count[] = [];
  for (const [index, file] of files.entries()) {
    if (show) {
      tell(`${file} begins`);
    }
    const { count, output } = await bunTest(file, scratch, show);
    counts.push(count);
    const { passed, failed, skipped } = count;
    const some = skipped > 0 ? `, ${skipped} skipped` : "";
    tellResult(
      failed === 0,
      `${index + 1}/${files.length} ${file}: ${passed} passed${some}`,
      output,
    );
  }
  return sum(counts);
}

async function bunTest(
  file: string,
  scratch: string,
  show: boolean,
): Promise<{ count: Count; output: string }> {
  const report = join(scratch, "junit.xml");
  const missingFile = join(scratch, "missing");
  rmSync(report, { force: true });
  rmSync(missingFile, { force: true });
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
      stdout: show ? "inherit" : "pipe",
    },
  );
  const output = child.stdout === undefined ? "" : await child.stdout.text();
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
