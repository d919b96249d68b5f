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
  for (const [, target = ""] of source.matchAll(/(?:from|import|import\() ?"(\.{1,2}\/[^"]+)"/g)) {
    const imported = relative(SOURCES, normalize(join(SOURCES, path, "..", target)));
    const to = folderOf(imported);
    const isOutside = imported.startsWith(".."); // package.json
    if (!isOutside && to !== from && rowOf(to) <= rowOf(from)) {
      problems.push(`${path} imports ${imported}: imports go down only (CONTRIBUTING.md)`);
    }
  }
}

console.log(problems.join("\n"));
process.exit(problems.length === 0 ? 0 : 1);
