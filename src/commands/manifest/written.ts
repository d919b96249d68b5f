/** A manifest in a file: the head that tells what it was made from, and by which we know again what we wrote. */
import { lstatSync } from "node:fs";
import { version } from "../../../package.json";
import { readSmallBytes } from "../../system/files.ts";
import { isObject, parsedJson } from "../../system/json.ts";
import { digestOf, type Order, toldBy } from "./settings.ts";

const DIGEST_LINE = /^# sha256 of what follows: ([0-9a-f]+)\n/m;

/** The manifest under a comment that says what it was made from, without secrets. */
export function withHead(order: Order, name: string, text: string): string {
  const told = toldBy(order);
  const from = told.length === 0 ? ", from defaults" : ", from:";
  return [
    `Made by \`key4c-kms-plugin manifest ${name}\`, release ${version}${from}`,
    ...told.map((one) => `  ${one}`),
    `sha256 of what follows: ${digestOf(text)}`,
  ]
    .map((one) => `# ${one}\n`)
    .join("")
    .concat(text);
}

/** What is below the head. */
export function bodyOf(whole: string): string {
  const [line = ""] = DIGEST_LINE.exec(whole) ?? [];
  return whole.slice(whole.indexOf(line) + line.length);
}

/** What is at the place of a file that is to be written. */
export type Occupant =
  | "nothing"
  /** This very text. */
  | "the same"
  /** The same manifest, of other settings or another release, as it was written. */
  | "ours"
  | { readonly what: string };

/** @param name of the manifest @param text what is to be written */
export function occupantOf(path: string, name: string, text: string): Occupant {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) {
    return "nothing";
  }
  if (!found.isFile()) {
    return { what: "no regular file" };
  }
  let there: string;
  try {
    there = readSmallBytes(path).toString();
  } catch {
    return { what: "a file that cannot be read, or a large one" };
  }
  if (there === text) {
    return "the same";
  }
  return whose(there, name, text);
}

function whose(there: string, name: string, text: string): Occupant {
  const title = titleOf(text);
  if (title !== undefined) {
    return titleOf(there) === title ? "ours" : { what: "another file" };
  }
  const [, madeBy] = /^# Made by `key4c-kms-plugin manifest ([a-z0-9-]+)`/.exec(there) ?? [];
  if (madeBy === undefined) {
    const kind = /^kind:\s*(\w+)/m.exec(there)?.[1];
    return {
      what: kind === undefined ? "another file" : `of kind ${kind}, and not of this program`,
    };
  }
  if (madeBy !== name) {
    return { what: `what \`manifest ${madeBy}\` wrote` };
  }
  const told = DIGEST_LINE.exec(there)?.[1];
  return told === digestOf(bodyOf(there))
    ? "ours"
    : { what: "what this program wrote, and somebody has changed since" };
}

/** Of a document of JSON, which has no comments to hold a head. */
function titleOf(text: string): string | undefined {
  const document = parsedJson(text);
  return isObject(document) && "title" in document ? String(document["title"]) : undefined;
}
