/** One etcd, and the very bytes it holds. */
import { BinaryReader } from "@bufbuild/protobuf/wire";
import { freePort } from "../ports.ts";
import { startProcess } from "../support.ts";
import type { Servers } from "./build.ts";
import { eventually, run } from "./process.ts";

export interface Etcd {
  readonly url: string;
  /** Values by key of all keys that begin with `prefix`. */
  values(prefix: string): Promise<Map<string, Buffer>>;
  /** What `etcdctl get --prefix PREFIX -w json` prints. */
  etcdctlJson(prefix: string): Promise<string>;
  snapshot(file: string): Promise<void>;
  stop(): Promise<unknown>;
}

export async function startEtcd(servers: Servers, dataDirectory: string): Promise<Etcd> {
  const url = `http://127.0.0.1:${freePort()}`;
  const peerUrl = `http://127.0.0.1:${freePort()}`;
  const etcd = startProcess([
    servers.etcd,
    ...["--name", "e2e", "--data-dir", dataDirectory, "--log-level", "warn"],
    ...["--listen-client-urls", url, "--advertise-client-urls", url],
    ...["--listen-peer-urls", peerUrl, "--initial-advertise-peer-urls", peerUrl],
    ...["--initial-cluster", `e2e=${peerUrl}`],
    "--unsafe-no-fsync", // no test here cuts the power, and disks of CI machines are slow
  ]);
  await eventually(
    "etcd is healthy",
    20_000,
    async () => (await fetch(`${url}/health`)).ok,
    etcd.output,
  );
  return {
    url,
    async values(prefix) {
      const end = Buffer.from(prefix);
      end[end.length - 1] = (end.at(-1) ?? 0) + 1; // etcd's way to say "all with this prefix"
      const response = await fetch(`${url}/v3/kv/range`, {
        method: "POST",
        body: JSON.stringify({ key: btoa(prefix), range_end: end.toString("base64") }),
      });
      const { kvs = [] } = (await response.json()) as { kvs?: { key: string; value: string }[] };
      return new Map(kvs.map(({ key, value }) => [atob(key), Buffer.from(value, "base64")]));
    },
    etcdctlJson(prefix) {
      return run([servers.etcdctl, "--endpoints", url, "get", "--prefix", prefix, "-w", "json"]);
    },
    async snapshot(file) {
      await run([servers.etcdctl, "--endpoints", url, "snapshot", "save", file]);
    },
    stop: () => etcd.stop(),
  };
}

export async function restoreSnapshot(
  servers: Servers,
  file: string,
  dataDirectory: string,
): Promise<void> {
  await run([servers.etcdutl, "snapshot", "restore", file, "--data-dir", dataDirectory]);
}

export const SECRETS_PREFIX = "/registry/secrets/";

/** The prefix by which kube-apiserver finds the provider, or `plain`; for v2 the key_id as well. */
export function storedUnder(value: Buffer): { provider: string; keyId?: string } {
  const provider = value.toString("latin1").match(/^k8s:enc:(?:kms:v[12]|aescbc:v1):[^:]+:/)?.[0];
  if (provider === undefined) {
    return { provider: "plain" };
  }
  if (!provider.startsWith("k8s:enc:kms:v2:")) {
    return { provider };
  }
  // Read by hand, not by the product's code, which must not vouch for itself.
  const reader = new BinaryReader(value.subarray(provider.length));
  while (reader.pos < reader.len) {
    const [field, wireType] = reader.tag();
    if (field === 2) {
      return { provider, keyId: reader.string() };
    }
    reader.skip(wireType);
  }
  throw new Error("an EncryptedObject without keyID");
}
