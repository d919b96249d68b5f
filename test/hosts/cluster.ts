/** Two control planes that kubeadm makes: what their tests share. */

import { commandsOf, filledIn } from "../documents/blocks.ts";
import { builtClusterTools, builtServers } from "../e2e/build.ts";
import { eventually } from "../e2e/process.ts";
import { PLUGIN } from "./images.ts";
import { KEY4C_FILES } from "./key4c.ts";
import type { Machine } from "./machine.ts";
import { bootClusterNode } from "./node.ts";
import { RELEASE, releaseArchive } from "./runbook.ts";

export const CONFIGURATION = "/etc/kubernetes/pki/encryption-configuration.yaml";

/** What a shell of whoever operates the cluster has, as install.md says. */
export const SHELL = `export KUBECONFIG=/etc/kubernetes/admin.conf ETCDCTL_ENDPOINTS=https://127.0.0.1:2379
export ETCDCTL_CACERT=/etc/kubernetes/pki/etcd/ca.crt
export ETCDCTL_CERT=/etc/kubernetes/pki/etcd/healthcheck-client.crt ETCDCTL_KEY=/etc/kubernetes/pki/etcd/healthcheck-client.key
cd /root
`;

/** What this sandbox needs of kubeadm beside what the documents say. */
function kubeadmNode(name: string, address: string): string {
  return `localAPIEndpoint: { advertiseAddress: ${address} }
nodeRegistration:
  name: ${name}
  criSocket: unix:///run/containerd/containerd.sock
  taints: []
  ignorePreflightErrors: [all]
skipPhases: [addon/coredns, addon/kube-proxy]`;
}

const KUBELET = `---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
failCgroupV1: false
readOnlyPort: 10255
`;

export interface ClusterNode {
  readonly machine: Machine;
  readonly name: string;
  readonly address: string;
}

export async function startNode(
  name: string,
  address: string,
  archives: string,
  isWired: boolean,
  files: Readonly<Record<string, string>> = {},
): Promise<ClusterNode> {
  const servers = await builtServers();
  const { kubectl } = await builtClusterTools();
  const machine = await bootClusterNode(address, isWired, {
    name,
    archives,
    files: {
      [RELEASE]: await releaseArchive(),
      "/usr/local/bin/kubeadm": servers.kubeadm,
      "/usr/local/bin/kubectl": kubectl,
      "/usr/local/bin/etcdctl": servers.etcdctl,
      "/usr/local/bin/etcdutl": servers.etcdutl,
      ...KEY4C_FILES,
      ...files,
    },
  });
  return { machine, name, address };
}

/** Types a script in a shell that has the settings. @throws Error when a command fails */
export const type = ({ machine }: ClusterNode, script: string) =>
  machine.run(`set -o pipefail\n${SHELL}${script}`);

/** The blocks of "As a static pod": the pod, a new cluster, a cluster that exists. */
export const [POD = ""] = commandsOf("docs/install-by-hand.md", "As a static pod (kubeadm)").map(
  (block) => filledIn(block, { "REGISTRY/key4c-kms-plugin:0.1.0": PLUGIN }),
);
export const [NEW_CLUSTER = ""] = commandsOf("docs/install-by-hand.md", "A new cluster");
export const EXISTING_CLUSTER = commandsOf("docs/install-by-hand.md", "A cluster that exists").join(
  "\n",
);

/** What the reader is to replace in each block with an InitConfiguration. */
const initAddress = ({ name, address }: ClusterNode) => ({
  "localAPIEndpoint: { advertiseAddress: THE-ADDRESS-OF-THIS-NODE }": kubeadmNode(name, address),
});

/** The same in a block that asks this API server, and no other one. */
export const initHere = (node: ClusterNode) => ({
  ...initAddress(node),
  "THE-ADDRESS-OF-THIS-NODE:6443": `${node.address}:6443`,
});

/** `kubeadm init` as the block has it, with what this sandbox needs. */
export function initBlock(block: string, node: ClusterNode): string {
  return filledIn(block, {
    ...initAddress(node),
    "<<EOF\n---": `<<EOF\ncontrolPlaneEndpoint: ${node.address}:6443\n---`,
    "\nEOF\nkubeadm init": `\n${KUBELET}EOF\nkubeadm init`,
  });
}

/** The block of a new cluster that `install` printed, with what this sandbox needs. */
export function withSandbox(block: string, node: ClusterNode): string {
  const init = "kubeadm init --config /root/key4c-kubeadm.yaml";
  return filledIn(block, { [init]: `${sandbox("/root/key4c-kubeadm.yaml", node)}${init}` });
}

/** A cluster without the plugin. */
export function plainInit(node: ClusterNode): string {
  const file = "/root/plain.yaml";
  return `printf 'apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n' > ${file}
${sandbox(file, node)}kubeadm init --config ${file}`;
}

function sandbox(file: string, node: ClusterNode): string {
  return `cat >> ${file} <<EOF
controlPlaneEndpoint: ${node.address}:6443
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
${kubeadmNode(node.name, node.address)}
${KUBELET}EOF
`;
}

/** Has the second become a control plane of the first one's cluster. @param flags more of `kubeadm join` */
export async function join(one: ClusterNode, other: ClusterNode, flags: string): Promise<void> {
  const certificates = await type(
    one,
    "kubeadm init phase upload-certs --upload-certs | tail -n 1",
  );
  const line = await type(
    one,
    `kubeadm token create --print-join-command --certificate-key ${certificates.trim()}`,
  );
  const here = [
    `--apiserver-advertise-address ${other.address} --node-name ${other.name}`,
    "--cri-socket unix:///run/containerd/containerd.sock --ignore-preflight-errors all",
  ];
  await other.machine.run([line.trim(), ...here, flags].join(" "));
}

/** Until the API server of that node is ready, and has a KMS provider if it should. */
export function apiserverReady({ machine, name, address }: ClusterNode, withKms: boolean) {
  return eventually(`the API server of ${name}`, 240_000, async () => {
    const { stdout, exitCode } = await machine.try(
      `${SHELL}kubectl --server https://${address}:6443 get --raw '/readyz?verbose'`,
    );
    return exitCode === 0 && stdout.includes("kms-provider") === withKms;
  });
}

/** Writes through one API server and reads through the other, both ways, while something is done. */
export async function writingAndReading(
  [one, other]: readonly [ClusterNode, ClusterNode],
  meanwhile: () => Promise<void>,
): Promise<{ ok: number; failures: string[] }> {
  const stop = "/tmp/stop-writing";
  const at = ({ address }: ClusterNode) =>
    `kubectl --server https://${address}:6443 --request-timeout=8s`;
  const script = `${SHELL}rm -f ${stop}; i=0
    pair() {
      if o=$($1 create secret generic $3 --from-literal=v=$i -o name 2>&1) && o=$($2 get secret $3 -o jsonpath={.data.v} 2>&1)
      then echo ok; else echo "$(date +%T) $3: $o" | tr '\\n' ' '; echo; fi
    }
    while [ ! -e ${stop} ]; do
      i=$((i+1)); pair '${at(one)}' '${at(other)}' ab-$$-$i; pair '${at(other)}' '${at(one)}' ba-$$-$i
    done`;
  const writer = one.machine.start(script);
  try {
    await meanwhile();
  } finally {
    await one.machine.run(`touch ${stop}`);
  }
  const lines = (await writer.stdout.text()).split("\n").filter(Boolean);
  return {
    ok: lines.filter((line) => line === "ok").length,
    failures: lines.filter((line) => line !== "ok"),
  };
}

const [TRY = ""] = commandsOf("docs/move.md", "Put the plugin first");
const [REWRITE = ""] = commandsOf("docs/move.md", "Rewrite");
const [PROVE = ""] = commandsOf("docs/move.md", "Prove");

export const rewrite = (node: ClusterNode) => type(node, REWRITE);

/** @throws Error unless every Secret is under the current key */
export async function rewriteAndProve(node: ClusterNode): Promise<void> {
  const here = `https://${node.address}:6443`;
  const tried = await type(
    node,
    filledIn(TRY, { "https://NODE:6443": here, "https://OTHER-NODE:6443": here }),
  );
  if (!tried.includes("PROVEN")) {
    throw new Error(tried);
  }
  await rewrite(node);
  const proof = await type(node, PROVE);
  if (proof.includes("NOT PROVEN")) {
    throw new Error(proof);
  }
}

/** Puts the KMS provider behind identity, and waits until the API server has read the file. */
export async function putIdentityFirst(node: ClusterNode): Promise<void> {
  const metric = "apiserver_encryption_config_controller_automatic_reload_last_timestamp_seconds";
  // Before the first one there is no such line; an API server that does not answer is no reload.
  const reloads = () => type(node, `kubectl get --raw /metrics | { grep ^${metric} || true; }`);
  const before = await reloads();
  const text = await type(node, `cat ${CONFIGURATION}`);
  const [, kms = ""] = /( {6}- kms:\n(?: {10}.*\n)+)/.exec(text) ?? [];
  await node.machine.put(CONFIGURATION, text.replace(kms, "") + kms, 0o600);
  await eventually("the API server reads it", 180_000, async () => (await reloads()) !== before);
}

export async function currentKeyId(node: ClusterNode): Promise<string> {
  const status = JSON.parse(await type(node, "key4c-kms-plugin status")) as { keyId: string };
  return status.keyId;
}

/** Until both API servers write under that key_id. */
export async function untilWritten(
  nodes: readonly [ClusterNode, ClusterNode],
  keyId: string,
): Promise<void> {
  for (const { address, name } of nodes) {
    const kubectl = `kubectl --server https://${address}:6443`;
    await eventually(`${name} writes under ${keyId}`, 240_000, async () => {
      const line = await type(
        nodes[0],
        `${kubectl} create secret generic probe-${name} --from-literal=a=b > /dev/null
        etcdctl get /registry/secrets/default/probe-${name} -w json | key4c-kms-plugin inspect --current ${keyId} || true
        ${kubectl} delete secret probe-${name} > /dev/null`,
      );
      return line.split("\t")[5] === "current";
    });
  }
}
