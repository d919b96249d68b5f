/**
 * The two forms of a file, one for each Key4C key:
 *
 * `magic (4) || form (1) || length of head (4, big-endian) || head || rest`
 *
 * where the rest is `body || SHA-256 of all before (32)` in the clear form, which is for memory (tmpfs) alone; and
 * `salt (32) || IV (12) || encrypted body || tag (16)` in the sealed form: AES-256-GCM under HKDF-SHA-256 (RFC 5869) of
 * the sealing key, with all that stands before the encrypted body as AAD. Head and body are protobuf (cache.proto).
 */
import { createCipheriv, createDecipheriv, createHash, hkdfSync, randomBytes } from "node:crypto";
import {
  create,
  type DescMessage,
  fromBinary,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { BodySchema, HeadSchema } from "../gen/key4c/cache/v1/cache_pb.ts";
import { type KekHeader, kekHeader } from "../keys/envelope.ts";
import { KCV_HASH_BYTES } from "../keys/key-id.ts";
import { LOCAL_KEK_BYTES, MAX_WRAPPED_KEK_BYTES } from "../keys/wrapping.ts";
import type { Moment } from "./age.ts";

const MAGIC = Buffer.from("k4cc", "latin1");
const CLEAR = 1;
const SEALED = 2;
const LENGTH_BYTES = 4;
const HEAD_AT = MAGIC.length + 1 + LENGTH_BYTES;
const DIGEST_BYTES = 32;
const SALT_BYTES = 32;
/** The only IV length that GCM uses as it is (NIST SP 800-38D §8.2). */
const IV_BYTES = 12;
const TAG_BYTES = 16;
/** Separates the derived key from any other use of the same sealing key (RFC 5869 §3.2). */
const HKDF_INFO = "key4c-kms-plugin/cache/v1";
/** 16,384 local KEKs as a usual HSM wraps them take 3 MiB; larger wraps are kept as far as there is room. */
export const MAX_CACHE_FILE_BYTES = 16 * 1024 * 1024;
/** A file is counted in these: what a process uses beyond one, it charges in time. */
export const USES_PER_BLOCK = 2 ** 20;

export interface StoredKek {
  readonly header: KekHeader;
  /** 32 bytes; whoever has them wipes them. */
  readonly bytes: Buffer;
  readonly isCurrent: boolean;
  readonly isCanary: boolean;
}

export interface StoredKey {
  /** 16 bytes. */
  readonly keyNameHash: Uint8Array;
  /** When Key4C last unwrapped local KEKs of this key. */
  readonly confirmed: Moment;
  /** Those that matter most first: where there is no room, the last ones are left out. */
  readonly keks: readonly StoredKek[];
  /** Blocks of uses that the current local KEK may have had, in all processes; 0 without one. */
  readonly chargedBlocks: number;
}

/** What anybody may know of a file. */
export type StoredHead = Pick<StoredKey, "keyNameHash" | "confirmed"> & {
  readonly kekCount: number;
};

/** @param sealingKey at least 32 bytes; undefined: the clear form */
export function encodeStored(stored: StoredKey, sealingKey: Uint8Array | undefined): Buffer {
  const keks = whatFits(stored.keks);
  const { wallMs, bootId, bootMs } = stored.confirmed;
  const head = toBinary(
    HeadSchema,
    create(HeadSchema, {
      keyNameHash: stored.keyNameHash,
      localKekCount: keks.length,
      confirmed: { wallMs: whole(wallMs), bootId, bootMs: whole(bootMs) },
    }),
  );
  const body = toBinary(
    BodySchema,
    create(BodySchema, {
      chargedBlocks: stored.chargedBlocks,
      localKeks: keks.map(({ header, bytes, isCurrent, isCanary }) => {
        const { keyVersion, aadSent, wrappedLocalKek, kcvHash } = header;
        return { keyVersion, aadSent, wrappedLocalKek, kcvHash, key: bytes, isCurrent, isCanary };
      }),
    }),
  );
  const start = Buffer.alloc(HEAD_AT);
  MAGIC.copy(start);
  start.writeUInt8(sealingKey === undefined ? CLEAR : SEALED, MAGIC.length);
  start.writeUInt32BE(head.length, MAGIC.length + 1);
  try {
    return sealingKey === undefined
      ? cleared(start, head, body)
      : sealed(start, head, body, sealingKey);
  } finally {
    body.fill(0);
  }
}

function whole(ms: number): bigint {
  return BigInt(Math.max(0, Math.round(ms)));
}

function whatFits(keks: readonly StoredKek[]): readonly StoredKek[] {
  const FIELDS_BYTES = 128; // the key, the hash and the tags of the fields take fewer
  let left = MAX_CACHE_FILE_BYTES - 2 * FIELDS_BYTES - SALT_BYTES - IV_BYTES - TAG_BYTES;
  const end = keks.findIndex(({ header }) => {
    left -= Buffer.byteLength(header.wrappedLocalKek) + FIELDS_BYTES;
    return left < 0;
  });
  return end < 0 ? keks : keks.slice(0, end);
}

function cleared(...parts: readonly Uint8Array[]): Buffer {
  const hash = createHash("sha256");
  for (const part of parts) {
    hash.update(part);
  }
  return Buffer.concat([...parts, hash.digest()]);
}

function sealed(start: Buffer, head: Uint8Array, body: Uint8Array, sealingKey: Uint8Array): Buffer {
  const salt = randomBytes(SALT_BYTES);
  const iv = randomBytes(IV_BYTES);
  const aad = Buffer.concat([start, head, salt, iv]);
  const cipher = createCipheriv("aes-256-gcm", derivedKey(sealingKey, salt), iv).setAAD(aad);
  return Buffer.concat([aad, cipher.update(body), cipher.final(), cipher.getAuthTag()]);
}

function derivedKey(sealingKey: Uint8Array, salt: Uint8Array): Uint8Array {
  return new Uint8Array(hkdfSync("sha256", sealingKey, salt, HKDF_INFO, 32));
}

/** What a file tells without the sealing key, unverified. @throws Error that completes "FILE …" */
export function decodeHead(bytes: Buffer): StoredHead {
  return headOf(split(bytes).head);
}

/**
 * The reverse of {@link encodeStored}. Wipes what it was given in the clear.
 * @param keyNameHash of the key whose file it is to be
 * @param bootId of now: what is in the clear form ends with its boot, wherever somebody copied it
 * @throws Error that completes "FILE …"; never with anything of the content
 */
export function decodeStored(
  bytes: Buffer,
  keyNameHash: Uint8Array,
  sealingKey: Uint8Array | undefined,
  bootId: string,
): StoredKey {
  const { form, head, restAt } = split(bytes);
  if ((form === SEALED) !== (sealingKey !== undefined)) {
    throw new Error(
      form === SEALED
        ? "is sealed, and there is no KMS_PERSISTENT_CACHE_KEY_FILE"
        : "is not sealed, and with KMS_PERSISTENT_CACHE_KEY_FILE it must be",
    );
  }
  const body =
    sealingKey === undefined ? checked(bytes, restAt) : opened(bytes, restAt, sealingKey);
  try {
    const { confirmed, keyNameHash: hash } = headOf(head);
    if (Buffer.compare(hash, keyNameHash) !== 0) {
      throw new Error("belongs to another key");
    }
    if (form === CLEAR && confirmed.bootId !== bootId) {
      throw new Error("is of an earlier boot");
    }
    return { keyNameHash, confirmed, ...bodyOf(body, keyNameHash) };
  } finally {
    body.fill(0);
  }
}

function split(bytes: Buffer) {
  const form = bytes[MAGIC.length];
  if (bytes.length < HEAD_AT || !MAGIC.equals(bytes.subarray(0, MAGIC.length))) {
    throw new Error("is no file of this plugin, or a part of one");
  }
  if (form !== CLEAR && form !== SEALED) {
    throw new Error(`has the form ${form}, which this release does not know`);
  }
  const restAt = HEAD_AT + bytes.readUInt32BE(MAGIC.length + 1);
  const minimum = form === CLEAR ? DIGEST_BYTES : SALT_BYTES + IV_BYTES + TAG_BYTES;
  if (bytes.length < restAt + minimum) {
    throw new Error("is a part of a file");
  }
  return { form, head: bytes.subarray(HEAD_AT, restAt), restAt };
}

function headOf(head: Uint8Array): StoredHead {
  const { keyNameHash, localKekCount, confirmed } = decoded(HeadSchema, head);
  if (confirmed === undefined) {
    throw new Error("is damaged");
  }
  const { wallMs, bootId, bootMs } = confirmed;
  return {
    keyNameHash,
    kekCount: localKekCount,
    confirmed: { wallMs: Number(wallMs), bootId, bootMs: Number(bootMs) },
  };
}

function checked(bytes: Buffer, bodyAt: number): Buffer {
  const digestAt = bytes.length - DIGEST_BYTES;
  const digest = createHash("sha256").update(bytes.subarray(0, digestAt)).digest();
  if (!digest.equals(bytes.subarray(digestAt))) {
    throw new Error("is damaged");
  }
  return bytes.subarray(bodyAt, digestAt);
}

function opened(bytes: Buffer, restAt: number, sealingKey: Uint8Array): Buffer {
  const ivAt = restAt + SALT_BYTES;
  const bodyAt = ivAt + IV_BYTES;
  const tagAt = bytes.length - TAG_BYTES;
  const key = derivedKey(sealingKey, bytes.subarray(restAt, ivAt));
  const decipher = createDecipheriv("aes-256-gcm", key, bytes.subarray(ivAt, bodyAt), {
    authTagLength: TAG_BYTES,
  });
  decipher.setAAD(bytes.subarray(0, bodyAt)).setAuthTag(bytes.subarray(tagAt));
  const body = decipher.update(bytes.subarray(bodyAt, tagAt));
  try {
    decipher.final();
  } catch {
    body.fill(0);
    throw new Error("is damaged, or sealed under another key");
  }
  return body;
}

/** Copies, so that the whole can be wiped. */
function bodyOf(
  body: Uint8Array,
  keyNameHash: Uint8Array,
): Pick<StoredKey, "keks" | "chargedBlocks"> {
  const { localKeks, chargedBlocks } = decoded(BodySchema, body);
  const keks = localKeks.map(({ key, kcvHash, isCurrent, isCanary, ...fields }): StoredKek => {
    const { keyVersion, aadSent, wrappedLocalKek } = fields;
    const isWell =
      key.length === LOCAL_KEK_BYTES &&
      [0, KCV_HASH_BYTES].includes(kcvHash.length) &&
      wrappedLocalKek.length > 0 &&
      Buffer.byteLength(wrappedLocalKek) <= MAX_WRAPPED_KEK_BYTES;
    if (!isWell) {
      throw new Error("is damaged");
    }
    const header = {
      keyNameHash,
      keyVersion,
      aadSent,
      wrappedLocalKek,
      kcvHash: Buffer.from(kcvHash),
    };
    return { header: kekHeader(header), bytes: Buffer.from(key), isCurrent, isCanary };
  });
  return { keks, chargedBlocks };
}

function decoded<T extends DescMessage>(schema: T, bytes: Uint8Array): MessageShape<T> {
  try {
    return fromBinary(schema, bytes);
  } catch {
    throw new Error("is damaged");
  }
}
