export type Json =
  | null
  | boolean
  | number
  | string
  | readonly Json[]
  | { readonly [k: string]: Json };

/** A JSON pointer (RFC 6901), such as `/data/ciphertext`. */
export type Pointer = string;

/** A regular expression. The pointer to the whole document ("") is not allowed. */
export const POINTER_PATTERN = "^(/([^~/]|~[01])*)+$";

/** The value a pointer names, or undefined (RFC 6901 §4). */
export function resolvePointer(document: unknown, pointer: Pointer): unknown {
  let at = document;
  for (const token of pointer.split("/").slice(1)) {
    const name = token.replaceAll("~1", "/").replaceAll("~0", "~");
    if (typeof at !== "object" || at === null || !isMember(at, name)) {
      return undefined;
    }
    at = (at as Record<string, unknown>)[name]; // just checked
  }
  return at;
}

/** Whether it came from the JSON. The length of an array, for example, did not. */
function isMember(of: object, name: string): boolean {
  return Object.prototype.propertyIsEnumerable.call(of, name);
}

/** The pointer to a member of what `at` names. */
export function below(at: Pointer, name: string): Pointer {
  return `${at}/${name.replaceAll("~", "~0").replaceAll("/", "~1")}`;
}

/** The value of a name that came from outside; undefined for one that every object has, such as `constructor`. */
export function ownValue<T>(map: Readonly<Record<string, T>>, name: string): T | undefined {
  return Object.hasOwn(map, name) ? map[name] : undefined;
}
