/** `npm run release`: all that a release page needs, in dist/release. */
import type { KeyObject } from "node:crypto";
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join, resolve } from "node:path";
import { version } from "../../package.json";
import { tarGz } from "./archive.ts";
import { compile, LICENCES, NAME, ROOT } from "./compile.ts";
import type { ImageOptions } from "./image.ts";
import { changesOf, releaseNotes, verifyCommand } from "./notes.ts";
import { imageArchive } from "./oci.ts";
import usage from "./release-usage.txt";
import { run } from "./run.ts";
import { fetchRuntime } from "./runtime.ts";
import { sbom } from "./sbom.ts";
import { signed, signingKey } from "./sign.ts";
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

const RELEASE = `${NAME}-${version}`;

/** The directory that an archive holds, and under which it is packed. */
const directoryOf = (platform: string) => `${RELEASE}-${platform}`;

export interface ReleaseOptions {
  /** undefined: the release is unsigned, and says so. */
  readonly key: KeyObject | undefined;
  /** undefined: no image. */
  readonly image: Pick<ImageOptions, "base" | "key4cUrl"> | undefined;
}

/**
 * Makes the release in an empty directory.
 * @returns whether all that was asked for is there: an image that cannot be made stops nothing else
 */
async function release(directory: string, options: ReleaseOptions): Promise<boolean> {
  const changes = changesOf(readFileSync(join(ROOT, "CHANGELOG.md"), "utf8"));
  const outdated = await run(process.execPath, join(ROOT, "test/documents/translated.ts"));
  if (changes.isReleased && outdated.length > 0) {
    throw new Error(outdated.toString()); // a trial may have them
  }
  const scratch = join(directory, "scratch");
  mkdirSync(scratch, { recursive: true });
  console.log(`${Object.keys(TARGETS).join(", ")}: fetching Bun's executable, compiling, packing`);
  const archives = Object.entries(TARGETS).map(async ([platform, { target, runtime }]) => {
    const packed = directoryOf(platform);
    fill(join(scratch, packed));
    // Under the name that `npm run build` gives it, so that both make the same bytes.
    await compile(join(scratch, packed, NAME), {
      platform: { target, runtime: await fetchRuntime(runtime, scratch) },
    });
    await tarGz(join(directory, `${packed}.tar.gz`), scratch, packed);
    return `${packed}.tar.gz`;
  });
  const files = await Promise.all(archives);

  const image = options.image && (await makeImage(directory, scratch, options.image));
  files.push(...(image === undefined ? [] : [image.file, image.digestFile]));
  rmSync(scratch, { recursive: true });

  console.log("SBOM, sums, notes");
  const runtimes = Object.values(TARGETS).map(({ runtime }) => runtime);
  const bill = `${RELEASE}.cdx.json`;
  writeFileSync(join(directory, bill), `${JSON.stringify(await sbom(runtimes), undefined, 2)}\n`);
  files.push(bill);
  const sums = files.map((file) => `${sha256(join(directory, file))}  ${file}\n`).join("");
  writeFileSync(join(directory, "SHA256SUMS"), sums);
  const signature = options.key && signed(sums, options.key);
  if (signature !== undefined) {
    writeFileSync(join(directory, "SHA256SUMS.sig"), signature.bytes);
    writeFileSync(join(directory, "SHA256SUMS.pub"), signature.publicKey);
  }
  const fingerprint = signature?.fingerprint;
  const notes = releaseNotes({ changes, sums, fingerprint, image });
  writeFileSync(join(directory, "RELEASE-NOTES.md"), notes);

  console.log(sums);
  if (!changes.isReleased) {
    console.log(`CHANGELOG.md calls ${version} not released, and so do the notes.`);
  }
  console.log(image ? `Image: ${image.digest}` : "NO IMAGE: the notes say so.");
  console.log(
    fingerprint === undefined
      ? "UNSIGNED: no --sign-key was given. The notes say so."
      : `Signed; SHA-256 of the public key: ${fingerprint}`,
  );
  console.log(`Verify, in ${directory}:\n  ${verifyCommand(signature !== undefined)}`);
  return (image !== undefined) === (options.image !== undefined);
}

/** What an archive holds beside the binary: the licences and the documents. */
function fill(directory: string): void {
  mkdirSync(directory);
  copyFileSync(LICENCES, join(directory, "THIRD-PARTY-LICENSES.txt"));
  const documents = readdirSync(ROOT).filter((file) => file.endsWith(".md"));
  for (const file of ["LICENSE", ...documents]) {
    copyFileSync(join(ROOT, file), join(directory, file));
  }
  cpSync(join(ROOT, "docs"), join(directory, "docs"), { recursive: true });
}

/** @returns undefined when it cannot be made; why is told */
async function makeImage(
  directory: string,
  scratch: string,
  options: Pick<ImageOptions, "base" | "key4cUrl">,
) {
  console.log("image: building for amd64 and arm64, packing");
  const file = `${RELEASE}-image.oci.tar`;
  const binaries = {
    amd64: join(directoryOf("linux-x64"), NAME),
    arm64: join(directoryOf("linux-arm64"), NAME),
  };
  const layout = join(scratch, "layout");
  try {
    const made = await imageArchive(
      join(directory, file),
      { ...options, context: scratch, binaries },
      layout,
    );
    const digestFile = `${RELEASE}-image.digest`;
    writeFileSync(join(directory, digestFile), `${made.digest}\n`);
    return { ...made, file, digestFile };
  } catch (error) {
    rmSync(join(directory, file), { force: true });
    console.error(`image: ${(error as Error).message.trim()}`); // imageArchive throws Errors
    return undefined;
  }
}

function sha256(file: string): string {
  return new Bun.CryptoHasher("sha256").update(readFileSync(file)).digest("hex");
}

async function main(): Promise<number> {
  const { values } = scriptArguments(usage, {
    "sign-key": { type: "string" },
    base: { type: "string" },
    "key4c-url": { type: "string" },
    "no-image": { type: "boolean", default: false },
    output: { type: "string" },
  });
  const keyFile = values["sign-key"];
  const key = keyFile === undefined ? undefined : signingKey(keyFile);
  const directory = resolve(values.output ?? join(ROOT, "dist/release"));
  if (values.output === undefined) {
    rmSync(directory, { recursive: true, force: true });
  } else if (existsSync(directory) && readdirSync(directory).length > 0) {
    throw new Error(`${directory} is not empty`);
  }
  const image = { base: values.base, key4cUrl: values["key4c-url"] };
  const isComplete = await release(directory, {
    key,
    image: values["no-image"] ? undefined : image,
  });
  return isComplete ? 0 : 1;
}

if (import.meta.main) {
  try {
    process.exit(await main());
  } catch (error) {
    console.error((error as Error).message); // all of it throws Errors
    process.exit(1);
  }
}
