/** The body of an HTTP answer: what it is, read or named. */
import { gunzipSync } from "node:zlib";
import { UNREADABLE_ANSWER } from "../failures/kinds.ts";
import { PluginError, type PluginErrorOptions } from "../failures/plugin-error.ts";
import { errorCode } from "../system/files.ts";

/** The largest honest answer carries a wrapped KEK of 16 KiB. */
export const MAX_RESPONSE_BYTES = 64 * 1024;

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
  return decoded(Buffer.concat(chunks), encodingOf(response));
}

/** Gateways compress also what nobody asked for. The limit holds for what comes out. @returns undefined above it */
function decoded(bytes: Buffer, encoding: string): string | undefined {
  let plain = bytes;
  if (encoding === "gzip") {
    try {
      plain = gunzipSync(bytes, { maxOutputLength: MAX_RESPONSE_BYTES });
    } catch (error) {
      if (errorCode(error) === "ERR_BUFFER_TOO_LARGE") {
        return undefined;
      }
    }
  }
  return new TextDecoder().decode(plain); // without the mark of byte order, which RFC 8259 §8.1 lets a reader skip
}

function encodingOf({ headers }: Response): string {
  return (headers.get("Content-Encoding") ?? "").trim().toLowerCase().replace(/^x-/, "");
}

/** What an answer is that must be JSON. */
export function notJson(response: Response, text: string): string {
  if (text.trim() === "") {
    return `empty, with HTTP status ${response.status}`;
  }
  const encoding = encodingOf(response);
  if (encoding !== "" && encoding !== "identity") {
    return `compressed (Content-Encoding: ${/^[\w, -]{1,40}$/.test(encoding) ? encoding : "?"}), which nobody asked for`;
  }
  if (text.includes("\0")) {
    return "no UTF-8 text: UTF-16, perhaps";
  }
  return /^\s*</.test(text)
    ? "a page (HTML or XML) and not JSON: of a gateway, a proxy, or another service"
    : "not JSON";
}

/** @param details by default: where the profile points, there is not what it says */
export function unreadable(
  name: string,
  what: string,
  details: PluginErrorOptions = UNREADABLE_ANSWER,
): PluginError {
  return new PluginError("unavailable", `Key4C's answer to ${name}: ${what}`, details);
}
