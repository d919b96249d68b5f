/**
 * The shapes of the parts of a profile. Each is defined once. The reader, the JSON Schema and the table in REFERENCE.md
 * are made from it.
 */
import { isObject } from "../system/json.ts";
import { below, type Json, POINTER_PATTERN, type Pointer } from "./json.ts";
import {
  foreignPlaceholders,
  type Placeholder,
  placeholderSyntax,
  spellingOf,
} from "./template.ts";

type Schema = Readonly<Record<string, Json>>;

export interface Shape<T> {
  /** What it is, in words for the table. */
  readonly type: string;
  readonly schema: Schema;
  /** Of an object with fixed names. */
  readonly members?: Members;
  /** Records faults and continues, so that a user sees all of them at once. The result is valid if there is no fault. */
  read(value: Json | undefined, at: Pointer, faults: Faults): T;
}

interface Member<T> {
  readonly shape: Shape<T>;
  readonly isRequired: boolean;
  /** The value of an absent member. */
  readonly fallback?: T;
  readonly about: string;
}
export type Members = Readonly<Record<string, Member<unknown>>>;
type ValueOf<O> = O extends Member<infer T> ? T : never;
/** The values of the members of an object: those that may be absent are optional. */
export type ValuesOf<M extends Members> = {
  readonly [N in keyof M as undefined extends ValueOf<M[N]> ? never : N]: ValueOf<M[N]>;
} & { readonly [N in keyof M as undefined extends ValueOf<M[N]> ? N : never]?: ValueOf<M[N]> };

export class Faults {
  readonly list: string[] = [];

  add(at: Pointer, message: string): void {
    this.list.push(`${at || "/"}: ${message}`);
  }
}

export function required<T>(shape: Shape<T>, about: string): Member<T> {
  return { shape, isRequired: true, about };
}

export function optional<T>(shape: Shape<T>, about: string): Member<T | undefined> {
  return { shape, isRequired: false, about };
}

export function withDefault<T>(shape: Shape<T>, fallback: T, about: string): Member<T> {
  return { shape, isRequired: false, fallback, about };
}

/** A text. `limits` go into the schema; `fault` checks the same and says in words what is wrong. */
function textual(
  type: string,
  limits: Schema,
  fault: (text: string) => string | readonly string[],
  missing = `must be a ${type}`,
): Shape<string> {
  return {
    type,
    schema: { type: "string", ...limits },
    read(value, at, faults) {
      const text = typeof value === "string" ? value : "";
      for (const message of typeof value === "string" ? [fault(text)].flat() : [missing]) {
        faults.add(at, message);
      }
      return text;
    },
  };
}

const notEmpty = (text: string) => (text === "" ? "must be a text" : []);

export const text = textual("text", { minLength: 1 }, notEmpty);

/** A text of one syntax, a regular expression. */
export function patterned(type: string, pattern: string, fault: string): Shape<string> {
  const syntax = new RegExp(pattern);
  return textual(type, { pattern }, (one) => (syntax.test(one) ? [] : fault), fault);
}

export const pointer = patterned(
  "pointer",
  POINTER_PATTERN,
  'must be a JSON pointer such as "/data/ciphertext" (RFC 6901)',
);

/** A text with placeholders, which must also have the given syntax. */
export function template(
  allowed: readonly Placeholder[],
  syntax: { readonly pattern: string; readonly fault: string },
): Shape<string> {
  return textual(
    "template",
    { minLength: 1, allOf: [{ pattern: syntax.pattern }, { pattern: placeholderSyntax(allowed) }] },
    (one) => [
      ...notEmpty(one),
      ...(one === "" || new RegExp(syntax.pattern).test(one) ? [] : [syntax.fault]),
      ...foreign(one, allowed),
    ],
    "must be a text",
  );
}

/** Any JSON, with placeholders in its texts. @param place pointer to its schema within the whole schema */
export function jsonTemplate(allowed: readonly Placeholder[], place: Pointer): Shape<Json> {
  const again = { $ref: `#${place}` };
  return {
    type: "JSON of templates",
    schema: {
      anyOf: [
        { type: "string", pattern: placeholderSyntax(allowed) },
        { type: ["number", "boolean", "null"] },
        { type: "array", items: again },
        { type: "object", additionalProperties: again },
      ],
    },
    read(value = null, at, faults) {
      if (typeof value === "string") {
        for (const message of foreign(value, allowed)) {
          faults.add(at, message);
        }
      } else if (typeof value === "object" && value !== null) {
        for (const [name, member] of Object.entries(value)) {
          this.read(member, below(at, name), faults);
        }
      }
      return value;
    },
  };
}

function foreign(one: string, allowed: readonly Placeholder[]): string[] {
  const list = allowed.map(spellingOf).join(" ");
  return foreignPlaceholders(one, allowed).map(
    (whole) => `${whole} is not allowed here; allowed are ${list}`,
  );
}

export function oneOf<T extends Scalar>(allowed: readonly [T, ...T[]]): Shape<T> {
  return {
    type: allowed.map((one) => `\`${one}\``).join(", "),
    schema: { enum: allowed },
    read(value, at, faults) {
      const found = allowed.find((one) => one === value);
      if (found === undefined) {
        faults.add(at, `must be one of ${allowed.join(", ")}`);
      }
      return found ?? allowed[0];
    },
  };
}

export type Scalar = string | number | boolean;

export const scalar: Shape<Scalar> = {
  type: "text, number or boolean",
  schema: { type: ["string", "number", "boolean"] },
  read(value, at, faults) {
    if (value === undefined || typeof value === "object") {
      faults.add(at, "must be a text, a number or a boolean");
      return "";
    }
    return value;
  },
};

export function listOf<T>(item: Shape<T>): Shape<readonly T[]> {
  return {
    type: `list: ${item.type}`,
    schema: { type: "array", items: item.schema },
    read(value, at, faults) {
      if (!Array.isArray(value)) {
        faults.add(at, "must be a list");
        return [];
      }
      return value.map((one: Json, index) => item.read(one, below(at, String(index)), faults));
    },
  };
}

/** An object whose member names the user chooses. */
export function mapOf<T>(
  value: Shape<T>,
  names: { readonly pattern: string; readonly fault: string } = { pattern: "", fault: "" },
): Shape<Readonly<Record<string, T>>> {
  return {
    type: `object: ${value.type}`,
    schema: {
      type: "object",
      propertyNames: { pattern: names.pattern },
      additionalProperties: value.schema,
    },
    read(given, at, faults) {
      const entries = Object.entries(readObject(given, at, faults) ?? {}).map(([name, member]) => {
        const place = below(at, name);
        if (!new RegExp(names.pattern).test(name)) {
          faults.add(place, names.fault);
        }
        return [name, value.read(member, place, faults)] as const;
      });
      return Object.fromEntries(entries);
    },
  };
}

export function object<M extends Members>(members: M): Shape<ValuesOf<M>> {
  const entries = Object.entries(members);
  return {
    type: "object",
    members,
    schema: {
      type: "object",
      properties: Object.fromEntries(
        entries.map(([name, { shape, about }]) => [name, { description: about, ...shape.schema }]),
      ),
      required: entries.filter(([, { isRequired }]) => isRequired).map(([name]) => name),
      additionalProperties: false,
    },
    read(value, at, faults) {
      const given = readObject(value, at, faults);
      const known = Object.keys(members);
      for (const name of Object.keys(given ?? {})) {
        if (!known.includes(name)) {
          faults.add(below(at, name), `is unknown; known are ${known.join(", ")}`);
        }
      }
      // A value that is not an object has one fault, not one for each missing member.
      const own = given === undefined ? new Faults() : faults;
      const read = entries.map(([name, { shape, isRequired, fallback }]) => {
        const member = given?.[name];
        const isThere = member !== undefined || isRequired;
        return [name, isThere ? shape.read(member, below(at, name), own) : fallback];
      });
      return Object.fromEntries(read) as ValuesOf<M>; // one value for each member, by its shape
    },
  };
}

function readObject(
  value: Json | undefined,
  at: Pointer,
  faults: Faults,
): { readonly [name: string]: Json } | undefined {
  if (isObject(value)) {
    return value;
  }
  faults.add(at, "must be an object");
  return undefined;
}

/** Either of two shapes, told apart by whether the value is a text. */
export function textOr<T>(one: Shape<T>, other: Shape<T>, type: string): Shape<T> {
  return {
    type,
    schema: { anyOf: [one.schema, other.schema] },
    read: (value, at, faults) => (typeof value === "object" ? other : one).read(value, at, faults),
  };
}

export function mapped<T, U>(shape: Shape<T>, to: (value: T) => U): Shape<U> {
  const { type, schema } = shape;
  return { type, schema, read: (value, at, faults) => to(shape.read(value, at, faults)) };
}
