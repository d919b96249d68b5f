/**
 * Where a service returns a ciphertext in several members (IV, data, tag), they are stored as one text: JSON with the
 * members in the order of their names, so that equal members make equal texts. Data in etcd depend on it.
 */
import { PluginError } from "../failures/plugin-error.ts";
import { MAX_WRAPPED_KEK_BYTES } from "../keys/wrapping.ts";
import { isObject, parsedJson } from "../system/json.ts";
import { unreadable } from "./body.ts";
import { type Json, ownValue, type Pointer, resolvePointer } from "./json.ts";
import { SENT_PATTERN } from "./template.ts";

/** Where the answer to encrypt has the ciphertext: a pointer, or for each member a pointer or `{sent:NAME}`. */
export type CiphertextSource = Pointer | Readonly<Record<string, string>>;

/** The pointer into the body that was sent; undefined when the member comes from the answer. */
export function sentPointer(source: string): string | undefined {
  const [, pointer] = new RegExp(SENT_PATTERN).exec(source) ?? [];
  return pointer === undefined ? undefined : `/${pointer}`;
}

/**
 * The text to store: the service's own, or that of its members.
 * @throws PluginError `unavailable` when one is not there, or all are larger than MAX_WRAPPED_KEK_BYTES
 */
export function readCiphertext(answer: unknown, sent: Json | undefined, source: CiphertextSource) {
  const read = (from: string): string => {
    const own = sentPointer(from);
    const text = own === undefined ? resolvePointer(answer, from) : resolvePointer(sent, own);
    if (typeof text !== "string" || text === "" || !text.isWellFormed() || isTooLarge(text)) {
      throw unreadable("encrypt", `${from} is not a text of 1 to ${MAX_WRAPPED_KEK_BYTES} bytes`);
    }
    return text;
  };
  if (typeof source === "string") {
    return read(source);
  }
  const members = Object.keys(source)
    .toSorted()
    .map((name) => [name, read(source[name] ?? "")] as const);
  const text = JSON.stringify(Object.fromEntries(members));
  if (isTooLarge(text)) {
    throw unreadable(
      "encrypt",
      `its members together are larger than ${MAX_WRAPPED_KEK_BYTES} bytes`,
    );
  }
  return text;
}

/**
 * The stored text as a profile's decrypt takes it.
 * @throws PluginError `unavailable` and unlisted when it was wrapped under a profile with other members: Key4C cannot be
 * asked, and it is no fault of the object
 */
export function storedCiphertext(
  stored: string,
  source: CiphertextSource,
): string | Readonly<Record<string, string>> {
  if (typeof source === "string") {
    return stored;
  }
  const members = membersOf(stored);
  const missing = Object.keys(source).filter((name) => ownValue(members ?? {}, name) === undefined);
  if (members === undefined || missing.length > 0) {
    const has = members === undefined ? "no members" : Object.keys(members).join(", ");
    throw new PluginError(
      "unavailable",
      `the wrapped local KEK has ${has}, and the profile's decrypt needs ${missing.join(", ")}: it was wrapped under another profile`,
      { isUnlisted: true },
    );
  }
  return members;
}

/** What a profile of one text says when it meets a local KEK that another profile wrapped; "" for any other. */
export function hintOfMembers(stored: string, source: CiphertextSource): string {
  const members = typeof source === "string" ? membersOf(stored) : undefined;
  return members === undefined
    ? ""
    : `; the wrapped local KEK has the members ${Object.keys(members).join(", ")}: it was wrapped under another profile`;
}

/** undefined when the text is not what {@link readCiphertext} makes of members. */
function membersOf(stored: string): Readonly<Record<string, string>> | undefined {
  const document = parsedJson(stored);
  const isMembers =
    isObject(document) && Object.values(document).every((one) => typeof one === "string");
  return isMembers ? (document as Record<string, string>) : undefined; // just checked
}

function isTooLarge(text: string): boolean {
  return Buffer.byteLength(text) > MAX_WRAPPED_KEK_BYTES;
}
