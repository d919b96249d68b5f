/** Ciphertexts that a plugin has to decrypt, each group under a local KEK that it has never seen. */
import { randomBytes } from "node:crypto";
import { WRAPPED_KEK_ANNOTATION } from "../../src/keys/annotations.ts";
import { encodeEnvelope } from "../../src/keys/envelope.ts";
import { Keyring } from "../../src/keys/keyring.ts";
import { materialOf } from "../../src/keys/material.ts";
import { key4cClient, silentLog } from "../support.ts";

/** One DEK in the form of either API. */
export interface Wrapped {
  readonly dek: Buffer;
  readonly v1: { readonly cipher: Uint8Array };
  readonly v2: {
    readonly ciphertext: Uint8Array;
    readonly keyId: string;
    readonly annotations: Record<string, Uint8Array>;
  };
}

/** As another replica would have made them: each under a local KEK of its own. */
export async function wrapUnderNewKeks(emulatorUrl: string, count: number): Promise<Wrapped[]> {
  const service = key4cClient({ url: emulatorUrl });
  const keyring = new Keyring({
    service,
    configured: { kmsKeyId: () => "demo", previousIds: () => [] },
    limits: { outageGraceMs: undefined, revocationGraceMs: 60_000 },
    maxUses: 1,
    maxAgeMs: Number.MAX_SAFE_INTEGER,
    cacheSize: 0,
    log: silentLog,
  });
  const told = materialOf("demo", await service.describe("demo"));
  const made: Wrapped[] = [];
  while (made.length < count) {
    await keyring.keys.current.prober.make(told);
    const dek = randomBytes(32);
    const { envelope, keyId } = await keyring.wrap(dek);
    const annotation = Buffer.from(envelope.header.wrappedLocalKek);
    made.push({
      dek,
      v1: { cipher: encodeEnvelope(envelope, true) },
      v2: {
        ciphertext: encodeEnvelope(envelope, false),
        keyId,
        annotations: { [WRAPPED_KEK_ANNOTATION]: annotation },
      },
    });
  }
  return made;
}
