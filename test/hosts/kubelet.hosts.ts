/** A kubelet without an API server, and the static pod that `manifest` prints. */
import { afterAll, beforeAll, expect } from "bun:test";
import { commandsOf, filledIn } from "../documents/blocks.ts";
import { eventually, figure, seconds } from "../e2e/process.ts";
import { vendorPod } from "../vendor-pod.ts";
import { callersDuring, callersFile } from "./callers.ts";
import { cases } from "./cases.ts";
import { confinementOf, NO_RIGHTS } from "./confinement.ts";
import { PLUGIN } from "./images.ts";
import { KEY4C_URL } from "./key4c.ts";
import type { Machine } from "./machine.ts";
import { INSTALL } from "./runbook.ts";
import {
  BOOT_MS,
  bootPodNode,
  evidenceOf,
  MANIFEST,
  POD_MS,
  podOn,
  REMOVE_MS,
  removePodNode,
} from "./static-pod.ts";

const SOCKET = "/run/key4c-kms/kms.sock";
/** What a client of grpc-go waits before it looks for a server that was away for a quarter of a minute. */
const GRPC_BACKOFF_MS = 20_000;

let machine: Machine;
beforeAll(async () => {
  machine = await bootPodNode("node", callersFile());
}, BOOT_MS);
afterAll(() => removePodNode(machine), REMOVE_MS);

const hostCase = cases("kubelet", () => evidenceOf(machine));
const { containersUntil, running, isOk, pluginPid } = podOn(() => machine);

/** Has `manifest` write the pod, in a shell that has read the settings. */
const manifest = (flags: string) =>
  machine.run(`key4c-kms-plugin manifest static-pod --output ${MANIFEST} ${flags}`);

hostCase("install, as install.md has it", async () => {
  const [pod = ""] = commandsOf("docs/install-by-hand.md", "As a static pod (kubeadm)");
  await machine.run(`${INSTALL}\n${filledIn(pod, { "REGISTRY/key4c-kms-plugin:0.1.0": PLUGIN })}`);
  figure(`ok ${await seconds(() => isOk("120s"))} s after the manifest was written`);
  await running(0);
});

hostCase("the container is as confined as its manifest says", async () => {
  expect((await confinementOf(machine, await pluginPid())).rights).toEqual(NO_RIGHTS);
  const inside = await machine.try(`nsenter -t ${await pluginPid()} -m touch /x`);
  expect(inside.exitCode).not.toBe(0);
  expect(await machine.run(`stat -c '%a %U' ${SOCKET}`)).toBe("600 root\n");
  expect(await machine.run("journalctl -b -u kubelet")).not.toContain("nil priority");
});

hostCase("kill -9: the kubelet starts it again", async () => {
  await machine.run(`kill -9 ${await pluginPid()}`);
  figure(`ok ${await seconds(() => isOk("120s"))} s after kill -9`);
  await running(1);
});

hostCase("Key4C away for 100 s: serves on, ready, and is not restarted", async () => {
  await machine.run("systemctl stop emulated-key4c");
  const { failures, calls } = await callersDuring(machine, () => Bun.sleep(100_000));
  expect([calls > 100, failures]).toEqual([true, []]);
  await running(1);
  await containersUntil("ready", ([one]) => one?.ready === true);
});

hostCase("killed while Key4C is away: not ready, not restarted for it, and heals", async () => {
  await machine.run(`kill -9 ${await pluginPid()}`);
  await containersUntil("not ready", ([one]) => one?.ready === false && one.restarts === 2);
  const { stderr, exitCode } = await machine.try("key4c-kms-plugin status --wait 5s");
  expect([exitCode === 0, stderr]).toEqual([false, expect.stringContaining("Key4C")]);
  await machine.run("systemctl start emulated-key4c");
  await isOk("60s");
  await running(2);
});

hostCase(
  "a manifest that cannot be printed leaves the old one, and the plugin, alone",
  async () => {
    const file = `stat -c '%i %Y' ${MANIFEST}; sha256sum ${MANIFEST}`;
    const before = await machine.run(file);
    const bare = await machine.try(
      `KMS_CONFIG=/dev/null key4c-kms-plugin manifest static-pod --output ${MANIFEST}`,
    );
    expect([bare.exitCode, bare.stderr]).toEqual([
      2,
      expect.stringContaining("KEY4C_URL is missing"),
    ]);
    expect(await machine.run(file)).toBe(before); // so the kubelet has nothing to see
  },
);

hostCase("upgrade by manifest: away for seconds, and there again", async () => {
  const next = PLUGIN.replace(/0$/, "1");
  await machine.run(`ctr -n k8s.io images tag ${PLUGIN} ${next}`);
  const before = await pluginPid();
  const { calls, failed, longestGapMs } = await callersDuring(machine, async () => {
    await manifest(`--image ${next}`);
    await eventually("another process", POD_MS, async () => (await pluginPid()) !== before);
    await isOk("120s");
    await Bun.sleep(GRPC_BACKOFF_MS);
  });
  figure(
    `upgrade by manifest: ${failed} of ${calls} calls failed, longest time without one ${longestGapMs} ms`,
  );
  const [one] = await running(0);
  expect(one?.image).toBe(next);
});

hostCase(
  "an image that is not there leaves no plugin; the old manifest brings it back",
  async () => {
    await manifest("--image registry.local/key4c-kms-plugin:none");
    await containersUntil("no image", ([one]) =>
      /^(ErrImagePull|ImagePullBackOff)$/.test(one?.state ?? ""),
    );
    expect((await machine.try("key4c-kms-plugin status")).exitCode).not.toBe(0);
    await manifest(`--image ${PLUGIN}`);
    await isOk("120s");
    await running(0);
  },
);

hostCase(
  "odd texts arrive as they are; of a --socket-group each may call, and nobody else",
  async () => {
    await machine.run("groupadd --gid 4711 apiserver; useradd --gid 4711 apiserver; useradd other");
    const odd = `x$(HOME)$$y%n"z'`;
    await machine.run(
      `KMS_PREVIOUS_KEY_IDS=$(cat) key4c-kms-plugin manifest static-pod --output ${MANIFEST} --image ${PLUGIN} \\
      --socket-group apiserver --socket-mode 0660`,
      { input: `null,${odd}` },
    );
    await eventually(
      "the group",
      POD_MS,
      async () => (await machine.try(`stat -c '%a %g' ${SOCKET}`)).stdout === "660 4711\n",
    );
    await isOk("120s");
    const environment = await machine.run(`tr '\\0' '\\n' < /proc/${await pluginPid()}/environ`);
    expect(environment.split("\n")).toContain(`KMS_PREVIOUS_KEY_IDS=null,${odd}`);
    const as = (user: string) =>
      machine.try(`setpriv --reuid ${user} --regid ${user} --clear-groups key4c-kms-plugin status`);
    expect([(await as("apiserver")).exitCode, (await as("other")).exitCode]).toEqual([0, 1]);
  },
);

hostCase("--run-as-user, as install-special.md has it", async () => {
  await removePod();
  const [prepare = ""] = commandsOf("docs/install-special.md", "Without root in the pod");
  await machine.run(`rm -r /run/key4c-kms\n${prepare}`);
  await manifest(`--image ${PLUGIN} --run-as-user 65532`);
  await isOk("120s");
  expect(await machine.run(`stat -c '%a %u' ${SOCKET}`)).toBe("600 65532\n");
  expect(await machine.run(`stat -c %u /proc/${await pluginPid()}`)).toBe("65532\n");
});

hostCase("power lost: the pod comes up over the socket file that it left", async () => {
  await machine.powerOff();
  await machine.powerOn();
  figure(`after power-off and on: ok ${await seconds(() => isOk("180s"))} s after the boot`);
});

hostCase("the vendor's pod, with KEY4C_URL and without `volumes` in the container", async () => {
  await removePod();
  await machine.put(MANIFEST, vendorPod({ image: PLUGIN, key4cUrl: KEY4C_URL }));
  await machine.run("KMS_ENDPOINT=unix:///tmp/kms.sock key4c-kms-plugin status --wait 120s");
});

hostCase("ours beside it, as VENDOR-PLUGIN.md has it: both serve", async () => {
  const [beside = ""] = commandsOf("docs/VENDOR-PLUGIN.md", "The move");
  await machine.run(`chown root /etc/key4c-kms /etc/key4c-kms/user-id /run/key4c-kms
    ${filledIn(beside, { "REGISTRY/key4c-kms-plugin:0.1.0": PLUGIN })}`);
  await machine.run("KMS_ENDPOINT=unix:///tmp/kms.sock key4c-kms-plugin status");
  await machine.run("rm /etc/kubernetes/manifests/key4c.yaml");
});

hostCase("uninstall: the manifest deleted, the socket gone", async () => {
  await removePod();
  expect((await machine.try(`ls ${SOCKET} /tmp/kms.sock`)).exitCode).not.toBe(0);
});

/** Deletes the manifest, and waits until the kubelet has ended what it started. */
async function removePod(): Promise<void> {
  await machine.run(`rm ${MANIFEST}`);
  await eventually("no container", POD_MS, async () => {
    const { stdout } = await machine.try("ctr -n k8s.io tasks ls -q");
    return stdout === "";
  });
}
