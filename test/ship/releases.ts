/** `npm run release` as it is typed, in this directory and in another. */
import { cpSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { run } from "../e2e/process.ts";
import { temporaryDirectory } from "../support.ts";
import { settings } from "./podman.ts";

export const ROOT = join(import.meta.dir, "../..");

// For the builder of images, also where it is called from here; npm wants its own HOME.
const HOME = process.env["HOME"] ?? "";
Object.assign(process.env, settings, { HOME });
export const environment = { ...settings, HOME };

/** Of the root; all others are in docs. */
export const DOCUMENTS = readdirSync(ROOT).filter((file) => file.endsWith(".md"));

export function releaseScript(root: string, ...flags: string[]) {
  return [process.execPath, join(root, "src/build/release.ts"), ...flags] as const;
}

export function makeKey(file: string): Promise<string> {
  const curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
  return run(["openssl", "genpkey", ...curve, "-out", file], environment);
}

/** Runs `npm run release` in another directory, with everything that goes into it. */
export async function releaseIn(
  copy: string,
  {
    lock = readFileSync(join(ROOT, "package-lock.json")),
    answers = [0],
    PATH = settings.PATH,
  } = {},
) {
  // A clone, because the binary names its commit; what is not committed yet is copied over it.
  await run(["git", "clone", "-q", ROOT, copy], environment);
  for (const part of ["src", "package.json", "tsconfig.json", "LICENSE", "docs", ...DOCUMENTS]) {
    cpSync(join(ROOT, part), join(copy, part), { recursive: true });
  }
  writeFileSync(join(copy, "package-lock.json"), lock);
  // A copy of what is bundled: a link would lead back to the first directory.
  for (const part of ["@grpc", "@bufbuild/protobuf", "@js-sdsl", "yaml"]) {
    cpSync(join(ROOT, "node_modules", part), join(copy, "node_modules", part), { recursive: true });
  }
  const env = { ...environment, PATH };
  return run(releaseScript(copy), env, "", copy, answers);
}

/** The programs that a release needs, but for the builder of images. */
export function pathWithoutBuildah(): string {
  const directory = temporaryDirectory();
  for (const program of ["npm", "node", "tar", "gzip", "git"]) {
    symlinkSync(Bun.which(program) ?? program, join(directory, program));
  }
  return directory;
}
