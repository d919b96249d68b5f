import type { Keyring } from "../../keys/keyring.ts";
import { type EtcdValue, openObject, parseEtcdValue } from "../../kubernetes/etcd-value.ts";
import type { EtcdPair } from "../../kubernetes/etcdctl.ts";
import { printable } from "../printable.ts";

export type Verdict =
  /** Under the key_id that counts as current. */
  | "current"
  /** Ours, under another key_id. */
  | "stale"
  /** Ours; the current key_id is not known. */
  | "ours"
  /** Of another provider or plugin. */
  | "foreign"
  | "plaintext"
  /** Encrypted, and nobody can read it. */
  | "broken"
  /** Not a Kubernetes object. */
  | "unknown";

export interface Inspected {
  readonly etcdKey: string;
  readonly provider: string;
  readonly api: "v1" | "v2" | "-";
  readonly keyId: string;
  readonly fingerprint: string;
  readonly verdict: Verdict;
  readonly why?: string | undefined;
}

/** @param current the key_id from Status; undefined when it is not known */
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
      return { ...none, provider: found.provider, verdict: "foreign", why: found.why };
    case "plaintext":
      return { ...none, provider: "-", verdict: "plaintext", why: "not encrypted" };
    case "broken":
    case "unknown":
      return { ...none, provider: "-", verdict: found.kind, why: found.why };
  }
}

/** Tab-separated, with nothing in a field that could break the line. */
export function reportLine(one: Inspected): string {
  const { etcdKey, provider, api, keyId, fingerprint, verdict, why = "" } = one;
  return [etcdKey, provider, api, keyId, fingerprint, verdict, why].map(printable).join("\t");
}

/** Break-glass: an object in clear, without an API server. @throws Error with a sentence */
export async function decryptValue({ key, value }: EtcdPair, keyring: Keyring): Promise<Buffer> {
  const found: EtcdValue = parseEtcdValue(value);
  if (found.kind !== "ours") {
    throw new Error("why" in found && found.why ? found.why : `is ${found.kind}, nothing of ours`);
  }
  const { object } = found;
  const source = await keyring.unwrap(object.envelope);
  try {
    return openObject(object, source, key);
  } finally {
    source.fill(0);
  }
}
