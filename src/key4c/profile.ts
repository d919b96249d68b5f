import defaultProfile from "./key4c.profile.json";

/**
 * A profile says how the three operations on a key look on the wire, so that an operator who holds the
 * API document of a service adapts to it with a JSON file. The default is such a profile too.
 */
export interface Profile {
  /** Absent: the service tells no version and no state of a key. */
  readonly describe?: Operation & {
    readonly result: { readonly [R in DescribeResult]?: Pointer };
    /** Values of `state` under which a key must not be used. */
    readonly unusableStates: readonly string[];
  };
  readonly encrypt: Operation & {
    readonly result: { readonly ciphertext: Pointer; readonly version?: Pointer };
  };
  readonly decrypt: Operation & { readonly result: { readonly plaintext: Pointer } };
  /** Some services answer 200 to a failure; then this value says whether it is one. */
  readonly success?: { readonly pointer: Pointer; readonly equals: Json };
  readonly errors: {
    /** Where a failure carries its code. */
    readonly code?: Pointer;
    /** What a code means. Only a code, or a `state`, is a verdict on the key. */
    readonly codes: Readonly<Record<string, RemoteErrorKind>>;
    /** What an HTTP status means where no code is listed; never a verdict. What is in neither is `unavailable`. */
    readonly statuses: Readonly<Record<string, RemoteErrorKind>>;
  };
}

/** What a describe may tell; `kcv` is the key check value, `algorithm` is for the doctor only. */
const DESCRIBE_RESULTS = ["version", "state", "kcv", "algorithm"] as const;
type DescribeResult = (typeof DESCRIBE_RESULTS)[number];

export interface Operation {
  readonly method: (typeof METHODS)[number];
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Json;
}

export type Json =
  | null
  | boolean
  | number
  | string
  | readonly Json[]
  | { readonly [k: string]: Json };

/** A JSON pointer (RFC 6901), such as `/data/ciphertext`. */
export type Pointer = string;

const METHODS = ["GET", "POST", "PUT"] as const;
const REMOTE_ERROR_KINDS = [
  "denied",
  "keyUnusable",
  "keyNotFound",
  "throttled",
  "invalid",
] as const;
export type RemoteErrorKind = (typeof REMOTE_ERROR_KINDS)[number];

const PLACEHOLDERS = [
  "plaintext",
  "ciphertext",
  "aad",
  "keyId",
  "userId",
  "apiKey",
  "requestId",
] as const;
type Placeholder = (typeof PLACEHOLDERS)[number];

/** The text of each placeholder; bytes in standard base64. */
export type PlaceholderValues = { readonly [P in Placeholder]?: string | undefined };

/** Wider than any name, so that a mistyped one is refused instead of being sent as it stands. */
const PLACEHOLDER_PATTERN = /\{([A-Za-z_][\w -]*)\}/g;
const HEADER_NAME_PATTERN = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/; // RFC 9110 §5.6.2

/** Replaces the placeholders of a text once; undefined when one of them has no value. */
export function render(
  template: string,
  values: PlaceholderValues,
  encode: (value: string) => string = (value) => value,
): string | undefined {
  let complete = true;
  const text = template.replace(PLACEHOLDER_PATTERN, (_, name: Placeholder) => {
    const value = values[name];
    complete &&= value !== undefined;
    return encode(value ?? "");
  });
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

/** Whether JSON gave it to the object or array: the length of an array, for one, is none of its items. */
function isMember(of: object, name: string): boolean {
  return Object.prototype.propertyIsEnumerable.call(of, name);
}

/** The pointer to a member of what `at` names. */
function below(at: Pointer, name: string): Pointer {
  return `${at}/${name.replaceAll("~", "~0").replaceAll("/", "~1")}`;
}

/** Whether a leaf of a template holds the placeholder `{name}`. */
export function uses(template: Json | undefined, name: Placeholder): boolean {
  if (typeof template === "object" && template !== null) {
    return Object.values(template).some((member) => uses(member, name));
  }
  return typeof template === "string" && template.includes(`{${name}}`);
}

/**
 * Reads and checks a profile.
 * @throws Error whose message lists every fault behind the JSON pointer of its place
 */
export function parseProfile(text: string): Profile {
  let document: Json;
  try {
    document = JSON.parse(text);
  } catch {
    throw new Error("is not JSON");
  }
  const check = new Checker();
  const profile = readProfile(check, document);
  if (check.problems.length > 0) {
    throw new Error(check.problems.join("; "));
  }
  return profile;
}

type Members = Record<string, Json>;

/** Collects faults and goes on, so that a user sees all of them at once. */
class Checker {
  readonly problems: string[] = [];

  fail(at: Pointer, message: string): void {
    this.problems.push(`${at || "/"}: ${message}`);
  }

  object(value: Json | undefined, at: Pointer, known?: readonly string[]): Members {
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      this.fail(at, "must be an object");
      return {};
    }
    const members = value as Members; // neither null nor an array
    for (const name of Object.keys(members)) {
      if (known !== undefined && !known.includes(name)) {
        this.fail(below(at, name), `is unknown; known are ${known.join(", ")}`);
      }
    }
    return members;
  }

  string(value: Json | undefined, at: Pointer): string {
    if (typeof value !== "string" || value === "") {
      this.fail(at, "must be a text");
      return "";
    }
    return value;
  }

  oneOf<T extends string>(value: Json | undefined, at: Pointer, allowed: readonly T[]): T {
    const found = allowed.find((one) => one === value);
    if (found === undefined) {
      this.fail(at, `must be one of ${allowed.join(", ")}`);
    }
    return found ?? (allowed[0] as T); // never used: a fault was recorded
  }

  pointer(value: Json | undefined, at: Pointer): Pointer {
    if (typeof value !== "string" || !/^(\/([^~/]|~[01])*)+$/.test(value)) {
      this.fail(at, 'must be a JSON pointer such as "/data/ciphertext" (RFC 6901)');
      return "/";
    }
    return value;
  }

  /** Every placeholder in the leaves of a template must be one of `allowed`. */
  template(value: Json | undefined, at: Pointer, allowed: readonly Placeholder[]): void {
    if (typeof value === "string") {
      for (const [whole, name] of value.matchAll(PLACEHOLDER_PATTERN)) {
        if (!allowed.some((one) => one === name)) {
          this.fail(at, `${whole} is not allowed here; allowed are {${allowed.join("} {")}}`);
        }
      }
    } else if (typeof value === "object" && value !== null) {
      for (const [name, member] of Object.entries(value)) {
        this.template(member, below(at, name), allowed);
      }
    }
  }
}

function readProfile(check: Checker, document: Json): Profile {
  const top = check.object(document, "", [
    "headers",
    "describe",
    "encrypt",
    "decrypt",
    "success",
    "errors",
  ]);
  const sharedHeaders = top["headers"];
  const operation = (name: string, payload: readonly Placeholder[], results: readonly string[]) => {
    const known = ["method", "path", "headers", "body", "result"];
    const own = name === "describe" ? [...known, "unusableStates"] : known;
    const members = check.object(top[name], `/${name}`, own);
    const result = check.object(members["result"], `/${name}/result`, results);
    const pointer = (of: string) => check.pointer(result[of], `/${name}/result/${of}`);
    const optionalPointer = (of: string) => (result[of] === undefined ? {} : { [of]: pointer(of) });
    const read = readOperation(check, members, `/${name}`, payload, sharedHeaders);
    return { members, pointer, optionalPointer, read };
  };

  const encrypt = operation("encrypt", ["plaintext", "aad"], ["ciphertext", "version"]);
  const decrypt = operation("decrypt", ["ciphertext", "aad"], ["plaintext"]);
  const describe =
    top["describe"] === undefined ? undefined : operation("describe", [], DESCRIBE_RESULTS);
  for (const [name, { read }, payload] of [
    ["encrypt", encrypt, "plaintext"],
    ["decrypt", decrypt, "ciphertext"],
  ] as const) {
    if (!uses(read.body, payload)) {
      check.fail(`/${name}/body`, `must hold {${payload}}`);
    }
  }
  if (uses(encrypt.read.body, "aad") !== uses(decrypt.read.body, "aad")) {
    check.fail("/decrypt/body", "must hold {aad} if and only if /encrypt/body does");
  }

  const success = top["success"];
  const errors = check.object(top["errors"] ?? {}, "/errors", ["code", "codes", "statuses"]);
  const kinds = (name: "codes" | "statuses") =>
    Object.fromEntries(
      Object.entries(check.object(errors[name] ?? {}, `/errors/${name}`)).map(([key, kind]) => {
        const at = below(`/errors/${name}`, key);
        if (name === "statuses" && !/^[2-5]\d\d$/.test(key)) {
          check.fail(at, "is not an HTTP status");
        }
        return [key, check.oneOf(kind, at, REMOTE_ERROR_KINDS)] as const;
      }),
    );
  if (errors["codes"] !== undefined && errors["code"] === undefined) {
    check.fail("/errors/code", "must be there when codes is");
  }
  return {
    ...(describe && {
      describe: {
        ...describe.read,
        result: {
          ...describe.optionalPointer("version"),
          ...describe.optionalPointer("state"),
          ...describe.optionalPointer("kcv"),
          ...describe.optionalPointer("algorithm"),
        },
        unusableStates: readUnusableStates(check, describe.members),
      },
    }),
    encrypt: {
      ...encrypt.read,
      result: {
        ciphertext: encrypt.pointer("ciphertext"),
        ...encrypt.optionalPointer("version"),
      },
    },
    decrypt: { ...decrypt.read, result: { plaintext: decrypt.pointer("plaintext") } },
    ...(success !== undefined && { success: readSuccess(check, success) }),
    errors: {
      ...(errors["code"] !== undefined && { code: check.pointer(errors["code"], "/errors/code") }),
      codes: kinds("codes"),
      statuses: kinds("statuses"),
    },
  };
}

function readOperation(
  check: Checker,
  members: Members,
  at: Pointer,
  payload: readonly Placeholder[],
  sharedHeaders: Json | undefined,
): Operation {
  const method = check.oneOf(members["method"], `${at}/method`, METHODS);
  const path = check.string(members["path"], `${at}/path`);
  if (!/^\/[!-~]*$/.test(path) || /[\\#]/.test(path)) {
    check.fail(`${at}/path`, 'must start with "/" and be visible ASCII without backslash and #');
  }
  // Paths end up in the access logs of proxies: neither key material nor a credential belongs there.
  check.template(path, `${at}/path`, ["keyId", "userId", "requestId"]);

  const headers = new Map<string, string>();
  for (const [from, where] of [
    [sharedHeaders ?? {}, "/headers"],
    [members["headers"] ?? {}, `${at}/headers`],
  ] as const) {
    for (const [name, value] of Object.entries(check.object(from, where))) {
      const place = below(where, name);
      if (!HEADER_NAME_PATTERN.test(name)) {
        check.fail(place, "is not a header name");
      }
      check.template(value, place, ["keyId", "userId", "apiKey", "requestId"]);
      const text = check.string(value, place);
      if (!/^[\x20-\x7e]*$/.test(text)) {
        check.fail(place, "must be printable ASCII");
      }
      headers.set(name, text);
    }
  }

  const body = members["body"];
  check.template(body, `${at}/body`, [...payload, "keyId", "userId", "apiKey", "requestId"]);
  if (method === "GET" && body !== undefined) {
    check.fail(`${at}/body`, "must be absent for GET");
  }
  return {
    method,
    path,
    headers: Object.fromEntries(headers),
    ...(body !== undefined && { body }),
  };
}

function readUnusableStates(check: Checker, { unusableStates, result }: Members): string[] {
  const list = unusableStates ?? [];
  const hasState = typeof result === "object" && result !== null && "state" in result;
  if (unusableStates !== undefined && !hasState) {
    check.fail("/describe/result/state", "must be there when unusableStates is");
  }
  if (!Array.isArray(list)) {
    check.fail("/describe/unusableStates", "must be a list of texts");
    return [];
  }
  return list.map((one: Json, index) => check.string(one, `/describe/unusableStates/${index}`));
}

function readSuccess(check: Checker, value: Json) {
  const members = check.object(value, "/success", ["pointer", "equals"]);
  if (members["equals"] === undefined || typeof members["equals"] === "object") {
    check.fail("/success/equals", "must be a text, a number or a boolean");
  }
  return {
    pointer: check.pointer(members["pointer"], "/success/pointer"),
    equals: members["equals"] ?? null,
  };
}

/** The profile of the contract that REFERENCE.md documents. */
export const DEFAULT_PROFILE: Profile = parseProfile(JSON.stringify(defaultProfile));
