import { createHash } from "node:crypto";
import { oncePer } from "../system/once-per.ts";
import { MAX_KEY_VERSION } from "./wrapping.ts";

/** Bytes of a key name hash: 128 bits make a collision between a user's keys unthinkable. */
export const KEY_NAME_HASH_BYTES = 16;

/** 40 bits: enough to tell the few key materials that one key ever has, short in a key_id. */
export const KCV_HASH_BYTES = 5;
export const NO_KCV = new Uint8Array(0);

/** Separate these hashes from any other use of SHA-256 over a key's ID. */
const NAME_DOMAIN = "key4c-kms-plugin/key-name/v1";
const KCV_DOMAIN = "key4c-kms-plugin/kcv/v1";

const BASE32_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567";
const KEY_ID_PATTERN = /^k4c-([a-z2-7]{26})(?:\.v([1-9][0-9]{0,9}))?(?:\.k([a-z2-7]{8}))?$/;

/** What a key_id stands for. */
export interface KeyIdentity {
  /** {@link KEY_NAME_HASH_BYTES} bytes. */
  readonly keyNameHash: Uint8Array;
  /** 0 when Key4C tells no version. */
  readonly keyVersion: number;
  /** {@link KCV_HASH_BYTES} bytes; empty when Key4C tells no key check value. */
  readonly kcvHash: Uint8Array;
}

/**
 * The first 16 bytes of `SHA-256(len(domain) || domain || len(id) || id)`, lengths as 4 bytes,
 * big-endian. Depends on nothing but the ID of the Key4C key, so every replica gets the same and a
 * re-issued KMS_USER_ID changes nothing. Frozen: etcd holds it.
 */
export function keyNameHash(kmsKeyId: string): Buffer {
  return hashOf(NAME_DOMAIN, kmsKeyId).subarray(0, KEY_NAME_HASH_BYTES);
}

/**
 * The first 5 bytes of `SHA-256(len(domain) || domain || len(id) || id || len(kcv) || kcv)`: changes when other key
 * material stands behind the same key and version, as after a restore of an HSM. Frozen: etcd holds it.
 * @param kcv the key check value in upper-case hexadecimal digits; undefined: none is told
 */
export function kcvHash(kmsKeyId: string, kcv: string | undefined): Uint8Array {
  return kcv === undefined ? NO_KCV : hashOf(KCV_DOMAIN, kmsKeyId, kcv).subarray(0, KCV_HASH_BYTES);
}

function hashOf(...parts: readonly string[]): Buffer {
  const hash = createHash("sha256");
  for (const part of parts) {
    const bytes = Buffer.from(part, "utf8");
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    hash.update(length).update(bytes);
  }
  return hash.digest();
}

/**
 * The public key_id of KMS v2: `k4c-` || base32(key name hash) || `.v` || version || `.k` || base32(kcv hash), without
 * what Key4C does not tell. KEP-3299 wants a name of the remote KEK that may be logged.
 */
export const formatKeyId = oncePer(({ keyNameHash, keyVersion, kcvHash }: KeyIdentity): string => {
  const version = keyVersion === 0 ? "" : `.v${keyVersion}`;
  return `k4c-${base32(keyNameHash)}${version}${kcvHash.length === 0 ? "" : `.k${base32(kcvHash)}`}`;
});

/** The parts of a key_id that this plugin made; undefined for any other text. */
export function parseKeyId(
  keyId: string,
): { readonly hashText: string; readonly version: number; readonly kcvText: string } | undefined {
  const match = KEY_ID_PATTERN.exec(keyId);
  const version = Number(match?.[2] ?? 0);
  return match?.[1] === undefined || version > MAX_KEY_VERSION
    ? undefined
    : { hashText: match[1], version, kcvText: match[3] ?? "" };
}

/** Whether a key_id is one of a Key4C key, of whatever version. */
export function standsFor(keyId: string, kmsKeyId: string): boolean {
  return parseKeyId(keyId)?.hashText === base32(keyNameHash(kmsKeyId));
}

/** Lower-case base32 digits without padding (RFC 4648 §6): 26 for 16 bytes, 8 for 5. */
export function base32(hash: Uint8Array): string {
  let text = "";
  let value = 0;
  let bits = 0; // of value that are not in text yet
  for (const byte of hash) {
    value = (value << 8) | byte;
    for (bits += 8; bits >= 5; ) {
      bits -= 5;
      text += BASE32_ALPHABET.charAt((value >>> bits) & 31);
    }
    value &= (1 << bits) - 1;
  }
  return bits === 0 ? text : text + BASE32_ALPHABET.charAt((value << (5 - bits)) & 31);
}
