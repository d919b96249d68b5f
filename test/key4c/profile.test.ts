import { expect, test } from "bun:test";
import defaultProfile from "../../src/key4c/key4c.profile.json";
import { DEFAULT_PROFILE, parseProfile, sends } from "../../src/key4c/profile.ts";

function faultsOf(profile: unknown): string {
  try {
    parseProfile(typeof profile === "string" ? profile : JSON.stringify(profile));
  } catch (error) {
    return (error as Error).message; // parseProfile throws Errors
  }
  throw new Error("the profile was accepted");
}

type Draft = Record<
  "headers" | "describe" | "encrypt" | "decrypt" | "errors",
  Record<string, unknown>
>;

const LOGIN = { method: "POST", path: "/login", body: {}, result: { token: "/t" } };

/** The default profile with one thing replaced. */
function changed(change: (profile: Draft) => void): unknown {
  const copy: Draft = structuredClone(defaultProfile);
  change(copy);
  return copy;
}

test("the default profile is the documented contract", () => {
  expect(DEFAULT_PROFILE.encrypt.path).toBe("/v1/keys/{keyId}/encrypt");
  expect(DEFAULT_PROFILE.describe?.result.kcv).toEqual({ pointer: "/kcv", encoding: "hex" });
  expect(DEFAULT_PROFILE.errors).toEqual({
    code: ["/code"],
    codes: {
      DENIED: "denied",
      KEY_NOT_FOUND: "keyNotFound",
      KEY_DISABLED: "keyUnusable",
      KEY_DELETED: "keyUnusable",
      INVALID_CIPHERTEXT: "invalid",
      THROTTLED: "throttled",
    },
    statuses: { "401": "denied", "403": "denied", "429": "throttled" },
  });
  expect(DEFAULT_PROFILE.decrypt.result.plaintext).toEqual({
    pointer: "/plaintext",
    encoding: "base64",
  });
  expect(sends(DEFAULT_PROFILE, "pin")).toBe(false);
});

test.each([
  ["not JSON", "{", "is not JSON"],
  ["a list", [], "/: must be an object"],
  ["an empty object", {}, "/encrypt: must be an object"],
  ["an unknown member", changed((p) => Object.assign(p, { retries: 3 })), "/retries: is unknown"],
  [
    "a method",
    changed((p) => (p.encrypt["method"] = "PATCH")),
    "/encrypt/method: must be one of GET, POST, PUT",
  ],
  [
    "a name with a slash and a tilde",
    changed((p) => Object.assign(p.encrypt, { "a/b~c": 1 })),
    "/encrypt/a~1b~0c: is unknown",
  ],
  ["no path", changed((p) => delete p.decrypt["path"]), "/decrypt/path: must be a text"],
  ["a relative path", changed((p) => (p.decrypt["path"] = "v1")), "/decrypt/path: must start with"],
  [
    "a plaintext in a path",
    changed((p) => (p.encrypt["path"] = "/e/{plaintext}")),
    "/encrypt/path: {plaintext} is not allowed here",
  ],
  [
    "an API key in a path",
    changed((p) => (p.describe["path"] = "/{apiKey}")),
    "/describe/path: {apiKey} is not allowed here",
  ],
  [
    "a PIN in a path",
    changed((p) => (p.encrypt["path"] = "/{pin}")),
    "/encrypt/path: {pin} is not allowed here",
  ],
  [
    "an encoding that there is not",
    changed((p) => (p.encrypt["body"] = { p: "{plaintext:base32}", aad: "{aad}" })),
    "/encrypt/body/p: {plaintext:base32} is not allowed here",
  ],
  [
    "an encoding with a space",
    changed((p) => (p.encrypt["body"] = { p: "{plaintext: hex}", aad: "{aad}" })),
    "/encrypt/body/p: {plaintext: hex} is not allowed here",
  ],
  [
    "an encoding of what is no bytes",
    changed((p) => (p.decrypt["body"] = { c: "{ciphertext:hex}", aad: "{aad}" })),
    "/decrypt/body/c: {ciphertext:hex} is not allowed here",
  ],
  [
    "a result in an encoding that there is not",
    changed((p) => (p.decrypt["result"] = { plaintext: { pointer: "/p", encoding: "HEX" } })),
    "/decrypt/result/plaintext/encoding: must be one of base64, base64url, hex",
  ],
  [
    "a result with an encoding and no place",
    changed((p) => (p.decrypt["result"] = { plaintext: { encoding: "hex" } })),
    "/decrypt/result/plaintext/pointer: must be a JSON pointer",
  ],
  [
    "an encoding of what is no bytes in a result",
    changed((p) => (p.encrypt["result"] = { ciphertext: { pointer: "/c", encoding: "hex" } })),
    "/encrypt/result/ciphertext/encoding: must be a JSON pointer",
  ],
  [
    "a state that is an object",
    changed((p) => (p.describe["unusableStates"] = [{}])),
    "/describe/unusableStates/0: must be a text, a number or a boolean",
  ],
  [
    "states that are no list",
    changed((p) => (p.describe["unusableStates"] = "DISABLED")),
    "/describe/unusableStates: must be a list",
  ],
  [
    "a mistyped placeholder",
    changed(
      (p) =>
        (p.encrypt["body"] = { plaintext: "{plaintext}", x: { y: ["{keyid}"] }, aad: "{aad}" }),
    ),
    "/encrypt/body/x/y/0: {keyid} is not allowed here",
  ],
  [
    "a body without the plaintext",
    changed((p) => (p.encrypt["body"] = { aad: "{aad}" })),
    "/encrypt/body: must hold {plaintext}",
  ],
  [
    "AAD on one side only",
    changed((p) => (p.decrypt["body"] = { ciphertext: "{ciphertext}" })),
    "/decrypt/body: must hold {aad} if and only if",
  ],
  [
    "a pointer",
    changed((p) => (p.encrypt["result"] = { ciphertext: "ciphertext" })),
    "/encrypt/result/ciphertext: must be a JSON pointer",
  ],
  [
    "a bad escape in a pointer",
    changed((p) => (p.decrypt["result"] = { plaintext: "/a~2" })),
    "/decrypt/result/plaintext: must be a JSON pointer",
  ],
  [
    "a missing result",
    changed((p) => (p.decrypt["result"] = {})),
    "/decrypt/result/plaintext: must be a JSON pointer",
  ],
  [
    "an unknown kind",
    changed((p) => (p.errors["statuses"] = { "401": "forbidden" })),
    "/errors/statuses/401: must be one of denied, tokenExpired, keyUnusable, keyNotFound, throttled, invalid",
  ],
  [
    "an unknown kind of a code",
    changed((p) => (p.errors["codes"] = { "a/b": "unavailable" })),
    "/errors/codes/a~1b: must be one of denied, tokenExpired, keyUnusable, keyNotFound, throttled, invalid",
  ],
  [
    "a code among the statuses",
    changed((p) => (p.errors["statuses"] = { KEY_DELETED: "keyUnusable" })),
    "/errors/statuses/KEY_DELETED: is not an HTTP status",
  ],
  [
    "a status that does not exist",
    changed((p) => (p.errors["statuses"] = { "600": "throttled" })),
    "/errors/statuses/600: is not an HTTP status",
  ],
  [
    "codes without their place",
    changed((p) => delete p.errors["code"]),
    "/errors/code: must be there when codes is",
  ],
  [
    "codes and statuses in one map",
    changed((p) => (p.errors["kinds"] = { "401": "denied" })),
    "/errors/kinds: is unknown; known are code, codes, statuses",
  ],
  [
    "a key check value without a pointer",
    changed((p) => (p.describe["result"] = { kcv: "kcv" })),
    "/describe/result/kcv: must be a JSON pointer",
  ],
  [
    "a header with a line break",
    changed((p) => (p.headers["X-A"] = "a\r\nb: c")),
    "/headers/X-A: must be printable ASCII",
  ],
  [
    "a header name",
    changed((p) => (p.headers["X A"] = "a")),
    "/headers/X A: is not the name of a header",
  ],
  [
    "a plaintext in a header",
    changed((p) => (p.headers["X-A"] = "{plaintext}")),
    "/headers/X-A: {plaintext} is not allowed here",
  ],
  [
    "a body for GET",
    changed((p) => (p.describe["body"] = {})),
    "/describe/body: must be absent for GET",
  ],
  [
    "a placeholder with an underscore",
    changed((p) => (p.encrypt["path"] = "/v1/{key_id}")),
    "/encrypt/path: {key_id} is not allowed here",
  ],
  [
    "a placeholder with a dash",
    changed((p) => (p.headers["X-A"] = "{key-id}")),
    "/headers/X-A: {key-id} is not allowed here",
  ],
  [
    "a plaintext that is a name only",
    changed((p) => (p.encrypt["body"] = { "{plaintext}": "x", aad: "{aad}" })),
    "/encrypt/body: must hold {plaintext}",
  ],
  [
    "a control character in a path",
    changed((p) => (p.encrypt["path"] = "/a\0b")),
    "/encrypt/path: must start with",
  ],
  [
    "states without their place",
    changed((p) => (p.describe["result"] = { version: "/version" })),
    "/describe/result/state: must be there",
  ],
  [
    "a success test with an object",
    changed((p) => Object.assign(p, { success: { pointer: "/ok", equals: {} } })),
    "/success/equals: must be a text, a number or a boolean",
  ],
  [
    "a success test without a value",
    changed((p) => Object.assign(p, { success: { pointer: "/ok" } })),
    "/success/equals: must be",
  ],
  [
    "a member that decrypt does not send",
    changed((p) => (p.encrypt["result"] = { ciphertext: { iv: "/iv", data: "/data" } })),
    "/decrypt/body: must hold {ciphertext.iv}; /decrypt/body: must hold {ciphertext.data}; /decrypt/body: holds {ciphertext}, which encrypt does not return",
  ],
  [
    "a member that encrypt does not return",
    changed((p) => (p.decrypt["body"] = { c: "{ciphertext}{ciphertext.iv}", aad: "{aad}" })),
    "/decrypt/body: holds {ciphertext.iv}, which encrypt does not return",
  ],
  [
    "a sent member that is not sent",
    changed((p) => (p.encrypt["result"] = { ciphertext: { iv: "{sent:iv}" } })),
    "/encrypt/result/ciphertext/iv: finds no text in /encrypt/body/iv",
  ],
  [
    "a random in decrypt",
    changed((p) => (p.decrypt["body"] = { c: "{ciphertext}", iv: "{random:12}", aad: "{aad}" })),
    "/decrypt/body/iv: {random:12} is not allowed here",
  ],
  [
    "a random of no length",
    changed((p) => (p.encrypt["body"] = { p: "{plaintext}", iv: "{random:hex}", aad: "{aad}" })),
    "/encrypt/body/iv: {random:hex} is not allowed here; allowed are {plaintext} {aad} {random:BYTES:ENCODING}",
  ],
  [
    "a token without a login",
    changed((p) => (p.headers["Authorization"] = "Bearer {token}")),
    "/login: must be there when a template has {token}",
  ],
  [
    "tokens that expire without a login",
    changed((p) => (p.errors["statuses"] = { "401": "tokenExpired" })),
    "/login: must be there when a code or a status means tokenExpired",
  ],
  [
    "a login whose token nobody sends",
    changed((p) => Object.assign(p, { login: LOGIN })),
    "/login: gives a {token}, and no template has one",
  ],
  [
    "a token in a path",
    changed((p) => (p.describe["path"] = "/{token}")),
    "/describe/path: {token} is not allowed here",
  ],
  [
    "a token in the login",
    changed((p) => Object.assign(p, { login: { ...LOGIN, body: { t: "{token}" } } })),
    "/login/body/t: {token} is not allowed here",
  ],
  [
    "a login by http",
    changed((p) => Object.assign(p, { login: { ...LOGIN, url: "http://login.example" } })),
    "/login/url: must be https://HOST",
  ],
  [
    "a login by http to what looks like loopback",
    changed((p) => Object.assign(p, { login: { ...LOGIN, url: "http://127.0.0.1.example" } })),
    "/login/url: must be https://HOST",
  ],
  [
    "a form with an object in it",
    changed((p) => Object.assign(p, { login: { ...LOGIN, as: "form", body: { a: {} } } })),
    "/login/body: must be an object of texts for a form",
  ],
  ...["Host", "content-length", "Transfer-Encoding", "TE"].map(
    (name) =>
      [
        `the header ${name}`,
        changed((p) => (p.headers[name] = "x")),
        `/headers/${name}: is not the name of a header that a profile may set`,
      ] as const,
  ),
  [
    "a first version of 2",
    changed(
      (p) => (p.encrypt["result"] = { ciphertext: "/c", version: { pointer: "/v", first: 2 } }),
    ),
    "/encrypt/result/version/first: must be one of 0, 1",
  ],
])("refuses %s and says where", (_, profile, message) => {
  expect(faultsOf(profile)).toContain(message);
});

test("names all faults at once", () => {
  const faults = faultsOf({ encrypt: { method: "GET" }, errors: { code: "x" } });
  for (const place of [
    "/encrypt/path",
    "/encrypt/body",
    "/encrypt/result",
    "/decrypt",
    "/errors/code",
  ]) {
    expect(faults).toContain(`${place}: `);
  }
});

test("a header is kept whatever its name is", () => {
  const profile = JSON.stringify(defaultProfile).replace(
    '"headers":{',
    '"headers":{"__proto__":"x",',
  );
  const { headers } = parseProfile(profile).encrypt;
  expect(Object.keys(headers)[0]).toBe("__proto__");
});
