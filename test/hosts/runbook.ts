/** The commands of OPERATIONS.md, as they stand there. */
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { KEY4C_URL } from "./key4c.ts";

const OPERATIONS = readFileSync(join(import.meta.dir, "../../OPERATIONS.md"), "utf8");

/**
 * The blocks of shell in one section, in order, without those of the sections below it.
 * @throws Error when there is no such heading
 */
export function commandsOf(heading: string): string[] {
  // A line that begins with # is a heading, or, within a block, a comment of the shell. In a list a block is indented.
  const parts = OPERATIONS.split(/^(#+ .*$| *```sh\n[\s\S]*?^ *```$)/m);
  const isHeading = (part: string) => /^#+ /.test(part);
  const start = parts.findIndex((part) => isHeading(part) && part.replace(/^#+ /, "") === heading);
  if (start < 0) {
    throw new Error(`OPERATIONS.md has no heading "${heading}"`);
  }
  const length = parts.slice(start + 1).findIndex(isHeading);
  return parts.slice(start + 1, length < 0 ? undefined : start + 1 + length).flatMap((part) => {
    const [, indentation = "", block] = /^( *)```sh\n([\s\S]*)^ *```$/m.exec(part) ?? [];
    return block === undefined ? [] : [block.replaceAll(new RegExp(`^${indentation}`, "gm"), "")];
  });
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

/** Where a machine has the file of a release. */
export const RELEASE = "/opt/release/key4c-kms-plugin-0.1.0-linux-x64";

/** "Install", typed where the release is: the binary, its credential and its settings. */
export const INSTALL = `cd ${dirname(RELEASE)}
${filledIn(commandsOf("Install")[0] ?? "", {
  "https://…": KEY4C_URL,
  "KEY-ID >": "demo >",
  "cat > /etc/key4c-kms/user-id)": "cat > /etc/key4c-kms/user-id) <<< the-token",
})}`;
