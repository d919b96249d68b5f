import { PluginError } from "../../src/failures/plugin-error.ts";
import { Health } from "../../src/health/health.ts";
import type { KeyDescription } from "../../src/key4c/client.ts";
import type { Snapshot } from "../../src/keys/held.ts";
import { kcvHash } from "../../src/keys/key-id.ts";
import { KeySet } from "../../src/keys/key-set.ts";
import { Keyring, type KeyringOptions } from "../../src/keys/keyring.ts";
import { type Limits, Standings } from "../../src/keys/standing.ts";
import type { CallOptions, WrappedKek, WrappingService } from "../../src/keys/wrapping.ts";
import { TestClock } from "../clock.ts";
import { onTestEnd, recordingLog, silentLog } from "../support.ts";

/** A Key4C in the same process that can be made to misbehave in ways a real one hardly does. */
export class FakeKey4C implements WrappingService {
  version: number | undefined = 1;
  /** What describe tells of the version, if it differs from what encrypt uses. */
  told = (): number | undefined => this.version;
  kcv: string | undefined;
  /** Awaited by every call. */
  gate: Promise<unknown> = Promise.resolve();
  /** Awaited by every call too: how long it takes. */
  pace = (): Promise<unknown> => Promise.resolve();
  failure: PluginError | undefined;
  /** Names what was wrapped as the given one, counted from 0. */
  nameOf = (count: number) => `wrapped-${count}-v${this.version}`;
  mangle = (bytes: Buffer) => bytes;
  /** Whether it still knows what it wrapped: other key material does not. */
  knows = (_ciphertext: string) => true;
  calls = { describe: 0, wrap: 0, unwrap: 0 };
  /** The very buffers that were given to wrap. */
  readonly given: Buffer[] = [];
  /** The options of each unwrap. */
  readonly unwraps: CallOptions[] = [];
  readonly #wrapped = new Map<string, { keyId: string; bytes: Buffer; aad: string | undefined }>();

  async describe(_keyId: string, _options: CallOptions = {}): Promise<KeyDescription> {
    this.calls.describe += 1;
    await this.#turn();
    return { version: this.told(), kcv: this.kcv, algorithm: undefined };
  }

  async wrap(keyId: string, localKek: Buffer, aad: Buffer): Promise<WrappedKek> {
    this.calls.wrap += 1;
    this.given.push(localKek);
    const bytes = Buffer.from(localKek);
    await this.#turn();
    const { version } = this;
    const ciphertext = this.nameOf(this.#wrapped.size);
    this.#wrapped.set(ciphertext, { keyId, bytes, aad: aad.toString("hex") });
    return { ciphertext, version, aadSent: true };
  }

  async unwrap(
    keyId: string,
    ciphertext: string,
    aad: Buffer | undefined,
    options: CallOptions = {},
  ): Promise<Buffer> {
    this.calls.unwrap += 1;
    this.unwraps.push(options);
    await this.#turn();
    const found = this.#wrapped.get(ciphertext);
    if (found?.keyId !== keyId || found.aad !== aad?.toString("hex") || !this.knows(ciphertext)) {
      throw new PluginError("invalid", "fake: not wrapped here", { isVerdict: true });
    }
    return this.mangle(Buffer.from(found.bytes));
  }

  /** From now on other key material stands behind the key. @returns what brings the former back */
  replaceMaterial(): () => void {
    const lost = new Set(this.#wrapped.keys());
    const { knows } = this;
    this.knows = (ciphertext) => !lost.has(ciphertext) && knows(ciphertext);
    return () => {
      this.knows = knows;
    };
  }

  async #turn(): Promise<void> {
    await this.gate;
    await this.pace();
    if (this.failure !== undefined) {
      throw this.failure;
    }
  }
}

export interface RingOptions
  extends Partial<Omit<KeyringOptions, "service" | "keys" | "standings">>,
    Partial<Limits> {
  readonly kmsKeyId?: string;
  readonly previousKeyIds?: readonly string[];
  /** Instead of the two above. */
  readonly keys?: KeySet;
}

/** A keyring that has no local KEK yet, and what it consults. */
export function ringParts(key4c: WrappingService, options: RingOptions = {}) {
  const {
    kmsKeyId = "demo",
    previousKeyIds = [],
    outageGraceMs,
    revocationGraceMs = 60_000,
    keys = new KeySet(
      () => kmsKeyId,
      () => previousKeyIds,
    ),
    ...rest
  } = options;
  const standings = new Standings({ outageGraceMs, revocationGraceMs }, options.clock);
  const ring = new Keyring({
    service: key4c,
    keys,
    standings,
    maxUses: 2 ** 20,
    maxAgeMs: 7 * 24 * 3_600_000,
    cacheSize: 16,
    log: silentLog,
    ...rest,
  });
  return { ring, keys, standings, standing: standings.of(keys.currentId) };
}

export type RingParts = ReturnType<typeof ringParts>;

/** The keyring alone. */
export function keyring(key4c: WrappingService, options: RingOptions = {}): Keyring {
  return ringParts(key4c, options).ring;
}

/** What describe tells is what a new local KEK must be wrapped under, as the probe wants it. */
export function adopt(ring: Keyring, key4c: FakeKey4C, kmsKeyId = "demo"): Promise<Snapshot> {
  const expected = { version: key4c.told(), kcvHash: kcvHash(kmsKeyId, key4c.kcv) };
  return ring.adopt(kmsKeyId, expected);
}

/** One that has its first local KEK. */
export async function readyParts(key4c: FakeKey4C, options: RingOptions = {}): Promise<RingParts> {
  const parts = ringParts(key4c, options);
  await adopt(parts.ring, key4c, parts.keys.configuredId);
  return parts;
}

/** The keyring alone. */
export async function ready(key4c: FakeKey4C, options: RingOptions = {}): Promise<Keyring> {
  return (await readyParts(key4c, options)).ring;
}

/** What the contract says of a key. */
export function verdict(kind: "keyUnusable" | "keyNotFound"): PluginError {
  return new PluginError(kind, "fake", { isVerdict: true });
}

/** Key4C says that a key is disabled, for as long as KMS_REVOCATION_GRACE 0s needs. */
export function revoke({ ring, standings }: RingParts, kmsKeyId: string): void {
  standings.of(kmsKeyId).hear(verdict("keyUnusable"));
  ring.revoke(kmsKeyId);
}

/** Keyring and probes, as `serve` joins them, in the test's time; the probes have not begun. */
export function plugin(
  key4c: FakeKey4C,
  { intervalMs = 30_000, ...options }: RingOptions & { readonly intervalMs?: number } = {},
) {
  const clock = new TestClock();
  const { log, lines } = recordingLog();
  const parts = ringParts(key4c, { clock, log, ...options });
  const { ring: keyring, keys, standings } = parts;
  const health = new Health({ key4c, keyring, keys, standings, intervalMs, log, clock });
  onTestEnd(() => health.stop());
  return { ...parts, health, clock, lines };
}
