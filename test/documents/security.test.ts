/** The environment in the documents is what the source has. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { FORBIDDEN_ENVIRONMENT } from "../../src/system/process.ts";

const ROOT = join(import.meta.dir, "../..");

/** Rows of the table under a heading: cells without their backquotes. */
function rows(document: string, heading: string): string[][] {
  const text = readFileSync(join(ROOT, "docs", document), "utf8");
  const section = text.split(`\n## ${heading}\n`)[1]?.split("\n## ")[0] ?? "";
  const lines = section.split("\n").filter((line) => line.startsWith("| "));
  return lines.slice(1).map((line) =>
    line
      .split("|")
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );
}

test("each variable that serve refuses is in the table of the environment", () => {
  const shown = rows("hardening.md", "Environment")
    .filter(([, , what]) => what?.startsWith("refuse"))
    .flatMap(([names = ""]) => [...names.matchAll(/`(\w+)`/g)].map((match) => match[1] ?? ""))
    .map((name) => (name.startsWith("_") ? `BUN_INSPECT${name}` : name));
  expect(shown.sort()).toEqual([...FORBIDDEN_ENVIRONMENT].sort());
});
