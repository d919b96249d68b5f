/** Limits and environment in the documents are what the source has. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { OPTIONS } from "../../src/config/options.ts";
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

const UNITS: Readonly<Record<string, number>> = {
  "": 1,
  B: 1,
  KiB: 1024,
  MiB: 1024 ** 2,
  ms: 1,
  s: 1_000,
  d: 24 * 3_600_000,
};

/** "2^20", "128 KiB" or "2.5 s" as the number that the source has. */
function shownValue(text: string): number {
  const [, base, exponent, unit = ""] = /^([\d.]+)(?:\^(\d+))? ?(\w*)$/.exec(text) ?? [];
  return Number(base) ** Number(exponent ?? 1) * (UNITS[unit] ?? Number.NaN);
}

/** The value of a constant: a product or power of numbers. `file` is its name without the folder. */
function constant(file: string, name: string): number {
  const [path = ""] = new Bun.Glob(`src/**/${file}`).scanSync(ROOT);
  const source = readFileSync(join(ROOT, path), "utf8");
  const expression = source.match(
    new RegExp(`^(?:export )?const ${name} = ([\\d_ *]+);$`, "m"),
  )?.[1];
  return (expression ?? "")
    .replaceAll("_", "")
    .split(/(?<!\*)\*(?!\*)/)
    .map((factor) => factor.split("**").map(Number))
    .reduce((product, [base = Number.NaN, power = 1]) => product * base ** power, 1);
}

/** The default of an option: a number or a duration. */
function optionDefault(env: string): number {
  const option = Object.values(OPTIONS).find((one) => "env" in one && one.env === env);
  const text = option !== undefined && "default" in option ? option.default : "";
  return shownValue(text);
}

test("each limit is the constant's", () => {
  const limits = rows("REFERENCE.md", "Sizes, counts and times");
  expect(limits.length).toBeGreaterThan(15);
  for (const [limit = "", value = "", name = ""] of limits) {
    const [first = "", second] = name.replaceAll("`", "").split(" ");
    const actual = second === undefined ? optionDefault(first) : constant(first, second);
    expect([limit, shownValue(value)]).toEqual([limit, actual]);
  }
});

test("each variable that serve refuses is in the table of the environment", () => {
  const shown = rows("hardening.md", "Environment")
    .filter(([, , what]) => what?.startsWith("refuse"))
    .flatMap(([names = ""]) => [...names.matchAll(/`(\w+)`/g)].map((match) => match[1] ?? ""))
    .map((name) => (name.startsWith("_") ? `BUN_INSPECT${name}` : name));
  expect(shown.sort()).toEqual([...FORBIDDEN_ENVIRONMENT].sort());
});
