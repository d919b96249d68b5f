import { expect, test } from "bun:test";
import { base32, formatKeyId, keyNameHash, parseKeyId } from "../../src/keys/key-id.ts";
import { MAX_KEY_VERSION } from "../../src/keys/wrapping.ts";

test("the key_id of a key is frozen: it stands in etcd", () => {
  expect(formatKeyId(keyNameHash("demo"), 1)).toBe("k4c-fbajn2fxsguq6aegzffhmyn5zi.v1");
  expect(formatKeyId(keyNameHash("4c7f0f0e-6a1b-4d55-9a57-0b9a8f5f1c2d"), 12)).toBe(
    "k4c-vj6sfnk5tbgiizm4ax5uwgzi4u.v12",
  );
  expect(formatKeyId(keyNameHash("demo"), 0)).toBe("k4c-fbajn2fxsguq6aegzffhmyn5zi");
});

test("base32 is that of RFC 4648", () => {
  // python3: base64.b32encode(bytes.fromhex("00112233445566778899aabbccddeeff"))
  expect(base32(Buffer.from("00112233445566778899aabbccddeeff", "hex"))).toBe(
    "aaisem2ekvthpcezvk54zxpo74",
  );
  expect(base32(Buffer.alloc(16))).toBe("a".repeat(26));
});

test("a formatted key_id parses to the same parts", () => {
  for (const version of [0, 1, 9, 10, MAX_KEY_VERSION]) {
    const hash = keyNameHash(`key ${version}`);
    expect(parseKeyId(formatKeyId(hash, version))).toEqual({ hashText: base32(hash), version });
  }
});

test("what is not a key_id of ours is none", () => {
  const good = formatKeyId(keyNameHash("demo"), 1);
  for (const bad of [
    "",
    "1",
    "k4c-",
    good.toUpperCase(),
    `${good} `,
    `${good}\n`,
    good.replace(".v1", ".v0"),
    good.replace(".v1", ".v01"),
    good.replace(".v1", `.v${MAX_KEY_VERSION + 1}`),
    good.replace(".v1", ".v"),
    `x${good}`,
  ]) {
    expect(parseKeyId(bad)).toBeUndefined();
  }
});

test("keys that differ have other names, and length prefixes keep parts apart", () => {
  const names = new Set(
    ["a", "b", "aa", "", "a\0", "demo", "demo2"].map((id) => base32(keyNameHash(id))),
  );
  expect(names.size).toBe(7);
});
