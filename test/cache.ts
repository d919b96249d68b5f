/** What takes minutes to make out of what others publish is made once and kept in the user's cache. */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

/** Of this project, in the user's cache. */
export const CACHE = join(
  process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"),
  "key4c-kms-plugin",
);

/**
 * A directory in the cache, named after what it is and the files that say how it is made; `make` fills it
 * when it is not there.
 */
export async function cached(
  name: string,
  madeFrom: readonly string[],
  make: (directory: string) => Promise<void>,
): Promise<string> {
  const hash = createHash("sha256");
  for (const path of madeFrom) {
    hash.update(existsSync(path) ? readFileSync(path) : "");
  }
  const cache = join(CACHE, "e2e");
  const directory = join(cache, `${name}-${hash.digest("hex").slice(0, 12)}`);
  if (existsSync(directory)) {
    return directory;
  }
  console.log(`making ${name} in ${cache}; this takes a while, once`);
  mkdirSync(cache, { recursive: true });
  // Renamed when whole: what was interrupted must not look finished.
  const scratch = mkdtempSync(join(cache, "building-"));
  try {
    await make(scratch);
    if (!existsSync(directory)) {
      renameSync(scratch, directory); // else somebody else was faster
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  return directory;
}

/** The version that follows `before` in a file; a `v` is part of it. */
export function versionIn(path: string, before: string): string {
  const version = readFileSync(path, "utf8").match(
    new RegExp(`^\\s*(?:require )?${RegExp.escape(before)}(v?\\d\\S+)`, "m"),
  )?.[1];
  if (version === undefined) {
    throw new Error(`${path} does not name a version of ${before}`);
  }
  return version;
}

/** @throws Error when the program fails; its own words are on stderr then */
export async function succeed(command: [string, ...string[]], cwd = "/"): Promise<void> {
  // Compilers take all that they get, and the tests that run meanwhile want to be on time.
  const child = Bun.spawn(["nice", "-n", "10", ...command], {
    cwd,
    env: { ...process.env, GOWORK: "off" },
    stdout: "inherit",
    stderr: "inherit",
  });
  if ((await child.exited) !== 0) {
    throw new Error(`${command.join(" ")} failed`);
  }
}
