/** `npm run release`: what is published, in dist/release: a binary for each target, their sums, and an SBOM. */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import manifest from "../package.json";
import { compile, ROOT } from "./compile.ts";
import { sbom } from "./sbom.ts";

/** `baseline` runs on every x86-64 since 2009; the other wants AVX2, which a control plane may lack. */
const TARGETS = {
  "linux-x64": "bun-linux-x64-baseline",
  "linux-arm64": "bun-linux-arm64",
  "linux-x64-musl": "bun-linux-x64-musl-baseline",
  "linux-arm64-musl": "bun-linux-arm64-musl",
} as const;

/** Makes the release in a directory of its own, which is emptied first. */
export async function release(directory: string): Promise<void> {
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(directory, { recursive: true });
  const name = `${manifest.name}-${manifest.version}`;
  const files: string[] = [];
  for (const [platform, target] of Object.entries(TARGETS)) {
    await compile(join(directory, `${name}-${platform}`), target);
    files.push(`${name}-${platform}`);
  }
  const bill = `${name}.cdx.json`;
  writeFileSync(join(directory, bill), `${JSON.stringify(await sbom(), undefined, 2)}\n`);
  const sums = [...files, bill].map((file) => {
    const hash = new Bun.CryptoHasher("sha256").update(readFileSync(join(directory, file)));
    return `${hash.digest("hex")}  ${file}\n`;
  });
  writeFileSync(join(directory, "SHA256SUMS"), sums.join(""));
}

if (import.meta.main) {
  const directory = join(ROOT, "dist/release");
  await release(directory);
  process.stdout.write(readFileSync(join(directory, "SHA256SUMS"), "utf8"));
}
