/** How a local KEK is made, and how Key4C proves that it would give it back. */
import { randomBytes } from "node:crypto";
import { PluginError, toPluginError } from "../failures/plugin-error.ts";
import { type KekHeader, kekHeader, LocalKek } from "./envelope.ts";
import { kcvHash, keyNameHash } from "./key-id.ts";
import { type CallOptions, LOCAL_KEK_BYTES, type WrappingService } from "./wrapping.ts";

/** Tells Key4C what it wraps; the key name hash follows. Frozen: data in etcd depend on it. */
const AAD_PURPOSE = Buffer.from("key4c-kms-plugin/local-kek/v1:", "latin1");

/** A local KEK, and the header by which Key4C gives it back. */
export interface ProvenKek {
  readonly header: KekHeader;
  readonly localKek: LocalKek;
}

/** What a new local KEK must be wrapped under. */
export interface Expected {
  /** undefined: any version, because describe tells none. */
  readonly version: number | undefined;
  /** Of the key check value. */
  readonly kcvHash: Uint8Array;
}

/** What describe told of a key, as what its next local KEK must be wrapped under. */
export function expectedOf(
  kmsKeyId: string,
  { version, kcv }: { readonly version: number | undefined; readonly kcv: string | undefined },
): Expected {
  return { version, kcvHash: kcvHash(kmsKeyId, kcv) };
}

/**
 * Makes a local KEK, has Key4C wrap it and give it back, each on a new connection: a kept one may lead to a replica that
 * no other process reaches, and what only that replica gives back is lost with this process.
 * @throws PluginError `olderVersion` when encrypt tells another version than is expected
 */
export async function makeLocalKek(
  service: WrappingService,
  kmsKeyId: string,
  expected: Expected,
): Promise<ProvenKek> {
  const hash = keyNameHash(kmsKeyId);
  const bytes = randomBytes(LOCAL_KEK_BYTES);
  try {
    const wrapped = await service.wrap(kmsKeyId, bytes, aadOf(hash), { newConnection: true });
    const version = wrapped.version ?? expected.version;
    if (expected.version !== undefined && version !== expected.version) {
      throw new PluginError(
        "olderVersion",
        `Key4C wraps under version ${version} of the key, but describe tells ${expected.version}`,
      );
    }
    const header = kekHeader({
      keyNameHash: hash,
      keyVersion: version ?? 0,
      kcvHash: expected.kcvHash,
      aadSent: wrapped.aadSent,
      wrappedLocalKek: wrapped.ciphertext,
    });
    const localKek = new LocalKek(Buffer.from(bytes));
    let isSame = false;
    try {
      isSame = await isGivenBack(service, kmsKeyId, { header, localKek });
    } finally {
      if (!isSame) {
        localKek.drop();
      }
    }
    if (!isSame) {
      throw new PluginError(
        "unavailable",
        "Key4C does not give back the local KEK that it has just wrapped",
      );
    }
    return { header, localKek };
  } finally {
    bytes.fill(0);
  }
}

/**
 * Whether Key4C gives back the same bytes, asked on a new connection. False when it calls the wrapped form invalid, or gives other bytes.
 * @throws PluginError when its answer says neither
 */
export async function isGivenBack(
  service: WrappingService,
  kmsKeyId: string,
  { header, localKek }: ProvenKek,
): Promise<boolean> {
  let bytes: Buffer;
  try {
    bytes = await unwrapLocalKek(service, kmsKeyId, header, { newConnection: true });
  } catch (error) {
    if (toPluginError(error).kind === "invalid") {
      return false;
    }
    throw error;
  }
  // One that was dropped meanwhile is wiped, so it cannot be compared.
  const isSame = localKek.isDropped || localKek.equals(bytes);
  bytes.fill(0);
  if (isSame) {
    localKek.isProven = true;
  }
  return isSame;
}

/** @returns {@link LOCAL_KEK_BYTES} bytes */
export function unwrapLocalKek(
  service: WrappingService,
  kmsKeyId: string,
  header: KekHeader,
  options: CallOptions,
): Promise<Buffer> {
  const aad = header.aadSent ? aadOf(header.keyNameHash) : undefined;
  return service.unwrap(kmsKeyId, header.wrappedLocalKek, aad, options);
}

function aadOf(keyNameHash: Uint8Array): Buffer {
  return Buffer.concat([AAD_PURPOSE, keyNameHash]);
}
