import { PluginError } from "../../src/failures/plugin-error.ts";
import { Health } from "../../src/health/health.ts";
import type { Envelope } from "../../src/keys/envelope.ts";
import type { Snapshot } from "../../src/keys/holdings.ts";
import type { Kept } from "../../src/keys/kek-cache.ts";
import type { Key } from "../../src/keys/key.ts";
import type { Limits } from "../../src/keys/key-health.ts";
import { kcvHash } from "../../src/keys/key-id.ts";
import type { ConfiguredKeys, Member } from "../../src/keys/key-set.ts";
import { Keyring, type KeyringOptions, type Wrapped } from "../../src/keys/keyring.ts";
import { isGivenBack } from "../../src/keys/local-kek.ts";
import type { Caller } from "../../src/keys/unwraps.ts";
import type {
  CallOptions,
  KeyDescription,
  WrappedKek,
  WrappingService,
} from "../../src/keys/wrapping.ts";
import { TestClock } from "../clock.ts";
import { onTestEnd, recordingLog, silentLog } from "../support.ts";

type Operation = "describe" | "wrap" | "unwrap";

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
  /** Rights and faults by operation and key. */
  trouble = (_operation: Operation, _keyId: string): PluginError | undefined => undefined;
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
  readonly describes: CallOptions[] = [];
  readonly #wrapped = new Map<string, { keyId: string; bytes: Buffer; aad: string | undefined }>();

  async describe(keyId: string, options: CallOptions = {}): Promise<KeyDescription> {
    this.calls.describe += 1;
    this.describes.push(options);
    await this.#turn("describe", keyId);
    return { version: this.told(), kcv: this.kcv, algorithm: undefined };
  }

  async wrap(keyId: string, localKek: Buffer, aad: Buffer): Promise<WrappedKek> {
    this.calls.wrap += 1;
    this.given.push(localKek);
    const bytes = Buffer.from(localKek);
    await this.#turn("wrap", keyId);
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
    await this.#turn("unwrap", keyId);
    const found = this.#wrapped.get(ciphertext);
    if (found?.keyId !== keyId || found.aad !== aad?.toString("hex") || !this.knows(ciphertext)) {
      throw new PluginError("invalid", "fake: not wrapped here", { isByContract: true });
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

  async #turn(operation: Operation, keyId: string): Promise<void> {
    await this.gate;
    await this.pace();
    if (this.failure !== undefined) {
      throw this.failure;
    }
    const trouble = this.trouble(operation, keyId);
    if (trouble !== undefined) {
      throw trouble;
    }
  }
}

/** A keyring whose answers always come later, so that a test can take them in one way; with a look at its parts. */
export class TestKeyring extends Keyring {
  readonly #service: WrappingService;

  constructor(options: KeyringOptions) {
    super(options);
    this.#service = options.service;
  }

  override async wrap(plaintext: Uint8Array, caller?: Caller): Promise<Wrapped> {
    return super.wrap(plaintext, caller);
  }

  override async unwrap(envelope: Envelope, caller?: Caller): Promise<Buffer> {
    return super.unwrap(envelope, caller);
  }

  override async status(): Promise<Snapshot> {
    return super.status();
  }

  member(kmsKeyId: string): Member {
    const found = this.keys.members.find(({ key }) => key.kmsKeyId === kmsKeyId);
    if (found === undefined) {
      throw new Error(`${kmsKeyId} is not configured`);
    }
    return found;
  }

  /** The key that wraps. */
  get key(): Key {
    return this.keys.current.key;
  }

  /** Of all keys. */
  get orphans(): number {
    return this.keys.members.reduce((sum, { key }) => sum + key.orphans.length, 0);
  }

  /** What Key4C does not unwrap of what a probe asks for. */
  async missing(): Promise<readonly Kept[]> {
    const { key } = this;
    const given = await Promise.all(
      key.pinned.map((one) => isGivenBack(this.#service, key.kmsKeyId, one)),
    );
    return key.pinned.filter((_, at) => given[at] === false);
  }
}

export interface RingOptions
  extends Partial<Omit<KeyringOptions, "service" | "limits">>,
    Partial<Limits> {
  readonly kmsKeyId?: string;
  readonly previousKeyIds?: readonly string[];
}

/** A keyring that has no local KEK yet, and the key that wraps. */
export function ringParts(key4c: WrappingService, options: RingOptions = {}) {
  const {
    kmsKeyId = "demo",
    previousKeyIds = [],
    outageGraceMs,
    revocationGraceMs = 60_000,
    configured = { kmsKeyId: () => kmsKeyId, previousIds: () => previousKeyIds },
    ...rest
  } = options;
  const ring = new TestKeyring({
    service: key4c,
    configured,
    limits: { outageGraceMs, revocationGraceMs },
    maxUses: 2 ** 20,
    maxAgeMs: 7 * 24 * 3_600_000,
    cacheSize: 16,
    log: silentLog,
    ...rest,
  });
  return { ring, key: ring.key };
}

export type RingParts = ReturnType<typeof ringParts>;

/** The keyring alone. */
export function keyring(key4c: WrappingService, options: RingOptions = {}): TestKeyring {
  return ringParts(key4c, options).ring;
}

/** What is configured, as files hold it that change while we run. */
export function changing(current: string, ...previous: string[]) {
  const now = { current, previous };
  const configured: ConfiguredKeys = {
    kmsKeyId: () => now.current,
    previousIds: () => now.previous,
  };
  return { now, configured };
}

/** What describe tells is what a new local KEK must be wrapped under, as the probe wants it. */
export async function adopt(
  ring: TestKeyring,
  key4c: FakeKey4C,
  kmsKeyId = "demo",
): Promise<Snapshot> {
  const told = { version: key4c.told(), kcvHash: kcvHash(kmsKeyId, key4c.kcv) };
  return ring.member(kmsKeyId).prober.make(told);
}

/** One that has its first local KEK. */
export async function readyParts(key4c: FakeKey4C, options: RingOptions = {}): Promise<RingParts> {
  const parts = ringParts(key4c, options);
  await adopt(parts.ring, key4c, parts.key.kmsKeyId);
  return parts;
}

/** The keyring alone. */
export async function ready(key4c: FakeKey4C, options: RingOptions = {}): Promise<TestKeyring> {
  return (await readyParts(key4c, options)).ring;
}

/** What the contract says of a key. */
export function verdict(kind: "keyUnusable" | "keyNotFound"): PluginError {
  return new PluginError(kind, "fake", { isByContract: true });
}

/** Key4C says that a key is disabled, for as long as KMS_REVOCATION_GRACE 0s needs. */
export function revoke({ ring }: { readonly ring: TestKeyring }, kmsKeyId: string): void {
  ring.member(kmsKeyId).key.record(verdict("keyUnusable"));
}

/** A probe finds that Key4C does not unwrap what it must. */
export function failUnwraps(key: Key, failure: PluginError): void {
  key.circuits.recordUnwrap(failure);
  key.record(failure);
}

/** A probe finds all well. */
export function wellAgain(key: Key): void {
  key.circuits.recordUnwrap(undefined);
  key.record(undefined);
}

/** Keyring and probes, as `serve` joins them, in the test's time; the probes have not begun. */
export function plugin(
  key4c: FakeKey4C,
  { intervalMs = 30_000, ...options }: RingOptions & { readonly intervalMs?: number } = {},
) {
  const clock = new TestClock();
  const { log, lines } = recordingLog();
  const parts = ringParts(key4c, { clock, log, ...options });
  const health = new Health({ keyring: parts.ring, intervalMs, log, clock });
  onTestEnd(() => health.stop());
  return { ...parts, health, clock, lines };
}
