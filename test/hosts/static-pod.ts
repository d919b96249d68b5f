/** A node with a kubelet, and the plugin's static pod on it. */
import { eventually } from "../e2e/process.ts";
import { tearDownContainers } from "../ship/podman.ts";
import { imageArchives, releaseImage } from "./images.ts";
import { KEY4C_FILES, startKey4C } from "./key4c.ts";
import type { Machine } from "./machine.ts";
import { bootNode, type Container, containers } from "./node.ts";
import { RELEASE, RELEASE_IMAGE, releaseArchive } from "./runbook.ts";

export const MANIFEST = "/etc/kubernetes/manifests/key4c-kms-plugin.yaml";
/** The kubelet is compiled and the machine's root directory made, if nobody has done it here. */
export const BOOT_MS = 1_800_000;
export const REMOVE_MS = 120_000;
/** From the kubelet's look at a file to a pod that has passed its probes, on a busy machine. */
export const POD_MS = 180_000;

/** With a release, and with Key4C. @param files more of them */
export async function bootPodNode(
  name: string,
  files: Readonly<Record<string, string>> = {},
): Promise<Machine> {
  const archives = await imageArchives(); // the release's image is one of them
  const machine = await bootNode({
    name,
    archives,
    files: {
      [RELEASE]: await releaseArchive(),
      [RELEASE_IMAGE]: await releaseImage(),
      ...KEY4C_FILES,
      ...files,
    },
  });
  await startKey4C(machine);
  return machine;
}

export async function removePodNode(machine: Machine | undefined): Promise<void> {
  await machine?.remove();
  await tearDownContainers();
}

export async function evidenceOf(machine: Machine): Promise<string> {
  const { stdout } = await machine.try(
    `curl -s http://127.0.0.1:10255/pods; tail -n 20 /var/log/pods/*/*/*.log; journalctl -b -u kubelet -n 40 --no-pager`,
  );
  return stdout;
}

/** What is asked of the pod. */
export function podOn(machine: () => Machine) {
  /** Waits until the kubelet's containers are so. */
  const containersUntil = (what: string, are: (all: readonly Container[]) => boolean) =>
    eventually(what, POD_MS, async () => {
      const all = await containers(machine());
      return are(all) && all;
    });
  return {
    containersUntil,
    /** The readiness probe is a minute apart, so only where readiness is the question do we wait for it. */
    running: (restarts: number) =>
      containersUntil(
        `running after ${restarts} restarts`,
        (all) => all.length === 1 && all[0]?.state === "running" && all[0].restarts === restarts,
      ),
    isOk: (wait: string) => machine().run(`key4c-kms-plugin status --wait ${wait}`),
    pluginPid: async () =>
      Number(await machine().run("pgrep -f '^/usr/local/bin/key4c-kms-plugin serve$'")),
  };
}
