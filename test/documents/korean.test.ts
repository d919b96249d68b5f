/** A Korean page has the structure of the English one: headings, blocks, links. Whether it says the same, people judge. */
import { expect, test } from "bun:test";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { temporaryDirectory } from "../support.ts";
import { anchorsOf, ROOT } from "./blocks.ts";
import {
  digestOf,
  originalOf,
  outdatedTranslations,
  type Translation,
  translations,
} from "./translated.ts";

const ALL = translations();
const text = (path: string) => readFileSync(join(ROOT, path), "utf8");
const BLOCK = /^ *```[\s\S]*?^ *```$/gm;

/** Levels only, from 1 on: the words are Korean, and a section may have become a page. */
function levels(markdown: string): number[] {
  const found = [...markdown.replaceAll(BLOCK, "").matchAll(/^(#+) /gm)];
  const lengths = found.map(([, level = ""]) => level.length);
  return lengths.map((one) => one - Math.min(...lengths) + 1);
}

/** What is typed or read by machines stays as it is, but for how far it is indented. */
function blocks(markdown: string): string[] {
  return [...markdown.matchAll(BLOCK)].map(([block]) => block.replaceAll(/^ +/gm, ""));
}

/** Commands, names and lines of the log: readers type them, or search for them. Word order differs between languages. */
function code(markdown: string): string[] {
  const spans = markdown.replaceAll(BLOCK, "").matchAll(/`([^`]+)`/g);
  return [...new Set([...spans].map(([, span = ""]) => span.replaceAll(/\s+/g, " ")))].sort();
}

/**
 * Where the links of a page lead, as paths of English pages: a link to a Korean page counts as one to its original, and
 * a place as the number of its heading. Links from a page to its own other language are left out.
 */
function links(markdown: string, path: string): string[] {
  const found = [...markdown.replaceAll(BLOCK, "").matchAll(/\]\(([^)]*)\)/g)].flatMap(
    ([, target = ""]) => {
      if (/^https?:/.test(target)) {
        return [target];
      }
      const [file = "", place] = target.split("#");
      const page = file === "" ? path : normalize(join(dirname(path), file));
      const english = originalPath(page);
      const isSwitch = page !== path && english === originalPath(path);
      return isSwitch ? [] : [english + numberOf(page, place)];
    },
  );
  return found.sort();
}

function originalPath(page: string): string {
  return ALL.find(({ path }) => path === page)?.source ?? page;
}

/** The number of a place; a page that was made of a section is that section. */
function numberOf(page: string, place: string | undefined): string {
  const { source = page, section } = ALL.find(({ path }) => path === page) ?? {};
  const [anchor] = section === undefined ? [place] : anchorsOf(`# ${section}`);
  const host = section === undefined ? page : source;
  return anchor === undefined ? "" : `#${anchorsOf(text(host)).indexOf(anchor)}`;
}

test.each(ALL)("$path: headings, blocks and links are those of $source", (page: Translation) => {
  const [english, korean] = [originalOf(page), text(page.path)];
  expect(english).not.toBe("");
  expect(levels(korean)).toEqual(levels(english));
  expect(blocks(korean)).toEqual(blocks(english));
  expect(links(korean, page.path)).toEqual(links(english, page.source));
  expect(code(korean)).toEqual(code(english));
  expect(korean).toMatch(/[\uac00-\ud7a3]{2}/);
});

test("a page whose original has changed is named, with what to write once it is translated", () => {
  const root = temporaryDirectory();
  const write = (path: string, content: string) => {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), content);
  };
  const page = "# Page\n\n## Questions\n\nWhy?\n\n### More\n\n## Answers\n\nBecause.\n";
  const questions = "## Questions\n\nWhy?\n\n### More\n\n";
  write("docs/page.md", page);
  write("docs/ko/page.md", `<!-- of docs/page.md: ${digestOf(page)} -->\n`);
  write("docs/ko/part.md", `<!-- of docs/page.md, "Questions": ${digestOf(questions)} -->\n`);
  expect(outdatedTranslations(root)).toEqual([]);
  const changed = page.replace("Because", "So");
  write("docs/page.md", changed);
  expect(outdatedTranslations(root)).toEqual([
    `docs/ko/page.md: docs/page.md has changed since. Translate the change, then write ${digestOf(changed)} into the first line`,
  ]);
  write("docs/page.md", changed.replace("Why", "How"));
  expect(outdatedTranslations(root).length).toBe(2);
  write("docs/ko/none.md", "# Without a first line\n");
  expect(() => outdatedTranslations(root)).toThrow("docs/ko/none.md does not begin with");
});
