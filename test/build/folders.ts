/**
 * What `npm run check` wants of the folders below src: imports go down only. A file imports from its own folder, or from
 * one that is further down in this list; folders of one row do not know each other.
 */
import { readFileSync } from "node:fs";
import { join, normalize, relative } from "node:path";

const ORDER: readonly (readonly string[])[] = [
  ["main.ts", "build"],
  ["commands"],
  ["config"],
  ["health"],
  ["emulator", "kubernetes"],
  ["key4c", "cache"],
  ["keys", "socket"],
  ["failures"],
  ["system", "gen"],
];

/** Who alone uses the values of a file, and not just its types: what a key holds is changed by the key. */
const OWNERS: Readonly<Record<string, string>> = { "keys/holdings.ts": "keys/key.ts" };

const SOURCES = process.argv[2] ?? join(import.meta.dir, "../../src");
const problems: string[] = [];

function folderOf(path: string): string {
  return path.split("/")[0] ?? "";
}

function rowOf(folder: string): number {
  return ORDER.findIndex((row) => row.includes(folder));
}

for (const path of new Bun.Glob("**/*.ts").scanSync(SOURCES)) {
  const from = folderOf(path);
  if (rowOf(from) < 0) {
    problems.push(`${path}: the folder is not in the list of test/build/folders.ts`);
  }
  const source = readFileSync(join(SOURCES, path), "utf8");
  const importedBy = (target: string) =>
    relative(SOURCES, normalize(join(SOURCES, path, "..", target)));
  for (const [, target = ""] of source.matchAll(/^import (?!type )[^;]*? from "(\.[^"]+)";/gms)) {
    const owner = OWNERS[importedBy(target)];
    if (owner !== undefined && path !== owner) {
      problems.push(`${path} imports values of ${importedBy(target)}: only ${owner} does`);
    }
  }
  for (const [, target = ""] of source.matchAll(/(?:from|import|import\() ?"(\.{1,2}\/[^"]+)"/g)) {
    const imported = importedBy(target);
    const to = folderOf(imported);
    const isOutside = imported.startsWith(".."); // package.json
    if (!isOutside && to !== from && rowOf(to) <= rowOf(from)) {
      problems.push(`${path} imports ${imported}: imports go down only (CONTRIBUTING.md)`);
    }
  }
}

console.log(problems.join("\n"));
process.exit(problems.length === 0 ? 0 : 1);
