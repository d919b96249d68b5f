/** kubeadm, kubectl, etcdctl, two control planes, and the documents as they stand. Run by hand: `-- --all`. */
import { afterAll, beforeAll, expect } from "bun:test";
import { commandsOf, filledIn } from "../documents/blocks.ts";
import { eventually, figure } from "../e2e/process.ts";
import { tearDownContainers } from "../ship/podman.ts";
import { cases } from "./cases.ts";
import {
  apiserverReady,
  type ClusterNode,
  CONFIGURATION,
  currentKeyId,
  EXISTING_CLUSTER,
  initBlock,
  initHere,
  join,
  NEW_CLUSTER,
  POD,
  putIdentityFirst,
  rewrite,
  rewriteAndProve,
  SHELL,
  startNode,
  type,
  untilWritten,
  writingAndReading,
} from "./cluster.ts";
import { addClusterImages, imageArchives } from "./images.ts";
import { key, startKey4C } from "./key4c.ts";
import { connect, importImages } from "./node.ts";
import { INSTALL } from "./runbook.ts";

/** KMS_PROBE_INTERVAL with its jitter. */
const PROBE_INTERVAL_MS = 35_000;

let archives: string;
let one: ClusterNode;
let other: ClusterNode;
beforeAll(async () => {
  archives = await imageArchives();
  await addClusterImages(archives);
  one = await startNode("n1", "192.0.2.11", archives, true);
  other = await startNode("n2", "192.0.2.12", archives, true);
  await connect(one.machine, other.machine);
  for (const { machine } of [one, other]) {
    await importImages(machine);
  }
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
  await one?.machine.remove();
  await other?.machine.remove();
  await tearDownContainers();
}, 240_000);

const hostCase = cases("cluster", async () => {
  const texts = [one, other].map(async ({ machine, name }) => {
    const { stdout } = await machine.try(
      "ctr -n k8s.io tasks ls; tail -n 15 /var/log/pods/*/*/*.log; journalctl -b -u kubelet -n 30 --no-pager",
    );
    return `--- ${name}\n${stdout}`;
  });
  return (await Promise.all(texts)).join("\n");
});

hostCase("a new cluster: kubeadm init with `manifest kubeadm-config`", async () => {
  await one.machine.run(INSTALL);
  await type(one, `${POD}\n${initBlock(NEW_CLUSTER, one)}`);
  await apiserverReady(one, true);
});

hostCase("verify", async () => {
  const [verify = ""] = commandsOf("docs/install.md", "Verify");
  const output = await type(one, verify);
  expect(output).toContain("/registry/secrets/default/key4c-check");
  expect(output).toContain("current");
});

const [PLAINTEXT = "", COMPARE = "", NO_FLAGS = "", , NO_POD = "", NO_FILES = ""] = commandsOf(
  "docs/upgrade.md",
  "Uninstall",
);

hostCase("150 Secrets more; identity first; rewritten: all plaintext", async () => {
  await type(
    one,
    `for i in $(seq 150); do printf 'apiVersion: v1\\nkind: Secret\\nmetadata: {name: s%d}\\nstringData: {v: "value-%d"}\\n---\\n' $i $i; done | kubectl create -f - > /dev/null`,
  );
  await putIdentityFirst(one);
  await rewrite(one);
  const { stdout } = await one.machine.try(`${SHELL}\n${PLAINTEXT}`);
  expect(
    new Set(
      stdout
        .trim()
        .split("\n")
        .map((line) => line.split("\t")[5]),
    ),
  ).toEqual(new Set(["plaintext"]));
});

hostCase("uninstall: the flags leave the ConfigMap too, then the plugin goes", async () => {
  // What the operator does in the editor: from apiServer on, its arguments and its volume.
  await one.machine.put(
    "/root/editor",
    `#!/bin/sh\nsed -i '/^    apiServer:/,/^    [a-z]/{/^    apiServer:/{s/$/ {}/;b};/^    [a-z]/b;d}' "$1"\n`,
    0o755,
  );
  await type(
    one,
    "KUBE_EDITOR=/root/editor kubectl -n kube-system edit configmap kubeadm-config; rm -f /etc/kubernetes/patches/kube-apiserver+strategic.yaml",
  );
  await type(one, filledIn(`${COMPARE}${NO_FLAGS}`, initHere(one)));
  await apiserverReady(one, false);
  expect(
    await type(one, "kubectl -n kube-system get configmap kubeadm-config -o yaml"),
  ).not.toContain("encryption-provider");
  await type(one, `${NO_POD}\n${NO_FILES}`);
  await eventually(
    "no plugin",
    120_000,
    async () => (await one.machine.try("pgrep -f 'key4c-kms-plugin serve$'")).exitCode !== 0,
  );
  expect(await type(one, "kubectl get secret s7 -o jsonpath={.data.v} | base64 -d")).toBe(
    "value-7",
  );
});

hostCase("install on a cluster that exists, move to KMS", async () => {
  await one.machine.run(INSTALL);
  await type(one, POD);
  await type(one, filledIn(EXISTING_CLUSTER, initHere(one)));
  await apiserverReady(one, true);
  await rewriteAndProve(one);
  expect(await type(one, "kubectl get secret s7 -o jsonpath={.data.v} | base64 -d")).toBe(
    "value-7",
  );
  // Who comes from another plugin does both in one step.
  const [, fromAnother = ""] = commandsOf("docs/VENDOR-PLUGIN.md", "The move");
  const proof = await type(one, fromAnother);
  expect(proof).not.toContain("NOT PROVEN");
});

hostCase("kubeadm upgrade --dry-run --patches keeps the flags", async () => {
  const output = await type(
    one,
    "kubeadm upgrade node --dry-run --patches /etc/kubernetes/patches --ignore-preflight-errors all 2>&1",
  );
  expect(output).toContain("encryption-provider-config");
});

hostCase("a second control plane joins, with a plugin of its own", async () => {
  await other.machine.run(INSTALL);
  await other.machine.run("mkdir -p /etc/kubernetes/pki");
  await other.machine.put(CONFIGURATION, await type(one, `cat ${CONFIGURATION}`), 0o600);
  // It is there, and `manifest` refuses to replace it.
  await type(other, POD.replace(/^key4c-kms-plugin manifest encryption-configuration.*\n/m, ""));
  await type(
    other,
    "key4c-kms-plugin manifest kube-apiserver-patch --output /etc/kubernetes/patches/kube-apiserver+strategic.yaml",
  );
  await join(one, other, "--patches /etc/kubernetes/patches");
  await apiserverReady(other, true);
  const { ok, failures } = await writingAndReading([one, other], () => Bun.sleep(15_000));
  expect([ok > 5, failures]).toEqual([true, []]);
});

hostCase(
  "rotate: both API servers write under the new version, everything is rewritten",
  async () => {
    const before = await currentKeyId(one);
    const { ok, failures } = await writingAndReading([one, other], async () => {
      await key(one.machine, "demo", "rotate");
      await eventually("the new version", 60_000, async () => (await currentKeyId(one)) !== before);
      await untilWritten([one, other], await currentKeyId(one));
      await rewriteAndProve(one);
    });
    figure(`rotate: ${ok} pairs of a write and a read, ${failures.length} failed`);
    expect(failures).toEqual([]);
  },
);

hostCase("change to another key on two nodes, while one writes and the other reads", async () => {
  const [everywhere = "", oneByOne = "", forgotten = ""] = commandsOf(
    "docs/keys.md",
    "Change to another key",
  ).map((block) => block.replaceAll("OLD-ID", "demo").replaceAll("NEW-ID", "next"));
  const before = await currentKeyId(one);
  const { ok, failures } = await writingAndReading([one, other], async () => {
    await Promise.all([one, other].map((node) => type(node, everywhere)));
    await Bun.sleep(PROBE_INTERVAL_MS);
    for (const node of [one, other]) {
      await type(node, oneByOne);
      await eventually("the new key", 60_000, async () => (await currentKeyId(node)) !== before);
    }
    await untilWritten([one, other], await currentKeyId(one));
    await rewriteAndProve(one);
    await Promise.all([one, other].map((node) => type(node, forgotten)));
  });
  figure(`change of key: ${ok} pairs of a write and a read, ${failures.length} failed`);
  expect(failures).toEqual([]);
});

hostCase("the decryption check", async () => {
  const [check = ""] = commandsOf("docs/keys.md", "The decryption check");
  const { exitCode, stdout, stderr } = await one.machine.try(`${SHELL}set -o pipefail\n${check}`);
  expect({ exitCode, stdout, stderr }).toMatchObject({ exitCode: 0 });
});

hostCase(
  "revoke: writes end within 3 minutes of the grace; enabled again, they go on",
  async () => {
    let number = 0;
    const write = () => {
      number += 1;
      return one.machine.try(
        `${SHELL}kubectl create secret generic revoked-${number} --from-literal=a=b`,
      );
    };
    const startMs = performance.now();
    await key(one.machine, "next", "disable");
    const refusal = await eventually("no write", 400_000, async () => {
      const { exitCode, stderr } = await write();
      return exitCode !== 0 && stderr;
    });
    expect(refusal).toMatch(/KMS|encrypt/);
    const seconds = Math.round((performance.now() - startMs) / 1000);
    figure(`revoke: writes ended ${seconds} s after the key was disabled: ${refusal.trim()}`);
    await key(one.machine, "next", "enable");
    await eventually("a write", 120_000, async () => (await write()).exitCode === 0);
  },
);

hostCase(
  "objects that nothing decrypts: found, deleted in etcd, and the others are read again",
  async () => {
    const [list = ""] = commandsOf("docs/runbooks/undecryptable.md", "Do now");
    const lost = "/registry/secrets/default/s7";
    // One byte of it is another.
    await type(
      one,
      `etcdctl get ${lost} --print-value-only > /tmp/value; head -c -1 /tmp/value | head -c -3 > /tmp/broken; printf xyz >> /tmp/broken
    etcdctl put ${lost} < /tmp/broken`,
    );
    const found = await type(one, `set +o pipefail\n${list}`);
    expect(found.trim().split("\n")).toEqual([
      expect.stringMatching(/^\/registry\/secrets\/default\/s7: /),
    ]);
    await type(one, `etcdctl del ${lost}`);
    for (const { address } of [one, other]) {
      await eventually("all are read", 120_000, async () =>
        (
          await type(one, `kubectl --server https://${address}:6443 get secrets -A -o name`)
        ).includes("secret/s8"),
      );
    }
  },
);

hostCase("restore of etcd on a new machine, with a plugin that has never been there", async () => {
  await type(one, "kubectl create secret generic for-restore --from-literal=v=restored");
  await type(one, "etcdctl snapshot save /tmp/snapshot");
  const third = await startNode("n3", "192.0.2.13", archives, false);
  try {
    const copy = async (path: string) => {
      await third.machine.put(path, await one.machine.run(`base64 ${path}`));
      await third.machine.run(
        `base64 -d ${path} > /tmp/file && mv /tmp/file ${path} && chmod 600 ${path}`,
      );
    };
    for (const name of ["ca.crt", "ca.key", "sa.pub", "sa.key", "etcd/ca.crt", "etcd/ca.key"]) {
      await copy(`/etc/kubernetes/pki/${name}`);
    }
    for (const name of ["front-proxy-ca.crt", "front-proxy-ca.key"]) {
      await copy(`/etc/kubernetes/pki/${name}`);
    }
    await copy(CONFIGURATION);
    await copy("/tmp/snapshot");
    await copy("/var/lib/key4c.json"); // Key4C is not lost
    await startKey4C(third.machine);
    await importImages(third.machine);
    await third.machine.run(INSTALL);
    await third.machine.run("echo next > /etc/key4c-kms/key-id");
    await type(third, POD.replace(/^key4c-kms-plugin manifest encryption-configuration.*\n/m, ""));
    const [restore = ""] = commandsOf("docs/restore.md", "Restore etcd on a new machine");
    await type(
      third,
      restore
        .replace("SNAPSHOT", "/tmp/snapshot")
        .replaceAll("NODE", third.name)
        .replaceAll("ADDRESS", third.address),
    );
    // As "A new cluster", with the directory of etcd that is not empty.
    await type(third, initBlock(NEW_CLUSTER, third));
    await apiserverReady(third, true);
    expect(
      await type(third, "kubectl get secret for-restore -o jsonpath={.data.v} | base64 -d"),
    ).toBe("restored");
  } finally {
    await third.machine.remove();
  }
});
