/**
 * Where no systemd gives a machine a cgroup of its own, as in a sandbox, it is made by hand, in each hierarchy of
 * cgroup v1 and in the unified one: two kubelets in one cgroup would end each other's pods.
 */
import { existsSync, readdirSync, readFileSync, rmdirSync } from "node:fs";
import { join } from "node:path";

const MOUNTS = "/sys/fs/cgroup";
/** sd_booted(3). */
export const HAS_SYSTEMD = existsSync("/run/systemd/system");

/** The directories of that name below the cgroups of this process. */
function directories(name: string): string[] {
  return readFileSync("/proc/self/cgroup", "utf8")
    .trim()
    .split("\n")
    .flatMap((line) => {
      // cgroups(7): hierarchy:controllers:path
      const [, controllers = "", path = ""] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
      const mount = join(MOUNTS, controllers.replace(/^name=/, "") || "unified");
      return existsSync(mount) ? [join(mount, path, name)] : [];
    });
}

/** Lines of shell that put the shell into cgroups of that machine's own. */
export function enterCgroups(name: string): string {
  const lines = directories(name).flatMap((directory) => {
    const cpuset = directory.startsWith(join(MOUNTS, "cpuset"))
      ? ["cpus", "mems"].map(
          (one) => `cat ${directory}/../cpuset.${one} > ${directory}/cpuset.${one}`,
        )
      : [];
    return [`mkdir -p ${directory}`, ...cpuset, `echo $$ > ${directory}/cgroup.procs`];
  });
  return lines.join("\n");
}

/** What processes left, after their end. */
export function removeCgroups(name: string): void {
  for (const directory of directories(name).filter(existsSync)) {
    removeBelow(directory);
  }
}

function removeBelow(directory: string): void {
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    if (entry.isDirectory()) {
      removeBelow(join(directory, entry.name));
    }
  }
  rmdirSync(directory);
}
