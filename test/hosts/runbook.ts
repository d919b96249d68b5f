/** What is typed on a machine before anything else, as install.md has it. */
import { copyFileSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { version } from "../../package.json";
import { tarGz } from "../../src/build/archive.ts";
import { commandsOf, filledIn } from "../documents/blocks.ts";
import { BINARY } from "../support.ts";
import { KEY4C_URL } from "./key4c.ts";

const TOP = `key4c-kms-plugin-${version}-linux-x64`;

/** Where a machine has the archive of a release. */
export const RELEASE = `/opt/release/${TOP}.tar.gz`;

/** And that of its image. */
export const RELEASE_IMAGE = `/opt/release/key4c-kms-plugin-${version}-image.oci.tar`;

/** Packs the binary that was built as a release packs it, without the documents. @returns where it is here */
export async function releaseArchive(): Promise<string> {
  const directory = mkdtempSync(join(tmpdir(), "k4c-release-"));
  process.on("exit", () => rmSync(directory, { recursive: true, force: true }));
  mkdirSync(join(directory, TOP));
  copyFileSync(BINARY, join(directory, TOP, "key4c-kms-plugin"));
  const archive = join(directory, `${TOP}.tar.gz`);
  await tarGz(archive, directory, TOP);
  return archive;
}

const [BINARY_AND_SECRET = "", SETTINGS = ""] = commandsOf(
  "docs/install-by-hand.md",
  "Binary, credential, settings",
);

/** "Install", typed where the release is: the binary, its credential and its settings. */
export const INSTALL = `cd ${dirname(RELEASE)}
${filledIn(BINARY_AND_SECRET, {
  "cat > /etc/key4c-kms/user-id)": "cat > /etc/key4c-kms/user-id) <<< the-token",
})}
${filledIn(SETTINGS, { "https://…": KEY4C_URL, "KEY-ID >": "demo >" })}`;

/** The emulator speaks the default API; install.test.ts has the flag of a profile. */
const PROFILE = " --key4c-profile /etc/key4c-kms/profile.json";
const VALUES = { "https://…": KEY4C_URL, "KEY-ID": "demo", [PROFILE]: "" };
const [README = ""] = commandsOf("README.md", "Install it");
const [UNPACK = "", AS_POD = "", AS_SERVICE = ""] = commandsOf(
  "docs/install.md",
  "Install with one command",
);

/** What README has, typed where the release is; the credential is on standard input. */
export const BY_README = `cd ${dirname(RELEASE)}\n${filledIn(README, VALUES)}`;
/** The same by install.md, for a kubelet and for systemd. */
export const [INSTALL_POD, INSTALL_SERVICE] = [AS_POD, AS_SERVICE].map(
  (one) => `cd ${dirname(RELEASE)}\n${UNPACK}${filledIn(one, VALUES)}`,
) as [string, string]; // of two

/** How many commands a reader types or pastes, without the way to the directory. */
export function commandsIn(block: string): number {
  const lines = block.replaceAll("\\\n", " ").split("\n");
  return lines
    .flatMap((line) => line.split(" && "))
    .filter((one) => one !== "" && !one.startsWith("#") && !/^cd |^\w+=\S*$/.test(one)).length;
}
