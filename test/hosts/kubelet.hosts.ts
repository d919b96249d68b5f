/** A kubelet without an API server, and the static pod that `manifest` prints. */
import { afterAll, beforeAll, expect } from "bun:test";
import { LOADED_AS } from "../../src/build/oci.ts";
import { commandsOf, filledIn } from "../documents/blocks.ts";
import { eventually, figure } from "../e2e/process.ts";
import { tearDownContainers } from "../ship/podman.ts";
import { vendorPod } from "../vendor-pod.ts";
import { callersDuring, callersFile } from "./callers.ts";
import { cases } from "./cases.ts";
import { confinementOf, NO_RIGHTS } from "./confinement.ts";
import { imageArchives, PLUGIN, releaseImage } from "./images.ts";
import { KEY4C_FILES, KEY4C_URL, REACHABLE, startKey4C, UNREACHABLE } from "./key4c.ts";
import type { Machine } from "./machine.ts";
import { bootNode, type Container, containers } from "./node.ts";
import {
  commandsIn,
  INSTALL,
  INSTALL_POD,
  RELEASE,
  RELEASE_IMAGE,
  releaseArchive,
} from "./runbook.ts";

const MANIFEST = "/etc/kubernetes/manifests/key4c-kms-plugin.yaml";
const SOCKET = "/run/key4c-kms/kms.sock";
/** From the kubelet's look at a file to a pod that has passed its probes, on a busy machine. */
const POD_MS = 180_000;

/** What a client of grpc-go waits before it looks for a server that was away for a quarter of a minute. */
const GRPC_BACKOFF_MS = 20_000;

let machine: Machine;
beforeAll(async () => {
  const archives = await imageArchives();
  machine = await bootNode({
    name: "node",
    archives, // the release's image is one of them
    files: {
      [RELEASE]: await releaseArchive(),
      [RELEASE_IMAGE]: await releaseImage(),
      ...KEY4C_FILES,
      ...callersFile(),
    },
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
/** The readiness probe is a minute apart, so only where readiness is the question do we wait for it. */
const running = (restarts: number) =>
  containersUntil(
    `running after ${restarts} restarts`,
    (all) => all.length === 1 && all[0]?.state === "running" && all[0].restarts === restarts,
  );
const isOk = (wait: string) => machine.run(`key4c-kms-plugin status --wait ${wait}`);
const pluginPid = async () =>
  Number(await machine.run("pgrep -f '^/usr/local/bin/key4c-kms-plugin serve$'"));
const seconds = async (work: () => Promise<unknown>) => {
  const startMs = performance.now();
  await work();
  return `${((performance.now() - startMs) / 1000).toFixed(1)} s`;
};

/** Has `manifest` write the pod, in a shell that has read the settings. */
const manifest = (flags: string) =>
  machine.run(`key4c-kms-plugin manifest static-pod --output ${MANIFEST} ${flags}`);

hostCase("install, as install.md has it", async () => {
  const [pod = ""] = commandsOf("docs/install-by-hand.md", "As a static pod (kubeadm)");
  await machine.run(`${INSTALL}\n${filledIn(pod, { "REGISTRY/key4c-kms-plugin:0.1.0": PLUGIN })}`);
  figure(`ok ${await seconds(() => isOk("120s"))} after the manifest was written`);
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
  figure(`ok ${await seconds(() => isOk("120s"))} after kill -9`);
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
  figure(`after power-off and on: ok ${await seconds(() => isOk("180s"))} after the boot`);
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

hostCase("install.md's commands: the image without a registry, and the pod", async () => {
  await machine.run("rm -rf /etc/key4c-kms /usr/local/bin/key4c-kms-plugin /etc/kubernetes/pki");
  const startMs = performance.now();
  const { exitCode, stderr, stdout } = await machine.try(INSTALL_POD, { input: "the-token" });
  const took = ((performance.now() - startMs) / 1000).toFixed(1);
  expect({ exitCode, stderr, stdout }).toMatchObject({
    exitCode: 0,
    stderr: expect.stringContaining("the plugin is ok: {"),
  });
  figure(`a kubelet: ${commandsIn(INSTALL_POD)} commands, ${took} s to a plugin that is ok`);
  const [one] = await running(0);
  expect(one?.image).toBe(LOADED_AS);
  expect(await machine.run(`ctr -n k8s.io images ls name==${LOADED_AS}`)).toContain("pinned");
  const again = await machine.try("key4c-kms-plugin install");
  expect([again.exitCode, again.stderr]).toEqual([
    0,
    expect.stringContaining("every file is as it should be"),
  ]);
});

hostCase("another setting by install: a new pod has it", async () => {
  const before = await pluginPid();
  const { exitCode, stderr } = await machine.try("key4c-kms-plugin install --outage-grace 1h");
  expect({ exitCode, stderr }).toMatchObject({ exitCode: 0 });
  await eventually("another process", POD_MS, async () => (await pluginPid()) !== before);
  await isOk("120s");
});

hostCase("local KEKs kept in memory, as restart.md has it", async () => {
  const before = await pluginPid();
  await machine.run(commandsOf("docs/restart.md", "In memory")[0] ?? "");
  await eventually("another process", POD_MS, async () => (await pluginPid()) !== before);
  await isOk("120s");
  await running(0);
  await machine.run("echo -n of-a-secret | key4c-kms-plugin encrypt > /root/kept");
});

for (const [index, outage] of (["refuses", "hangs"] as const).entries()) {
  hostCase(`Key4C ${outage}: kill -9, and a pod with another image; both serve`, async () => {
    await machine.run(UNREACHABLE[outage]);
    const isServed = async (how: string, untilThere: () => Promise<unknown>) => {
      figure(`Key4C ${outage}: ok ${await seconds(untilThere)} after ${how}`);
      expect(await machine.run("key4c-kms-plugin decrypt < /root/kept")).toBe("of-a-secret");
      const fresh = "echo -n fresh | key4c-kms-plugin encrypt | key4c-kms-plugin decrypt";
      expect(await machine.run(fresh)).toBe("fresh");
    };
    await machine.run(`kill -9 ${await pluginPid()}`);
    await isServed("kill -9", async () => {
      await running(1);
      await isOk("120s");
    });
    const next = LOADED_AS.replace(/0$/, String(index + 1));
    await machine.run(`ctr -n k8s.io images tag ${LOADED_AS} ${next}
      sed -i 's#^\\( *image:\\).*#\\1 "${next}"#' ${MANIFEST}`);
    await isServed("another image stood in the manifest", async () => {
      await containersUntil(
        "the other image",
        ([one]) => one?.image === next && one.state === "running",
      );
      await isOk("120s");
    });
    await machine.run(REACHABLE);
    await isOk("60s");
    await running(0);
  });
}
