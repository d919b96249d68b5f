import { expect, test } from "bun:test";
import {
  base32,
  formatKeyId,
  kcvHash,
  keyNameHash,
  parseKeyId,
  standsFor,
} from "../../src/keys/key-id.ts";
import { MAX_KEY_VERSION } from "../../src/keys/wrapping.ts";

function keyIdOf(kmsKeyId: string, keyVersion: number, kcv?: string): string {
  const hashes = { keyNameHash: keyNameHash(kmsKeyId), kcvHash: kcvHash(kmsKeyId, kcv) };
  return formatKeyId({ ...hashes, keyVersion });
}

test("the key_id of a key is frozen: it stands in etcd", () => {
  expect(keyIdOf("demo", 1)).toBe("k4c-fbajn2fxsguq6aegzffhmyn5zi.v1");
  expect(keyIdOf("4c7f0f0e-6a1b-4d55-9a57-0b9a8f5f1c2d", 12)).toBe(
    "k4c-vj6sfnk5tbgiizm4ax5uwgzi4u.v12",
  );
  expect(keyIdOf("demo", 0)).toBe("k4c-fbajn2fxsguq6aegzffhmyn5zi");
});

test("base32 is that of RFC 4648", () => {
  // python3: base64.b32encode(bytes.fromhex("00112233445566778899aabbccddeeff"))
  expect(base32(Buffer.from("00112233445566778899aabbccddeeff", "hex"))).toBe(
    "aaisem2ekvthpcezvk54zxpo74",
  );
  expect(base32(Buffer.alloc(16))).toBe("a".repeat(26));
});

/**
 * python3: import base64, hashlib, struct
 * part = lambda s: struct.pack(">I", len(s.encode())) + s.encode()
 * h = hashlib.sha256(part("key4c-kms-plugin/kcv/v1") + part(ID) + part(KCV)).digest()[:5]
 * h.hex(), base64.b32encode(h).lower()
 */
test.each([
  ["demo", "A1B2C3", "e953ad044c", "5fj22bcm"],
  ["4c7f0f0e-6a1b-4d55-9a57-0b9a8f5f1c2d", "A1B2C3", "2d950b73c9", "fwkqw46j"],
  [
    "demo",
    "0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F",
    "ab2a64439f",
    "vmvgiq47",
  ],
])("the hash of a key check value is frozen too: %s, %s", (kmsKeyId, kcv, hex, text) => {
  expect(Buffer.from(kcvHash(kmsKeyId, kcv)).toString("hex")).toBe(hex);
  const none = keyIdOf(kmsKeyId, 7);
  expect(keyIdOf(kmsKeyId, 7, kcv)).toBe(`${none}.k${text}`);
  expect(keyIdOf(kmsKeyId, 0, kcv)).toBe(`${none.replace(".v7", "")}.k${text}`);
});

test("no key check value has no hash, and each key its own", () => {
  expect(kcvHash("demo", undefined).length).toBe(0);
  expect(kcvHash("demo", "A1B2C3")).not.toEqual(kcvHash("other", "A1B2C3"));
  expect(kcvHash("demo", "A1B2C3")).not.toEqual(kcvHash("demo", "A1B2C4"));
});

test("a formatted key_id parses to the same parts", () => {
  for (const version of [0, 1, 9, 10, MAX_KEY_VERSION]) {
    for (const kcv of [undefined, "A1B2C3"]) {
      const hashText = base32(keyNameHash(`key ${version}`));
      const kcvText = base32(kcvHash(`key ${version}`, kcv));
      const parsed = parseKeyId(keyIdOf(`key ${version}`, version, kcv));
      expect(parsed).toEqual({ hashText, version, kcvText });
    }
  }
});

test("what is not a key_id of ours is none", () => {
  const good = keyIdOf("demo", 1);
  const withKcv = keyIdOf("demo", 1, "A1B2C3");
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
    `${good}.k`,
    withKcv.slice(0, -1),
    `${withKcv}a`,
    withKcv.replace(".k", ".K"),
    withKcv.replace(/\.k.*/, ".k1b2c3d4e"),
    `${withKcv}${withKcv.slice(-10)}`,
    withKcv.replace(/(\.v1)(\.k.*)/, "$2$1"),
  ]) {
    expect(parseKeyId(bad)).toBeUndefined();
  }
});

test("a key_id stands for its key, whatever the version, and for no other", () => {
  for (const keyId of [keyIdOf("demo", 0), keyIdOf("demo", 7), keyIdOf("demo", 7, "A1B2C3")]) {
    expect(standsFor(keyId, "demo")).toBe(true);
    expect(standsFor(keyId, "other")).toBe(false);
  }
  expect(standsFor("of another plugin", "demo")).toBe(false);
});

test("keys that differ have other names, and length prefixes keep parts apart", () => {
  const names = new Set(
    ["a", "b", "aa", "", "a\0", "demo", "demo2"].map((id) => base32(keyNameHash(id))),
  );
  expect(names.size).toBe(7);
});
