/** Templates of requests: texts with placeholders, and the encodings of bytes in them. */
import { randomBytes } from "node:crypto";
import { type Json, ownValue } from "./json.ts";

/** RFC 4648 §4, §5 and §8; the first with padding, the second without. The first is the default. */
export const ENCODINGS = ["base64", "base64url", "hex"] as const;
export type Encoding = (typeof ENCODINGS)[number];

/** The name of a member of a ciphertext. It is stored in etcd with each object. */
export const MEMBER_NAME = "[A-Za-z_][A-Za-z0-9_-]{0,63}";

/** In the place of a pointer: what the body of the request had there, as `{sent:iv}` or `{sent:params/iv}`. */
export const SENT_PATTERN = "^\\{sent:([^{}]+)\\}$";

const ENCODING = `(:(${ENCODINGS.join("|")}))?`;
/**
 * What may stand behind the name in each placeholder, as a regular expression. The ciphertext is the service's own text,
 * or has members that are. A random is made anew each time: an IV that is used twice under AES-GCM gives away the key's
 * authentication, so nothing fixed may stand in its place.
 */
const SYNTAX = {
  plaintext: ENCODING,
  aad: ENCODING,
  random: `:([1-9]|[1-5]\\d|6[0-4])${ENCODING}`, // bytes: an IV has 8 to 16
  ciphertext: `(\\.${MEMBER_NAME})?`,
  keyId: "",
  userId: "",
  apiKey: "",
  pin: "",
  token: "",
  requestId: "",
} as const;

export type Placeholder = keyof typeof SYNTAX;

/** What stands for each placeholder. */
export type PlaceholderValues = {
  readonly [P in "plaintext" | "aad"]?: Buffer | undefined;
} & {
  readonly [P in Exclude<Placeholder, "plaintext" | "aad" | "random" | "ciphertext">]?:
    | string
    | undefined;
} & {
  /** A text, or the texts of its members. */
  readonly ciphertext?: string | Readonly<Record<string, string>> | undefined;
};

/** Wider than any of them, so that a mistyped one is refused instead of being sent as text. */
const PLACEHOLDER = "\\{([A-Za-z_][\\w -]*)(?:\\.([\\w -]*))?((?::[\\w -]*)*)\\}";
const PLACEHOLDER_PATTERN = new RegExp(PLACEHOLDER, "g");

/** The bytes that a text encodes; undefined when the text is not canonical: not what {@link Buffer.toString} makes. */
export function decodeBytes(text: string, encoding: Encoding): Buffer | undefined {
  const bytes = Buffer.from(text, encoding);
  const canonical = bytes.toString(encoding);
  // Hex has two canonical forms: many HSMs write capitals.
  const isCanonical =
    text === canonical || (encoding === "hex" && text === canonical.toUpperCase());
  return isCanonical ? bytes : undefined;
}

/** Replaces the placeholders of a text once; undefined when one of them has no value. */
export function render(
  template: string,
  values: PlaceholderValues,
  embed: (value: string) => string = (value) => value,
): string | undefined {
  let complete = true;
  const text = template.replace(
    PLACEHOLDER_PATTERN,
    (_, name: Placeholder, member: string | undefined, rest: string) => {
      const value = valueFor(name, member, rest.split(":").slice(1), values);
      complete &&= value !== undefined;
      return embed(value ?? "");
    },
  );
  return complete ? text : undefined;
}

/** @param options what stands behind the name, between colons */
function valueFor(
  name: Placeholder,
  member: string | undefined,
  options: readonly string[],
  values: PlaceholderValues,
): string | undefined {
  if (name === "ciphertext" && typeof values.ciphertext === "object") {
    return ownValue(values.ciphertext, member ?? "");
  }
  const value = name === "random" ? randomBytes(Number(options[0])) : values[name];
  const [encoding = ENCODINGS[0]] = options.slice(name === "random" ? 1 : 0);
  return value instanceof Buffer
    ? value.toString(encoding as Encoding) // the reader of profiles has checked it
    : (value as string | undefined); // only a ciphertext has members
}

/** Replaces the placeholders in the leaves of a body; a member or item without a value is left out. */
export function renderJson(template: Json, values: PlaceholderValues): Json | undefined {
  if (typeof template === "string") {
    return render(template, values);
  }
  if (Array.isArray(template)) {
    return template
      .map((item: Json) => renderJson(item, values))
      .filter((item) => item !== undefined);
  }
  if (typeof template === "object" && template !== null) {
    const members = Object.entries(template)
      .map(([name, member]) => [name, renderJson(member, values)] as const)
      .filter(([, member]) => member !== undefined);
    return Object.fromEntries(members) as Json; // undefined members are gone
  }
  return template;
}

/** The placeholders in the leaves of a template, in whatever encoding: names, with the member if one is named. */
export function placeholdersOf(
  template: Json | undefined,
): readonly { readonly name: string; readonly member: string | undefined }[] {
  if (typeof template === "object" && template !== null) {
    return Object.values(template).flatMap(placeholdersOf);
  }
  return typeof template === "string"
    ? [...template.matchAll(PLACEHOLDER_PATTERN)].map(([, name = "", member]) => ({ name, member }))
    : [];
}

/** Whether a leaf of a template holds the placeholder, in whatever encoding. */
export function uses(template: Json | undefined, name: Placeholder): boolean {
  return placeholdersOf(template).some((one) => one.name === name);
}

/** The placeholders of a text that are not among `allowed`, or have something behind them that there is not. */
export function foreignPlaceholders(text: string, allowed: readonly Placeholder[]): string[] {
  const known = new RegExp(`^(${syntaxOf(allowed)})$`);
  return [...text.matchAll(PLACEHOLDER_PATTERN)]
    .map(([whole]) => whole)
    .filter((whole) => !known.test(whole));
}

/** A regular expression for the texts in which {@link foreignPlaceholders} finds none. */
export function placeholderSyntax(allowed: readonly Placeholder[]): string {
  return `^([^{]|${syntaxOf(allowed)}|(?!${PLACEHOLDER})\\{)*$`;
}

/** All ways to write them: `{keyId}`, `{aad}`, `{aad:hex}` … */
function syntaxOf(placeholders: readonly Placeholder[]): string {
  return placeholders.map((name) => `\\{${name}${SYNTAX[name]}\\}`).join("|");
}

/** How a placeholder is written, for messages. */
export function spellingOf(name: Placeholder): string {
  return name === "random" ? "{random:BYTES:ENCODING}" : `{${name}}`;
}
