/** buildah and podman with a storage of their own, and a base image that stands in for distroless. */
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { run } from "../e2e/process.ts";

/** What the base of Containerfile holds, as far as the binary can tell. No registry is reached here. */
const BASE_PACKAGES = ["libc6", "base-files", "netbase", "ca-certificates", "tzdata"];
export const BASE = "localhost/stand-in-for-distroless:1";
/** The same for arm64 too, as a list of both. */
export const BOTH_BASES = "localhost/stand-in-for-distroless:both";

export const directory = mkdtempSync(join(tmpdir(), "k4c-ship-"));
/** The environment in which podman and buildah find that storage. */
export const settings = {
  PATH: process.env["PATH"] ?? "",
  HOME: directory,
  CONTAINERS_STORAGE_CONF: join(directory, "storage.conf"),
  CONTAINERS_CONF: join(directory, "containers.conf"),
  BUILDAH_ISOLATION: "chroot",
};

/** Runs podman, or buildah. @throws Error with what it printed */
export const podman = (...args: string[]) => run(["podman", ...args], settings);

export async function setUpContainers(): Promise<void> {
  const toml = (name: string, text: string) => writeFileSync(join(directory, name), text);
  toml(
    "storage.conf",
    `[storage]\ndriver = "vfs"\ngraphroot = "${directory}/graph"\nrunroot = "${directory}/run"\n`,
  );
  // What a sandbox without cgroups and with a low limit of files allows.
  toml(
    "containers.conf",
    '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n[engine]\nruntime = "runc"\n',
  );
  await buildBase();
}

async function buildBase(): Promise<void> {
  const debs = join(directory, "debs");
  const root = join(directory, "base/root");
  mkdirSync(debs);
  mkdirSync(root, { recursive: true });
  await run(
    ["sh", "-ec", `cd ${debs} && apt-get download -qq ${BASE_PACKAGES.join(" ")} 2>&1`],
    settings,
  );
  await run(["sh", "-ec", `for deb in ${debs}/*.deb; do dpkg-deb -x $deb ${root}; done`], settings);
  await imageOf(root, BASE);
}

/** Makes BOTH_BASES of BASE and the C library that Debian has for crossed compilers. */
export async function buildBothBases(): Promise<void> {
  const root = join(directory, "base-arm64");
  cpSync("/usr/aarch64-linux-gnu/lib", join(root, "lib"), { recursive: true });
  const arm64 = `${BASE}-arm64`;
  await imageOf(root, arm64, { flags: ["--arch", "arm64"] });
  await run(["buildah", "manifest", "create", BOTH_BASES], settings);
  for (const one of [BASE, arm64]) {
    await run(["buildah", "manifest", "add", BOTH_BASES, one], settings);
  }
}

/**
 * An image of nothing but these files.
 * @param options.from what they are added to (default: nothing)
 * @param options.flags for buildah
 * @param options.lines more lines of its Containerfile
 */
export async function imageOf(
  root: string,
  tag: string,
  {
    from = "scratch",
    flags = [],
    lines = [],
  }: { from?: string; flags?: readonly string[]; lines?: readonly string[] } = {},
): Promise<void> {
  const containerfile = join(directory, "only-files");
  writeFileSync(containerfile, [`FROM ${from}`, "COPY . /", ...lines, ""].join("\n"));
  const build = ["build", "--quiet", ...flags, "--file", containerfile, "--tag", tag];
  await run(["buildah", ...build, root], settings);
}

export async function tearDownContainers(): Promise<void> {
  await podman("pod", "rm", "--all", "--force").catch(() => {});
  await podman("rm", "--all", "--force", "--time", "1").catch(() => {});
  rmSync(directory, { recursive: true, force: true });
}

/** `npm run image`, without its build of the binary, on the stand-in base. */
export function buildImage(tag: string, ...flags: string[]): Promise<string> {
  const script = join(import.meta.dir, "../../src/build/image.ts");
  return run([process.execPath, script, "--base", BASE, "--tag", tag, ...flags], settings);
}
