import { ExitError } from "../system/errors.ts";

/** A key and its value as they stand in etcd. */
export interface EtcdPair {
  readonly key: string;
  readonly value: Uint8Array;
}

/**
 * Reads `etcdctl get --prefix … -w json`.
 * @throws ExitError 1 when the input is something else, empty, or incomplete
 */
export function parseEtcdctlJson(text: string): EtcdPair[] {
  const wrong = new ExitError(
    1,
    "input must be the output of `etcdctl get --prefix … -w json`, or one raw value with --etcd-key",
  );
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch {
    throw wrong;
  }
  if (typeof document !== "object" || document === null || Array.isArray(document)) {
    throw wrong;
  }
  if ("kind" in document) {
    throw new ExitError(
      1,
      "the input is kubectl's, which the API server has decrypted: give what etcd stores, `etcdctl get --prefix … -w json`",
    );
  }
  const { kvs = [], count = 0, more = false } = document as Readonly<Record<string, unknown>>; // an object
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
