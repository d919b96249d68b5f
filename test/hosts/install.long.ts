/** `install` and the blocks that it prints, on clusters of kubeadm: a new one, and one and two control planes that are there. Run by hand: `-- --all`. */
import { afterAll, beforeAll, expect } from "bun:test";
import { eventually, figure } from "../e2e/process.ts";
import { tearDownContainers } from "../ship/podman.ts";
import { cases } from "./cases.ts";
import {
  apiserverReady,
  type ClusterNode,
  CONFIGURATION,
  join,
  plainInit,
  rewrite,
  SHELL,
  startNode,
  type,
  withSandbox,
  writingAndReading,
} from "./cluster.ts";
import { addClusterImages, imageArchives, releaseImage } from "./images.ts";
import { startKey4C } from "./key4c.ts";
import { connect, importImages } from "./node.ts";
import { commandsIn, INSTALL_POD, RELEASE_IMAGE } from "./runbook.ts";

let fresh: ClusterNode;
let lone: ClusterNode;
let one: ClusterNode;
let other: ClusterNode;
beforeAll(async () => {
  const archives = await imageArchives();
  const image = { [RELEASE_IMAGE]: await releaseImage() };
  await addClusterImages(archives);
  fresh = await startNode("n3", "192.0.2.13", archives, false, image);
  lone = await startNode("n4", "192.0.2.14", archives, false, image);
  one = await startNode("n1", "192.0.2.11", archives, true, image);
  other = await startNode("n2", "192.0.2.12", archives, true, image);
  await connect(one.machine, other.machine);
  for (const { machine } of [fresh, lone, one, other]) {
    await importImages(machine);
  }
  await startKey4C(fresh.machine);
  await startKey4C(lone.machine);
  await startKey4C(one.machine);
  // Plain http is for loopback: the second node has a wire to the first one's.
  await one.machine.run(
    "systemd-run --unit wire socat TCP-LISTEN:9642,fork,reuseaddr TCP:127.0.0.1:9641 2>&1",
  );
  await other.machine.run(
    "systemd-run --unit wire socat TCP-LISTEN:9641,bind=127.0.0.1,fork,reuseaddr TCP:192.0.2.11:9642 2>&1",
  );
}, 3_600_000);
afterAll(async () => {
  await Promise.all([fresh, lone, one, other].map((node) => node?.machine.remove()));
  await tearDownContainers();
}, 240_000);

const hostCase = cases("install on clusters", async () => {
  const texts = [fresh, lone, one, other].map(async ({ machine, name }) => {
    const { stdout } = await machine.try(
      "ctr -n k8s.io tasks ls; tail -n 15 /var/log/pods/*/*/*.log; journalctl -b -u kubelet -n 30 --no-pager",
    );
    return `--- ${name}\n${stdout}`;
  });
  return (await Promise.all(texts)).join("\n");
});

/** Types install.md's lines. @returns the block for the API server */
async function install({ machine }: ClusterNode): Promise<string> {
  const { exitCode, stdout, stderr } = await machine.try(INSTALL_POD, { input: "the-token" });
  expect({ exitCode, stderr }).toMatchObject({ exitCode: 0 });
  return stdout.slice(stdout.indexOf("\n\n#")); // behind what ctr says
}

/** What an API server says that cannot read, or cannot write under its configuration. A restart says other things. */
const OF_ENCRYPTION = /decrypt|encrypt|transform|no matching|kms|InternalError/i;

/** Without what differs from one to the next. */
const reasonOf = (failure: string) =>
  failure
    .replace(/^\S+ \S+ /, "")
    .replace(/\b(?:ab|ba)-[\d-]+|\d+\.\d+\.\d+\.\d+:\d+|"[^"]*"/g, "…")
    .slice(0, 120)
    .trim();

const isWell = async ({ machine }: ClusterNode) => {
  const { exitCode, stdout } = await machine.try("key4c-kms-plugin doctor");
  expect([exitCode, stdout]).toEqual([0, expect.not.stringContaining("✗")]);
};

hostCase("a new cluster: install, and the block", async () => {
  const startMs = performance.now();
  const block = await install(fresh);
  const [init = ""] = block.split("\n# Or a control plane that joins");
  await type(fresh, withSandbox(init, fresh));
  await apiserverReady(fresh, true);
  const seconds = ((performance.now() - startMs) / 1000).toFixed(0);
  figure(`a new cluster: ${commandsIn(INSTALL_POD) + commandsIn(init)} commands, ${seconds} s`);
  await isWell(fresh);
  await type(fresh, "kubectl create secret generic first --from-literal=a=b");
  const line = "etcdctl get --prefix /registry/secrets/ -w json | key4c-kms-plugin inspect --stale";
  expect(await type(fresh, line)).toBe("");
});

hostCase("a control plane that has data", async () => {
  await type(lone, plainInit(lone));
  await apiserverReady(lone, false);
  await addToCluster("a control plane that has data", lone, lone);
});

hostCase(
  "two control planes that have data: nobody writes under Key4C before both know it",
  async () => {
    await type(one, plainInit(one));
    await apiserverReady(one, false);
    await join(one, other, "");
    await apiserverReady(other, false);
    await addToCluster("two control planes", one, other);
  },
);

/** What install.md has for a cluster that exists, typed while both of these, or the one, are written to and read from. */
async function addToCluster(what: string, first: ClusterNode, second: ClusterNode): Promise<void> {
  const nodes = [...new Set([first, second])];
  await type(
    first,
    "for i in $(seq 20); do kubectl create secret generic s$i --from-literal=v=$i; done",
  );
  const startMs = performance.now();
  let commands = 0;
  const turns: string[] = [];
  const { ok, failures } = await writingAndReading([first, second], async () => {
    for (const node of nodes) {
      const block = await install(node);
      // Where there is one control plane, nobody else must know the provider before it writes.
      expect(block.includes("No API server writes under Key4C yet")).toBe(nodes.length > 1);
      const [, compare = "", rest = ""] =
        /(# 1\.[\s\S]*)(# 2\.[\s\S]*?)(?:\n\n#|\s*$)/.exec(block) ?? [];
      const { stdout } = await node.machine.try(compare); // diff tells a difference by its exit code
      // Only the plugin's lines: its flags, its mount, and probes that do not ask for it.
      const changed = stdout.match(/^[<>] .*$/gm) ?? [];
      const ours = /encryption|key4c-kms|DirectoryOrCreate|hostPath|livez|args:|command:/;
      expect(changed.filter((line) => !ours.test(line))).toEqual([]);
      expect(stdout).toContain("--encryption-provider-config=");
      await type(node, rest);
      await apiserverReady(node, true);
      turns.push(...(/^# {3}(key4c-kms-plugin manifest .*)$/m.exec(block)?.slice(1) ?? []));
      commands += commandsIn(INSTALL_POD) + 2;
    }
    expect(turns.length).toBe(nodes.length > 1 ? nodes.length : 0);
    for (const [index, turn] of turns.entries()) {
      await type(nodes[index] ?? first, turn);
    }
    await eventually("all write under Key4C", 240_000, async () => {
      await rewrite(first);
      const proof = await first.machine.try(
        `${SHELL}etcdctl get --prefix /registry/secrets/ -w json | key4c-kms-plugin inspect --stale --encryption-configuration ${CONFIGURATION}`,
      );
      return proof.exitCode === 0;
    });
  });
  const seconds = ((performance.now() - startMs) / 1000).toFixed(0);
  figure(
    `${what}: ${commands + turns.length} commands, ${seconds} s; ${ok} pairs of a write and a read, ${failures.length} failed`,
  );
  for (const [reason, { length }] of Map.groupBy(failures, reasonOf)) {
    figure(`${length} times: ${reason}`);
  }
  expect(failures.filter((failure) => OF_ENCRYPTION.test(failure))).toEqual([]);
  expect(await type(second, "kubectl get secret s7 -o jsonpath={.data.v} | base64 -d")).toBe("7");
  for (const node of nodes) {
    await isWell(node);
  }
}
