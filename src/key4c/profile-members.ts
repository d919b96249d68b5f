/** The members of a profile: the reader, the JSON Schema and the table in REFERENCE.md are made from these. */
import { POINTER_PATTERN } from "./json.ts";
import {
  jsonTemplate,
  listOf,
  type Members,
  mapOf,
  mapped,
  object,
  oneOf,
  optional,
  patterned,
  pointer,
  required,
  scalar,
  template,
  text,
  textOr,
  withDefault,
} from "./shape.ts";
import {
  ENCODINGS,
  type Encoding,
  MEMBER_NAME,
  type Placeholder,
  SENT_PATTERN,
} from "./template.ts";

export const METHODS = ["GET", "POST", "PUT"] as const;
export const REMOTE_ERROR_KINDS = [
  "denied",
  "tokenExpired",
  "keyUnusable",
  "keyNotFound",
  "throttled",
  "invalid",
] as const;
/** What a code or a status means. `tokenExpired` makes a new login and never leaves the client. */
export type RemoteErrorKind = (typeof REMOTE_ERROR_KINDS)[number];

/** Paths end up in the access logs of proxies: neither key material nor a credential belongs there. */
const IN_PATHS = ["keyId", "userId", "requestId"] as const;
const IN_LOGIN = ["userId", "apiKey", "pin", "requestId"] as const;
const IN_HEADERS = [...IN_LOGIN, "keyId", "token"] as const;

/** The way of a request is not the profile's: KEY4C_URL and HTTP say where it goes and how long it is. */
const NOT_OF_A_PROFILE = [
  "host",
  "connection",
  "content-length",
  "expect",
  "keep-alive",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
];
const inAnyCase = (name: string) =>
  name.replace(/[a-z]/g, (letter) => `[${letter}${letter.toUpperCase()}]`);

const headersWith = (allowed: readonly Placeholder[]) =>
  mapOf(template(allowed, { pattern: "^[ -~]*$", fault: "must be printable ASCII" }), {
    // RFC 9110 §5.6.2
    pattern: `^(?!(${NOT_OF_A_PROFILE.map(inAnyCase).join("|")})$)[!#$%&'*+.^_\`|~0-9A-Za-z-]+$`,
    fault: "is not the name of a header that a profile may set",
  });
const headers = headersWith(IN_HEADERS);

const pathWith = (allowed: readonly Placeholder[]) =>
  required(
    template(allowed, {
      pattern: '^/[!"$-\\[\\]-~]*$',
      fault: 'must start with "/" and be visible ASCII without backslash and #',
    }),
    "follows KEY4C_URL; values are percent-encoded",
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
    path: pathWith(IN_PATHS),
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

/** As KEY4C_URL: http only where nothing leaves the machine. */
const loginUrl = patterned(
  "URL",
  "^(https://|http://(localhost|127(\\.\\d{1,3}){3}|\\[::1\\])(?=[:/]|$))[^\\s?#@\\\\]*[^\\s?#@\\\\/]$",
  "must be https://HOST[:PORT][/PATH] without user, query, fragment and a slash at its end (http only for loopback)",
);

const login = object({
  method: required(oneOf(METHODS), "HTTP method"),
  url: optional(loginUrl, "`https://HOST[:PORT][/PATH]` in the place of KEY4C_URL"),
  path: pathWith(["userId", "requestId"]),
  as: withDefault(oneOf<"json" | "form">(["json", "form"]), "json", "how the body is sent"),
  headers: withDefault(headersWith(IN_LOGIN), {}, "headers of the login, and no others"),
  body: optional(
    jsonTemplate(IN_LOGIN, "/properties/login/properties/body"),
    "as for an operation; as a form an object of texts",
  ),
  result: required(
    object({
      token: required(pointer, "the token: a text"),
      expiresInSeconds: optional(
        pointer,
        "its life, a number or digits; it is renewed at 80 to 90 % of it. 0, or no pointer: used until it is refused",
      ),
    }),
    "pointers into the answer",
  ),
});

const version = optional(
  textOr(
    mapped(pointer, (to) => ({ pointer: to, first: 1 as 0 | 1, after: "", before: "" })),
    object({
      pointer: required(pointer, "where it is"),
      first: withDefault(oneOf<0 | 1>([0, 1]), 1, "the number of the first version"),
      after: withDefault(text, "", "it begins behind this text"),
      before: withDefault(text, "", "and ends before the next of this one"),
    }),
    'pointer, or `{"pointer", "first", "after", "before"}`',
  ),
  "version of the key: a whole number, or its digits, with or without leading zeros",
);

/** @param usual how the bytes at a mere pointer are written */
const bytes = (usual: Encoding) =>
  textOr(
    mapped(pointer, (to) => ({ pointer: to, encoding: usual })),
    object({
      pointer: required(pointer, "where it is"),
      encoding: required(oneOf(ENCODINGS), "how its bytes are written"),
    }),
    'pointer, or `{"pointer", "encoding"}`',
  );

const member = patterned(
  "pointer or `{sent:NAME}`",
  `${POINTER_PATTERN}|${SENT_PATTERN}`,
  'must be a JSON pointer such as "/data/iv" (RFC 6901), or "{sent:NAME}"',
);
const ciphertext = textOr<string | Readonly<Record<string, string>>>(
  pointer,
  mapOf(member, {
    pattern: `^${MEMBER_NAME}$`,
    fault: "is not a name of letters, digits, _ and -",
  }),
  "pointer, or an object of pointers",
);

const kinds = oneOf(REMOTE_ERROR_KINDS);

export const MEMBERS = {
  $schema: optional(text, "for editors; not read"),
  headers: withDefault(
    headers,
    {},
    "headers of all operations; a header whose placeholder has no value is left out",
  ),
  login: optional(login, "before the calls, whose templates have `{token}`; one for all of them"),
  describe: optional(
    object({
      ...operation(
        "describe",
        [],
        {
          version,
          state: optional(pointer, "state of the key"),
          kcv: optional(bytes("hex"), "key check value; in hexadecimal digits for a pointer"),
          algorithm: optional(pointer, "for the doctor only"),
        },
        "pointers into the answer",
      ),
      unusableStates: withDefault(
        listOf(scalar),
        [],
        "values of `state` under which the key must not be used; they lead to the state `revoked`",
      ),
    }),
    "asks for version and state of a key; without it the version comes from encrypt, and no state is seen",
  ),
  encrypt: required(
    object(
      operation(
        "encrypt",
        ["plaintext", "aad", "random"],
        {
          ciphertext: required(
            ciphertext,
            "a text, stored unchanged, whatever its encoding; or several, for `{ciphertext.NAME}`. `{sent:iv}` is `iv` of the body that was sent",
          ),
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
        {
          plaintext: required(
            bytes("base64"),
            "the 32 bytes of the local KEK; base64 for a pointer",
          ),
        },
        "pointers into the answer",
      ),
    ),
    "unwraps a local KEK; its body must hold `{ciphertext}`, or each `{ciphertext.NAME}`, and `{aad}` exactly if the body of encrypt does",
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
      code: optional(
        textOr<readonly string[]>(
          mapped(pointer, (one) => [one]),
          listOf(pointer),
          "pointer, or a list of them",
        ),
        "where a failure has its code: a text or a number; the first that finds one counts",
      ),
      codes: withDefault(
        mapOf(kinds),
        {},
        "what a code means; only a code or a `state` can say that a key is disabled, deleted or unknown. `tokenExpired` makes a new login, once",
      ),
      statuses: withDefault(
        mapOf(kinds, { pattern: "^[2-5]\\d\\d$", fault: "is not an HTTP status" }),
        {},
        "what an HTTP status means when its code is not listed; a status alone never revokes a key",
      ),
    }),
    { code: undefined, codes: {}, statuses: {} },
    "what a failure means; a failure that is not listed is `unavailable`",
  ),
};
