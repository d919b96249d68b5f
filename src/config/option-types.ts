import { X509Certificate } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { MAX_SOCKET_PATH_BYTES } from "../socket/unix-socket.ts";
import { describeError } from "../system/errors.ts";
import { ReloadedFile } from "../system/files.ts";

// Each turns the text of an option into its value, or throws an Error that completes "NAME …" and never
// shows a secret.

export const NAMED_UNITS_MS = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** `90s`, `5m`, `1h`, `7d` in milliseconds. */
export function duration(minMs: number, maxMs: number) {
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

export function integer(min: number, max: number) {
  return (text: string): number => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= max)) {
      throw new Error(`must be a whole number from ${min} to ${max}`);
    }
    return value;
  };
}

export function oneOf<T extends string>(allowed: readonly T[]) {
  return (text: string): T => {
    const found = allowed.find((one) => one === text);
    if (found === undefined) {
      throw new Error(`must be one of ${allowed.join(", ")}`);
    }
    return found;
  };
}

/** A text of one syntax. @param wanted completes "must be …" */
function matching(syntax: RegExp, wanted: string) {
  return (text: string): string => {
    if (!syntax.test(text)) {
      throw new Error(`must be ${wanted}`);
    }
    return text;
  };
}

/** A secret travels in a header: visible ASCII (RFC 9110 §5.5). */
export function parseSecret(text: string): string {
  return visible(text.trim());
}
const visible = matching(/^[\x21-\x7e]{1,4096}$/, "1 to 4096 visible ASCII characters");

/** As it stands, but for one line end: a PIN may hold blanks, also first and last, and a wrong one locks the token. */
export function parsePin(text: string): string {
  return oneLine(text.replace(/\r?\n$/, ""));
}
const oneLine = matching(
  /^[\x20-\x7e]{1,4096}$/,
  "1 to 4096 printable ASCII characters in one line",
);

/** The ID of a Key4C key. It becomes a segment of a path, so `.` and `..` would change the path. */
export function keyId(text: string): string {
  if (text.startsWith("/")) {
    throw new Error("must be the ID of a key, and this is a path: KMS_KEY_ID_FILE takes a path");
  }
  if (!/^[\x21-\x7e]{1,256}$/.test(text) || text.includes(",") || /^\.{1,2}$/.test(text)) {
    throw new Error("must be the ID of a key: 1 to 256 visible ASCII characters, no comma");
  }
  return text;
}

export function keyIds(text: string): readonly string[] {
  return text.split(",").map((one) => keyId(one.trim()));
}

/** Each is probed at each interval. Whoever changes keys drops a former one after rewriting its data. */
const MAX_PREVIOUS_KEY_IDS = 64;
/** Names no key: an empty value counts as not given, and an empty file may be an accident. */
const NO_KEY_IDS = "none";

/** @param text one ID or more, or `none` */
export function previousKeyIds(text: string): readonly string[] {
  return text === NO_KEY_IDS ? [] : atMostPrevious(keyIds(text));
}

function atMostPrevious(ids: readonly string[]): readonly string[] {
  if (ids.length > MAX_PREVIOUS_KEY_IDS) {
    throw new Error(`must be at most ${MAX_PREVIOUS_KEY_IDS} IDs of keys, and are ${ids.length}`);
  }
  return ids;
}

/** The same in a file: separated by commas or lines. An empty one keeps the last list, and has none at the start. */
export function keyIdsFile(path: string): ReloadedFile<readonly string[]> {
  const parse = (text: string) => {
    const words = new Set(text.split(/[\s,]+/).filter(Boolean));
    words.delete(NO_KEY_IDS); // also beside IDs: a runbook appends to the file
    return atMostPrevious([...words].map(keyId));
  };
  return reloadedFile(path, parse, []);
}

export function keyIdFile(path: string): ReloadedFile<string> {
  return reloadedFile(path, (text) => keyId(text.trim()));
}

/** @param parse throws an Error that completes "the content of the file …" */
function reloadedFile<T>(
  path: string,
  parse: (text: string) => T,
  emptyAtStart?: T,
): ReloadedFile<T> {
  const parseContent = (text: string) => {
    try {
      return parse(text);
    } catch (error) {
      throw new Error(`the content of ${path} ${describeError(error)}`);
    }
  };
  return new ReloadedFile(path, parseContent, emptyAtStart);
}

export function isLoopback(url: string): boolean {
  return URL.canParse(url) && ["localhost", "127.0.0.1", "[::1]"].includes(new URL(url).hostname);
}

/** `https://host[:port][/path]`; http only where nothing leaves the machine. */
export function serviceUrl(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (
    url === undefined ||
    !(url.protocol === "https:" || (url.protocol === "http:" && isLoopback(text))) ||
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
export function unixEndpoint(text: string): string {
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

const permissionBits = matching(/^0?[0-7]{3}$/, "permission bits such as 0600");

export function socketMode(text: string): number {
  return Number.parseInt(permissionBits(text), 8);
}

/** A numeric group ID, or a name from /etc/group. */
export function group(text: string): number {
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
export function address(text: string): Address {
  const match = /^([0-9A-Za-z.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})$/.exec(text);
  const port = Number(match?.[2]);
  if (match?.[1] === undefined || port > 65_535) {
    throw new Error("must be HOST:PORT (port 0 takes a free one)");
  }
  return { host: match[1].replace(/[[\]]/g, ""), port };
}

/** The emulator guards nothing, so it is not for others. */
export function loopbackAddress(text: string): Address {
  const found = address(text);
  if (!["127.0.0.1", "localhost", "::1"].includes(found.host)) {
    throw new Error("must be an address of loopback such as 127.0.0.1:PORT");
  }
  return found;
}

/** A path that a unit or a pod names: without what their syntax would take for something else. */
export const absolutePath = matching(
  /^(\/[0-9A-Za-z._+@=-]+)+$/,
  "an absolute path of letters, digits and . _ + @ = -",
);

/**
 * An image as a kubelet pulls it: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]` of the grammar of Docker's distribution. A host
 * without a dot, a port or `localhost` is a part of the path, which is in small letters.
 */
export function imageReference(text: string): string {
  const host =
    "(?:localhost|[0-9A-Za-z-]+(?:\\.[0-9A-Za-z-]+)+|[0-9A-Za-z.-]+(?=:\\d+/))(?::\\d+)?/";
  const part = "[0-9a-z]+(?:(?:\\.|_{1,2}|-+)[0-9a-z]+)*";
  const tag = "(?::[0-9A-Za-z_][0-9A-Za-z_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?";
  const whole = new RegExp(`^(?=.{1,512}$)(?:${host})?${part}(?:/${part})*${tag}$`);
  return matching(whole, "an image such as registry.example/key4c-kms-plugin:0.1.0")(text);
}

/** kube-apiserver puts it before every stored value, between colons. */
export const providerName = matching(
  /^[0-9A-Za-z.-]{1,63}$/,
  "1 to 63 letters, digits, dots and dashes",
);

/** A label of RFC 1123: the kubelet adds a dash and the name of the node, 63 characters at most, to a static pod's name. */
export const podName = matching(
  /^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$/,
  "1 to 63 small letters, digits and dashes, with a letter or digit at both ends",
);

/** A label of Prometheus; those that begin with two underscores are its own. */
export function labelName(text: string): string {
  if (!/^(?!__)[A-Za-z_][0-9A-Za-z_]{0,62}$/.test(text)) {
    throw new Error("must be the name of a label: letters, digits and _, not __ at its beginning");
  }
  if (text === "instance" || text === "job") {
    throw new Error("must be another label than instance and job, which tell targets apart");
  }
  return text;
}

/** One that needs no quotes in YAML, PromQL or a regular expression's replacement. */
export const labelValue = matching(
  /^[0-9A-Za-z._:/-]{1,128}$/,
  "1 to 128 letters, digits and . _ : / -",
);

/** The address of a directory, without a slash at its end. */
export function directoryUrl(text: string): string {
  const isUrl = /^https?:\/\/[^\s"\\{}#?@]+$/.test(text) && URL.canParse(text);
  if (!isUrl) {
    throw new Error(
      'must be http:// or https://, without user, query or # and without { } " \\ or spaces',
    );
  }
  return text.replace(/\/+$/, "");
}

/** undefined when empty: no HTTP. */
export function httpAddress(text: string): Address | undefined {
  return text === "" ? undefined : address(text);
}

export function certificates(path: string): ReloadedFile<string> {
  return reloadedFile(path, (pem) => {
    try {
      new X509Certificate(pem);
    } catch {
      throw new Error("holds no certificate in PEM form");
    }
    return pem;
  });
}

export function privateKey(path: string): ReloadedFile<string> {
  return reloadedFile(path, (pem) => {
    if (!/-----BEGIN [A-Z ]*PRIVATE KEY-----/.test(pem)) {
      throw new Error("holds no private key in PEM form");
    }
    return pem;
  });
}

/** @throws Error which does not show what looks like the secret itself in the place of its path */
export function secretFile(path: string, parse = parseSecret): ReloadedFile<string> {
  if (!path.includes("/") && !existsSync(path)) {
    throw new Error("must be the path of a file that is there (not shown: it may be the secret)");
  }
  return reloadedFile(path, parse);
}
