/** The blocks of shell in the documents, as they stand there: tests type them, so that readers can. */
import { readFileSync } from "node:fs";
import { join } from "node:path";

export const ROOT = join(import.meta.dir, "../..");

/** The documents, by their paths below the root. */
export const DOCUMENTS: readonly string[] = ["*.md", "docs/**/*.md"]
  .flatMap((pattern) => [...new Bun.Glob(pattern).scanSync(ROOT)])
  .sort();

/** The places of a document that a link can name, as GitHub names them, in the order of its headings. */
export function anchorsOf(markdown: string): string[] {
  return [...markdown.matchAll(/^#+ (.*)$/gm)].map(([, heading = ""]) =>
    heading
      .toLowerCase()
      .replaceAll(/[^\p{L}\p{N} _-]/gu, "")
      .replaceAll(" ", "-"),
  );
}

export interface Block {
  /** The last heading before it, without its `#`. */
  readonly heading: string;
  readonly shell: string;
}

/** @param document such as `docs/install.md` */
export function blocksOf(document: string): Block[] {
  const text = readFileSync(join(ROOT, document), "utf8");
  let heading = "";
  // A line that begins with # is a heading, or, within a block, a comment of the shell. In a list a block is indented.
  return text.split(/^(#+ .*$| *```sh\n[\s\S]*?^ *```$)/m).flatMap((part) => {
    heading = /^#+ (.*)$/.exec(part)?.[1] ?? heading;
    const [, indentation = "", block] = /^( *)```sh\n([\s\S]*)^ *```$/m.exec(part) ?? [];
    return block === undefined
      ? []
      : [{ heading, shell: block.replaceAll(new RegExp(`^${indentation}`, "gm"), "") }];
  });
}

/**
 * The blocks of one section, in order, without those of the sections below it.
 * @throws Error when there is none
 */
export function commandsOf(document: string, heading: string): string[] {
  const blocks = blocksOf(document).filter((block) => block.heading === heading);
  if (blocks.length === 0) {
    throw new Error(`${document} has no block of shell below "${heading}"`);
  }
  return blocks.map(({ shell }) => shell);
}

/**
 * Replaces what the reader is to replace.
 * @throws Error when the text does not have it: a document that changed must not be tested by half
 */
export function filledIn(text: string, values: Readonly<Record<string, string>>): string {
  return Object.entries(values).reduce((result, [placeholder, value]) => {
    if (!result.includes(placeholder)) {
      throw new Error(`"${placeholder}" is not in:\n${text}`);
    }
    return result.replaceAll(placeholder, value);
  }, text);
}
