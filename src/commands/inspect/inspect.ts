import type { Keyring } from "../../keys/keyring.ts";
import { ExitError } from "../../system/errors.ts";
import { type EtcdValue, openObject, parseEtcdValue, secretAsJson } from "./etcd-value.ts";

/** A key and its value as they stand in etcd. */
export interface EtcdPair {
  readonly key: string;
  readonly value: Uint8Array;
}

/** One line of the report. */
export interface Inspected {
  readonly etcdKey: string;
  readonly provider: string;
  readonly api: "v1" | "v2" | "-";
  readonly keyId: string;
  readonly fingerprint: string;
  /** `current`, `stale`, `ours` (nobody told the current key_id), `foreign`, `plaintext`, `broken`. */
  readonly verdict: "current" | "stale" | "ours" | "foreign" | "plaintext" | "broken";
  readonly why?: string;
}

/** Reads `etcdctl get --prefix … -w json`. @throws ExitError 1 when it is something else */
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
  const kvs = (document as { kvs?: unknown } | null)?.kvs ?? [];
  if (
    typeof document !== "object" ||
    document === null ||
    Array.isArray(document) ||
    !Array.isArray(kvs)
  ) {
    throw wrong;
  }
  return kvs.map(({ key, value = "" }: { key?: unknown; value?: unknown }) => {
    if (typeof key !== "string" || typeof value !== "string") {
      throw wrong;
    }
    return { key: Buffer.from(key, "base64").toString(), value: Buffer.from(value, "base64") };
  });
}

/** @param current the key_id that Status tells; undefined when nobody told it */
export function inspect({ key, value }: EtcdPair, current: string | undefined): Inspected {
  const found = parseEtcdValue(value);
  const none = { etcdKey: key, api: "-", keyId: "-", fingerprint: "-" } as const;
  switch (found.kind) {
    case "ours": {
      const { api, provider, keyId, fingerprint } = found.object;
      const verdict = current === undefined ? "ours" : keyId === current ? "current" : "stale";
      return { etcdKey: key, provider, api, keyId, fingerprint, verdict };
    }
    case "foreign":
      return { ...none, provider: found.provider, verdict: "foreign", ...whyOf(found.why) };
    case "plaintext":
      return { ...none, provider: "-", verdict: "plaintext", why: "not encrypted" };
    case "broken":
      return { ...none, provider: "-", verdict: "broken", why: found.why };
  }
}

function whyOf(why: string | undefined) {
  return why === undefined ? {} : { why };
}

/** Tab-separated, with nothing in a field that could break the line. */
export function reportLine(one: Inspected): string {
  const { etcdKey, provider, api, keyId, fingerprint, verdict, why = "" } = one;
  return [etcdKey, provider, api, keyId, fingerprint, verdict, why]
    .map((field) => field.replace(/[^\x20-\x7e]/g, "?"))
    .join("\t");
}

/** What all lines say together, and what to do. */
export function summary(all: readonly Inspected[], current: string | undefined): string {
  const by = (name: (one: Inspected) => string) => {
    const counts = new Map<string, number>();
    for (const one of all) {
      counts.set(name(one), (counts.get(name(one)) ?? 0) + 1);
    }
    return [...counts].map(([key, count]) => `  ${count} ${key}`);
  };
  const ours = all.filter(({ fingerprint }) => fingerprint !== "-");
  const localKeks = new Set(ours.map(({ fingerprint }) => fingerprint)).size;
  const notCurrent = all.filter(({ verdict }) => verdict !== "current").length;
  const advice =
    current === undefined
      ? "the current key_id is not known: give --current, or --endpoint of a running plugin"
      : notCurrent === 0
        ? "everything is under the current key: nothing to do"
        : `${notCurrent} not under the current key: rewrite them (kubectl get -A -o json … | kubectl replace -f -) before a former key is disabled`;
  return [
    `${all.length} objects, ${localKeks} local KEKs, current key_id ${current ?? "unknown"}`,
    ...by(({ keyId, verdict }) => `${keyId === "-" ? "" : `${keyId} `}${verdict}`),
    advice,
    "",
  ].join("\n");
}

/** Break-glass: an object in clear, without an API server. @throws Error with a sentence */
export async function decryptValue({ key, value }: EtcdPair, keyring: Keyring): Promise<Buffer> {
  const found: EtcdValue = parseEtcdValue(value);
  if (found.kind !== "ours") {
    throw new Error(found.kind === "broken" ? found.why : `is ${found.kind}, nothing of ours`);
  }
  const { object } = found;
  const source = await keyring.unwrap(object.envelope);
  try {
    return openObject(object, source, key);
  } finally {
    source.fill(0);
  }
}

/** A decrypted object: JSON for a Secret, else what it is. */
export function showObject(object: Buffer): string | Buffer {
  const secret = secretAsJson(object);
  return secret === undefined ? object : `${JSON.stringify(secret)}\n`;
}
