import { Keyring, type KeyringOptions } from "../../src/keys/keyring.ts";
import type { WrappedKek } from "../../src/keys/wrapping.ts";
import { PluginError } from "../../src/system/errors.ts";
import { silentLog } from "../support.ts";

/** A Key4C in the same process that can be made to misbehave in ways a real one hardly does. */
export class FakeKey4C {
  version: number | undefined = 1;
  /** Awaited by every call. */
  gate: Promise<unknown> = Promise.resolve();
  failure: PluginError | undefined;
  /** Names what was wrapped as the given one, counted from 0. */
  nameOf = (count: number) => `wrapped-${count}-v${this.version}`;
  mangle = (bytes: Buffer) => bytes;
  calls = { wrap: 0, unwrap: 0 };
  /** The very buffers that were given to wrap. */
  readonly given: Buffer[] = [];
  readonly #wrapped = new Map<string, { keyId: string; bytes: Buffer; aad: string | undefined }>();

  async wrap(keyId: string, localKek: Buffer, aad: Buffer): Promise<WrappedKek> {
    this.calls.wrap += 1;
    this.given.push(localKek);
    const bytes = Buffer.from(localKek);
    await this.#turn();
    const ciphertext = this.nameOf(this.#wrapped.size);
    this.#wrapped.set(ciphertext, { keyId, bytes, aad: aad.toString("hex") });
    return { ciphertext, version: this.version, aadSent: true };
  }

  async unwrap(keyId: string, ciphertext: string, aad: Buffer | undefined): Promise<Buffer> {
    this.calls.unwrap += 1;
    await this.#turn();
    const found = this.#wrapped.get(ciphertext);
    if (found?.keyId !== keyId || found.aad !== aad?.toString("hex")) {
      throw new PluginError("invalid", "fake: not wrapped here");
    }
    return this.mangle(Buffer.from(found.bytes));
  }

  async #turn(): Promise<void> {
    await this.gate;
    if (this.failure !== undefined) {
      throw this.failure;
    }
  }
}

/** A keyring that has no local KEK yet. */
export function keyring(key4c: FakeKey4C, options: Partial<KeyringOptions> = {}): Keyring {
  return new Keyring({
    key4c,
    kmsKeyId: "demo",
    previousKeyIds: [],
    maxUses: 2 ** 20,
    maxAgeMs: 7 * 24 * 3_600_000,
    cacheSize: 16,
    log: silentLog,
    ...options,
  });
}

/** One that has its first local KEK. */
export async function ready(
  key4c: FakeKey4C,
  options: Partial<KeyringOptions> = {},
): Promise<Keyring> {
  const ring = keyring(key4c, options);
  await ring.renew();
  return ring;
}
