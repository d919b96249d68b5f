/** The files of an installation: what is there, what would change, and how they are written. */
import {
  chmodSync,
  chownSync,
  copyFileSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  rmSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { DEFAULT_CONFIG_FILE } from "../../config/config-file.ts";
import { readSmallBytes, replaceFile } from "../../system/files.ts";
import { printable } from "../printable.ts";

/** Of the plugin's settings, credentials and old files: passable for its user, and not to be listed. */
export const DIRECTORY = dirname(DEFAULT_CONFIG_FILE);

/** A file that is not as it should be. */
export interface Change {
  readonly path: string;
  readonly content: string | Uint8Array;
  readonly mode: number;
  /** What a reader is told in the place of what is in it: a secret, or a program. */
  readonly instead?: string;
  /** Where what is there now is kept; undefined: nothing is there. */
  readonly backup?: string;
}

/** What an installation comes to, as far as it is known. */
export interface Draft {
  readonly changes: Change[];
  /** What is not ours to change: one line each, with what to do. */
  readonly obstacles: string[];
}

/** Its content; undefined where nothing is there. @throws Error with a sentence */
export function textAt(path: string): string | undefined {
  const isThere = lstatSync(path, { throwIfNoEntry: false }) !== undefined;
  return isThere ? readSmallBytes(path).toString() : undefined;
}

/** What a change does, as diff shows it. */
export function diffOf({ path, content, mode, instead, backup }: Change): string {
  const facts = [`${mode.toString(8).padStart(4, "0")} root`, ...(instead ? [instead] : [])];
  const from = backup === undefined ? [] : [`--- ${path} (kept as ${backup})`];
  const old = backup === undefined ? "/dev/null" : path;
  const isShown = typeof content === "string" && instead === undefined;
  // Its own two lines of a head are replaced by ours.
  const lines = isShown
    ? Bun.spawnSync(["diff", "-U3", old, "-"], { stdin: Buffer.from(content) })
        .stdout.toString()
        .split("\n")
        .slice(2, -1)
    : [];
  return [...from, `+++ ${path} (${facts.join(", ")})`, ...lines]
    .map((one) => `${printable(one)}\n`)
    .join("");
}

/** Writes it as a whole, root's own; what is there is kept first. @throws Error with a sentence */
export function write({ path, content, mode, backup }: Change): void {
  const directory = dirname(path);
  mkdirSync(directory, { recursive: true, mode: directory === DIRECTORY ? 0o711 : 0o755 });
  removeRests(directory, basename(path));
  if (backup !== undefined) {
    rmSync(backup, { force: true });
    copyFileSync(path, backup);
    chmodSync(backup, mode & 0o600); // who could read the old one need not read the new place
  }
  replaceFile(path, content, mode);
  chownSync(path, 0, 0);
}

/** What an installation left that was killed between a file's first byte and its rename. */
function removeRests(directory: string, name: string): void {
  const rest = new RegExp(`^\\.${RegExp.escape(name)}\\.[0-9a-f]{8}$`);
  for (const one of readdirSync(directory).filter((entry) => rest.test(entry))) {
    rmSync(join(directory, one), { force: true });
  }
}
