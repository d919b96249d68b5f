/** Builds kube-apiserver, kubeadm and etcd from the Go module proxy, once for each pinned version. */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

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
  const etcd = await built("etcd", "go.etcd.io/etcd/server/v3", () => [
    "",
    [
      "go.etcd.io/etcd/server/v3",
      "go.etcd.io/etcd/etcdctl/v3",
      "go.etcd.io/etcd/etcdutl/v3", // restores a snapshot
    ],
  ]);
  return {
    kubeApiserver: join(apiserver, "apiserver"),
    kubeadm: join(apiserver, "kubeadm"),
    etcd: join(etcd, "server"),
    etcdctl: join(etcd, "etcdctl"),
    etcdutl: join(etcd, "etcdutl"),
  };
}

/** The directory with the executables of one of our Go modules. */
async function built(
  name: string,
  versionOf: string,
  target: (version: string) => [ldflags: string, packages: string[]],
): Promise<string> {
  const module = join(import.meta.dir, name);
  const hash = createHash("sha256");
  for (const file of ["go.mod", "go.sum", "main.go"]) {
    const path = join(module, file);
    hash.update(existsSync(path) ? readFileSync(path) : "");
  }
  const version = readFileSync(join(module, "go.mod"), "utf8").match(
    new RegExp(`^\\s*${versionOf} (v\\S+)`, "m"),
  )?.[1];
  if (version === undefined) {
    throw new Error(`${module}/go.mod does not require ${versionOf}`);
  }
  const cache = join(
    process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"),
    "key4c-kms-plugin/e2e",
  );
  const directory = join(cache, `${name}-${version}-${hash.digest("hex").slice(0, 12)}`);
  if (existsSync(directory)) {
    return directory;
  }
  console.log(`building ${name} ${version} in ${cache}; this takes minutes, once`);
  mkdirSync(cache, { recursive: true });
  // Renamed when whole: an interrupted build must not look like a finished one.
  const scratch = mkdtempSync(join(cache, "building-"));
  const [ldflags, packages] = target(version);
  const child = Bun.spawn(
    ["go", "build", "-trimpath", "-ldflags", `-s -w ${ldflags}`, "-o", `${scratch}/`, ...packages],
    { cwd: module, env: { ...process.env, GOWORK: "off" }, stdout: "inherit", stderr: "inherit" },
  );
  if ((await child.exited) !== 0) {
    rmSync(scratch, { recursive: true });
    throw new Error(`go build of ${name} ${version} failed`);
  }
  if (existsSync(directory)) {
    rmSync(scratch, { recursive: true }); // somebody else was faster
  } else {
    renameSync(scratch, directory);
  }
  return directory;
}

if (import.meta.main) {
  console.log(await builtServers());
}
