/** How a local KEK is made, and how Key4C proves that it would unwrap it again. */
import { randomBytes } from "node:crypto";
import { PluginError, toPluginError } from "../failures/plugin-error.ts";
import { type KekHeader, kekHeader, LocalKek } from "./envelope.ts";
import type { Kept } from "./kek-cache.ts";
import { keyNameHash } from "./key-id.ts";
import { isSameMaterial, type Material, materialOf } from "./material.ts";
import { type CallOptions, LOCAL_KEK_BYTES, type WrappingService } from "./wrapping.ts";

/** Tells Key4C what it wraps; the key name hash follows. Frozen: data in etcd depend on it. */
const AAD_PURPOSE = Buffer.from("key4c-kms-plugin/local-kek/v1:", "latin1");

/** Whatever proves something is asked on a connection of its own: a kept one may lead to a replica that no other process reaches. */
const NEW_CONNECTION: CallOptions = { newConnection: true };

/** Key4C does not unwrap what it has just wrapped: what it calls invalid now may not be. */
export class NotUnwrapped extends PluginError {
  constructor() {
    super("unavailable", "Key4C does not unwrap the local KEK that it has just wrapped");
  }
}

/**
 * Makes a local KEK, has Key4C wrap it and unwrap it again. What only a kept connection's replica can unwrap would be
 * lost with this process.
 * @param told what describe told before; the result is under this material
 * @throws NotUnwrapped
 * @throws PluginError `olderVersion` when encrypt tells another version
 */
export async function makeLocalKek(
  service: WrappingService,
  kmsKeyId: string,
  told: Material,
): Promise<Kept> {
  const hash = keyNameHash(kmsKeyId);
  const bytes = randomBytes(LOCAL_KEK_BYTES);
  try {
    const wrapped = await service.wrap(kmsKeyId, bytes, aadOf(hash), NEW_CONNECTION);
    const tellsMaterial = told.version !== undefined || told.kcvHash.length > 0;
    if (wrapped.version === undefined && tellsMaterial) {
      // When only describe tells the material, it is certain if it is the same before and after the wrap.
      const after = materialOf(kmsKeyId, await service.describe(kmsKeyId, NEW_CONNECTION));
      if (!isSameMaterial(told, after)) {
        throw new PluginError("unavailable", "the key was rotated while it wrapped a local KEK");
      }
    }
    const version = wrapped.version ?? told.version;
    if (told.version !== undefined && version !== told.version) {
      throw new PluginError(
        "olderVersion",
        `Key4C wraps under version ${version} of the key, but describe tells ${told.version}`,
      );
    }
    const header = kekHeader({
      keyNameHash: hash,
      keyVersion: version ?? 0,
      kcvHash: told.kcvHash,
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
      throw new NotUnwrapped();
    }
    return { header, localKek };
  } finally {
    bytes.fill(0);
  }
}

/**
 * Whether Key4C unwraps a local KEK to the same bytes, asked on a new connection. False when it calls the wrapped form
 * invalid, or gives other bytes.
 * @throws PluginError when its answer says neither
 */
export async function isGivenBack(
  service: WrappingService,
  kmsKeyId: string,
  { header, localKek }: Kept,
): Promise<boolean> {
  let bytes: Buffer;
  try {
    bytes = await unwrapLocalKek(service, kmsKeyId, header, NEW_CONNECTION);
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

/** What logs call a local KEK: 16 hexadecimal digits of the hash of its wrapped form, as `inspect` shows them. */
export function fingerprintOf({ header }: { readonly header: KekHeader }): string {
  return Buffer.from(header.fingerprint).toString("hex").slice(0, 16);
}
