/**
 * A Key4C by the contract of the README, in the same process and in simulated time: its keys are names of material,
 * and what it wrapped it remembers. What is wrong with it is asked anew at each request.
 */
import { EPOCH_MS, MINUTE, type ProcessClock, Random, type SimulatedTime } from "./clock.ts";
import {
  concerns,
  type Fault,
  type FaultKind,
  KEY_IDS,
  type KmsKeyId,
  MAX_NODES,
  operationOf,
  type Settings,
  type Tells,
} from "./faults.ts";

/** What is told as the highest version: the largest that a plugin takes at all. */
const ABSURD_VERSION = 2 ** 32 - 1;
const MAX_LATENCY_MS = 40;
/** A fault of one local KEK is about one of the last that were wrapped. */
const RECENT_TOKENS = 60;

interface Key {
  readonly version: number;
  /** Versions below are destroyed. */
  readonly lowestVersion: number;
}
type Keys = Readonly<Record<KmsKeyId, Key>>;

/** What a node sees of a key. */
export interface View extends Key {
  readonly state: "ENABLED" | "DISABLED" | "DELETED";
  /** Names the key material of a version. */
  material(version: number): string;
}

/** A local KEK that was wrapped. */
export interface Token {
  readonly kmsKeyId: KmsKeyId;
  readonly version: number;
  readonly material: string;
  readonly plaintext: string;
  readonly aad: string;
}

/** What a plugin was answered, for the invariants. */
export interface Answered {
  readonly node: number;
  readonly kmsKeyId: KmsKeyId;
  readonly operation: "describe" | "encrypt" | "decrypt";
  readonly requestId: string;
  readonly secret: string;
  readonly startedAtMs: number;
  readonly status: number;
  readonly code: string | undefined;
  /** `state` of a describe. */
  readonly state: string | undefined;
  readonly retryAfterMs: number | undefined;
  /** What was told of the material. */
  readonly version: number | undefined;
  readonly kcv: string | undefined;
}

/** To Key4C, from one process. */
export interface Connection {
  readonly openedAtMs: number;
  /** 0 or 1: balanced in turn. */
  readonly replica: number;
}

interface ActiveFault {
  readonly fault: Fault;
  /** The keys as they were when it began. */
  readonly keysBefore: Keys;
  /** The local KEK that a fault of one is about. */
  readonly wrapped: string;
}

interface Reply {
  readonly status: number;
  readonly body: object | string;
  readonly retryAfter?: string;
  readonly retryAfterMs?: number;
}

export class SimulatedKey4C {
  readonly #time: SimulatedTime;
  readonly #random: Random;
  readonly #tells: Tells;
  #keys: Keys = Object.fromEntries(
    KEY_IDS.map((id) => [id, { version: 1, lowestVersion: 1 }]),
  ) as Keys; // each of KEY_IDS
  readonly #tokens = new Map<string, Token>();
  #active: readonly ActiveFault[] = [];
  /** By node: when a fault began or ended. */
  readonly #changedAtMs: number[] = [];
  /** By node: how often its secret was replaced. */
  readonly #secrets: number[] = [];

  constructor(time: SimulatedTime, { seed, tells }: Settings) {
    this.#time = time;
    this.#random = new Random(seed + 1);
    this.#tells = tells;
  }

  begin(fault: Fault): void {
    const { kmsKeyId } = fault;
    const key = this.#keys[kmsKeyId];
    if (fault.kind === "rotated") {
      this.#keys = { ...this.#keys, [kmsKeyId]: { ...key, version: key.version + 1 } };
    } else if (fault.kind === "versionDestroyed") {
      this.#keys = { ...this.#keys, [kmsKeyId]: { ...key, lowestVersion: key.version } };
    } else if (fault.kind === "credentialReplacedLate" && fault.node !== undefined) {
      this.replaceSecretOf(fault.node);
    }
    const recent = [...this.#tokens]
      .filter(([, token]) => token.kmsKeyId === kmsKeyId)
      .map(([wrapped]) => wrapped)
      .slice(-RECENT_TOKENS);
    const wrapped = recent[Math.floor(fault.variety * 997) % recent.length] ?? "";
    this.#active = [...this.#active, { fault, keysBefore: this.#keys, wrapped }];
    this.#changed(fault);
  }

  end(fault: Fault): void {
    this.#changed(fault);
    this.#active = this.#active.filter((one) => one.fault !== fault);
  }

  token(wrapped: string): Token | undefined {
    return this.#tokens.get(wrapped);
  }

  /** The key as a node sees it on a connection, or on a new one; without a node: as it truly is. */
  view(kmsKeyId: KmsKeyId, node?: number, connection?: Connection): View {
    const of = this.#active.filter(({ fault }) =>
      node === undefined ? fault.node === undefined : concerns(fault, node),
    );
    const onKey = of.filter(({ fault }) => fault.kmsKeyId === kmsKeyId);
    const stale = of.find(
      ({ fault }) => fault.kind === "staleReplica" && this.#isOnOther(fault, connection),
    );
    let { version, lowestVersion } = (stale?.keysBefore ?? this.#keys)[kmsKeyId];
    const changes: { readonly from: number; readonly to: number; readonly name: string }[] = [];
    for (const { fault, keysBefore } of onKey) {
      const before = keysBefore[kmsKeyId].version;
      const name = `${fault.kind}@${fault.atMs}`;
      const isKept = connection !== undefined && connection.openedAtMs < fault.atMs;
      if (
        fault.kind === "materialReplaced" ||
        (fault.kind === "failover" && !isKept) ||
        (fault.kind === "splitMaterial" && this.#isOnOther(fault, connection))
      ) {
        changes.push({ from: 1, to: before, name });
      } else if (fault.kind === "versionBack") {
        const by = 1 + Math.floor(fault.variety * 2);
        const after = Math.max(1, version - by);
        changes.push({ from: after + 1, to: Number.POSITIVE_INFINITY, name });
        version = after;
        lowestVersion = Math.min(lowestVersion, after);
      }
    }
    for (const { fault } of of) {
      if (fault.kind === "wrongAddress" && fault.variety >= 0.5) {
        changes.push({
          from: 1,
          to: Number.POSITIVE_INFINITY,
          name: `${fault.kind}@${fault.atMs}`,
        });
      }
    }
    const isIn = (kind: FaultKind) => onKey.some(({ fault }) => fault.kind === kind);
    return {
      version,
      lowestVersion,
      state: isIn("deleted") ? "DELETED" : isIn("disabled") ? "DISABLED" : "ENABLED",
      material: (of) =>
        [
          kmsKeyId,
          of,
          ...changes.filter(({ from, to }) => from <= of && of <= to).map((one) => one.name),
        ].join(" "),
    };
  }

  /** Of two replicas that disagree a request meets one: by chance, by its connection, or in turn by the minute. */
  #isOnOther({ variety }: Fault, connection: Connection | undefined): boolean {
    if (connection === undefined) {
      return false; // whoever connects now may meet either: this is the one that stays
    }
    return variety < 1 / 3
      ? this.#random.chance(0.5)
      : variety < 2 / 3
        ? connection.replica === 1
        : Math.floor(this.#time.nowMs / MINUTE) % 2 === 1;
  }

  /** Whether a node that asked now would be given it back. */
  wouldGiveBack(wrapped: string, node?: number): boolean {
    const token = this.#tokens.get(wrapped);
    if (token === undefined) {
      return false;
    }
    const view = this.view(token.kmsKeyId, node);
    return (
      token.version <= view.version &&
      token.version >= view.lowestVersion &&
      view.material(token.version) === token.material
    );
  }

  /** Whether a fault of that node has begun or ended within the last time. */
  changedWithin(ms: number, node: number): boolean {
    return this.#time.nowMs - (this.#changedAtMs[node] ?? Number.NEGATIVE_INFINITY) < ms;
  }

  #changed(fault: Fault): void {
    for (let node = 0; node < MAX_NODES; node++) {
      if (concerns(fault, node)) {
        this.#changedAtMs[node] = this.#time.nowMs;
      }
    }
  }

  /** The secret that this node must send now. */
  secretOf(node: number): string {
    return `user-${node}-${this.#secrets[node] ?? 0}`;
  }

  /** Whether the operator has taken it out of KMS_PREVIOUS_KEY_IDS_FILE. */
  isUnlisted(kmsKeyId: KmsKeyId): boolean {
    return this.#active.some(
      ({ fault }) => fault.kind === "keyUnlisted" && fault.kmsKeyId === kmsKeyId,
    );
  }

  /** The operator replaces what is refused. */
  replaceSecretOf(node: number): void {
    this.#secrets[node] = (this.#secrets[node] ?? 0) + 1;
  }

  faultOf(node: number, ...kinds: readonly FaultKind[]): Fault | undefined {
    return this.#active.find(({ fault }) => kinds.includes(fault.kind) && concerns(fault, node))
      ?.fault;
  }

  #keyFaultOf(node: number, kind: FaultKind, kmsKeyId: KmsKeyId): Fault | undefined {
    return this.#active.find(
      ({ fault }) => fault.kind === kind && fault.kmsKeyId === kmsKeyId && concerns(fault, node),
    )?.fault;
  }

  /** What the plugin of a node gets when it asks over a network that may fail. */
  fetchFor(
    node: number,
    clock: ProcessClock,
    told: (answered: Answered) => void,
    inFlight: { count: number },
  ): (url: string, init: BunFetchRequestInit) => Promise<Response> {
    let kept: Connection | undefined;
    let connections = 0;
    return (url, init) => {
      const startedAtMs = this.#time.nowMs;
      const isKept = init.keepalive !== false;
      let connection = isKept ? kept : undefined;
      if (connection === undefined) {
        connections += 1;
        connection = { openedAtMs: startedAtMs, replica: connections % 2 };
      }
      const asks = connection;
      if (isKept) {
        kept = asks; // it leads to one replica for ever, until it fails
      }
      const { promise, resolve, reject } = Promise.withResolvers<Response>();
      inFlight.count += 1;
      const { signal } = init;
      const settle = (how: () => void) => {
        signal?.removeEventListener("abort", aborted);
        cancel();
        inFlight.count -= 1;
        how();
      };
      const aborted = () => settle(() => reject(signal?.reason));
      signal?.addEventListener("abort", aborted);
      const lose = () => {
        kept = kept === asks ? undefined : kept;
      };
      const fails = (code: string) => {
        lose();
        settle(() => reject(Object.assign(new Error(code), { code })));
      };
      const later = (ms: number, task: () => void) =>
        this.#time.after(ms, () => clock.deliver(() => (signal?.aborted ? undefined : task())));
      let cancel = () => {};
      const latencyMs = 1 + this.#random.next() * MAX_LATENCY_MS + this.#slownessMs(node);
      if (this.faultOf(node, "hangs") !== undefined) {
        return promise;
      }
      const flaky = this.faultOf(node, "flaky");
      if (
        this.faultOf(node, "refused") ||
        (flaky && this.#random.chance(0.2 + flaky.variety * 0.7))
      ) {
        cancel = later(1, () => fails("ECONNREFUSED"));
        return promise;
      }
      cancel = later(latencyMs / 2, () => {
        const asked = read(url, init);
        const reply = this.#reply(node, asks, asked);
        cancel = later(latencyMs / 2, () =>
          settle(() => {
            const body = typeof reply.body === "string" ? reply.body : JSON.stringify(reply.body);
            const field = (name: "code" | "state" | "kcv") =>
              typeof reply.body === "object" ? memberOf(reply.body, name) : undefined;
            const version =
              typeof reply.body === "object" ? Reflect.get(reply.body, "version") : undefined;
            told({
              node,
              kmsKeyId: asked.kmsKeyId,
              operation: asked.operation,
              requestId: asked.requestId,
              secret: asked.secret,
              startedAtMs,
              status: reply.status,
              code: field("code"),
              state: field("state"),
              retryAfterMs: reply.retryAfterMs,
              version: typeof version === "number" ? version : undefined,
              kcv: field("kcv"),
            });
            const headers =
              reply.retryAfter === undefined ? {} : { "Retry-After": reply.retryAfter };
            resolve(new Response(body, { status: reply.status, headers }));
          }),
        );
      });
      return promise;
    };
  }

  #slownessMs(node: number): number {
    const slow = this.faultOf(node, "slow");
    return slow === undefined ? 0 : (0.2 + slow.variety * 3) * 1_000 * this.#random.next();
  }

  #reply(node: number, connection: Connection, asked: Asked): Reply {
    const away = this.#replyOfSomebodyElse(node);
    if (away !== undefined) {
      return away;
    }
    if (this.faultOf(node, "denied") || asked.secret !== this.secretOf(node)) {
      const isCode = this.faultOf(node, "denied")?.variety ?? 1;
      return isCode < 0.3
        ? { status: 403, body: "<html>forbidden</html>" }
        : { status: 401, body: { code: "DENIED", message: "who are you?" } };
    }
    const { kmsKeyId } = asked;
    const ofOperation = this.#replyOfOperation(node, asked);
    if (ofOperation !== undefined) {
      return ofOperation;
    }
    const wrong = this.faultOf(node, "wrongAddress");
    if ((wrong && wrong.variety < 0.5) || this.#keyFaultOf(node, "notFound", kmsKeyId)) {
      return { status: 404, body: { code: "KEY_NOT_FOUND", message: "no such key" } };
    }
    const mangled = this.faultOf(node, "mangled");
    if (mangled !== undefined && this.#random.chance(0.9)) {
      return this.#mangled(asked);
    }
    const view = this.view(kmsKeyId, node, connection);
    if (asked.operation === "describe") {
      return this.#describe(view, kmsKeyId, node);
    }
    if (view.state !== "ENABLED") {
      return { status: 409, body: { code: `KEY_${view.state}`, message: "not now" } };
    }
    return asked.operation === "encrypt"
      ? this.#encrypt(view, asked, node)
      : this.#decrypt(view, asked, node);
  }

  /** What is wrong with one operation on one key, or with one local KEK. */
  #replyOfOperation(node: number, { operation, kmsKeyId, ciphertext }: Asked): Reply | undefined {
    const isOf = (fault: Fault) => fault.kmsKeyId === kmsKeyId && concerns(fault, node);
    const isOn = (kind: FaultKind) =>
      this.#active.some(
        ({ fault }) => fault.kind === kind && isOf(fault) && operationOf(fault) === operation,
      );
    if (isOn("operationDenied")) {
      return { status: 403, body: { code: "DENIED", message: "no right" } };
    }
    if (isOn("operationFails")) {
      return { status: 503, body: { errors: ["partition away"] } };
    }
    const throttled = this.#keyFaultOf(node, "keyThrottled", kmsKeyId);
    if (throttled !== undefined) {
      return this.#throttled(0.4 + throttled.variety * 0.4);
    }
    const kek = this.#active.find(
      ({ fault, wrapped }) => fault.kind === "kekFails" && wrapped === ciphertext,
    );
    if (kek === undefined || operation !== "decrypt") {
      return undefined;
    }
    return kek.fault.variety < 0.5
      ? { status: 500, body: { errors: ["object damaged"] } }
      : { status: 400, body: { code: "E_PARAM", message: "not a ciphertext" } };
  }

  #replyOfSomebodyElse(node: number): Reply | undefined {
    if (this.faultOf(node, "status503")) {
      return { status: 503, body: { errors: ["sealed"] } };
    }
    const page = this.faultOf(node, "gatewayPage");
    if (page !== undefined) {
      const status = [200, 400, 404, 409, 502][Math.floor(page.variety * 5)] ?? 502;
      return { status, body: "<html>KEY_DISABLED? INVALID_CIPHERTEXT? who knows</html>" };
    }
    const foreign = this.faultOf(node, "foreignJson");
    if (foreign !== undefined) {
      const status = [404, 409, 400][Math.floor(foreign.variety * 3)] ?? 404;
      return { status, body: { code: status, message: "route not found" } };
    }
    const throttled = this.faultOf(node, "throttled");
    return throttled && this.#throttled(throttled.variety);
  }

  #throttled(variety: number): Reply {
    const body = { code: "THROTTLED", message: "later" };
    if (variety < 0.4) {
      return { status: 429, body };
    }
    const seconds = Math.ceil(10 ** ((variety - 0.4) * 6)); // 1 s to an hour
    if (variety < 0.8) {
      return { status: 429, body, retryAfter: String(seconds), retryAfterMs: seconds * 1_000 };
    }
    // By the clock of Key4C, which the plugin's own may not share.
    const date = new Date(Math.ceil((EPOCH_MS + this.#time.nowMs) / 1_000 + seconds) * 1_000);
    return { status: 429, body, retryAfter: date.toUTCString() };
  }

  #mangled({ operation }: Asked): Reply {
    const replies: readonly Reply[] = [
      { status: 200, body: "not JSON" },
      { status: 200, body: {} },
      { status: 200, body: { version: "3", ciphertext: "", plaintext: "AAAA" } },
      { status: 200, body: { version: 0, ciphertext: 7, plaintext: null } },
      { status: 200, body: "x".repeat(70_000) },
      { status: operation === "decrypt" ? 500 : 400, body: { code: "INVALID_CIPHERTEXT" } },
    ];
    // A decrypt may be called invalid by a Key4C that mangles: it is what it says.
    const last = operation === "decrypt" ? replies.length - 1 : replies.length;
    return replies[this.#random.int(last)] ?? { status: 500, body: "" };
  }

  #describe(view: View, kmsKeyId: KmsKeyId, node: number): Reply {
    const absurd = this.#keyFaultOf(node, "absurdVersion", kmsKeyId);
    const isAbsurd = absurd !== undefined && absurd.variety < 0.6;
    return {
      status: 200,
      body: {
        keyId: kmsKeyId,
        state: view.state,
        ...(this.#tells.versionByDescribe && {
          version: isAbsurd ? ABSURD_VERSION : view.version,
        }),
        ...(this.#tells.kcv && { kcv: kcvOf(view.material(view.version)) }),
      },
    };
  }

  #encrypt(view: View, asked: Asked, node: number): Reply {
    const { kmsKeyId, plaintext = "", aad = "" } = asked;
    const absurd = this.#keyFaultOf(node, "absurdVersion", kmsKeyId);
    const isAbsurd = absurd !== undefined && absurd.variety >= 0.6;
    const { version } = view;
    const wrapped = `k4c:${this.#tokens.size}`;
    const material = view.material(version);
    this.#tokens.set(wrapped, { kmsKeyId, version, material, plaintext, aad });
    return {
      status: 200,
      body: {
        ciphertext: wrapped,
        ...(this.#tells.versionByEncrypt && { version: isAbsurd ? ABSURD_VERSION : version }),
      },
    };
  }

  #decrypt(view: View, asked: Asked, node: number): Reply {
    const token = this.#tokens.get(asked.ciphertext ?? "");
    const isGiven =
      token !== undefined &&
      token.kmsKeyId === asked.kmsKeyId &&
      token.aad === asked.aad &&
      token.version <= view.version &&
      token.version >= view.lowestVersion &&
      view.material(token.version) === token.material;
    if (!isGiven) {
      return { status: 400, body: { code: "INVALID_CIPHERTEXT", message: "no" } };
    }
    const isWrong = this.faultOf(node, "wrongBytes") !== undefined;
    const wrong = Buffer.alloc(32, this.#random.int(256)).toString("base64");
    return { status: 200, body: { plaintext: isWrong ? wrong : token.plaintext } };
  }
}

interface Asked {
  readonly operation: Answered["operation"];
  readonly kmsKeyId: KmsKeyId;
  readonly requestId: string;
  readonly secret: string;
  readonly plaintext?: string;
  readonly ciphertext?: string;
  readonly aad?: string;
}

function read(url: string, { headers, body }: BunFetchRequestInit): Asked {
  const [, id, operation = "describe"] =
    /\/v1\/keys\/([^/]+)(?:\/(encrypt|decrypt))?$/.exec(url) ?? [];
  const kmsKeyId = KEY_IDS.find((one) => one === id);
  if (kmsKeyId === undefined || !(headers instanceof Headers)) {
    throw new Error(`the plugin asked for ${url}`);
  }
  return {
    ...(typeof body === "string" ? JSON.parse(body) : {}),
    operation,
    kmsKeyId,
    requestId: headers.get("X-Request-Id") ?? "",
    secret: headers.get("X-Pin") ?? headers.get("X-Key4C-User-Id") ?? "",
  };
}

function memberOf(of: object, name: string): string | undefined {
  const value: unknown = Reflect.get(of, name);
  return typeof value === "string" ? value : undefined;
}

export function kcvOf(material: string): string {
  return Bun.hash.crc32(material).toString(16).padStart(8, "0").toUpperCase();
}
