/**
 * What `npm run check` wants of package-lock.json and of what is installed: the lock is that of
 * package.json, every entry is fixed by SHA-512 and comes from the public registry, every licence is on
 * the list, every version is exact, and no package runs an install script that nobody decided about.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** Permissive: they ask for no more than a notice. `AND` and `OR` of these are fine too. */
const LICENCES = ["Apache-2.0", "BSD-3-Clause", "ISC", "MIT"];
/** Where a lock may point; npm may also leave the address out, and then its configured registry serves. */
const REGISTRY = "https://registry.npmjs.org/";

interface Manifest {
  readonly version?: string;
  readonly license?: string;
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly devDependencies?: Readonly<Record<string, string>>;
  readonly allowScripts?: Readonly<Record<string, boolean>>;
}

interface Locked extends Manifest {
  readonly integrity?: string;
  readonly resolved?: string;
  readonly hasInstallScript?: boolean;
}

const ROOT = process.argv[2] ?? join(import.meta.dir, "../..");
const read = <T>(path: string) => JSON.parse(readFileSync(join(ROOT, path), "utf8")) as T; // npm's own files
const manifest = read<Manifest>("package.json");
const { "": root = {}, ...locked } = read<{ packages: Record<string, Locked> }>(
  "package-lock.json",
).packages;
const problems: string[] = [];

for (const kind of ["dependencies", "devDependencies"] as const) {
  if (!Bun.deepEquals(manifest[kind], root[kind])) {
    problems.push(`package-lock.json: ${kind} differ from package.json: npm install`);
  }
  for (const [name, version] of Object.entries(manifest[kind] ?? {})) {
    if (!/^\d+\.\d+\.\d+$/.test(version)) {
      problems.push(`package.json: ${name} ${version} is not an exact version`);
    }
    if (locked[`node_modules/${name}`]?.version !== version) {
      problems.push(`package-lock.json: ${name} is not ${version}`);
    }
  }
}
for (const [path, entry] of Object.entries(locked)) {
  const name = path.slice(path.lastIndexOf("node_modules/") + "node_modules/".length);
  if (!/^sha512-[A-Za-z0-9+/]{86}==$/.test(entry.integrity ?? "")) {
    problems.push(`${path}: no SHA-512 in package-lock.json`);
  }
  if (entry.resolved !== undefined && !entry.resolved.startsWith(REGISTRY)) {
    problems.push(`${path}: from ${entry.resolved}, not from the public registry`);
  }
  if (entry.hasInstallScript === true && manifest.allowScripts?.[name] === undefined) {
    problems.push(`${path}: has an install script; allow or refuse it in allowScripts`);
  }
  // What is there says its licence itself; packages of other platforms only by the lock.
  const file = join(path, "package.json");
  const isInstalled = existsSync(join(ROOT, file));
  const found = isInstalled ? read<Manifest>(file) : entry;
  if (!isAllowed(found.license)) {
    problems.push(`${path}: licence ${JSON.stringify(found.license)} is not on the list`);
  }
  if (isInstalled && found.version !== entry.version) {
    problems.push(`${path}: ${found.version} is installed, ${entry.version} is locked: npm ci`);
  }
}
for (const name of Object.keys(manifest.allowScripts ?? {})) {
  if (locked[`node_modules/${name}`]?.hasInstallScript !== true) {
    problems.push(`package.json: allowScripts names ${name}, which has no install script`);
  }
}

for (const problem of problems) {
  console.log(problem);
}
console.log(`${Object.keys(locked).length} packages, ${problems.length} problems`);
process.exit(problems.length === 0 ? 0 : 1);

/** An SPDX expression of AND and OR; every one of its licences must do. */
function isAllowed(expression: string | undefined): boolean {
  const names = (expression ?? "").split(/[()]| AND | OR /).filter((part) => part.trim() !== "");
  return names.length > 0 && names.every((name) => LICENCES.includes(name.trim()));
}
