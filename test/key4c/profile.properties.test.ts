/** Templates, pointers and the checks of a profile, on random documents. */
import { expect } from "bun:test";
import Ajv from "ajv";
import fc from "fast-check";
import withLogin from "../../src/commands/manifest/profiles/cloudhsm.json";
import { keyId } from "../../src/config/option-types.ts";
import { type Json, resolvePointer } from "../../src/key4c/json.ts";
import defaultProfile from "../../src/key4c/key4c.profile.json";
import { PROFILE_SCHEMA, parseProfile } from "../../src/key4c/profile.ts";
import {
  decodeBytes,
  ENCODINGS,
  type Encoding,
  type PlaceholderValues,
  render,
  renderJson,
} from "../../src/key4c/template.ts";
import { holds } from "../properties.ts";

const TEXTS = ["ciphertext", "keyId", "userId", "apiKey", "pin", "requestId"] as const;
const BYTES = ["plaintext", "aad"] as const;
const encoding = fc.constantFrom(...ENCODINGS);
/** What a placeholder holds: `keyId`, `aad`, `aad:hex` … */
const name = fc.oneof(
  fc.constantFrom(...TEXTS, ...BYTES),
  fc.tuple(fc.constantFrom(...BYTES), encoding).map(([one, how]) => `${one}:${how}` as const),
);
const placeholder = name.map((one) => `{${one}}`);
/** Much of what a value could be taken for. */
const value = fc.oneof(
  fc.string(),
  fc
    .array(fc.oneof(placeholder, fc.constantFrom("{", "}", "$&", "$1", "%7B", "\\")), {
      maxLength: 4,
    })
    .map((parts) => parts.join("")),
);
const bytes = fc.uint8Array({ maxLength: 40 }).map((one) => Buffer.from(one));
const values: fc.Arbitrary<PlaceholderValues> = fc.record(
  Object.fromEntries([
    ...TEXTS.map((one) => [one, value] as const),
    ...BYTES.map((one) => [one, bytes] as const),
  ]),
  { requiredKeys: [] },
);
/** What must stand where `{name}` was; undefined where there is none. */
function standsFor(name: string, given: PlaceholderValues): string | undefined {
  const [one = "", how = "base64"] = name.split(":");
  const found = given[one as keyof PlaceholderValues];
  return typeof found === "object" ? found.toString(how as Encoding) : found; // both are made above
}
const literal = fc.string().map((text) => text.replaceAll(/[{}]/g, "$"));

holds(
  "a value goes in as it is, and what looks like a placeholder in it is not expanded",
  1_000,
  fc.property(fc.array(fc.tuple(literal, name)), literal, values, (pieces, end, given) => {
    const template = pieces.map(([text, one]) => `${text}{${one}}`).join("") + end;
    const isComplete = pieces.every(([, one]) => standsFor(one, given) !== undefined);
    const wanted = pieces.map(([text, one]) => text + standsFor(one, given)).join("") + end;
    expect(render(template, given)).toBe(isComplete ? wanted : (undefined as never));
  }),
);

holds(
  "bytes come back from each encoding",
  1_000,
  fc.property(bytes, encoding, (one, how) => {
    expect(decodeBytes(render(`{plaintext:${how}}`, { plaintext: one }) ?? "?", how)).toEqual(one);
  }),
);

holds(
  "no two texts stand for the same bytes, but for the capitals of hex",
  4_000,
  fc.property(
    bytes,
    encoding,
    fc.array(fc.tuple(fc.nat(60), fc.constantFrom("", "=", "A", "a", "F", "-", "+", " ", "\n")), {
      minLength: 1,
      maxLength: 3,
    }),
    fc.boolean(),
    (one, how, edits, replaces) => {
      const right = one.toString(how);
      let text = right;
      for (const [at, what] of edits) {
        text = text.slice(0, at) + what + text.slice(at + (replaces ? 1 : 0));
      }
      const isSame = text === right || (how === "hex" && text === right.toUpperCase());
      expect(decodeBytes(text, how)?.equals(one) ?? false).toBe(isSame);
    },
  ),
);

/** JSON whose texts come from `text`, with names that a pointer must escape and objects have of their own. */
function json(text: fc.Arbitrary<string>): fc.Arbitrary<Json> {
  const key = fc.oneof(
    fc.constantFrom(
      "a",
      "b",
      "0",
      "1",
      "-",
      "",
      "a/b",
      "m~n",
      "~1",
      "length",
      "__proto__",
      "toString",
    ),
    fc.string({ maxLength: 5 }),
  );
  const { node } = fc.letrec<{ node: Json; leaf: Json }>((tie) => ({
    leaf: fc.oneof(text, fc.integer(), fc.boolean(), fc.constant(null)),
    node: fc.oneof(
      { depthSize: "small", withCrossShrink: true },
      tie("leaf"),
      fc.array(tie("node"), { maxLength: 4 }),
      fc.dictionary(key, tie("node"), { maxKeys: 4, noNullPrototype: true }),
    ),
  }));
  return node;
}

/** Every value of a document, with the way to it. */
function* walk(document: Json, way: readonly string[] = []): Generator<[string[], Json]> {
  yield [[...way], document];
  if (typeof document === "object" && document !== null) {
    for (const [member, below] of Object.entries(document)) {
      yield* walk(below, [...way, member]);
    }
  }
}

/** RFC 6901 §4 on the parsed value of a document: by walking all of it. */
function evaluate(document: Json, tokens: readonly string[]): Json | undefined {
  for (const [way, found] of walk(document)) {
    if (way.length === tokens.length && way.every((step, index) => step === tokens[index])) {
      return found;
    }
  }
  return undefined;
}

/** Puts a value where a way leads, or takes away what is there. */
function put(document: Json, way: readonly string[], value: Json | undefined): void {
  const last = way.at(-1) ?? "";
  const parent = evaluate(document, way.slice(0, -1));
  if (typeof parent !== "object" || parent === null) {
    throw new Error("the way leads nowhere");
  }
  if (value !== undefined) {
    // Not by assignment, which __proto__ would not survive.
    const property = { value, enumerable: true, configurable: true, writable: true };
    Object.defineProperty(parent, last, property);
  } else if (Array.isArray(parent)) {
    parent.splice(Number(last), 1);
  } else {
    Reflect.deleteProperty(parent, last);
  }
}

holds(
  "the leaves of a body are filled, and one without a value is left out",
  1_000,
  fc.property(json(placeholder), values, (body, given) => {
    const wanted = JSON.parse(JSON.stringify([body]));
    for (const [way, leaf] of [...walk(wanted)].reverse()) {
      if (typeof leaf === "string") {
        put(wanted, way, standsFor(leaf.slice(1, -1), given));
      }
    }
    expect(JSON.stringify(renderJson([body], given))).toBe(JSON.stringify(wanted));
  }),
);

holds(
  "a key's ID stays one segment of a path, whatever is in it",
  1_000,
  fc.property(
    fc.string({ unit: "grapheme-ascii", minLength: 1, maxLength: 40 }),
    fc.constantFrom("/v1/keys/{keyId}/encrypt", "/{keyId}", "/a/{keyId}:wrap"),
    (id, template) => {
      try {
        keyId(id);
      } catch {
        fc.pre(false);
      }
      const path = render(template, { keyId: id }, encodeURIComponent);
      const { origin, pathname, search, hash } = new URL(`https://key4c.example${path}`);
      expect([origin, search, hash]).toEqual(["https://key4c.example", "", ""]);
      expect(pathname.split("/").map(decodeURIComponent)).toEqual(
        template.split("/").map((segment) => segment.replace("{keyId}", () => id)),
      );
    },
  ),
);

const escaped = (token: string) => token.replace(/[~/]/g, (one) => (one === "~" ? "~0" : "~1"));
const pointerOf = (tokens: readonly string[]) =>
  tokens.map((token) => `/${escaped(token)}`).join("");

holds(
  "a pointer finds every value of a document, and nothing that is not in it",
  2_000,
  fc.property(
    json(fc.string()),
    fc.nat(100),
    fc.array(fc.constantFrom("length", "0", "-", "00", "__proto__", "toString", "at", "a", ""), {
      maxLength: 2,
    }),
    (document, which, more) => {
      const all = [...walk(document)];
      const [way, found] = all[which % all.length] ?? [[], document];
      expect(resolvePointer(document, pointerOf(way))).toBe(found);
      const tokens = [...way, ...more];
      expect(resolvePointer(document, pointerOf(tokens))).toBe(evaluate(document, tokens));
    },
  ),
);

const edit = fc.record({
  which: fc.nat(1_000),
  what: fc.constantFrom("replace", "remove", "add"),
  value: fc.oneof(
    json(fc.oneof(fc.string(), placeholder)),
    fc.constantFrom("/p", "/a~1b", "GET", "denied", "{plaintext:hexa}", "/\\", "/a#b", "é", ""),
    fc.record({ pointer: fc.constantFrom("/p", "p"), encoding: fc.oneof(encoding, fc.string()) }),
    fc.record({ pointer: fc.constant("/v"), first: fc.nat(2), after: fc.string() }),
    fc.record({
      iv: fc.constantFrom("/iv", "{sent:iv}", "{sent:}", "iv"),
      "a.b": fc.constant("/"),
    }),
    fc.constantFrom("{random:12:hex}", "{random:0}", "{random:65:hex}", "{ciphertext.iv}", "{a.b}"),
    fc.constantFrom("https://a", "http://a", "http://[::1]:1/x", "https://a/", "tokenExpired"),
  ),
  name: fc.oneof(
    placeholder,
    fc.constantFrom("Host", "te", "Content-Type", "url", "as"),
    fc.constantFrom("a/b", "m~n", "__proto__", "X-A", "headers", "body", "codes", "401", "$schema"),
  ),
});

/** Profiles that are nearly right: random parts of the default are replaced, taken out or added to. */
const draft = fc.tuple(fc.boolean(), fc.array(edit, { maxLength: 3 })).map(([isPlain, edits]) => {
  let document: Json = [(isPlain ? defaultProfile : withLogin) as Json];
  for (const { which, what, value: replacement, name: added } of edits) {
    document = JSON.parse(JSON.stringify(document)) as Json; // what comes of JSON is JSON
    const ways = [...walk(document)].filter(
      ([way, found]) => way.length > 0 && (what !== "add" || isObject(found)),
    );
    const [way] = ways[which % ways.length] ?? [];
    if (way === undefined) {
      continue; // nothing is left to which something could be added
    }
    const isWhole = way.length === 1 && what === "remove";
    put(
      document,
      what === "add" ? [...way, added] : way,
      what === "remove" && !isWhole ? undefined : replacement,
    );
  }
  return JSON.stringify((document as Json[])[0]); // as it was made
});

function isObject(value: Json): boolean {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

holds(
  "any text is a profile or has faults, each behind the JSON pointer of its place",
  4_000,
  fc.property(
    fc.oneof(
      fc.string(),
      json(fc.string()).map((one) => JSON.stringify(one)),
      draft,
    ),
    (text) => {
      let accepted: ReturnType<typeof parseProfile>;
      try {
        accepted = parseProfile(text);
      } catch (error) {
        expect((error as Error).constructor).toBe(Error);
        const { message } = error as Error;
        if (message !== "is not JSON") {
          const document = JSON.parse(text);
          for (const fault of message.split(/; (?=\/)/)) {
            expect(fault).toMatch(/^\/.*: /s);
            const pointer = /^(\/.*): is unknown; known are /s.exec(fault)?.[1];
            if (pointer !== undefined && !pointer.includes("; ")) {
              expect(resolvePointer(document, pointer)).not.toBeUndefined();
            }
          }
        }
        return;
      }
      const given = JSON.parse(text);
      for (const operation of ["encrypt", "decrypt"] as const) {
        expect(Object.keys(accepted[operation].headers).sort()).toEqual(
          [
            ...new Set(
              [given.headers, given[operation].headers].flatMap((one) => Object.keys(one ?? {})),
            ),
          ].sort(),
        );
      }
    },
  ),
);

const isOfSchema = new Ajv({ allowUnionTypes: true }).compile(PROFILE_SCHEMA);
/** How the parts fit together, which no schema says. */
const RELATION =
  /^\/(encrypt\/body: must hold|decrypt\/body: (must hold|holds)|encrypt\/result\/ciphertext: must have|encrypt\/result\/ciphertext\/.*: finds no text|login: (must be there|gives)|login\/body: must be an object of texts for a form|\w+\/body: must be absent|describe\/result\/state: must be there|errors\/code: must be there)/;

holds(
  "the schema and the reader say the same of what each part looks like",
  4_000,
  fc.property(draft, (text) => {
    let faults: string[] = [];
    try {
      parseProfile(text);
    } catch (error) {
      faults = (error as Error).message.split(/; (?=\/)/);
    }
    const ofShape = faults.filter((fault) => !RELATION.test(fault));
    expect([isOfSchema(JSON.parse(text)), ofShape]).toEqual([ofShape.length === 0, ofShape]);
  }),
);
