import { DO_NOT_RESTART, UNLISTED_CODE } from "../failures/kinds.ts";
import { PluginError } from "../failures/plugin-error.ts";
import { LOCAL_KEK_BYTES, MAX_KEY_VERSION } from "../keys/wrapping.ts";
import { parsedJson } from "../system/json.ts";
import { notJson, unreadable } from "./body.ts";
import { ownValue, type Pointer, resolvePointer } from "./json.ts";
import type { Granted } from "./login.ts";
import type { BytesPointer, LoginRequest, Profile, VersionSource } from "./profile.ts";
import type { RemoteErrorKind } from "./profile-members.ts";
import { decodeBytes } from "./template.ts";

export type OperationName = "describe" | "encrypt" | "decrypt";

/** The service refuses a token that it gave: a new login, and the call again. It never leaves the client. */
export class TokenExpired extends Error {}

/**
 * The parsed answer of a success.
 * @throws PluginError of the kind that the profile gives to a failure
 * @throws TokenExpired
 */
export function readAnswer(
  name: OperationName | "login",
  { success, errors }: Profile,
  response: Response,
  text: string | undefined,
): unknown {
  const document = text === undefined ? undefined : parsedJson(text);
  if (response.ok) {
    if (document === undefined) {
      const what = text === undefined ? "larger than allowed" : notJson(response, text);
      throw unreadable(name, what, {
        remedy: `check KEY4C_URL, KEY4C_PROFILE, and what stands before Key4C: a gateway, a proxy, a login page; ${DO_NOT_RESTART}`,
      });
    }
    if (success === undefined || resolvePointer(document, success.pointer) === success.equals) {
      return document;
    }
  }
  const code = readCode(document, errors.code);
  const byCode = ownValue(errors.codes, code ?? "");
  const mapped = byCode ?? statusKind(errors.statuses, response.status, document !== undefined);
  const kind = kindOf(name, mapped);
  const shownCode = code !== undefined && /^[A-Za-z0-9_.-]{1,64}$/.test(code) ? ` ${code}` : "";
  const what = `Key4C answered ${name} with HTTP status ${response.status}${shownCode}`;
  if (kind === "tokenExpired") {
    throw new TokenExpired(what);
  }
  const isUnlisted = code !== undefined && byCode === undefined && kind === "unavailable";
  throw new PluginError(kind, what, {
    isByContract:
      byCode !== undefined && (kind === byCode || (name === "login" && kind === "denied")),
    isUnlisted: isUnlisted && isFinal(response.status),
    ...(isUnlisted && response.status < 500 && UNLISTED_CODE),
    ...(kind === "throttled" && retryAfter(response)),
  });
}

/** The first text or number that a pointer finds; undefined when there is none. */
export function readCode(document: unknown, pointers: readonly Pointer[] = []): string | undefined {
  return pointers
    .map((pointer) => resolvePointer(document, pointer))
    .flatMap((told) =>
      (typeof told === "string" && told !== "") || typeof told === "number" ? [String(told)] : [],
    )[0];
}

function kindOf(name: OperationName | "login", mapped: RemoteErrorKind | undefined) {
  if (name === "login") {
    // Its request is nothing but the secrets: whatever is wrong with it is wrong with them.
    return mapped === "throttled"
      ? mapped
      : mapped === "denied" || mapped === "invalid" || mapped === "tokenExpired"
        ? "denied"
        : "unavailable";
  }
  // Only a decrypt carries something that came from outside, so only there "invalid" is about the request.
  return mapped === undefined || (mapped === "invalid" && name !== "decrypt")
    ? "unavailable"
    : mapped;
}

/** A fault of the request (RFC 9110 §15.5), which the next try would meet too: not too slow, too early or too many. */
function isFinal(status: number): boolean {
  return status >= 400 && status < 500 && ![408, 425, 429].includes(status);
}

/**
 * A gateway's page has a status too, which says nothing about a key or a ciphertext. It may say that we ask too much, or
 * with the wrong credential. These are believed, because they only make us ask less, or for another token.
 */
function statusKind(
  statuses: Profile["errors"]["statuses"],
  status: number,
  isJson: boolean,
): RemoteErrorKind | undefined {
  const kind = ownValue(statuses, String(status));
  const isBelieved = kind === "throttled" || kind === "denied" || kind === "tokenExpired";
  return isJson || isBelieved ? kind : undefined;
}

/** Seconds or a date (RFC 9110 §10.2.3), in milliseconds from now. */
function retryAfter(response: Response): { retryAfterMs?: number } {
  const text = response.headers.get("Retry-After") ?? "";
  const ms = /^\d+$/.test(text) ? Number(text) * 1000 : Date.parse(text) - Date.now();
  return Number.isFinite(ms) ? { retryAfterMs: Math.max(0, ms) } : {};
}

/** Enough of a value to recognize it. */
const MAX_SHOWN = 60;

/** From 1 on, whatever the service begins with, and with or without leading zeros. @throws PluginError */
export function readVersion(
  name: OperationName,
  answer: unknown,
  source: VersionSource | undefined,
): number | undefined {
  if (source === undefined) {
    return undefined;
  }
  const { pointer, first } = source;
  const told = resolvePointer(answer, pointer);
  const text = typeof told === "string" ? between(told, source) : undefined;
  const number = text !== undefined && /^\d{1,20}$/.test(text) ? Number(text) : told;
  const version = typeof number === "number" ? number + 1 - first : Number.NaN;
  if (!Number.isInteger(version) || version < 1 || version > MAX_KEY_VERSION) {
    const shown = JSON.stringify(text ?? told)?.slice(0, MAX_SHOWN) ?? "nothing";
    throw unreadable(name, `${shown} at ${pointer} is not a version of ${first} or more`);
  }
  return version;
}

/** What stands behind the first `after` and before the next `before`. */
function between(text: string, { after, before }: VersionSource): string | undefined {
  const start = text.indexOf(after) + after.length;
  const end = before === "" ? text.length : text.indexOf(before, start);
  return text.includes(after) && end >= 0 ? text.slice(start, end) : undefined;
}

/**
 * A key check value in upper-case hexadecimal digits, 4 to 64 of them. A value of another form is ignored, because it would
 * change the key_id.
 */
export function readKcv(answer: unknown, source: BytesPointer | undefined): string | undefined {
  const told = source && resolvePointer(answer, source.pointer);
  if (source === undefined || typeof told !== "string") {
    return undefined;
  }
  // An odd number of digits is no text of bytes, and HSMs have it.
  const kcv =
    source.encoding === "hex" ? told : decodeBytes(told, source.encoding)?.toString("hex");
  return kcv !== undefined && /^[0-9A-Fa-f]{4,64}$/.test(kcv) ? kcv.toUpperCase() : undefined;
}

/** The token of a login, and its life. @throws PluginError `unavailable` when there is no token */
export function readGrant(answer: unknown, result: LoginRequest["result"]): Granted {
  const text = resolvePointer(answer, result.token);
  if (typeof text !== "string" || !/^[\x21-\x7e]{1,16384}$/.test(text)) {
    throw unreadable("login", `${result.token} is not a text of visible ASCII characters`);
  }
  const told = result.expiresInSeconds && resolvePointer(answer, result.expiresInSeconds);
  const seconds = Number(told);
  return { text, lifeMs: Number.isFinite(seconds) && seconds > 0 ? seconds * 1000 : undefined };
}

export function readLocalKek(answer: unknown, { pointer, encoding }: BytesPointer): Buffer {
  const text = resolvePointer(answer, pointer);
  const bytes = typeof text === "string" ? decodeBytes(text, encoding) : undefined;
  if (bytes?.length !== LOCAL_KEK_BYTES) {
    throw unreadable("decrypt", `${pointer} is not ${LOCAL_KEK_BYTES} bytes in ${encoding}`);
  }
  return bytes;
}
