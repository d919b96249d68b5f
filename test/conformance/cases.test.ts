import { expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { RULES } from "../simulation/rules.ts";
import cases from "./cases.json";
import simulated from "./simulation.json";

const ROOT = join(import.meta.dir, "../..");
const read = (path: string) => readFileSync(join(ROOT, path), "utf8");

/** A file of tests, or a module of Go tests. */
function sourceOf(path: string): string {
  return path.endsWith(".ts")
    ? read(path)
    : readdirSync(join(ROOT, path))
        .filter((name) => name.endsWith("_test.go"))
        .map((name) => read(join(path, name)))
        .join("\n");
}

test("what the mutants break stands once in its file, and the test that is to fail exists", () => {
  const problems = cases.flatMap(({ case: number, guards, break: broken, test: by }) => {
    const where = `case ${number}, ${guards}`;
    const found = broken && read(broken.file).split(broken.find).length - 1;
    const isTest = by && existsSync(join(ROOT, by.file)) && sourceOf(by.file).includes(by.name);
    return [
      ...(broken && found !== 1 ? [`${where}: stands ${found} times in ${broken.file}`] : []),
      ...(by && !isTest ? [`${where}: ${by.file} has no test "${by.name}"`] : []),
    ];
  });
  expect(problems).toEqual([]);
});

test("what the simulation must find stands once in its file, and each rule has something to find", () => {
  for (const { guards, break: broken } of simulated) {
    expect([guards, read(broken.file).split(broken.find).length - 1]).toEqual([guards, 1]);
  }
  const rules = new Set(simulated.flatMap((one) => one.rules));
  expect([...rules].sort()).toEqual(Object.keys(RULES).sort());
});
