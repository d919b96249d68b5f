/** A kubelet without an API server, and the static pod that `manifest` prints. */
import { afterAll, beforeAll, expect } from "bun:test";
import { eventually, figure } from "../e2e/process.ts";
import { tearDownContainers } from "../ship/podman.ts";
import { BINARY } from "../support.ts";
import { callersDuring, callersFile } from "./callers.ts";
import { cases } from "./cases.ts";
import { imageArchives, PLUGIN } from "./images.ts";
import { KEY4C_FILES, KEY4C_URL, startKey4C } from "./key4c.ts";
import type { Machine } from "./machine.ts";
import { bootNode, type Container, containers } from "./node.ts";
import { commandsOf, filledIn } from "./runbook.ts";

const RELEASE = "/opt/release/key4c-kms-plugin-0.1.0-linux-x64";
const MANIFEST = "/etc/kubernetes/manifests/key4c-kms-plugin.yaml";
/** As OPERATIONS.md exports it. */
const SETTINGS = {
  KEY4C_URL,
  KMS_KEY_ID: "demo",
  KMS_USER_ID_FILE: "/etc/key4c-kms/user-id",
};
/** From the kubelet's look at a file to a pod that has passed its probes, on a busy machine. */
const POD_MS = 180_000;

let machine: Machine;
beforeAll(async () => {
  machine = await bootNode("node", await imageArchives(), {
    [RELEASE]: BINARY,
    ...KEY4C_FILES,
    ...callersFile(),
  });
  await startKey4C(machine);
}, 1_800_000);
afterAll(async () => {
  await machine?.remove();
  await tearDownContainers();
}, 120_000);

const hostCase = cases("kubelet", async () => {
  const { stdout } = await machine.try(
    `curl -s http://127.0.0.1:10255/pods; tail -n 20 /var/log/pods/*/*/*.log; journalctl -b -u kubelet -n 40 --no-pager`,
  );
  return stdout;
});

/** Waits until the kubelet's containers are so. */
const containersUntil = (what: string, are: (all: readonly Container[]) => boolean) =>
  eventually(what, POD_MS, async () => {
    const all = await containers(machine);
    return are(all) && all;
  });
const oneReady = (restarts: number) =>
  containersUntil(
    `ready after ${restarts} restarts`,
    (all) => all.length === 1 && all.every((one) => one.ready && one.restarts === restarts),
  );
const isOk = (wait: string) => machine.run(`key4c-kms-plugin status --wait ${wait}`);
const pluginPid = async () =>
  Number(await machine.run("pgrep -f '^/usr/local/bin/key4c-kms-plugin serve$'"));
const seconds = async (work: () => Promise<unknown>) => {
  const startMs = performance.now();
  await work();
  return `${((performance.now() - startMs) / 1000).toFixed(1)} s`;
};

hostCase("install, as OPERATIONS.md has it: ready", async () => {
  const [binary = ""] = commandsOf("Install");
  const [pod = ""] = commandsOf("As a static pod (kubeadm)");
  const typed = filledIn(binary, {
    "KEY4C_URL=https://… KMS_KEY_ID=…": `KEY4C_URL=${KEY4C_URL} KMS_KEY_ID=demo`,
    "cat > /etc/key4c-kms/user-id)": "cat > /etc/key4c-kms/user-id) <<< the-token",
  });
  const image = { "REGISTRY/key4c-kms-plugin:0.1.0": PLUGIN };
  const output = await machine.run(`cd /opt/release\n${typed}\n${filledIn(pod, image)}`);
  expect(output).toContain('"healthz":"ok"');
  await oneReady(0);
});

hostCase("the container is as confined as its manifest says", async () => {
  const status = await machine.run(`cat /proc/${await pluginPid()}/status`);
  const field = (name: string) => status.match(new RegExp(`^${name}:\\s*(\\S+)`, "m"))?.[1];
  expect({
    capabilities: [field("CapEff"), field("CapPrm"), field("CapBnd"), field("CapAmb")],
    noNewPrivileges: field("NoNewPrivs"),
    seccomp: field("Seccomp"),
  }).toEqual({ capabilities: Array(4).fill("0".repeat(16)), noNewPrivileges: "1", seccomp: "2" });
  const inside = await machine.try(`nsenter -t ${await pluginPid()} -m touch /x`);
  expect(inside.exitCode).not.toBe(0);
  expect(await machine.run("stat -c '%a %U' /run/key4c-kms/kms.sock")).toBe("600 root\n");
});

hostCase("kill -9: the kubelet starts it again", async () => {
  await machine.run(`kill -9 ${await pluginPid()}`);
  figure(`ok ${await seconds(() => isOk("120s"))} after kill -9`);
  await oneReady(1);
});

hostCase("Key4C away for 100 s: serves on, and is not restarted", async () => {
  await machine.run("systemctl stop emulated-key4c");
  const { failures, calls } = await callersDuring(machine, () => Bun.sleep(100_000));
  expect([calls > 100, failures]).toEqual([true, []]);
  await oneReady(1);
});

hostCase("killed while Key4C is away: not ready, not restarted for it, and heals", async () => {
  await machine.run(`kill -9 ${await pluginPid()}`);
  await containersUntil("not ready", ([one]) => one?.ready === false && one.restarts === 2);
  const { stderr, exitCode } = await machine.try("key4c-kms-plugin status --wait 5s");
  expect([exitCode === 0, stderr]).toEqual([false, expect.stringContaining("Key4C")]);
  await machine.run("systemctl start emulated-key4c");
  await isOk("60s");
  await oneReady(2);
});

hostCase("upgrade by manifest: away for seconds, and there again", async () => {
  const next = PLUGIN.replace(/0$/, "1");
  await machine.run(`ctr -n k8s.io images tag ${PLUGIN} ${next}`);
  const upgrade = async () => {
    await machine.run(
      `key4c-kms-plugin manifest static-pod --image ${next} > /root/next.yaml && mv /root/next.yaml ${MANIFEST}`,
      { env: SETTINGS },
    );
    await containersUntil("the new image", (all) =>
      all.some((one) => one.image === next && one.ready),
    );
  };
  const { calls, failed, longestGapMs } = await callersDuring(machine, upgrade);
  figure(
    `upgrade by manifest: ${failed} of ${calls} calls failed, longest time without one ${longestGapMs} ms`,
  );
});
