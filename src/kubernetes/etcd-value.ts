import { createDecipheriv, createHmac } from "node:crypto";
import { fromBinary } from "@bufbuild/protobuf";
import {
  EncryptedObjectSchema,
  SecretSchema,
  UnknownSchema,
} from "../gen/kubernetes/storage/v1/storage_pb.ts";
import { wrappedKekOf } from "../keys/annotations.ts";
import { decodeEnvelope, type Envelope } from "../keys/envelope.ts";
import { formatKeyId } from "../keys/key-id.ts";
import { fingerprintOf } from "../keys/local-kek.ts";

const KMS_PREFIX = /^k8s:enc:kms:(v1|v2):([^:]*):/;
const ANY_PREFIX = /^k8s:enc:([a-z0-9]+:v\d+:[^:]*):/;
/** Longer prefixes do not exist. */
const MAX_PREFIX_BYTES = 512;
/** runtime.Unknown of k8s.io/apimachinery stands behind it. */
const PROTOBUF_MAGIC = Buffer.from("k8s\0", "latin1");

const IV_BYTES = 12;
const TAG_BYTES = 16;
const CBC_BLOCK_BYTES = 16;
/** aes_extended_nonce.go of k8s.io/apiserver: the first bytes of the data are the info of HKDF. */
const HKDF_INFO_BYTES = 32;
const SOURCE_IS_SEED = 1;

export type EtcdValue =
  | { readonly kind: "ours"; readonly object: OurObject }
  /** Encrypted by another provider or another KMS plugin. */
  | { readonly kind: "foreign"; readonly provider: string; readonly why?: string }
  | { readonly kind: "plaintext" }
  /** Encrypted, and nobody can read it. */
  | { readonly kind: "broken"; readonly why: string }
  /** Not something that kube-apiserver stores, so it says nothing about encryption. */
  | { readonly kind: "unknown"; readonly why: string };

/** An object whose DEK our plugin wrapped. */
export interface OurObject {
  readonly api: "v1" | "v2";
  /** The provider's name in the EncryptionConfiguration. */
  readonly provider: string;
  readonly keyId: string;
  /** First 8 bytes of the SHA-256 of the wrapped local KEK, in hexadecimal, as in the log. */
  readonly fingerprint: string;
  readonly envelope: Envelope;
  /** The object itself, encrypted under the DEK. */
  readonly data: Uint8Array;
  /** Whether the DEK source is a seed (KMS v2 from 1.28 on) and not a key. */
  readonly isSeed: boolean;
}

/** Reads a value as it stands in etcd. Never throws. */
export function parseEtcdValue(value: Uint8Array): EtcdValue {
  const head = Buffer.from(value.subarray(0, MAX_PREFIX_BYTES)).toString("latin1");
  const kms = KMS_PREFIX.exec(head);
  if (kms === null) {
    const other = ANY_PREFIX.exec(head)?.[1];
    if (other !== undefined) {
      return { kind: "foreign", provider: utf8Of(other) };
    }
    return head.startsWith("k8s:enc:")
      ? { kind: "broken", why: "the prefix is cut short" }
      : /^\s*\{/.test(head) || head.startsWith(PROTOBUF_MAGIC.toString("latin1"))
        ? { kind: "plaintext" }
        : { kind: "unknown", why: value.length === 0 ? "empty" : "no object of Kubernetes" };
  }
  const [prefix, api, name = ""] = kms;
  const provider = utf8Of(name);
  const rest = value.subarray(prefix.length);
  try {
    return {
      kind: "ours",
      object: api === "v1" ? parseV1(provider, rest) : parseV2(provider, rest),
    };
  } catch (error) {
    const why = (error as Error).message; // everything thrown below is an Error
    return error instanceof NotOurs
      ? { kind: "foreign", provider: `kms:${api}:${provider}`, why }
      : { kind: "broken", why };
  }
}

/** Of a text whose characters are bytes. */
function utf8Of(bytes: string): string {
  return Buffer.from(bytes, "latin1").toString("utf8");
}

/** A well-formed value of another KMS plugin. */
class NotOurs extends Error {}

/** `length of the wrapped DEK (2, big-endian) || wrapped DEK || data` */
function parseV1(provider: string, rest: Uint8Array): OurObject {
  const bytes = Buffer.from(rest);
  const length = bytes.length < 2 ? 0 : bytes.readUInt16BE();
  if (length === 0 || bytes.length < 2 + length) {
    throw new Error("the wrapped DEK is cut short");
  }
  const envelope = decodeOurs(bytes.subarray(2, 2 + length));
  return ourObject("v1", provider, envelope, bytes.subarray(2 + length), false);
}

function parseV2(provider: string, rest: Uint8Array): OurObject {
  let stored: ReturnType<typeof fromBinary<typeof EncryptedObjectSchema>>;
  try {
    stored = fromBinary(EncryptedObjectSchema, rest);
  } catch {
    throw new Error("not an EncryptedObject: cut short or damaged");
  }
  if (stored.encryptedDekSource.length === 0) {
    throw new Error("an EncryptedObject without a wrapped DEK");
  }
  let wrapped: string;
  try {
    wrapped = wrappedKekOf(stored.annotations);
  } catch {
    throw new NotOurs("its annotations are those of another plugin");
  }
  const envelope = decodeOurs(stored.encryptedDekSource, wrapped);
  const isSeed = stored.encryptedDekSourceType === SOURCE_IS_SEED;
  const object = ourObject("v2", provider, envelope, stored.encryptedData, isSeed);
  if (stored.keyId !== object.keyId) {
    throw new Error("key_id is not that of the wrapped DEK");
  }
  return object;
}

function decodeOurs(bytes: Uint8Array, wrapped?: string): Envelope {
  try {
    return decodeEnvelope(bytes, wrapped);
  } catch (error) {
    const message = (error as Error).message; // decodeEnvelope throws PluginErrors
    throw message.includes("unknown format") ? new NotOurs("not our format") : new Error(message);
  }
}

function ourObject(
  api: "v1" | "v2",
  provider: string,
  envelope: Envelope,
  data: Uint8Array,
  isSeed: boolean,
): OurObject {
  return {
    api,
    provider,
    keyId: formatKeyId(envelope.header),
    fingerprint: fingerprintOf(envelope),
    envelope,
    data,
    isSeed,
  };
}

/**
 * Decrypts an object under its DEK or seed, as kube-apiserver does: AES-GCM, or AES-CBC in values of KMS v1
 * up to 1.24.
 * @param etcdKey authenticated with the object
 * @throws Error when it does not open
 */
export function openObject(
  { api, data, isSeed }: OurObject,
  source: Buffer,
  etcdKey: string,
): Buffer {
  const info = data.subarray(0, isSeed ? HKDF_INFO_BYTES : 0);
  const sealed = data.subarray(info.length);
  // HKDF-Expand (RFC 5869 §2.3) for a first block of 32 bytes.
  const key = isSeed
    ? createHmac("sha256", source)
        .update(info)
        .update(Buffer.from([1]))
        .digest()
    : source;
  try {
    return openGcm(key, sealed, Buffer.from(etcdKey));
  } catch (error) {
    if (api === "v1") {
      return openCbc(key, sealed);
    }
    throw error;
  }
}

function openGcm(key: Buffer, sealed: Uint8Array, aad: Buffer): Buffer {
  if (sealed.length < IV_BYTES + TAG_BYTES) {
    throw new Error("the object is cut short");
  }
  const decipher = createDecipheriv(
    `aes-${key.length * 8}-gcm` as "aes-256-gcm",
    key,
    sealed.subarray(0, IV_BYTES),
  );
  decipher.setAAD(aad).setAuthTag(sealed.subarray(sealed.length - TAG_BYTES));
  const body = sealed.subarray(IV_BYTES, sealed.length - TAG_BYTES);
  try {
    return Buffer.concat([decipher.update(body), decipher.final()]);
  } catch {
    throw new Error("the object does not authenticate: wrong DEK, wrong etcd key, or damaged");
  }
}

/** Unauthenticated, so what comes out must at least look like an object. */
function openCbc(key: Buffer, sealed: Uint8Array): Buffer {
  try {
    const iv = sealed.subarray(0, CBC_BLOCK_BYTES);
    const decipher = createDecipheriv(`aes-${key.length * 8}-cbc`, key, iv);
    const body = sealed.subarray(CBC_BLOCK_BYTES);
    const opened = Buffer.concat([decipher.update(body), decipher.final()]);
    if (opened.subarray(0, 4).equals(PROTOBUF_MAGIC) || opened[0] === "{".charCodeAt(0)) {
      return opened;
    }
  } catch {
    // Wrong padding: the error below covers it.
  }
  throw new Error("the object does not open: wrong DEK, wrong etcd key, or damaged");
}

/** A Secret as kubectl takes it; undefined for any other object. */
export function secretAsJson(object: Buffer): object | undefined {
  if (!object.subarray(0, PROTOBUF_MAGIC.length).equals(PROTOBUF_MAGIC)) {
    return undefined;
  }
  try {
    const { typeMeta, raw } = fromBinary(UnknownSchema, object.subarray(PROTOBUF_MAGIC.length));
    if (typeMeta?.kind !== "Secret" || typeMeta.apiVersion !== "v1") {
      return undefined;
    }
    const { metadata, data, type, immutable } = fromBinary(SecretSchema, raw);
    const { name = "", namespace = "", labels = {}, annotations = {} } = metadata ?? {};
    const encoded = Object.entries(data).map(([key, value]) => [
      key,
      Buffer.from(value).toString("base64"),
    ]);
    return {
      apiVersion: "v1",
      kind: "Secret",
      metadata: { name, namespace, labels, annotations },
      type,
      ...(immutable !== undefined && { immutable }),
      data: Object.fromEntries(encoded),
    };
  } catch {
    return undefined;
  }
}
