import { createHash } from "node:crypto";
import { MAX_KEY_VERSION } from "./wrapping.ts";

/** Bytes of a key name hash: 128 bits make a collision between a user's keys unthinkable. */
export const KEY_NAME_HASH_BYTES = 16;

/** Separates this hash from any other use of SHA-256 over a key's ID. */
const HASH_DOMAIN = "key4c-kms-plugin/key-name/v1";

const BASE32_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567";
const KEY_ID_PATTERN = /^k4c-([a-z2-7]{26})(?:\.v([1-9][0-9]{0,9}))?$/;

/**
 * The first 16 bytes of `SHA-256(len(domain) || domain || len(id) || id)`, lengths as 4 bytes,
 * big-endian. Depends on nothing but the ID of the Key4C key, so every replica gets the same and a
 * re-issued KMS_USER_ID changes nothing. Frozen: etcd holds it.
 */
export function keyNameHash(kmsKeyId: string): Buffer {
  const hash = createHash("sha256");
  for (const part of [HASH_DOMAIN, kmsKeyId]) {
    const bytes = Buffer.from(part, "utf8");
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    hash.update(length).update(bytes);
  }
  return hash.digest().subarray(0, KEY_NAME_HASH_BYTES);
}

/**
 * The public key_id of KMS v2: `k4c-` || base32(hash) || `.v` || version; without the last two when
 * Key4C tells no version (0). KEP-3299 wants a name of the remote KEK that may be logged.
 */
export function formatKeyId(hash: Uint8Array, version: number): string {
  return `k4c-${base32(hash)}${version === 0 ? "" : `.v${version}`}`;
}

/** The parts of a key_id of ours, or undefined for any other text. */
export function parseKeyId(
  keyId: string,
): { readonly hashText: string; readonly version: number } | undefined {
  const match = KEY_ID_PATTERN.exec(keyId);
  const version = Number(match?.[2] ?? 0);
  return match?.[1] === undefined || version > MAX_KEY_VERSION
    ? undefined
    : { hashText: match[1], version };
}

/** Whether a key_id is one of a Key4C key, of whatever version. */
export function standsFor(keyId: string, kmsKeyId: string): boolean {
  return parseKeyId(keyId)?.hashText === base32(keyNameHash(kmsKeyId));
}

/** 16 bytes as 26 lower-case base32 digits without padding (RFC 4648 §6). */
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
