/** Archives that are equal for equal files: no time, owner, umask or order of this machine is in them. */
import { writeFileSync } from "node:fs";
import { run } from "./run.ts";

const SAME = [
  ...["--format=ustar", "--sort=name", "--mtime=@0", "--mode=u=rwX,go=rX"],
  ...["--owner=0", "--group=0", "--numeric-owner"],
];

/**
 * Writes a tar of what lies in the directory under these names. It needs GNU tar.
 * @throws Error with what tar printed
 */
export async function tar(file: string, directory: string, ...names: string[]): Promise<void> {
  await run("tar", ...SAME, "--create", "--file", file, "--directory", directory, ...names);
}

/** The same, compressed. Bun's gzip writes no time either; its bytes are those of the pinned Bun. */
export async function tarGz(file: string, directory: string, ...names: string[]): Promise<void> {
  const bytes = await run("tar", ...SAME, "--create", "--directory", directory, ...names);
  writeFileSync(file, Bun.gzipSync(new Uint8Array(bytes), { level: 6, library: "libdeflate" }));
}
