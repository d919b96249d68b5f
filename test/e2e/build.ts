/** Builds kube-apiserver, kubeadm and etcd from the Go module proxy, once for each pinned version. */
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { cached } from "../cache.ts";

export interface Servers {
  readonly kubeApiserver: string;
  readonly kubeadm: string;
  readonly etcd: string;
  readonly etcdctl: string;
  readonly etcdutl: string;
}

export interface ClusterTools {
  readonly kubectl: string;
  readonly kubeControllerManager: string;
  readonly kubeScheduler: string;
}

/** Paths of the executables; builds what the cache lacks. */
export async function builtServers(): Promise<Servers> {
  const apiserver = await builtOfKubernetes("apiserver", [".", "k8s.io/kubernetes/cmd/kubeadm"]);
  const etcd = await built({
    module: "etcd",
    name: "etcd",
    versionOf: "go.etcd.io/etcd/server/v3",
    packages: [
      "go.etcd.io/etcd/server/v3",
      "go.etcd.io/etcd/etcdctl/v3",
      "go.etcd.io/etcd/etcdutl/v3", // restores a snapshot
    ],
  });
  return {
    kubeApiserver: join(apiserver, "apiserver"),
    kubeadm: join(apiserver, "kubeadm"),
    etcd: join(etcd, "server"),
    etcdctl: join(etcd, "etcdctl"),
    etcdutl: join(etcd, "etcdutl"),
  };
}

/** Path of the kubelet. It is the largest by far, and few tests need it. */
export async function builtKubelet(): Promise<string> {
  return join(await builtOfKubernetes("kubelet", ["k8s.io/kubernetes/cmd/kubelet"]), "kubelet");
}

/** What makes machines with a kubelet a cluster. */
export async function builtClusterTools(): Promise<ClusterTools> {
  const commands = ["kubectl", "kube-controller-manager", "kube-scheduler"];
  const directory = await builtOfKubernetes(
    "cluster",
    commands.map((command) => `k8s.io/kubernetes/cmd/${command}`),
  );
  return {
    kubectl: join(directory, "kubectl"),
    kubeControllerManager: join(directory, "kube-controller-manager"),
    kubeScheduler: join(directory, "kube-scheduler"),
  };
}

/** All of them come from one module, so from one release. */
function builtOfKubernetes(name: string, packages: readonly string[]): Promise<string> {
  return built({
    module: "apiserver",
    name,
    versionOf: "k8s.io/kubernetes",
    packages,
    // What --version and /version print; a build from modules does not know it otherwise.
    ldflags: (version) => `-X k8s.io/component-base/version.gitVersion=${version}`,
  });
}

interface Build {
  /** A directory beside this file. */
  readonly module: string;
  /** Of the directory in the cache. */
  readonly name: string;
  /** The module of Go whose version is what is built. */
  readonly versionOf: string;
  readonly packages: readonly string[];
  readonly ldflags?: (version: string) => string;
}

/** The directory with the executables. */
async function built({ module, name, versionOf, packages, ldflags }: Build): Promise<string> {
  const source = join(import.meta.dir, module);
  const hash = createHash("sha256");
  for (const file of ["go.mod", "go.sum", "main.go"]) {
    const path = join(source, file);
    hash.update(existsSync(path) ? readFileSync(path) : "");
  }
  const version = readFileSync(join(source, "go.mod"), "utf8").match(
    new RegExp(`^\\s*${versionOf} (v\\S+)`, "m"),
  )?.[1];
  if (version === undefined) {
    throw new Error(`${source}/go.mod does not require ${versionOf}`);
  }
  return cached(`${name}-${version}-${hash.digest("hex").slice(0, 12)}`, async (directory) => {
    const flags = ["-trimpath", "-ldflags", `-s -w ${ldflags?.(version) ?? ""}`];
    const child = Bun.spawn(["go", "build", ...flags, "-o", `${directory}/`, ...packages], {
      cwd: source,
      env: { ...process.env, GOWORK: "off" },
      stdout: "inherit",
      stderr: "inherit",
    });
    if ((await child.exited) !== 0) {
      throw new Error(`go build of ${name} ${version} failed`);
    }
  });
}

if (import.meta.main) {
  console.log({
    ...(await builtServers()),
    kubelet: await builtKubelet(),
    ...(await builtClusterTools()),
  });
}
