/** The root directory of a machine: Debian, the release of this machine, made by debootstrap once. */
import { chmodSync, readFileSync } from "node:fs";
import { cached } from "../cache.ts";
import { run } from "../e2e/process.ts";

/** The first are for systemd as PID 1, those from containerd on for a kubelet. */
const PACKAGES = [
  ...[
    "systemd",
    "systemd-sysv",
    "dbus",
    "procps",
    "iproute2",
    "ca-certificates",
    "curl",
    "strace",
    "libfaketime",
  ],
  ...["containerd", "runc", "conntrack", "iptables", "ethtool", "socat"],
];
/** What the machines do not need, and what would look for devices, names and the time of day. */
const MASKED = [
  ...["systemd-networkd.service", "systemd-resolved.service", "systemd-timesyncd.service"],
  ...["apt-daily.timer", "apt-daily-upgrade.timer", "fstrim.timer", "e2scrub_all.timer"],
  ...["console-getty.service", "getty.target", "containerd.service"],
];

/** Path of the root directory. Nobody may write to it: machines put an overlay on it. */
export function debianRoot(): Promise<string> {
  const { codename } = release();
  return cached(`debian-${codename}`, [import.meta.path], async (directory) => {
    chmodSync(directory, 0o755); // it becomes a /
    const mirror = await mirrorOf(codename);
    const include = `--include=${PACKAGES.join(",")}`;
    await run(["debootstrap", "--variant=minbase", include, codename, directory, mirror], {
      PATH: process.env["PATH"] ?? "",
      DEBIAN_FRONTEND: "noninteractive",
    });
    await run(["systemctl", `--root=${directory}`, "--quiet", "mask", ...MASKED], {
      PATH: process.env["PATH"] ?? "",
    });
    await run(["rm", "-rf", `${directory}/var/cache/apt`, `${directory}/var/lib/apt/lists`], {
      PATH: process.env["PATH"] ?? "",
    });
  });
}

function release(): { codename: string } {
  const codename = readFileSync("/etc/os-release", "utf8").match(/^VERSION_CODENAME=(\w+)$/m)?.[1];
  if (codename === undefined) {
    throw new Error("/etc/os-release has no VERSION_CODENAME: the machines need Debian");
  }
  return { codename };
}

/** Where apt itself has this release from. */
async function mirrorOf(codename: string): Promise<string> {
  const targets = await run(
    ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"],
    { PATH: process.env["PATH"] ?? "" },
  );
  const uri = targets.match(new RegExp(`^${codename} (\\S+)$`, "m"))?.[1];
  if (uri === undefined) {
    throw new Error(`apt knows no mirror of ${codename}`);
  }
  return uri;
}

if (import.meta.main) {
  console.log(await debianRoot());
}
