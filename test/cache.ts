/** What takes minutes to make and never changes: kept in the user's cache, under a name that says all it was made from. */
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

const CACHE = join(
  process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"),
  "key4c-kms-plugin/e2e",
);

/**
 * The directory of that name; makes it when it is not there.
 * @param make fills an empty directory
 */
export async function cached(
  name: string,
  make: (directory: string) => Promise<void>,
): Promise<string> {
  const directory = join(CACHE, name);
  if (existsSync(directory)) {
    return directory;
  }
  console.log(`making ${name} in ${CACHE}; this takes minutes, once`);
  mkdirSync(CACHE, { recursive: true });
  // Renamed when whole: an interrupted one must not look like a finished one.
  const scratch = mkdtempSync(join(CACHE, "making-"));
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
