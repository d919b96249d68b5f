/** A plugin made of its real parts, in simulated time: both services, keyring, health and the client of Key4C. */
import {
  create,
  type DescMethod,
  type DescMethodUnary,
  type DescService,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { type ServerUnaryCall, type sendUnaryData, status } from "@grpc/grpc-js";
import type { PluginError } from "../../src/failures/plugin-error.ts";
import { KeyManagementService as KmsV1 } from "../../src/gen/v1beta1/api_pb.ts";
import { KeyManagementService as KmsV2 } from "../../src/gen/v2/api_pb.ts";
import { Health } from "../../src/health/health.ts";
import { Key4C } from "../../src/key4c/client.ts";
import defaultProfile from "../../src/key4c/key4c.profile.json";
import { DEFAULT_PROFILE, type Profile, parseProfile } from "../../src/key4c/profile.ts";
import { LocalKek } from "../../src/keys/envelope.ts";
import type { Snapshot } from "../../src/keys/holdings.ts";
import { Key } from "../../src/keys/key.ts";
import type { State } from "../../src/keys/key-health.ts";
import type { KeySet } from "../../src/keys/key-set.ts";
import { Keyring } from "../../src/keys/keyring.ts";
import { kmsV1, kmsV2 } from "../../src/main.ts";
import { addService } from "../../src/socket/rpc.ts";
import type { Log, LogFields } from "../../src/system/log.ts";
import { ProcessClock, type Random, type SimulatedTime } from "./clock.ts";
import type { Settings } from "./faults.ts";
import type { Answered, SimulatedKey4C } from "./key4c.ts";
import type { Machine } from "./machine.ts";

/** What kube-apiserver waits by default. */
export const CALL_TIMEOUT_MS = 3_000;
/** Over a unix socket, both ways. */
export const SOCKET_MS = 0.2;

type Implementation = (
  call: ServerUnaryCall<Buffer, Buffer>,
  answer: sendUnaryData<Buffer>,
) => void;

/** How an RPC ended, as the API server sees it. */
export type Outcome<O> = { readonly ok: O } | { readonly code: status };

/** Told of an RPC when the plugin answers it, in the same event. */
export interface Rpc {
  readonly method: "Version" | "Status" | "Encrypt" | "Decrypt";
  readonly code: status;
  readonly startedAtMs: number;
  readonly hasLeft: boolean;
  readonly stateBefore: State;
}

export interface LogLine {
  readonly level: "warn" | "error";
  readonly message: string;
  readonly fields: LogFields;
}

export interface PluginEvents {
  heard(plugin: Plugin, key: Key, before: State, heard: PluginError | undefined): void;
  answered(plugin: Plugin, answered: Answered): void;
  rpc(plugin: Plugin, rpc: Rpc): void;
  /** An API server waited for the whole of its deadline. */
  unanswered(plugin: Plugin, method: Rpc["method"], startedAtMs: number): void;
  logged(plugin: Plugin, line: LogLine): void;
}

/** Whose key it is; what a probe met is told. */
const owners = new WeakMap<
  ProcessClock,
  { readonly plugin: Plugin; readonly events: PluginEvents }
>();
const reallyRecord = Key.prototype.record;
Key.prototype.record = function (met) {
  const before = this.health.state;
  reallyRecord.call(this, met);
  const owner = owners.get(ProcessClock.running as ProcessClock);
  owner?.plugin.everyKey.add(this);
  owner?.events.heard(owner.plugin, this, before, met);
};

/** The local KEKs of each process that hold a key: those that were compared or used, and not dropped. */
const live = new WeakMap<ProcessClock, Set<LocalKek>>();
for (const method of ["equals", "open", "seal"] as const) {
  const really: (...args: never[]) => unknown = LocalKek.prototype[method];
  Object.assign(LocalKek.prototype, {
    [method](this: LocalKek, ...args: never[]) {
      const { running } = ProcessClock;
      if (running !== undefined && !this.isDropped) {
        live.getOrInsertComputed(running, () => new Set()).add(this);
      }
      return really.apply(this, args);
    },
  });
}
const reallyDrop = LocalKek.prototype.drop;
LocalKek.prototype.drop = function () {
  const { running } = ProcessClock;
  if (running !== undefined) {
    live.get(running)?.delete(this);
  }
  reallyDrop.call(this);
};

export class Plugin {
  readonly node: number;
  readonly clock: ProcessClock;
  readonly startedAtMs: number;
  readonly keys: KeySet;
  readonly keyring: Keyring;
  readonly health: Health;
  /** Those that left the configuration too. */
  readonly everyKey = new Set<Key>();
  readonly inFlight = { count: 0 };
  /** RPCs that were delivered and not answered. */
  unanswered = 0;
  /** The local KEKs that were current in this process, by their wrapped form. */
  readonly snapshots = new Map<string, Snapshot>();
  readonly errors: LogLine[] = [];
  readonly #time: SimulatedTime;
  readonly #events: PluginEvents;
  readonly #methods = new Map<DescMethod, Implementation>();

  constructor(options: {
    readonly node: number;
    readonly settings: Settings;
    readonly time: SimulatedTime;
    readonly random: Random;
    readonly key4c: SimulatedKey4C;
    readonly secret: () => string;
    readonly kmsKeyId: () => string;
    readonly previousKeyIds: () => readonly string[];
    readonly machine: Machine;
    readonly events: PluginEvents;
  }) {
    const { node, settings, time, random, key4c, events } = options;
    this.node = node;
    this.#time = time;
    this.#events = events;
    this.startedAtMs = time.nowMs;
    const clock = new ProcessClock(time, random);
    this.clock = clock;
    const log = this.#log();
    owners.set(clock, { plugin: this, events });
    const service = new Key4C({
      url: "https://key4c.simulated",
      profile: profileOf(settings),
      credentials: () =>
        settings.hasPin ? { userId: "user", pin: options.secret() } : { userId: options.secret() },
      tls: () => ({}),
      userAgent: "simulation",
      log,
      clock,
      fetch: key4c.fetchFor(node, clock, (one) => events.answered(this, one), this.inFlight),
    });
    const { maxUses, maxAgeMs, cacheSize, intervalMs } = settings;
    this.keyring = new Keyring({
      service,
      configured: { kmsKeyId: options.kmsKeyId, previousIds: options.previousKeyIds },
      limits: settings,
      ...{ maxUses, maxAgeMs, cacheSize, log, clock },
      keeper: options.machine.keeper(clock, log),
    });
    const { keyring } = this;
    this.keys = keyring.keys;
    this.health = new Health({ keyring, intervalMs, log, clock });
    this.#serve("v1", KmsV1, kmsV1(keyring), log);
    this.#serve("v2", KmsV2, kmsV2(keyring), log);
  }

  get state(): State {
    return this.health.state;
  }

  start(): void {
    this.clock.deliver(() => this.health.start());
  }

  /** Keys of local KEKs in memory. */
  get liveKeks(): number {
    return live.get(this.clock)?.size ?? 0;
  }

  #log(): Log {
    const tell =
      (level: LogLine["level"]) =>
      (message: string, fields: LogFields = {}) => {
        const line = { level, message, fields };
        if (level === "error") {
          this.errors.push(line);
        }
        this.#events.logged(this, line);
      };
    return { debug: () => {}, info: () => {}, warn: tell("warn"), error: tell("error") };
  }

  #serve<S extends DescService>(
    api: "v1" | "v2",
    service: S,
    handlers: Parameters<typeof addService<S>>[2],
    log: Log,
  ): void {
    const server: Parameters<typeof addService>[0] = {
      addService: (_, implementation) => {
        for (const method of service.methods) {
          this.#methods.set(method, implementation[method.name] as Implementation); // as rpc.ts made it
        }
      },
    };
    addService(server, service, handlers, { api, log, clock: this.clock });
  }

  /** What an RPC goes through between two messages; the transport alone is missing. */
  call<I extends DescMethodUnary["input"], O extends DescMethodUnary["output"]>(
    method: { readonly input: I; readonly output: O } & DescMethodUnary,
    request: MessageInitShape<I>,
    leaveAfterMs = Number.POSITIVE_INFINITY,
  ): Promise<Outcome<MessageShape<O>>> {
    const { promise, resolve } = Promise.withResolvers<Outcome<MessageShape<O>>>();
    const startedAtMs = this.#time.nowMs;
    const bytes = Buffer.from(toBinary(method.input, create(method.input, request)));
    let hasLeft = false;
    let left = () => {};
    const name = method.name as Rpc["method"]; // of both services
    const patienceMs = Math.min(CALL_TIMEOUT_MS, leaveAfterMs);
    const cancelPatience = this.#time.after(patienceMs, () => {
      hasLeft = true;
      this.clock.deliver(() => left());
      if (patienceMs === CALL_TIMEOUT_MS) {
        this.#events.unanswered(this, name, startedAtMs);
      }
      resolve({
        code: patienceMs === CALL_TIMEOUT_MS ? status.DEADLINE_EXCEEDED : status.CANCELLED,
      });
    });
    this.#time.after(SOCKET_MS / 2, () =>
      this.clock.deliver(() => {
        this.unanswered += 1;
        const stateBefore = this.state;
        const call: Partial<ServerUnaryCall<Buffer, Buffer>> = {
          request: bytes,
          getDeadline: () =>
            new Date(Date.now() + CALL_TIMEOUT_MS - (this.#time.nowMs - startedAtMs)),
          once(_: string, leave: () => void) {
            left = leave;
            return call as ServerUnaryCall<Buffer, Buffer>;
          },
          metadata: NO_METADATA,
        };
        this.#methods.get(method)?.(
          call as ServerUnaryCall<Buffer, Buffer>, // what rpc.ts uses of it
          (error, answer) => {
            const code = error === null ? status.OK : (error.code ?? status.UNKNOWN);
            this.unanswered -= 1;
            this.#events.rpc(this, { method: name, code, startedAtMs, hasLeft, stateBefore });
            this.#time.after(SOCKET_MS / 2, () => {
              cancelPatience();
              const bytes = answer ?? undefined;
              resolve(
                code === status.OK && bytes ? { ok: fromBinary(method.output, bytes) } : { code },
              );
            });
          },
        );
      }),
    );
    return promise;
  }
}

/** The default one, without what this Key4C does not tell, and with a PIN where one is wanted. */
function profileOf({ tells, hasPin }: Settings): Profile {
  const { headers, describe, encrypt } = defaultProfile;
  const { version: _, ...told } = describe.result;
  const { version: __, ...wrapped } = encrypt.result;
  const { versionByDescribe, versionByEncrypt } = tells;
  return versionByDescribe && versionByEncrypt && !hasPin
    ? DEFAULT_PROFILE
    : parseProfile(
        JSON.stringify({
          ...defaultProfile,
          headers: hasPin ? { ...headers, "X-Pin": "{pin}" } : headers,
          describe: versionByDescribe ? describe : { ...describe, result: told },
          encrypt: versionByEncrypt ? encrypt : { ...encrypt, result: wrapped },
        }),
      );
}

const NO_METADATA = { get: () => ["grpc-go/1.72.1"] } as unknown as ServerUnaryCall<
  Buffer,
  Buffer
>["metadata"]; // rpc.ts asks for the user agent only
