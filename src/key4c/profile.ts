import type { Json, Pointer } from "./json.ts";
import defaultProfile from "./key4c.profile.json";
import {
  Faults,
  jsonTemplate,
  listOf,
  type Members,
  mapOf,
  mapped,
  object,
  oneOf,
  optional,
  pointer,
  required,
  rowsOf,
  type Scalar,
  scalar,
  template,
  text,
  textOr,
  withDefault,
} from "./shape.ts";
import { ENCODINGS, type Encoding, type Placeholder, uses } from "./template.ts";

/**
 * A profile says how the three operations on a key look on the wire. An operator who has the API document of a service
 * writes one as a JSON file. The default is such a profile too.
 */
export interface Profile {
  /** Absent: the service tells no version and no state of a key. */
  readonly describe?: Description | undefined;
  readonly encrypt: Operation & {
    readonly result: { readonly ciphertext: Pointer; readonly version?: Pointer | undefined };
  };
  readonly decrypt: Operation & { readonly result: { readonly plaintext: BytesPointer } };
  /** Some services answer 200 to a failure; then this value says whether it is one. */
  readonly success?: { readonly pointer: Pointer; readonly equals: Scalar } | undefined;
  readonly errors: {
    /** Where a failure carries its code. */
    readonly code?: Pointer | undefined;
    /** What a code means. Only a code, or a `state`, is a verdict on the key. */
    readonly codes: Readonly<Record<string, RemoteErrorKind>>;
    /** What an HTTP status means when no code is listed; never a verdict. A failure in neither is `unavailable`. */
    readonly statuses: Readonly<Record<string, RemoteErrorKind>>;
  };
}

export interface Operation {
  readonly method: (typeof METHODS)[number];
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Json | undefined;
}

interface Description extends Operation {
  /** `kcv` is the key check value, `algorithm` is for the doctor only. */
  readonly result: {
    readonly [R in "version" | "state" | "kcv" | "algorithm"]?: Pointer | undefined;
  };
  /** Values of `state` under which a key must not be used. */
  readonly unusableStates: readonly Scalar[];
}

/** A pointer to a text that encodes bytes. */
export interface BytesPointer {
  readonly pointer: Pointer;
  readonly encoding: Encoding;
}

const METHODS = ["GET", "POST", "PUT"] as const;
const REMOTE_ERROR_KINDS = [
  "denied",
  "keyUnusable",
  "keyNotFound",
  "throttled",
  "invalid",
] as const;
export type RemoteErrorKind = (typeof REMOTE_ERROR_KINDS)[number];

/** Paths end up in the access logs of proxies: neither key material nor a credential belongs there. */
const IN_PATHS = ["keyId", "userId", "requestId"] as const;
const IN_HEADERS = ["keyId", "userId", "apiKey", "pin", "requestId"] as const;

const headers = mapOf(
  template(IN_HEADERS, { pattern: "^[ -~]*$", fault: "must be printable ASCII" }),
  {
    pattern: "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$", // RFC 9110 §5.6.2
    fault: "is not a header name",
  },
);

/** @param payload the placeholders of this operation alone */
function operation<R extends Members>(
  name: string,
  payload: readonly Placeholder[],
  results: R,
  aboutResults: string,
) {
  return {
    method: required(oneOf(METHODS), "HTTP method"),
    path: required(
      template(IN_PATHS, {
        pattern: '^/[!"$-\\[\\]-~]*$',
        fault: 'must start with "/" and be visible ASCII without backslash and #',
      }),
      "follows KEY4C_URL; values are percent-encoded",
    ),
    headers: withDefault(
      headers,
      {},
      "headers of this operation; they win over those of all operations",
    ),
    body: optional(
      jsonTemplate([...payload, ...IN_HEADERS], `/properties/${name}/properties/body`),
      "sent as JSON; none for GET",
    ),
    result: required(object(results), aboutResults),
  };
}

const version = optional(pointer, "version of the key: a whole number of 1 or more, or its digits");
const plaintext = textOr(
  mapped(pointer, (to) => ({ pointer: to, encoding: ENCODINGS[0] as Encoding })),
  object({
    pointer: required(pointer, "where it is"),
    encoding: required(oneOf(ENCODINGS), "how its bytes are written"),
  }),
  'pointer, or `{"pointer", "encoding"}`',
);
const kinds = oneOf(REMOTE_ERROR_KINDS);

const MEMBERS = {
  $schema: optional(text, "for editors; not read"),
  headers: withDefault(
    headers,
    {},
    "headers of all operations; a header whose placeholder has no value is left out",
  ),
  describe: optional(
    object({
      ...operation(
        "describe",
        [],
        {
          version,
          state: optional(pointer, "state of the key"),
          kcv: optional(pointer, "key check value, in hexadecimal digits"),
          algorithm: optional(pointer, "for the doctor only"),
        },
        "pointers into the answer",
      ),
      unusableStates: withDefault(
        listOf(scalar),
        [],
        "values of `state` under which the key must not be used: a verdict",
      ),
    }),
    "asks for version and state of a key; without it the version comes from encrypt, and no state is seen",
  ),
  encrypt: required(
    object(
      operation(
        "encrypt",
        ["plaintext", "aad"],
        {
          ciphertext: required(pointer, "a text; it is stored unchanged, whatever its encoding"),
          version,
        },
        "pointers into the answer",
      ),
    ),
    "wraps a local KEK; its body must hold `{plaintext}`",
  ),
  decrypt: required(
    object(
      operation(
        "decrypt",
        ["ciphertext", "aad"],
        { plaintext: required(plaintext, "the 32 bytes of the local KEK; base64 for a pointer") },
        "pointers into the answer",
      ),
    ),
    "unwraps a local KEK; its body must hold `{ciphertext}`, and `{aad}` exactly if the body of encrypt does",
  ),
  success: optional(
    object({
      pointer: required(pointer, "where an answer says whether it is a success"),
      equals: required(scalar, "the value that is there in a success"),
    }),
    "for services that answer failures with 200 too",
  ),
  errors: withDefault(
    object({
      code: optional(pointer, "where a failure has its code: a text or a number"),
      codes: withDefault(mapOf(kinds), {}, "what a code means: a verdict"),
      statuses: withDefault(
        mapOf(kinds, { pattern: "^[2-5]\\d\\d$", fault: "is not an HTTP status" }),
        {},
        "what an HTTP status means when its code is not listed: never a verdict",
      ),
    }),
    { code: undefined, codes: {}, statuses: {} },
    "what a failure means; a failure that is not listed is `unavailable`",
  ),
};
const PROFILE = object(MEMBERS);

/** Reads what {@link PROFILE_SCHEMA} describes, and checks what no schema can: how the parts fit together. */
function readProfile(document: Json, faults: Faults): Profile {
  const {
    headers: shared,
    describe,
    encrypt,
    decrypt,
    ...rest
  } = PROFILE.read(document, "", faults);
  for (const [name, { body }, payload] of [
    ["encrypt", encrypt, "plaintext"],
    ["decrypt", decrypt, "ciphertext"],
  ] as const) {
    if (!uses(body, payload)) {
      faults.add(`/${name}/body`, `must hold {${payload}}`);
    }
  }
  if (uses(encrypt.body, "aad") !== uses(decrypt.body, "aad")) {
    faults.add("/decrypt/body", "must hold {aad} if and only if /encrypt/body does");
  }
  for (const [name, one] of Object.entries({ describe, encrypt, decrypt })) {
    if (one?.method === "GET" && one.body !== undefined) {
      faults.add(`/${name}/body`, "must be absent for GET");
    }
  }
  if (describe !== undefined && describe.unusableStates.length > 0 && !describe.result.state) {
    faults.add("/describe/result/state", "must be there when unusableStates is");
  }
  if (Object.keys(rest.errors.codes).length > 0 && rest.errors.code === undefined) {
    faults.add("/errors/code", "must be there when codes is");
  }
  const withShared = <O extends Operation>(one: O): O => ({
    ...one,
    headers: { ...shared, ...one.headers },
  });
  return {
    describe: describe && withShared(describe),
    encrypt: withShared(encrypt),
    decrypt: withShared(decrypt),
    success: rest.success,
    errors: rest.errors,
  };
}

/**
 * Reads and checks a profile.
 * @throws Error whose message lists every fault behind the JSON pointer of its place
 */
export function parseProfile(source: string): Profile {
  let document: Json;
  try {
    document = JSON.parse(source);
  } catch {
    throw new Error("is not JSON");
  }
  const faults = new Faults();
  const profile = readProfile(document, faults);
  if (faults.list.length > 0) {
    throw new Error(faults.list.join("; "));
  }
  return profile;
}

/** Whether any operation sends it. */
export function sends(profile: Profile, placeholder: Placeholder): boolean {
  return [profile.describe, profile.encrypt, profile.decrypt].some(
    (one) => one !== undefined && uses([Object.values(one.headers), one.body ?? null], placeholder),
  );
}

/** The JSON Schema, for editors. It cannot say how the parts fit together. */
export const PROFILE_SCHEMA = {
  $schema: "http://json-schema.org/draft-07/schema#", // what editors know best
  title: "A profile of key4c-kms-plugin",
  ...PROFILE.schema,
};

/** The table of a profile's members in REFERENCE.md, in Markdown; a test keeps the two equal. */
export function profileTable(): string {
  return [
    ["member", "type", "required, or default", "meaning"],
    ["---", "---", "---", "---"],
    ...rowsOf(MEMBERS),
  ]
    .map((cells) => `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`)
    .join("\n");
}

/** The profile of the contract that REFERENCE.md documents. */
export const DEFAULT_PROFILE: Profile = parseProfile(JSON.stringify(defaultProfile));
