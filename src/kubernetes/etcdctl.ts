import { ExitError } from "../system/errors.ts";
import { isObject, parsedJson } from "../system/json.ts";

export interface EtcdPair {
  readonly key: string;
  readonly value: Uint8Array;
}

/** Where kubeadm has etcd, and a client certificate for it. */
const OF_KUBEADM = {
  ETCDCTL_ENDPOINTS: "https://127.0.0.1:2379",
  ETCDCTL_CACERT: "/etc/kubernetes/pki/etcd/ca.crt",
  ETCDCTL_CERT: "/etc/kubernetes/pki/etcd/healthcheck-client.crt",
  ETCDCTL_KEY: "/etc/kubernetes/pki/etcd/healthcheck-client.key",
};

/**
 * The line whose output is wanted.
 * @param settings ETCDCTL_… of the settings file; without any those of kubeadm
 * @param isSet whether the environment has them, which etcdctl reads by itself
 */
export function etcdctlLine(settings: ReadonlyMap<string, string>, isSet: boolean): string {
  const found = [...settings].filter(([name]) => name.startsWith("ETCDCTL_"));
  const told = isSet ? [] : found.length > 0 ? found : Object.entries(OF_KUBEADM);
  const words = told.map(([name, value]) => `${name}=${value}`);
  return [...words, "etcdctl get --prefix /registry/secrets/ -w json"].join(" ");
}

/**
 * Reads `etcdctl get --prefix … -w json`.
 * @param wanted the line that gives it
 * @throws ExitError 1 when the input is something else, empty, or incomplete
 */
export function parseEtcdctlJson(text: string, wanted: string): EtcdPair[] {
  const what = text === "" ? "standard input is empty" : "the input is not etcd's";
  const wrong = new ExitError(
    1,
    `${what}. It must be what this prints, or one raw value with --etcd-key:\n  ${wanted}`,
  );
  const document = parsedJson(text);
  if (!isObject(document)) {
    throw wrong;
  }
  if ("kind" in document) {
    throw new ExitError(
      1,
      "the input is kubectl's, which the API server has decrypted: give what etcd stores, `etcdctl get --prefix … -w json`",
    );
  }
  const { kvs = [], count = 0, more = false } = document;
  if (!Array.isArray(kvs) || typeof count !== "number" || typeof more !== "boolean") {
    throw wrong;
  }
  if (more || count > kvs.length) {
    throw new ExitError(
      1,
      `the input is incomplete: ${kvs.length} of ${count} values. Run etcdctl without --limit and without --count-only`,
    );
  }
  if (kvs.length === 0) {
    throw new ExitError(
      1,
      "there is nothing in the input, which proves nothing. Is the prefix right? `etcdctl get --prefix /registry/ --keys-only --limit 5` shows what keys look like",
    );
  }
  if (count < kvs.length) {
    throw wrong;
  }
  return kvs.map(({ key, value = "" }: { key?: unknown; value?: unknown }) => {
    if (typeof key !== "string" || typeof value !== "string") {
      throw wrong;
    }
    return { key: Buffer.from(key, "base64").toString(), value: Buffer.from(value, "base64") };
  });
}
