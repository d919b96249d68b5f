import type { ErrorKind } from "../failures/kinds.ts";
import { PluginError } from "../failures/plugin-error.ts";
import { LOCAL_KEK_BYTES, MAX_KEY_VERSION, MAX_WRAPPED_KEK_BYTES } from "../keys/wrapping.ts";
import { resolvePointer } from "./json.ts";
import type { BytesPointer, Profile, RemoteErrorKind } from "./profile.ts";
import { decodeBytes } from "./template.ts";

/** The operations on a key. */
export type OperationName = "describe" | "encrypt" | "decrypt";

/** The largest honest answer carries a wrapped KEK of 16 KiB. */
const MAX_RESPONSE_BYTES = 64 * 1024;

/** The parsed answer of a success. @throws PluginError of the kind that the profile gives to a failure */
export function readAnswer(
  name: OperationName,
  profile: Profile,
  response: Response,
  text: string | undefined,
): unknown {
  let document: unknown;
  try {
    document = text === undefined ? undefined : JSON.parse(text);
  } catch {
    document = undefined;
  }
  const { success, errors } = profile;
  if (response.ok) {
    if (document === undefined) {
      throw malformed(name, text === undefined ? "larger than allowed" : "not JSON");
    }
    if (success === undefined || resolvePointer(document, success.pointer) === success.equals) {
      return document;
    }
  }
  const told = errors.code === undefined ? undefined : resolvePointer(document, errors.code);
  const code = typeof told === "string" || typeof told === "number" ? String(told) : "";
  const byCode = ownValue(errors.codes, code);
  const mapped = byCode ?? statusKind(errors.statuses, response.status, document !== undefined);
  // Only a decrypt carries something that came from outside, so only there "invalid" is about the request.
  const kind: ErrorKind =
    mapped === undefined || (mapped === "invalid" && name !== "decrypt") ? "unavailable" : mapped;
  const isVerdict = byCode !== undefined && kind === byCode;
  const isUnlisted = code !== "" && byCode === undefined && kind === "unavailable";
  const shownCode = /^[A-Za-z0-9_.-]{1,64}$/.test(code) ? ` ${code}` : "";
  throw new PluginError(
    kind,
    `Key4C answered ${name} with HTTP status ${response.status}${shownCode}`,
    {
      isVerdict,
      isUnlisted: isUnlisted && isFinal(response.status),
      ...(kind === "throttled" && retryAfter(response)),
    },
  );
}

/** A fault of the request (RFC 9110 §15.5), which the next try would meet too: not too slow, too early or too many. */
function isFinal(status: number): boolean {
  return status >= 400 && status < 500 && ![408, 425, 429].includes(status);
}

/**
 * A gateway's page has a status too, which says nothing about a key or a ciphertext. It may say that we ask too much, or
 * with the wrong credential. These two are believed, because they only make us ask less.
 */
function statusKind(
  statuses: Profile["errors"]["statuses"],
  status: number,
  isJson: boolean,
): RemoteErrorKind | undefined {
  const kind = ownValue(statuses, String(status));
  return isJson || kind === "throttled" || kind === "denied" ? kind : undefined;
}

function ownValue<T>(map: Readonly<Record<string, T>>, key: string): T | undefined {
  return Object.hasOwn(map, key) ? map[key] : undefined;
}

/** Reads at most MAX_RESPONSE_BYTES; undefined when there is more. */
export async function readBody(response: Response): Promise<string | undefined> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  for await (const chunk of response.body ?? []) {
    length += chunk.length;
    if (length > MAX_RESPONSE_BYTES) {
      return undefined; // leaving the loop cancels the body
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

/** Seconds or a date (RFC 9110 §10.2.3), in milliseconds from now. */
function retryAfter(response: Response): { retryAfterMs?: number } {
  const text = response.headers.get("Retry-After") ?? "";
  const ms = /^\d+$/.test(text) ? Number(text) * 1000 : Date.parse(text) - Date.now();
  return Number.isFinite(ms) ? { retryAfterMs: Math.max(0, ms) } : {};
}

export function readVersion(answer: unknown, pointer: string | undefined): number | undefined {
  if (pointer === undefined) {
    return undefined;
  }
  const told = resolvePointer(answer, pointer);
  const version = typeof told === "string" && /^[1-9]\d*$/.test(told) ? Number(told) : told;
  if (
    typeof version !== "number" ||
    !Number.isInteger(version) ||
    version < 1 ||
    version > MAX_KEY_VERSION
  ) {
    throw new PluginError(
      "unavailable",
      `Key4C's answer: ${pointer} is not a version of 1 or more`,
    );
  }
  return version;
}

/**
 * A key check value: hexadecimal digits, as HSMs show them. A value of another form is ignored, because it would change
 * the key_id.
 */
export function readKcv(answer: unknown, pointer: string | undefined): string | undefined {
  const kcv = pointer === undefined ? undefined : resolvePointer(answer, pointer);
  return typeof kcv === "string" && /^[0-9A-Fa-f]{4,64}$/.test(kcv) ? kcv.toUpperCase() : undefined;
}

export function readCiphertext(answer: unknown, pointer: string): string {
  const text = resolvePointer(answer, pointer);
  if (
    typeof text !== "string" ||
    text === "" ||
    !text.isWellFormed() ||
    Buffer.byteLength(text) > MAX_WRAPPED_KEK_BYTES
  ) {
    throw malformed("encrypt", `${pointer} is not a text of 1 to ${MAX_WRAPPED_KEK_BYTES} bytes`);
  }
  return text;
}

export function readLocalKek(answer: unknown, { pointer, encoding }: BytesPointer): Buffer {
  const text = resolvePointer(answer, pointer);
  const bytes = typeof text === "string" ? decodeBytes(text, encoding) : undefined;
  if (bytes?.length !== LOCAL_KEK_BYTES) {
    throw malformed("decrypt", `${pointer} is not ${LOCAL_KEK_BYTES} bytes in ${encoding}`);
  }
  return bytes;
}

function malformed(name: OperationName, what: string): PluginError {
  return new PluginError("unavailable", `Key4C's answer to ${name}: ${what}`);
}
