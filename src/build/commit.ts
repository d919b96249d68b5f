import { ROOT } from "./root.ts";
import { run } from "./run.ts";

/** As long as no repository needs more digits; git's own choice differs between clones of one commit. */
const DIGITS = 12;
/** What the binary is made from. */
const SOURCES = ["src", "package.json", "package-lock.json"];

/** The commit of the sources, with `-dirty` where they differ from it; `unknown` outside of a checkout, as in an archive. */
export async function commitOf(directory = ROOT): Promise<string> {
  try {
    const git = async (...words: string[]) =>
      (await run("git", "-C", directory, ...words)).toString().trim();
    if ((await git("rev-parse", "--show-prefix")) !== "") {
      return "unknown"; // of a repository around it
    }
    const commit = await git("rev-parse", "HEAD");
    const changed = await git("status", "--porcelain", "--", ...SOURCES);
    return commit.slice(0, DIGITS) + (changed === "" ? "" : "-dirty");
  } catch {
    return "unknown"; // no git, or not in a checkout
  }
}
