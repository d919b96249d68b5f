/** Bun's executables, which become our binaries. */
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { locked } from "./lock.ts";
import { run } from "./run.ts";

/**
 * Unpacks the executable of a platform package, such as `@oven/bun-linux-aarch64`, into the directory and returns
 * its path. `bun build --target` alone would take whatever lies in Bun's cache, and check no hash.
 * @throws Error unless the package is the one in package-lock.json
 */
export async function fetchRuntime(name: string, directory: string): Promise<string> {
  const { version, integrity } = locked(name);
  const unpacked = join(directory, name);
  mkdirSync(unpacked, { recursive: true });
  const file = await run("npm", "pack", `${name}@${version}`, "--pack-destination", unpacked);
  const archive = join(unpacked, file.toString().trim());
  const hash = new Bun.CryptoHasher("sha512").update(readFileSync(archive)).digest("base64");
  if (`sha512-${hash}` !== integrity) {
    throw new Error(`${name}@${version} is not the one in package-lock.json`);
  }
  await run("tar", "-xzf", archive, "-C", unpacked, "package/bin/bun");
  return join(unpacked, "package/bin/bun");
}
