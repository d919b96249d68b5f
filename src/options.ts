import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { ReloadedFile, readSmallFile } from "./files.ts";
import { MAX_SOCKET_PATH_BYTES } from "./listen.ts";
import { LOG_FORMATS, LOG_LEVELS } from "./observe.ts";
import { parseProfile } from "./profile.ts";

export const COMMANDS = [
  "serve",
  "emulator",
  "status",
  "encrypt",
  "decrypt",
  "version",
  "help",
] as const;
export type Command = (typeof COMMANDS)[number];

/** One row of the table: everything that is known about one option. */
export interface Option<T = unknown> {
  /** Environment name; undefined for what only makes sense as a flag. */
  readonly env?: string;
  /** Flag without its dashes; undefined for secrets, which argv would show to every user. */
  readonly flag?: string;
  readonly commands: readonly Command[];
  /** What stands for the value in help, such as `DURATION`; undefined for a switch. */
  readonly value?: string;
  /** Shown, and parsed like any input; undefined when there is none. */
  readonly default?: string;
  /** Whether an empty value means something, instead of "not set". */
  readonly emptyIsValue?: boolean;
  readonly help: string;
  /** @throws Error whose message completes "NAME …", never with a secret */
  readonly parse: (text: string) => T;
}

const NAMED_UNITS_MS = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** `90s`, `5m`, `1h`, `7d` in milliseconds. */
function duration(minMs: number, maxMs: number) {
  return (text: string): number => {
    const match = /^(\d+)(ms|s|m|h|d)$/.exec(text);
    const ms = Number(match?.[1]) * NAMED_UNITS_MS[(match?.[2] ?? "s") as "s"]; // one of the keys
    if (!(ms >= minMs && ms <= maxMs)) {
      throw new Error(
        `must be a duration such as 90s, 5m, 1h or 7d, from ${minMs / 1000}s to ${maxMs / 1000}s`,
      );
    }
    return ms;
  };
}

function integer(min: number, max: number) {
  return (text: string): number => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= max)) {
      throw new Error(`must be a whole number from ${min} to ${max}`);
    }
    return value;
  };
}

function oneOf<T extends string>(allowed: readonly T[]) {
  return (text: string): T => {
    const found = allowed.find((one) => one === text);
    if (found === undefined) {
      throw new Error(`must be one of ${allowed.join(", ")}`);
    }
    return found;
  };
}

/** A secret travels in a header: visible ASCII (RFC 9110 §5.5). */
export function parseSecret(text: string): string {
  const secret = text.trim();
  if (!/^[\x21-\x7e]{1,4096}$/.test(secret)) {
    throw new Error("must be 1 to 4096 visible ASCII characters");
  }
  return secret;
}

/** The ID of a Key4C key. It becomes a segment of a path, so `.` and `..` would change the path. */
function keyId(text: string): string {
  if (!/^[\x21-\x7e]{1,256}$/.test(text) || text.includes(",") || /^\.{1,2}$/.test(text)) {
    throw new Error("must be the ID of a key: 1 to 256 visible ASCII characters, no comma");
  }
  return text;
}

function keyIds(text: string): readonly string[] {
  return text.split(",").map((one) => keyId(one.trim()));
}

/** `https://host[:port][/path]`; http only where nothing leaves the machine. */
function serviceUrl(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const loopback = ["localhost", "127.0.0.1", "[::1]"].includes(url?.hostname ?? "");
  if (
    url === undefined ||
    !(url.protocol === "https:" || (url.protocol === "http:" && loopback)) ||
    url.username + url.password !== "" ||
    /[?#]/.test(text)
  ) {
    throw new Error(
      "must be https://HOST[:PORT][/PATH] without user, query or fragment (http only for loopback)",
    );
  }
  return url.href.replace(/\/+$/, "");
}

/** `unix:///path/to/socket`, as kube-apiserver reads it; the result is the path. */
function unixEndpoint(text: string): string {
  const path = /^unix:\/\/(\/[^@\0][^\0]*)$/.exec(text)?.[1];
  if (path === undefined || path.endsWith("/")) {
    throw new Error(
      "must be unix:///PATH with three slashes (an abstract socket has no permissions and is refused)",
    );
  }
  if (Buffer.byteLength(path) > MAX_SOCKET_PATH_BYTES) {
    throw new Error(`must name a path of at most ${MAX_SOCKET_PATH_BYTES} bytes`);
  }
  return path;
}

function socketMode(text: string): number {
  if (!/^0?[0-7]{3}$/.test(text)) {
    throw new Error("must be permission bits such as 0600");
  }
  return Number.parseInt(text, 8);
}

/** A numeric group ID, or a name from /etc/group. */
function group(text: string): number {
  if (/^\d+$/.test(text)) {
    return Number(text);
  }
  const line = readFileSync("/etc/group", "utf8")
    .split("\n")
    .find((one) => one.startsWith(`${text}:`));
  const gid = line?.split(":")[2];
  if (gid === undefined) {
    throw new Error("must be a numeric group ID or a name in /etc/group");
  }
  return Number(gid);
}

interface Address {
  readonly host: string;
  readonly port: number;
}

/** `HOST:PORT`, an IPv6 address in brackets. */
function address(text: string): Address {
  const match = /^([0-9A-Za-z.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})$/.exec(text);
  const port = Number(match?.[2]);
  if (match?.[1] === undefined || port > 65_535) {
    throw new Error("must be HOST:PORT (port 0 takes a free one)");
  }
  return { host: match[1].replace(/[[\]]/g, ""), port };
}

/** The emulator guards nothing, so it is not for others. */
function loopbackAddress(text: string): Address {
  const found = address(text);
  if (!["127.0.0.1", "localhost", "::1"].includes(found.host)) {
    throw new Error("must be an address of loopback such as 127.0.0.1:PORT");
  }
  return found;
}

/** undefined when empty: no HTTP. */
function httpAddress(text: string): Address | undefined {
  return text === "" ? undefined : address(text);
}

function certificates(path: string): ReloadedFile<string> {
  return new ReloadedFile(path, (pem) => {
    try {
      new X509Certificate(pem);
    } catch {
      throw new Error(`${path} does not hold a certificate in PEM form`);
    }
    return pem;
  });
}

function privateKey(path: string): ReloadedFile<string> {
  return new ReloadedFile(path, (pem) => {
    if (!/-----BEGIN [A-Z ]*PRIVATE KEY-----/.test(pem)) {
      throw new Error(`${path} does not hold a private key in PEM form`);
    }
    return pem;
  });
}

function secretFile(path: string): ReloadedFile<string> {
  return new ReloadedFile(path, (text) => {
    try {
      return parseSecret(text);
    } catch (error) {
      throw new Error(`the content of ${path} ${(error as Error).message}`); // parseSecret's own
    }
  });
}

const text = (value: string) => value;
const yes = () => true;

const SERVE = ["serve"] as const;
const CLIENTS = ["status", "encrypt", "decrypt"] as const;
const MAX_DURATION_MS = 365 * NAMED_UNITS_MS.d;

/** The options of all commands. Help, README and the parser are made from this table. */
export const OPTIONS = {
  kmsEndpoint: {
    env: "KMS_ENDPOINT",
    flag: "endpoint",
    commands: [...SERVE, ...CLIENTS],
    value: "unix:///PATH",
    default: "unix:///run/key4c-kms/kms.sock",
    help: "Unix socket on which kube-apiserver calls the plugin",
    parse: unixEndpoint,
  },
  key4cUrl: {
    env: "KEY4C_URL",
    flag: "key4c-url",
    commands: SERVE,
    value: "URL",
    help: "Address of the Key4C service",
    parse: serviceUrl,
  },
  kmsKeyId: {
    env: "KMS_KEY_ID",
    flag: "key-id",
    commands: [...SERVE, "status"],
    value: "ID",
    help: "ID of the Key4C key that wraps from now on",
    parse: keyId,
  },
  previousKeyIds: {
    env: "KMS_PREVIOUS_KEY_IDS",
    flag: "previous-key-ids",
    commands: SERVE,
    value: "ID,…",
    help: "IDs of former keys whose data are still decrypted",
    parse: keyIds,
  },
  kmsUserId: {
    env: "KMS_USER_ID",
    commands: SERVE,
    help: "ID of the token from the registration of the service; a secret",
    parse: parseSecret,
  },
  kmsUserIdFile: {
    env: "KMS_USER_ID_FILE",
    flag: "user-id-file",
    commands: SERVE,
    value: "FILE",
    help: "File with KMS_USER_ID; read again when it changes",
    parse: secretFile,
  },
  kmsApiKey: {
    env: "KMS_API_KEY",
    commands: SERVE,
    help: "API key, sent as a bearer token; a secret; only if the service wants one",
    parse: parseSecret,
  },
  kmsApiKeyFile: {
    env: "KMS_API_KEY_FILE",
    flag: "api-key-file",
    commands: SERVE,
    value: "FILE",
    help: "File with KMS_API_KEY; read again when it changes",
    parse: secretFile,
  },
  profile: {
    env: "KEY4C_PROFILE",
    flag: "key4c-profile",
    commands: SERVE,
    value: "FILE",
    help: "JSON file with the shapes of requests and answers, for another API than the documented one",
    parse: (path: string) => parseProfile(readSmallFile(path)),
  },
  caFile: {
    env: "KEY4C_CA_FILE",
    flag: "key4c-ca-file",
    commands: SERVE,
    value: "FILE",
    help: "PEM file with the CAs to trust for Key4C, instead of the system's",
    parse: certificates,
  },
  certFile: {
    env: "KEY4C_CERT_FILE",
    flag: "key4c-cert-file",
    commands: SERVE,
    value: "FILE",
    help: "PEM file with a client certificate for Key4C",
    parse: certificates,
  },
  certKeyFile: {
    env: "KEY4C_CERT_KEY_FILE",
    flag: "key4c-cert-key-file",
    commands: SERVE,
    value: "FILE",
    help: "PEM file with the private key of that certificate",
    parse: privateKey,
  },
  socketMode: {
    env: "KMS_SOCKET_MODE",
    flag: "socket-mode",
    commands: SERVE,
    value: "MODE",
    default: "0600",
    help: "Permissions of the socket",
    parse: socketMode,
  },
  socketGroup: {
    env: "KMS_SOCKET_GROUP",
    flag: "socket-group",
    commands: SERVE,
    value: "GROUP",
    help: "Group of the socket, and of its directory if that is made, by name or number",
    parse: group,
  },
  localKekMaxUses: {
    env: "KMS_LOCAL_KEK_MAX_USES",
    flag: "local-kek-max-uses",
    commands: SERVE,
    value: "N",
    default: String(2 ** 20),
    help: "DEKs wrapped under one local KEK; 1 asks Key4C for every DEK (while it is away, the last one goes on)",
    parse: integer(1, 2 ** 32),
  },
  localKekMaxAge: {
    env: "KMS_LOCAL_KEK_MAX_AGE",
    flag: "local-kek-max-age",
    commands: SERVE,
    value: "DURATION",
    default: "7d",
    help: "Age at which a local KEK is replaced",
    parse: duration(NAMED_UNITS_MS.m, MAX_DURATION_MS),
  },
  localKekCacheSize: {
    env: "KMS_LOCAL_KEK_CACHE_SIZE",
    flag: "local-kek-cache-size",
    commands: SERVE,
    value: "N",
    default: "16384",
    help: "Unwrapped local KEKs kept in memory, beside the current one",
    parse: integer(0, 2 ** 20),
  },
  probeInterval: {
    env: "KMS_PROBE_INTERVAL",
    flag: "probe-interval",
    commands: SERVE,
    value: "DURATION",
    default: "30s",
    help: "Time between probes of Key4C; a rotation that describe tells is noticed within it",
    parse: duration(100, NAMED_UNITS_MS.h),
  },
  outageGrace: {
    env: "KMS_OUTAGE_GRACE",
    flag: "outage-grace",
    commands: SERVE,
    value: "DURATION",
    help: "How long Status and Encrypt go on while Key4C is away (default: without limit)",
    parse: duration(0, MAX_DURATION_MS),
  },
  httpAddress: {
    env: "KMS_HTTP_ADDRESS",
    flag: "http-address",
    commands: SERVE,
    value: "HOST:PORT",
    default: "127.0.0.1:9640",
    emptyIsValue: true,
    help: "Address of /livez, /readyz and /metrics; empty: none",
    parse: httpAddress,
  },
  logLevel: {
    env: "KMS_LOG_LEVEL",
    flag: "log-level",
    commands: [...SERVE, "emulator"],
    value: LOG_LEVELS.join("|"),
    default: "info",
    help: "Lowest level that is logged; debug shows every RPC and every call to Key4C",
    parse: oneOf(LOG_LEVELS),
  },
  logFormat: {
    env: "KMS_LOG_FORMAT",
    flag: "log-format",
    commands: [...SERVE, "emulator"],
    value: LOG_FORMATS.join("|"),
    help: "Form of the log on stderr (default: text on a terminal, else json)",
    parse: oneOf(LOG_FORMATS),
  },
  emulator: {
    flag: "emulator",
    commands: SERVE,
    help: "Serve with a Key4C inside the process; for demos and tests, never for secrets",
    parse: yes,
  },
  emulatorData: {
    flag: "emulator-data",
    commands: SERVE,
    value: "FILE",
    help: "Where --emulator keeps its keys (default: in memory, lost at exit)",
    parse: text,
  },
  listen: {
    flag: "listen",
    commands: ["emulator"],
    value: "127.0.0.1:PORT",
    default: "127.0.0.1:9641",
    help: "Address of the emulator",
    parse: loopbackAddress,
  },
  emulatorKeyIds: {
    flag: "key-id",
    commands: ["emulator"],
    value: "ID,…",
    default: "demo",
    help: "IDs of the keys to have",
    parse: keyIds,
  },
  data: {
    flag: "data",
    commands: ["emulator"],
    value: "FILE",
    help: "Where the emulator keeps its keys (default: in memory, lost at exit)",
    parse: text,
  },
  tlsCertFile: {
    flag: "tls-cert-file",
    commands: ["emulator"],
    value: "FILE",
    help: "PEM file with the server's certificate (default: plain http)",
    parse: certificates,
  },
  tlsKeyFile: {
    flag: "tls-key-file",
    commands: ["emulator"],
    value: "FILE",
    help: "PEM file with the private key of that certificate",
    parse: privateKey,
  },
  control: {
    flag: "control",
    commands: ["emulator"],
    help: "Allow control requests: rotate, disable, enable, delete, latency, stats",
    parse: yes,
  },
  api: {
    flag: "api",
    commands: ["encrypt"],
    value: "v1|v2",
    default: "v2",
    help: "KMS API to call; v1 gives the raw cipher, v2 one JSON line",
    parse: oneOf(["v1", "v2"]),
  },
  wait: {
    flag: "wait",
    commands: ["status"],
    value: "DURATION",
    help: "Wait until the plugin is ok, at most this long",
    parse: duration(0, NAMED_UNITS_MS.h),
  },
} as const satisfies Record<string, Option>;
