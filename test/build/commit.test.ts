/** What the binary says of the commit that it was built from. */
import { expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { $ } from "bun";
import { commitOf } from "../../src/build/commit.ts";
import { temporaryDirectory } from "../support.ts";

test("a checkout tells its commit, and whether its sources differ; an archive, that it does not know", async () => {
  const root = temporaryDirectory();
  const git = (...words: string[]) =>
    $`git -C ${root} -c user.name=t -c user.email=t@t.example ${words}`.quiet();
  expect(await commitOf(root)).toBe("unknown");
  mkdirSync(join(root, "src"));
  writeFileSync(join(root, "src/main.ts"), "one");
  await git("init", "-q");
  expect(await commitOf(root)).toBe("unknown"); // no commit yet
  await git("add", ".");
  await git("commit", "-qm", "one");
  const commit = (await git("rev-parse", "HEAD")).stdout.toString().slice(0, 12);
  expect(await commitOf(root)).toBe(commit);
  writeFileSync(join(root, "README.md"), "no source");
  expect(await commitOf(root)).toBe(commit);
  writeFileSync(join(root, "src/main.ts"), "two");
  expect(await commitOf(root)).toBe(`${commit}-dirty`);
  expect(await commitOf(join(root, "src"))).toBe("unknown"); // an archive that was unpacked in a repository
});
