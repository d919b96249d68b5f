/** `npm run release`: what is published, in dist/release: a binary for each target, their sums, and an SBOM. */
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import manifest from "../../package.json";
import { compile, NAME, ROOT } from "./compile.ts";
import { fetchRuntime } from "./runtime.ts";
import { sbom } from "./sbom.ts";
import { scriptArguments } from "./usage.ts";

/**
 * Bun's name of each target, and the package with its executable. x64 needs x86-64-v2 (SSE4.2: Intel from 2008,
 * AMD from 2011) and no AVX: Bun chooses faster instructions when it starts, and the `baseline` of 1.4.5 is the same file.
 */
const TARGETS = {
  "linux-x64": { target: "bun-linux-x64", runtime: "@oven/bun-linux-x64" },
  "linux-arm64": { target: "bun-linux-arm64", runtime: "@oven/bun-linux-aarch64" },
  "linux-x64-musl": { target: "bun-linux-x64-musl", runtime: "@oven/bun-linux-x64-musl" },
  "linux-arm64-musl": { target: "bun-linux-arm64-musl", runtime: "@oven/bun-linux-aarch64-musl" },
} as const;

/** Makes the release in a directory of its own, which is emptied first, and tells how far it is. */
export async function release(
  directory: string,
  tell: (text: string) => void = () => {},
): Promise<void> {
  rmSync(directory, { recursive: true, force: true });
  const scratch = join(directory, "scratch");
  mkdirSync(scratch, { recursive: true });
  const name = `${manifest.name}-${manifest.version}`;
  const files: string[] = [];
  for (const [platform, { target, runtime }] of Object.entries(TARGETS)) {
    tell(`${platform}: fetching Bun's executable, compiling`);
    // Under the name that `npm run build` gives it, so that both make the same bytes.
    const compiled = join(scratch, NAME);
    await compile(compiled, {
      platform: { target, runtime: await fetchRuntime(runtime, scratch) },
    });
    renameSync(compiled, join(directory, `${name}-${platform}`));
    files.push(`${name}-${platform}`);
  }
  rmSync(scratch, { recursive: true });
  const runtimes = Object.values(TARGETS).map(({ runtime }) => runtime);
  tell("SBOM and sums");
  const bill = `${name}.cdx.json`;
  writeFileSync(join(directory, bill), `${JSON.stringify(await sbom(runtimes), undefined, 2)}\n`);
  const sums = [...files, bill].map((file) => {
    const hash = new Bun.CryptoHasher("sha256").update(readFileSync(join(directory, file)));
    return `${hash.digest("hex")}  ${file}\n`;
  });
  writeFileSync(join(directory, "SHA256SUMS"), sums.join(""));
}

const USAGE = `npm run release: what is published, in dist/release, which is emptied first: a binary each for linux x64 and arm64,
glibc and musl, an SBOM, SHA256SUMS. Fetches Bun's executables from npm's registry, by the hashes of
package-lock.json. Takes one to three minutes. No options.
`;

if (import.meta.main) {
  scriptArguments(USAGE, {});
  const directory = join(ROOT, "dist/release");
  await release(directory, console.log);
  process.stdout.write(readFileSync(join(directory, "SHA256SUMS"), "utf8"));
}
