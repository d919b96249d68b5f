/**
 * What tests need beside Node and npm, and who has it. Where it is missing, a test is skipped, loudly: `npm
 * test` names it, what it lacks and the Debian package, and counts it. Under CI=true it fails instead.
 */
import { test } from "bun:test";
import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { networkInterfaces } from "node:os";

interface Need {
  readonly isThere: () => boolean;
  /** Where it comes from. */
  readonly from: string;
}

/** Which every Debian has; .ci/setup installs the others. */
const ESSENTIAL = ["apt", "dpkg", "util-linux"];
export const DEBIAN_PACKAGES = new Set<string>();

const debian = (name: string) => {
  if (!ESSENTIAL.includes(name)) {
    DEBIAN_PACKAGES.add(name);
  }
  return `Debian's package ${name}`;
};
const tool = (name: string, debianPackage: string): Need => ({
  isThere: () => Bun.which(name) !== null,
  from: debian(debianPackage),
});

const NEEDS = {
  go: tool("go", "golang-go"),
  pip3: tool("pip3", "python3-pip"),
  promtool: tool("promtool", "prometheus"),
  prometheus: tool("prometheus", "prometheus"),
  "systemd-analyze": tool("systemd-analyze", "systemd"),
  "systemd-tmpfiles": tool("systemd-tmpfiles", "systemd"),
  "systemd-socket-activate": tool("systemd-socket-activate", "systemd"),
  strace: tool("strace", "strace"),
  prlimit: tool("prlimit", "util-linux"),
  openssl: tool("openssl", "openssl"),
  setpriv: tool("setpriv", "util-linux"),
  buildah: tool("buildah", "buildah"),
  podman: tool("podman", "podman"),
  runc: tool("runc", "runc"),
  catatonit: tool("catatonit", "catatonit"),
  "systemd-nspawn": tool("systemd-nspawn", "systemd-container"),
  debootstrap: tool("debootstrap", "debootstrap"),
  "apt-get": tool("apt-get", "apt"),
  "dpkg-deb": tool("dpkg-deb", "dpkg"),
  "qemu-x86_64-static": tool("qemu-x86_64-static", "qemu-user-static"),
  "qemu-aarch64-static": tool("qemu-aarch64-static", "qemu-user-static"),
  "libc6 for arm64": {
    isThere: () => existsSync("/usr/aarch64-linux-gnu/lib/libc.so.6"),
    from: debian("libc6-arm64-cross"),
  },
  IPv6: {
    isThere: () =>
      Object.values(networkInterfaces())
        .flat()
        .some((one) => one?.address === "::1"),
    from: "a kernel with IPv6 on loopback",
  },
  root: { isThere: () => process.getuid?.() === 0, from: "run as root" },
  "core files": {
    // A pattern that is a pipe or a path sends them elsewhere.
    isThere: () => /^[^|/]*$/.test(readFileSync("/proc/sys/kernel/core_pattern", "utf8").trim()),
    from: "sysctl kernel.core_pattern=core",
  },
  "mount namespaces": {
    isThere: () =>
      Bun.which("unshare") !== null && Bun.spawnSync(["unshare", "--mount", "true"]).success,
    from: "run as root, with Debian's package util-linux",
  },
} as const satisfies Readonly<Record<string, Need>>;

export type NeedName = keyof typeof NEEDS;

/** The file in which test/run.ts reads what was missing; else it is told on stderr. */
export const MISSING_FILE = "K4C_TEST_MISSING";

const told = new Set<string>();

/** Which of these are not there, each with where it comes from. */
export function missing(...names: readonly NeedName[]): string[] {
  return names
    .filter((name) => !NEEDS[name].isThere())
    .map((name) => `${name} (${NEEDS[name].from})`);
}

/**
 * `test` where all of these are there, else one that skips. Use it in the place of `test`, also for `.each`.
 * @throws Error under CI=true, at once, which fails the file
 */
export function testWith(...names: readonly NeedName[]) {
  const absent = missing(...names);
  if (absent.length > 0 && process.env["CI"] === "true") {
    throw new Error(`missing: ${absent.join(", ")}; .ci/setup installs what the tests need`);
  }
  for (const one of absent.filter((text) => !told.has(text))) {
    told.add(one);
    const file = process.env[MISSING_FILE];
    if (file === undefined) {
      console.warn(`!!! SKIPPED are tests that need ${one} !!!`);
    } else {
      appendFileSync(file, `${one}\n`);
    }
  }
  return test.skipIf(absent.length > 0);
}
