import { createCipheriv, createDecipheriv, createHash, randomBytes } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { replaceFile } from "../system/files.ts";
import { isObject } from "../system/json.ts";
import { isLoopbackHost } from "../system/loopback.ts";

/**
 * A Key4C by the contract of REFERENCE.md, for demos and tests. Its keys are plain AES keys in memory and,
 * if asked, in a file: it is no HSM and must never guard a real secret.
 */
export interface EmulatorOptions {
  readonly host: string;
  /** 0 takes a free one. */
  readonly port: number;
  /** Keys to have at start. */
  readonly keyIds: readonly string[];
  /** Where the keys are kept; undefined: in memory only. */
  readonly dataFile: string | undefined;
  /** PEM texts; undefined: plain http. */
  readonly tls?: { readonly cert: string; readonly key: string } | undefined;
  /** Whether `/emulator/…` answers. */
  readonly control: boolean;
}

export interface Emulator {
  readonly url: string;
  stop(): Promise<void>;
}

interface EmulatedKey {
  state: "ENABLED" | "DISABLED" | "DELETED";
  /** 32 bytes each, in base64; the version is the index plus one. */
  readonly versions: string[];
}

type Keys = Map<string, EmulatedKey>;

const IV_BYTES = 12;
const TAG_BYTES = 16;
const VERSION_BYTES = 4;
/** The contract's largest request is far smaller. */
const MAX_REQUEST_BYTES = 64 * 1024;

class Refusal extends Error {
  readonly status: number;
  readonly code: string;

  constructor(status: number, code: string, message: string) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Starts an emulator. @throws Error when address or data file cannot be used */
export function startEmulator(options: EmulatorOptions): Emulator {
  const keys = loadKeys(options.dataFile);
  for (const id of options.keyIds) {
    if (!keys.has(id)) {
      keys.set(id, { state: "ENABLED", versions: [newKey()] });
    }
  }
  const state: State = {
    keys,
    stats: { describe: 0, encrypt: 0, decrypt: 0, refused: 0 },
    latency: { ms: 0 },
    outage: { on: false },
    save: () => saveKeys(options.dataFile, keys),
  };
  state.save();

  const server = Bun.serve({
    hostname: options.host,
    port: options.port,
    maxRequestBodySize: MAX_REQUEST_BYTES,
    ...(options.tls && { tls: options.tls }),
    async fetch(request) {
      try {
        const parts = pathOf(request);
        if (parts[0] === "emulator" && options.control) {
          refuseBrowsers(request);
          return Response.json(await control(request, parts.slice(1), state));
        }
        await Bun.sleep(state.latency.ms);
        if (state.outage.on) {
          throw new Refusal(503, "UNAVAILABLE", "an outage is played");
        }
        return Response.json(await serveContract(request, parts, state));
      } catch (error) {
        state.stats.refused += 1;
        const refusal =
          error instanceof Refusal ? error : new Refusal(500, "INTERNAL", "emulator failed");
        return Response.json(
          { code: refusal.code, message: refusal.message },
          { status: refusal.status },
        );
      }
    },
  });
  return {
    url: server.url.href.replace(/\/$/, ""),
    stop: () => server.stop(true),
  };
}

interface State {
  readonly keys: Keys;
  readonly stats: Record<"describe" | "encrypt" | "decrypt" | "refused", number>;
  readonly latency: { ms: number };
  readonly outage: { on: boolean };
  readonly save: () => void;
}

function pathOf(request: Request): string[] {
  try {
    return new URL(request.url).pathname.split("/").slice(1).map(decodeURIComponent);
  } catch {
    throw new Refusal(404, "NO_SUCH_PATH", "no such path");
  }
}

/** The three operations: `/v1/keys/ID`, `/v1/keys/ID/encrypt`, `/v1/keys/ID/decrypt`. */
async function serveContract(
  request: Request,
  parts: readonly string[],
  { keys, stats }: State,
): Promise<object> {
  const [version, collection, id = "", operation, ...rest] = parts;
  const route = `${request.method} ${operation ?? ""}`;
  if (version !== "v1" || collection !== "keys" || rest.length > 0) {
    throw new Refusal(404, "NO_SUCH_PATH", "no such path");
  }
  if (!request.headers.get("X-Key4C-User-Id")) {
    throw new Refusal(401, "DENIED", "X-Key4C-User-Id is missing");
  }
  const key = keys.get(id);
  if (key === undefined) {
    throw new Refusal(404, "KEY_NOT_FOUND", "no such key");
  }
  if (route === "GET ") {
    stats.describe += 1;
    return describe(id, key);
  }
  if (route !== "POST encrypt" && route !== "POST decrypt") {
    throw new Refusal(405, "NO_SUCH_METHOD", "no such method");
  }
  if (key.state !== "ENABLED") {
    throw new Refusal(409, `KEY_${key.state}`, `the key is ${key.state}`);
  }
  const body: unknown = await request.json().catch(() => undefined);
  const aad = bytesOf(body, "aad");
  if (route === "POST encrypt") {
    stats.encrypt += 1;
    return encrypt(key, bytesOf(body, "plaintext"), aad);
  }
  stats.decrypt += 1;
  return decrypt(key, bytesOf(body, "ciphertext"), aad);
}

function describe(keyId: string, key: EmulatedKey): object {
  const newest = Buffer.from(key.versions.at(-1) ?? "", "base64");
  return {
    keyId,
    label: keyId,
    algorithm: "AES",
    length: newest.length * 8,
    // A real HSM encrypts a block of zeros; a digest says as little about the key.
    kcv: createHash("sha256").update(newest).digest("hex").slice(0, 6).toUpperCase(),
    version: key.versions.length,
    state: key.state,
  };
}

/** The ciphertext is base64(`version (4) || IV (12) || encrypted || tag (16)`), AES-256-GCM. */
function encrypt(key: EmulatedKey, plaintext: Buffer, aad: Buffer): object {
  const version = key.versions.length;
  const iv = randomBytes(IV_BYTES);
  const cipher = createCipheriv("aes-256-gcm", keyOf(key, version), iv).setAAD(aad);
  const head = Buffer.alloc(VERSION_BYTES);
  head.writeUInt32BE(version);
  const sealed = [head, iv, cipher.update(plaintext), cipher.final(), cipher.getAuthTag()];
  return { ciphertext: Buffer.concat(sealed).toString("base64"), version };
}

function decrypt(key: EmulatedKey, ciphertext: Buffer, aad: Buffer): object {
  const refused = () => new Refusal(400, "INVALID_CIPHERTEXT", "the ciphertext is not valid");
  if (ciphertext.length < VERSION_BYTES + IV_BYTES + TAG_BYTES) {
    throw refused();
  }
  const version = ciphertext.readUInt32BE();
  if (version < 1 || version > key.versions.length) {
    throw refused();
  }
  const iv = ciphertext.subarray(VERSION_BYTES, VERSION_BYTES + IV_BYTES);
  const body = ciphertext.subarray(VERSION_BYTES + IV_BYTES, -TAG_BYTES);
  try {
    const decipher = createDecipheriv("aes-256-gcm", keyOf(key, version), iv)
      .setAAD(aad)
      .setAuthTag(ciphertext.subarray(-TAG_BYTES));
    const plaintext = Buffer.concat([decipher.update(body), decipher.final()]);
    return { plaintext: plaintext.toString("base64") };
  } catch {
    throw refused();
  }
}

function keyOf(key: EmulatedKey, version: number): Buffer {
  return Buffer.from(key.versions[version - 1] ?? "", "base64");
}

function bytesOf(body: unknown, name: string): Buffer {
  const value = isObject(body) ? body[name] : undefined;
  const bytes = Buffer.from(typeof value === "string" ? value : "", "base64");
  if ((value !== undefined || name !== "aad") && bytes.toString("base64") !== value) {
    const code = name === "ciphertext" ? "INVALID_CIPHERTEXT" : "INVALID_REQUEST";
    throw new Refusal(400, code, `${name} is not base64`);
  }
  return bytes;
}

/** A page that somebody looks at on this machine must not change the keys, nor under a name of its own (DNS rebinding). */
function refuseBrowsers({ headers, url }: Request): void {
  if (
    headers.has("origin") ||
    headers.has("sec-fetch-site") ||
    !isLoopbackHost(new URL(url).hostname.replace(/^\[|\]$/g, ""))
  ) {
    throw new Refusal(403, "DENIED", "not for browsers");
  }
}

/**
 * `POST keys/ID/rotate|replace|disable|enable|delete`, `PUT latency` with `{"ms":N}`, `PUT outage` with `{"on":true}` or
 * false, `GET stats`. To replace is what a wrong restore of an HSM does: other key material behind the same versions.
 */
async function control(
  request: Request,
  parts: readonly string[],
  { keys, stats, latency, outage, save }: State,
): Promise<object> {
  const [what, id = "", action = ""] = parts;
  if (request.method === "GET" && what === "stats") {
    return stats;
  }
  if (request.method === "PUT" && what === "latency") {
    const ms = await member(request, "ms");
    if (typeof ms !== "number" || !(ms >= 0 && ms <= 60_000)) {
      throw new Refusal(400, "INVALID_REQUEST", "ms is not a number from 0 to 60000");
    }
    latency.ms = ms;
    return latency;
  }
  if (request.method === "PUT" && what === "outage") {
    const on = await member(request, "on");
    if (typeof on !== "boolean") {
      throw new Refusal(400, "INVALID_REQUEST", "on is not true or false");
    }
    outage.on = on;
    return outage;
  }
  const key = keys.get(id);
  if (request.method !== "POST" || what !== "keys" || key === undefined) {
    throw new Refusal(404, "NO_SUCH_PATH", "no such path or key");
  }
  const states = { disable: "DISABLED", enable: "ENABLED", delete: "DELETED" } as const;
  if (action === "rotate") {
    key.versions.push(newKey());
  } else if (action === "replace") {
    key.versions.forEach((_, index) => {
      key.versions[index] = newKey();
    });
  } else if (Object.hasOwn(states, action)) {
    key.state = states[action as keyof typeof states]; // own key, just checked
  } else {
    throw new Refusal(404, "NO_SUCH_PATH", "no such action");
  }
  save();
  return describe(id, key);
}

async function member(request: Request, name: string): Promise<unknown> {
  const body: unknown = await request.json().catch(() => undefined);
  return isObject(body) ? body[name] : undefined;
}

function newKey(): string {
  return randomBytes(32).toString("base64");
}

function loadKeys(file: string | undefined): Keys {
  let text: string;
  if (file !== undefined && statSync(file, { throwIfNoEntry: false })?.isFile() === false) {
    throw new Error(`${file} is no regular file`); // it would be replaced by one: /dev/null, for the whole machine
  }
  try {
    text = file === undefined ? "[]" : readFileSync(file, "utf8");
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") {
      return new Map();
    }
    throw error;
  }
  try {
    const entries = JSON.parse(text) as [string, EmulatedKey][]; // checked below
    const keys = new Map(entries);
    for (const { state, versions } of keys.values()) {
      if (typeof state !== "string" || !Array.isArray(versions) || versions.length === 0) {
        throw new Error();
      }
    }
    return keys;
  } catch {
    throw new Error(`${file} is not a data file of the emulator`);
  }
}

function saveKeys(file: string | undefined, keys: Keys): void {
  if (file !== undefined) {
    replaceFile(file, JSON.stringify([...keys]), 0o600);
  }
}
