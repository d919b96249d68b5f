/**
 * The licences of everything that the binary carries, for `version --licenses` and the archives of a release.
 * `npm run generate` runs this file; a test holds the result to what is bundled.
 */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import manifest from "../../package.json";
import { LICENCES, ROOT } from "../../src/build/compile.ts";
import { locked } from "../../src/build/lock.ts";
import { bundledPackages } from "../../src/build/sbom.ts";

/** Its version of the documentation is that of the types, a package of the same repository. */
const BUN_DOCUMENTATION = "bun-types";

/** @throws Error where a package says nothing of its licence, or Bun's text is of another version */
export async function licences(): Promise<string> {
  const packages = (await bundledPackages()).map((name): readonly [string, string] => {
    const { version, license } = locked(name);
    return [`${name} ${version}: ${license}`, licenceOf(name)];
  });
  const bun = locked("bun").version;
  if (locked(BUN_DOCUMENTATION).version !== bun) {
    throw new Error(`${BUN_DOCUMENTATION} is not of Bun ${bun}: its text on licences is another`);
  }
  const documentation = read(`node_modules/${BUN_DOCUMENTATION}/docs/project/license.mdx`);
  const sections: readonly (readonly [string, string])[] = [
    [`${manifest.name}: ${manifest.license}`, read("LICENSE")],
    ...packages,
    [`bun ${bun}, the runtime: MIT; what it says of itself`, withoutFrontMatter(documentation)],
    ["Libraries in bun", read("src/build/licences/linked.txt")],
    ["GNU Library General Public License 2", read("src/build/licences/LGPL-2.0.txt")],
    ["GNU Lesser General Public License 2.1", read("src/build/licences/LGPL-2.1.txt")],
  ];
  const contents = sections.map(([title]) => `  ${title}\n`).join("");
  const bodies = sections.map(([title, text]) => `\n===== ${title} =====\n\n${trimmed(text)}\n`);
  return `What ${manifest.name} is made of, and under which licences:\n\n${contents}${bodies.join("")}`;
}

/** The licence file of a package, and its NOTICE, if it has one; else the notices at the head of its files. */
function licenceOf(name: string): string {
  const directory = `node_modules/${name}`;
  const files = readdirSync(join(ROOT, directory))
    .filter((file) => /^(licen[cs]e|notice|copying)/i.test(file))
    .sort();
  return files.length > 0
    ? files.map((file) => trimmed(read(`${directory}/${file}`))).join("\n\n")
    : noticesOf(directory);
}

function noticesOf(directory: string): string {
  const notices = new Set<string>();
  for (const file of new Bun.Glob("dist/esm/**/*.js").scanSync(join(ROOT, directory))) {
    const [head = ""] = read(join(directory, file)).match(/^(\/\/.*\n)+/) ?? [];
    if (head.includes("Copyright")) {
      notices.add(head.replaceAll(/^\/\/ ?/gm, ""));
    }
  }
  if (notices.size === 0) {
    throw new Error(`${directory} has neither a licence file nor a notice of copyright`);
  }
  // The newest first; sorted, for file systems differ. A few go on with what the file is.
  const sorted = [...notices].sort().reverse();
  const shortest = sorted.filter(
    (one) => !sorted.some((other) => other !== one && one.includes(other)),
  );
  return `The package has no licence file. Its files begin with:\n\n${shortest.join("\n")}`;
}

const read = (path: string) => readFileSync(join(ROOT, path), "utf8");
const trimmed = (text: string) => text.replace(/^\n+/, "").trimEnd();
const withoutFrontMatter = (text: string) => text.replace(/^---\n[\s\S]*?\n---\n/, "");

if (import.meta.main) {
  writeFileSync(LICENCES, await licences());
}
