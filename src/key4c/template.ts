/** Templates of requests: texts with placeholders, and the encodings of bytes in them. */
import type { Json } from "./json.ts";

/** RFC 4648 §4, §5 and §8; the first with padding, the second without. The first is the default. */
export const ENCODINGS = ["base64", "base64url", "hex"] as const;
export type Encoding = (typeof ENCODINGS)[number];

/** Placeholders of bytes. The ciphertext is not one of them: it is the service's own text. */
const BYTES = ["plaintext", "aad"] as const;
const TEXTS = ["ciphertext", "keyId", "userId", "apiKey", "pin", "requestId"] as const;

export type Placeholder = (typeof BYTES)[number] | (typeof TEXTS)[number];

/** What stands for each placeholder. */
export type PlaceholderValues = {
  readonly [P in (typeof BYTES)[number]]?: Buffer | undefined;
} & { readonly [P in (typeof TEXTS)[number]]?: string | undefined };

/** Wider than any name or encoding, so that a mistyped one is refused instead of being sent as text. */
const PLACEHOLDER = "\\{([A-Za-z_][\\w -]*)(?::([\\w -]*))?\\}";
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
    (_, name: Placeholder, encoding: Encoding = "base64") => {
      const value = values[name];
      complete &&= value !== undefined;
      return embed(typeof value === "object" ? value.toString(encoding) : (value ?? ""));
    },
  );
  return complete ? text : undefined;
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

/** Whether a leaf of a template holds the placeholder, in whatever encoding. */
export function uses(template: Json | undefined, name: Placeholder): boolean {
  if (typeof template === "object" && template !== null) {
    return Object.values(template).some((member) => uses(member, name));
  }
  return (
    typeof template === "string" &&
    [...template.matchAll(PLACEHOLDER_PATTERN)].some(([, found]) => found === name)
  );
}

/** The placeholders of a text that are not among `allowed`, or name an encoding that there is not. */
export function foreignPlaceholders(text: string, allowed: readonly Placeholder[]): string[] {
  const spellings = spellingsOf(allowed);
  return [...text.matchAll(PLACEHOLDER_PATTERN)]
    .map(([whole]) => whole)
    .filter((whole) => !spellings.includes(whole));
}

/** A regular expression for the texts in which {@link foreignPlaceholders} finds none. */
export function placeholderSyntax(allowed: readonly Placeholder[]): string {
  const spellings = spellingsOf(allowed).map((one) => one.replace(/[{}]/g, "\\$&"));
  return `^([^{]|${spellings.join("|")}|(?!${PLACEHOLDER})\\{)*$`;
}

/** All ways to write them: `{keyId}`, `{aad}`, `{aad:hex}` … */
function spellingsOf(placeholders: readonly Placeholder[]): string[] {
  return placeholders.flatMap((name) => [
    `{${name}}`,
    ...(BYTES.some((one) => one === name) ? ENCODINGS.map((one) => `{${name}:${one}}`) : []),
  ]);
}
