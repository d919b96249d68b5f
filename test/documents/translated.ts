/**
 * Korean documents, and whether the English ones that they say again have changed since. `npm run check` runs this file,
 * and has a warning for each. A release fails with them.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { ROOT } from "../../src/build/compile.ts";

export interface Translation {
  /** Below the root, such as `docs/ko/install.md`. */
  readonly path: string;
  /** The English page. */
  readonly source: string;
  /** Its section, where the translation is of no more. */
  readonly section?: string | undefined;
  /** The first 16 hexadecimal digits of the SHA-256 of what was translated. */
  readonly digest: string;
}

/** The first line of a translation, such as `<!-- of docs/PROFILES.md, "Questions": 0123456789abcdef -->`. */
const FIRST_LINE = /^<!-- of ([\w./-]+)(?:, "([^"]+)")?: ([0-9a-f]{16}) -->\n/;

/** @throws Error for a page that does not say what it translates */
export function translations(root = ROOT): Translation[] {
  return ["*.ko.md", "docs/ko/**/*.md"]
    .flatMap((pattern) => [...new Bun.Glob(pattern).scanSync(root)])
    .sort()
    .map((path) => {
      const found = FIRST_LINE.exec(readFileSync(join(root, path), "utf8"));
      if (found === null) {
        throw new Error(`${path} does not begin with <!-- of PAGE: DIGEST -->`);
      }
      const [, source = "", section, digest = ""] = found;
      return { path, source, section, digest };
    });
}

/** What is translated: a page, or one section of it with those below it. @returns "" when it is gone */
export function originalOf({ source, section }: Translation, root = ROOT): string {
  const path = join(root, source);
  const text = existsSync(path) ? readFileSync(path, "utf8") : "";
  if (section === undefined) {
    return text;
  }
  const [level = ""] =
    /^#+(?= )/.exec(text.split("\n").find((line) => line.endsWith(`# ${section}`)) ?? "") ?? [];
  const [, rest] = text.split(`\n${level} ${section}\n`);
  return rest === undefined
    ? ""
    : `${level} ${section}\n${rest.split(new RegExp(`^#{1,${level.length}} `, "m"))[0]}`;
}

export function digestOf(text: string): string {
  return new Bun.CryptoHasher("sha256").update(text).digest("hex").slice(0, 16);
}

/** A line for each page whose original has changed since. */
export function outdatedTranslations(root = ROOT): string[] {
  return translations(root).flatMap((one) => {
    const digest = digestOf(originalOf(one, root));
    const original = one.section === undefined ? one.source : `${one.source}, "${one.section}",`;
    return digest === one.digest
      ? []
      : [
          `${one.path}: ${original} has changed since. Translate the change, then write ${digest} into the first line`,
        ];
  });
}

if (import.meta.main) {
  for (const line of outdatedTranslations()) {
    console.log(`warning: ${line}`);
  }
}
