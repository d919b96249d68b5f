/** API servers, as far as KMS goes: what each calls and when, what it keeps and what it tells its users is stored. */
import { randomBytes } from "node:crypto";
import { status } from "@grpc/grpc-js";
import { KeyManagementService as KmsV1 } from "../../src/gen/v1beta1/api_pb.ts";
import { KeyManagementService as KmsV2 } from "../../src/gen/v2/api_pb.ts";
import { WRAPPED_KEK_ANNOTATION } from "../../src/keys/annotations.ts";
import { decodeEnvelope } from "../../src/keys/envelope.ts";
import { MINUTE, Random, SECOND, type SimulatedTime } from "./clock.ts";
import { CALL_TIMEOUT_MS, type Outcome, type Plugin } from "./plugin.ts";

/** A v2 API server writes for so long after a good Status. */
export const WRITES_AFTER_STATUS_MS = 3 * MINUTE;
export const STATUS_EVERY_MS = MINUTE;
const STATUS_AFTER_FAILURE_MS = 10 * SECOND;
/** Names of the objects of one API server: what is written again replaces what was. */
const OBJECTS = 12;
/** After a restart everything is listed, and by whoever failed again so soon, for so long. */
const LIST_AGAIN_MS = 0.4 * SECOND;
const LISTS_FOR_MS = 4 * MINUTE;

/** What etcd holds of the DEK of an object: exactly what the plugin gave. */
export interface Stored {
  readonly api: "v1" | "v2";
  readonly cipher: Uint8Array;
  readonly keyId: string;
  readonly annotations: Readonly<Record<string, Uint8Array>>;
  /** Key4C's own string. */
  readonly wrapped: string;
  readonly dek: Buffer;
}

/** By name. */
export type Etcd = Map<string, Stored>;

export interface ApiServerEvents {
  /** A user was told that it is stored. */
  stored(apiServer: ApiServer, stored: Stored): void;
  /** What an Encrypt made, or a Decrypt gave. */
  known(plugin: Plugin, stored: Stored): void;
  /** Key4C gave other bytes, or the plugin did: no object opens under them. */
  otherBytes(plugin: Plugin, stored: Stored): void;
  /** A read failed because Key4C was not to be had. */
  needed(node: number): void;
  /** How the plugin answered a read that it was asked at a moment; not told of callers that left. */
  read(plugin: Plugin, stored: Stored, code: status, startedAtMs: number): void;
}

export interface Host {
  readonly node: number;
  readonly time: SimulatedTime;
  readonly etcd: () => Etcd;
  /** undefined while it is down. */
  readonly plugin: () => Plugin | undefined;
  readonly events: ApiServerEvents;
}

/** Decrypt of what is stored, through the service that made it. */
export async function decryptStored(
  plugin: Plugin,
  { api, cipher, keyId, annotations }: Stored,
  leaveAfterMs?: number,
): Promise<Outcome<Uint8Array>> {
  if (api === "v1") {
    const outcome = await plugin.call(KmsV1.method.decrypt, { cipher }, leaveAfterMs);
    return "ok" in outcome ? { ok: outcome.ok.plain } : outcome;
  }
  const request = {
    ciphertext: cipher,
    keyId,
    annotations,
    uid: "00000000-0000-4000-8000-000000000000",
  };
  const outcome = await plugin.call(KmsV2.method.decrypt, request, leaveAfterMs);
  return "ok" in outcome ? { ok: outcome.ok.plaintext } : outcome;
}

interface Seed {
  readonly source: Stored;
  writesUntilMs: number;
}

export class ApiServer {
  readonly api: "v1" | "v2";
  readonly host: Host;
  readonly #random: Random;
  readonly #workEveryMs: number;
  /** A restart ends what its former self was doing. */
  #life = 0;
  #isStopped = false;
  #seed: Seed | undefined;
  /** DEKs that were unwrapped, or made here. */
  #cache = new Set<string>();
  /** The key_id of the last good Status. */
  lastStatusMs = Number.NEGATIVE_INFINITY;

  constructor(api: "v1" | "v2", host: Host, seed: number, workEveryMs: number) {
    this.api = api;
    this.host = host;
    this.#random = new Random(seed);
    this.#workEveryMs = workEveryMs;
  }

  start(): void {
    this.#life += 1;
    this.#seed = undefined;
    this.#cache = new Set();
    this.#lists(this.#life).catch(rethrow);
    this.#polls(this.#life).catch(rethrow);
    this.#works(this.#life).catch(rethrow);
  }

  stop(): void {
    this.#isStopped = true;
  }

  #isAlive(life: number): boolean {
    return life === this.#life && !this.#isStopped;
  }

  async #polls(life: number): Promise<void> {
    const { time } = this.host;
    while (this.#isAlive(life)) {
      const isWell = this.api === "v1" ? await this.#ping() : await this.#status(life);
      await time.sleep(isWell ? STATUS_EVERY_MS : STATUS_AFTER_FAILURE_MS);
    }
  }

  /** v1: the health check, when somebody asks for it. */
  async #ping(): Promise<boolean> {
    const plain = Buffer.from("ping");
    const made = await this.#call((plugin) => plugin.call(KmsV1.method.encrypt, { plain }));
    if (!("ok" in made)) {
      return false;
    }
    const { cipher } = made.ok;
    const read = await this.#call((plugin) => plugin.call(KmsV1.method.decrypt, { cipher }));
    return "ok" in read;
  }

  async #status(life: number): Promise<boolean> {
    const outcome = await this.#call((plugin) => plugin.call(KmsV2.method.status, {}));
    if (!("ok" in outcome) || outcome.ok.healthz !== "ok" || !this.#isAlive(life)) {
      return false;
    }
    const { keyId } = outcome.ok;
    this.lastStatusMs = this.host.time.nowMs;
    if (this.#seed?.source.keyId === keyId) {
      this.#seed.writesUntilMs = this.lastStatusMs + WRITES_AFTER_STATUS_MS;
      return true;
    }
    const plugin = this.host.plugin();
    const source = plugin && (await this.#encrypt(plugin));
    if (source === undefined || source.keyId !== keyId || !this.#isAlive(life)) {
      return false;
    }
    this.#seed = { source, writesUntilMs: this.host.time.nowMs + WRITES_AFTER_STATUS_MS };
    return true;
  }

  async #encrypt(plugin: Plugin): Promise<Stored | undefined> {
    const dek = randomBytes(32);
    if (this.api === "v1") {
      const outcome = await plugin.call(KmsV1.method.encrypt, { plain: dek });
      if (!("ok" in outcome)) {
        return undefined;
      }
      const { cipher } = outcome.ok;
      const wrapped = decodeEnvelope(cipher).header.wrappedLocalKek;
      return this.#made(plugin, { api: "v1", cipher, keyId: "", annotations: {}, wrapped, dek });
    }
    const request = { plaintext: dek, uid: "00000000-0000-4000-8000-000000000000" };
    const outcome = await plugin.call(KmsV2.method.encrypt, request);
    if (!("ok" in outcome)) {
      return undefined;
    }
    const { ciphertext: cipher, keyId, annotations } = outcome.ok;
    const wrapped = Buffer.from(annotations[WRAPPED_KEK_ANNOTATION] ?? []).toString();
    return this.#made(plugin, { api: "v2", cipher, keyId, annotations, wrapped, dek });
  }

  #made(plugin: Plugin, stored: Stored): Stored {
    this.#cache.add(nameOf(stored));
    this.host.events.known(plugin, stored);
    return stored;
  }

  async #works(life: number): Promise<void> {
    const { time, node } = this.host;
    while (this.#isAlive(life)) {
      await time.sleep(this.#random.between(0.2, 1.8) * this.#workEveryMs);
      const name = `${node}/${this.#random.int(OBJECTS)}`;
      if (this.#random.chance(0.5)) {
        await this.#write(life, name);
      } else {
        await this.#readAny(life);
      }
    }
  }

  async #write(life: number, name: string): Promise<boolean> {
    let source: Stored | undefined;
    if (this.api === "v1") {
      const plugin = this.host.plugin();
      source = plugin && (await this.#encrypt(plugin));
    } else if (this.#seed !== undefined && this.host.time.nowMs < this.#seed.writesUntilMs) {
      source = this.#seed.source;
    }
    if (source === undefined || !this.#isAlive(life)) {
      return false;
    }
    this.host.etcd().set(name, source);
    this.host.events.stored(this, source);
    return true;
  }

  async #readAny(life: number): Promise<void> {
    const all = [...this.host.etcd().values()];
    if (all.length > 0) {
      const leaves = this.#random.chance(0.05);
      const leaveAfterMs = leaves ? this.#random.between(0, CALL_TIMEOUT_MS) : undefined;
      await this.#read(life, this.#random.pick(all), leaveAfterMs);
    }
  }

  /** @returns whether an object under it opens */
  async #read(life: number, stored: Stored, leaveAfterMs?: number): Promise<boolean> {
    if (stored.api === "v2" && this.#seed === undefined) {
      return false; // nothing is read without a valid state
    }
    const name = nameOf(stored);
    if (this.#cache.has(name)) {
      return true;
    }
    const plugin = this.host.plugin();
    const startedAtMs = this.host.time.nowMs;
    const outcome = await this.#call((of) => decryptStored(of, stored, leaveAfterMs));
    if (plugin === undefined || !this.#isAlive(life)) {
      return false;
    }
    const code = "ok" in outcome ? status.OK : outcome.code;
    this.host.events.read(plugin, stored, code, startedAtMs);
    if (!("ok" in outcome)) {
      if (outcome.code === status.UNAVAILABLE) {
        this.host.events.needed(this.host.node);
      }
      return false;
    }
    if (!stored.dek.equals(outcome.ok)) {
      this.host.events.otherBytes(plugin, stored);
      return false;
    }
    this.#cache.add(name);
    this.host.events.known(plugin, stored);
    return true;
  }

  /** After a restart: every object, again and again until all are read or the user gives up. */
  async #lists(life: number): Promise<void> {
    const { time } = this.host;
    for (const endMs = time.nowMs + LISTS_FOR_MS; this.#isAlive(life) && time.nowMs < endMs; ) {
      let isComplete = this.api === "v1" || this.#seed !== undefined;
      for (const stored of new Set(this.host.etcd().values())) {
        isComplete = (await this.#read(life, stored)) && isComplete;
      }
      if (isComplete) {
        return;
      }
      await time.sleep(LIST_AGAIN_MS);
    }
  }

  /** Storage migration: everything is read and written again. */
  async rewrite(): Promise<void> {
    const life = this.#life;
    for (const [name, stored] of [...this.host.etcd()]) {
      if ((await this.#read(life, stored)) && this.#isAlive(life)) {
        await this.#write(life, name);
      }
    }
  }

  async #call<O>(call: (plugin: Plugin) => Promise<Outcome<O>>): Promise<Outcome<O>> {
    const plugin = this.host.plugin();
    if (plugin !== undefined) {
      return call(plugin);
    }
    await this.host.time.sleep(CALL_TIMEOUT_MS); // it waits for the socket
    return { code: status.DEADLINE_EXCEEDED };
  }
}

function nameOf({ cipher }: Stored): string {
  return Buffer.from(cipher).toString("latin1");
}

function rethrow(error: unknown): void {
  queueMicrotask(() => {
    throw error;
  });
}
