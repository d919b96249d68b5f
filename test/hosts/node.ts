/** A machine with containerd and a kubelet, as a node of Kubernetes; its images are brought, none is pulled. */
import { builtKubelet } from "../e2e/build.ts";
import { run } from "../e2e/process.ts";
import { PAUSE } from "./images.ts";
import { Machine } from "./machine.ts";

const CONTAINERD = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "${PAUSE}"
  # A sandbox may raise the score, never lower it.
  restrict_oom_score_adj = true
`;

/** Without an API server: the static pods alone. */
const STANDALONE = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: /etc/kubernetes/manifests
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
# It tells what it runs, to whoever asks on this machine.
readOnlyPort: 10255
authentication: { anonymous: { enabled: true }, webhook: { enabled: false } }
authorization: { mode: AlwaysAllow }
`;

/** What a kubelet would set for the whole machine, which is not ours: each is shown the value that it wants. */
const SYSCTLS = {
  "vm/overcommit_memory": "1",
  "vm/panic_on_oom": "0",
  "kernel/panic": "10",
  "kernel/panic_on_oops": "1",
  "kernel/keys/root_maxkeys": "1000000",
  "kernel/keys/root_maxbytes": "25000000",
};

/** nspawn gives a machine cgroups that are read only, no /dev/kmsg and no network. */
const PREPARE = `#!/bin/sh -eu
awk '$3 ~ /^cgroup/ { print $2 }' /proc/mounts | while read -r path; do
  mount -o remount,rw,bind "$path"
done
[ -e /dev/kmsg ] || mknod -m 644 /dev/kmsg c 1 11
mkdir -p /run/sysctls
${Object.entries(SYSCTLS)
  .map(([name, value]) => {
    const file = `/run/sysctls/${name.replaceAll("/", "_")}`;
    return `echo ${value} > ${file}; mount --bind ${file} /proc/sys/${name}`;
  })
  .join("\n")}
if [ -e /etc/node-wired ]; then
  until ip link show eth0; do sleep 0.1; done # the machine that has the other end plugs it in
else
  ip link add eth0 type veth peer name uplink
  ip link set uplink up
fi
ip addr add "$(cat /etc/node-address || echo 192.0.2.11)/24" dev eth0
ip link set eth0 up
ip route add default via 192.0.2.1
`;

const PREPARE_UNIT = `[Unit]
DefaultDependencies=no
Before=containerd.service kubelet.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/prepare-node
[Install]
RequiredBy=containerd.service
`;

const KUBELET_UNIT = `[Unit]
After=containerd.service
Requires=containerd.service
[Service]
ExecStart=/usr/local/bin/kubelet --config /etc/kubernetes/kubelet.yaml
Restart=always
RestartSec=2
[Install]
WantedBy=multi-user.target
`;

/** As the packages of kubeadm have it. */
const KUBEADM_UNIT = `[Unit]
After=containerd.service
Wants=containerd.service
[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
ExecStart=/usr/local/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS
Restart=always
StartLimitInterval=0
RestartSec=10
[Install]
WantedBy=multi-user.target
`;

/** Nothing is pulled here: it looks whether the image is there. */
const CRICTL = `#!/bin/sh -eu
ctr -n k8s.io images ls -q | grep -qxF "$2"
`;

/** A container of a pod, as the kubelet tells it. */
export interface Container {
  readonly ready: boolean;
  readonly restarts: number;
  readonly image: string;
  /** `running`, or why not. */
  readonly state: string;
}

interface PodList {
  readonly items?: readonly {
    readonly spec: { readonly containers: readonly { readonly image: string }[] };
    readonly status: {
      readonly containerStatuses?: readonly {
        readonly ready: boolean;
        readonly restartCount: number;
        readonly state: Readonly<Record<string, { readonly reason?: string }>>;
      }[];
    };
  }[];
}

export interface NodeOptions {
  readonly name: string;
  /** Directory of images. */
  readonly archives: string;
  readonly files: Readonly<Record<string, string>>;
}

/** A node by itself: the kubelet runs the static pods, and there is no API server. */
export async function bootNode(options: NodeOptions): Promise<Machine> {
  const machine = await bootMachine(options);
  await machine.put("/etc/kubernetes/kubelet.yaml", STANDALONE);
  await machine.put("/etc/systemd/system/kubelet.service", KUBELET_UNIT);
  await importImages(machine);
  await machine.run(`mkdir -p /etc/kubernetes/manifests
    systemctl daemon-reload
    systemctl enable --quiet --now kubelet`);
  return machine;
}

/**
 * A node for kubeadm, which configures the kubelet and starts it.
 * @param address of its eth0
 * @param isWired whether `connect` plugs in its cable; nothing starts before that
 */
export async function bootClusterNode(
  address: string,
  isWired: boolean,
  options: NodeOptions,
): Promise<Machine> {
  const machine = await bootMachine(options, { address, isWired });
  await machine.put("/etc/systemd/system/kubelet.service", KUBEADM_UNIT);
  await machine.run("systemctl daemon-reload; systemctl enable --quiet kubelet");
  return machine;
}

async function bootMachine(
  { name, archives, files }: NodeOptions,
  place?: { readonly address: string; readonly isWired: boolean },
): Promise<Machine> {
  const machine = await Machine.boot({
    name,
    files: { "/usr/local/bin/kubelet": await builtKubelet(), "/opt/images": archives, ...files },
    runsContainers: true,
  });
  await machine.put("/etc/containerd/config.toml", CONTAINERD);
  await machine.put("/usr/local/sbin/prepare-node", PREPARE, 0o755);
  await machine.put("/usr/local/bin/crictl", CRICTL, 0o755);
  await machine.put("/etc/systemd/system/prepare-node.service", PREPARE_UNIT);
  if (place !== undefined) {
    await machine.put("/etc/node-address", `${place.address}\n`);
    await machine.run(`printf '192.0.2.11 n1\n192.0.2.12 n2\n192.0.2.13 n3\n' >> /etc/hosts`);
  }
  if (place?.isWired) {
    await machine.put("/etc/node-wired", "");
  }
  await machine.run(`systemctl unmask containerd
    systemctl daemon-reload
    systemctl enable --quiet prepare-node containerd
    systemctl start --no-block containerd`);
  return machine;
}

/** Waits for the container runtime, and gives it its images. */
export async function importImages(machine: Machine): Promise<void> {
  await machine.run(`systemctl start containerd
    for archive in /opt/images/*.tar; do ctr -n k8s.io images import "$archive"; done`);
}

/** Plugs one cable into both machines. */
export async function connect(one: Machine, other: Machine): Promise<void> {
  const end = (machine: Machine) => ["name", "eth0", "netns", String(machine.leader)];
  await run(["ip", "link", "add", ...end(one), "type", "veth", "peer", ...end(other)], {
    PATH: process.env["PATH"] ?? "",
  });
}

/** Every container that the kubelet knows of. */
export async function containers(machine: Machine): Promise<Container[]> {
  const list = await machine.run("curl -sf http://127.0.0.1:10255/pods");
  const { items } = JSON.parse(list) as PodList; // the kubelet's own words
  return (items ?? []).flatMap(({ spec, status }) =>
    (status.containerStatuses ?? []).map(({ ready, restartCount, state }, index) => {
      const [what = "", { reason = "" } = {}] = Object.entries(state)[0] ?? [];
      // Its status names the image by any tag that it has.
      const image = spec.containers[index]?.image ?? "";
      return { ready, restarts: restartCount, image, state: reason || what };
    }),
  );
}
