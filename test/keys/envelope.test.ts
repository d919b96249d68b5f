import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { create, toBinary } from "@bufbuild/protobuf";
import { EnvelopeSchema } from "../../src/gen/key4c/envelope/v1/envelope_pb.ts";
import { decodeEnvelope, encodeEnvelope, kekHeader, LocalKek } from "../../src/keys/envelope.ts";
import { formatKeyId, kcvHash, keyNameHash, NO_KCV } from "../../src/keys/key-id.ts";
import { kindOf } from "../support.ts";

const DEK = randomBytes(32);
const kek = new LocalKek(randomBytes(32));
const header = kekHeader({
  keyNameHash: keyNameHash("demo"),
  keyVersion: 3,
  kcvHash: NO_KCV,
  aadSent: true,
  wrappedLocalKek: "vault:v3:AAAA",
});
const sealed = kek.seal(header, DEK);
/** Where Key4C tells a key check value. */
const kcvHeader = kekHeader({ ...header, kcvHash: kcvHash("demo", "A1B2C3") });
const kcvSealed = kek.seal(kcvHeader, DEK);

/** Opens stored bytes as v1 or, with an annotation, as v2. */
async function open(bytes: Uint8Array, wrapped?: string): Promise<Buffer> {
  return kek.open(decodeEnvelope(bytes, wrapped));
}

test("a local KEK has 32 bytes, and is not made of others", () => {
  for (const bytes of [0, 16, 31, 33]) {
    expect(() => new LocalKek(randomBytes(bytes))).toThrow(`expected 32, got ${bytes}`);
  }
});

test("an envelope comes back, with the wrapped KEK inside (v1) and beside it (v2)", async () => {
  expect(await open(encodeEnvelope(sealed, true))).toEqual(DEK);
  expect(await open(encodeEnvelope(sealed, false), header.wrappedLocalKek)).toEqual(DEK);
  expect(decodeEnvelope(encodeEnvelope(sealed, true)).header).toEqual(header);
  expect(await open(encodeEnvelope(kcvSealed, true))).toEqual(DEK);
  expect(await open(encodeEnvelope(kcvSealed, false), header.wrappedLocalKek)).toEqual(DEK);
  expect(decodeEnvelope(encodeEnvelope(kcvSealed, true)).header).toEqual(kcvHeader);
});

test.each([0, 4, 16, 32, 512])("a plaintext of %d bytes comes back", async (length) => {
  const plaintext = randomBytes(length);
  expect(await open(encodeEnvelope(kek.seal(header, plaintext), true))).toEqual(plaintext);
});

test.each([
  [true, "none", sealed],
  [false, "none", sealed],
  [true, "a hash", kcvSealed],
  [false, "a hash", kcvSealed],
])("every flipped bit is refused (KEK inside: %p, key check value: %s)", async (inside, _, one) => {
  const good = encodeEnvelope(one, inside);
  const wrapped = inside ? undefined : header.wrappedLocalKek;
  for (let bit = 0; bit < good.length * 8; bit++) {
    const bad = Buffer.from(good);
    bad[bit >> 3] = (bad[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    expect(await kindOf(open(bad, wrapped))).toBe("invalid");
  }
});

test.each([
  ["none", sealed],
  ["a hash", kcvSealed],
])(
  "every truncation and every extension by a byte is refused (key check value: %s)",
  async (_, one) => {
    const good = encodeEnvelope(one, true);
    for (let length = 0; length < good.length; length++) {
      expect(await kindOf(open(good.subarray(0, length)))).toBe("invalid");
    }
    for (let byte = 0; byte < 256; byte++) {
      expect(await kindOf(open(Buffer.concat([good, Buffer.from([byte])])))).toBe("invalid");
    }
  },
);

test("encodings that protobuf reads but that we never write are refused", async () => {
  const good = encodeEnvelope(sealed, true);
  const unknownField = Buffer.from([0x7a, 0x01, 0x00]); // field 15, one byte
  const repeatedVersion = Buffer.from([0x10, 0x03]); // field 2 again
  const body = good.subarray(4);
  const fieldOne = body.subarray(0, 18);
  const reordered = Buffer.concat([good.subarray(0, 4), body.subarray(18), fieldOne]);
  for (const bad of [
    Buffer.concat([good, unknownField]),
    Buffer.concat([good, repeatedVersion]),
    reordered,
  ]) {
    expect(await kindOf(open(bad))).toBe("invalid");
  }
});

test("parts of two envelopes cannot be exchanged", async () => {
  const otherHeaders = {
    version: kekHeader({ ...header, keyVersion: 4 }),
    key: kekHeader({ ...header, keyNameHash: keyNameHash("other") }),
    "AAD flag": kekHeader({ ...header, aadSent: false }),
    "wrapped KEK": kekHeader({ ...header, wrappedLocalKek: "vault:v3:AAAB" }),
    "key check value, added": kcvHeader,
  };
  for (const [what, other] of Object.entries(otherHeaders)) {
    const mixed = encodeEnvelope({ ...sealed, header: other }, true);
    expect([what, await kindOf(open(mixed))]).toEqual([what, "invalid"]);
  }
  for (const [what, other] of Object.entries({
    "key check value, removed": header,
    "another key check value": kekHeader({ ...header, kcvHash: kcvHash("demo", "A1B2C4") }),
  })) {
    const mixed = encodeEnvelope({ ...kcvSealed, header: other }, true);
    expect([what, await kindOf(open(mixed))]).toEqual([what, "invalid"]);
  }
  const second = kek.seal(header, randomBytes(32));
  expect(await kindOf(open(encodeEnvelope({ ...sealed, iv: second.iv }, true)))).toBe("invalid");
});

test("a v1 cipher is no v2 ciphertext, and the reverse", async () => {
  expect(await kindOf(open(encodeEnvelope(sealed, true), header.wrappedLocalKek))).toBe("invalid");
  expect(await kindOf(open(encodeEnvelope(sealed, false)))).toBe("invalid");
});

test("lengths that the format does not have are refused", async () => {
  const fields = { keyNameHash: header.keyNameHash, keyVersion: 3, aadSent: true };
  const parts = { wrappedLocalKek: "w", iv: sealed.iv, ciphertext: sealed.ciphertext };
  const magic = Buffer.from("6b346301", "hex");
  for (const wrong of [
    { keyNameHash: new Uint8Array(15) },
    { kcvHash: new Uint8Array(4) },
    { kcvHash: new Uint8Array(6) },
    { iv: new Uint8Array(16) },
    { ciphertext: new Uint8Array(15) },
    { ciphertext: new Uint8Array(512 + 17) },
    { wrappedLocalKek: "w".repeat(16 * 1024 + 1) },
    { wrappedLocalKek: "" },
  ]) {
    const message = create(EnvelopeSchema, { ...fields, ...parts, ...wrong });
    const bytes = Buffer.concat([magic, toBinary(EnvelopeSchema, message)]);
    expect(await kindOf(open(bytes))).toBe("invalid");
    expect(() => decodeEnvelope(bytes)).toThrow("malformed ciphertext"); // before anything is asked for
  }
});

test("ten thousand seals of one DEK all differ", () => {
  const seen = new Set<string>();
  for (let round = 0; round < 10_000; round++) {
    seen.add(encodeEnvelope(kek.seal(header, DEK), true).toString("latin1"));
  }
  expect(seen.size).toBe(10_000);
});

test("a dropped local KEK throws instead of encrypting under zeros", () => {
  const dropped = new LocalKek(randomBytes(32));
  dropped.drop();
  expect(() => dropped.seal(header, DEK)).toThrow("dropped");
  expect(() => dropped.open(sealed)).toThrow("dropped");
  expect(() => dropped.equals(DEK)).toThrow("dropped");
});

test("inputs are not changed", () => {
  const plaintext = Buffer.from(DEK);
  const stored = encodeEnvelope(kek.seal(header, plaintext), true);
  const copy = Buffer.from(stored);
  kek.open(decodeEnvelope(stored));
  expect(plaintext).toEqual(DEK);
  expect(stored).toEqual(copy);
});

const VECTORS = join(import.meta.dir, "../vectors");
const vectorFiles = readdirSync(VECTORS).filter((name) => name.startsWith("format-"));

interface Vector {
  readonly ciphertext: string;
  readonly keyId: string;
  readonly annotations: Readonly<Record<string, string>>;
}

test.each(vectorFiles)("what %s holds is read to the key_id that it was given", (name) => {
  const { v2 }: { readonly v2: readonly Vector[] } = JSON.parse(
    readFileSync(join(VECTORS, name), "utf8"),
  );
  for (const { ciphertext, keyId, annotations } of v2) {
    const wrapped = Buffer.from(Object.values(annotations).join(), "base64").toString();
    const stored = Buffer.from(ciphertext, "base64");
    const envelope = decodeEnvelope(stored, wrapped);
    expect(formatKeyId(envelope.header)).toBe(keyId);
    expect(encodeEnvelope(envelope, false)).toEqual(stored);
  }
  expect(v2.length).toBeGreaterThan(0);
});

test("there are vectors with a key check value, and without one", () => {
  const texts = vectorFiles.map((name) => readFileSync(join(VECTORS, name), "utf8"));
  const keyIds = texts.flatMap((text) => text.match(/"keyId": "[^"]*"/g) ?? []);
  expect(keyIds.some((keyId) => /\.k.{8}"$/.test(keyId))).toBe(true);
  expect(keyIds.some((keyId) => /\.v\d+"$/.test(keyId))).toBe(true);
  expect(keyIds.some((keyId) => /"k4c-[a-z2-7]{26}"$/.test(keyId))).toBe(true);
});

/** Another value of each field of the stored message. A new field has none here, so the test below fails for it. */
const OTHER: Readonly<Record<string, unknown>> = {
  keyNameHash: Buffer.from(keyNameHash("other")),
  keyVersion: 4,
  aadSent: false,
  wrappedLocalKek: "vault:v3:AAAB",
  iv: randomBytes(12),
  ciphertext: randomBytes(32 + 16),
  kcvHash: Buffer.from(kcvHash("demo", "A1B2C4")),
};

test.each(EnvelopeSchema.fields.map(({ localName }) => localName))(
  "the field %s is authenticated",
  async (field) => {
    const magic = encodeEnvelope(kcvSealed, true).subarray(0, 4);
    const { iv, ciphertext } = kcvSealed;
    const stored = (changed: object) => {
      const message = create(EnvelopeSchema, { ...kcvHeader, iv, ciphertext, ...changed });
      return Buffer.concat([magic, toBinary(EnvelopeSchema, message)]);
    };
    expect(await open(stored({}))).toEqual(DEK);
    expect(Object.hasOwn(OTHER, field)).toBe(true);
    expect(await kindOf(open(stored({ [field]: OTHER[field] })))).toBe("invalid");
  },
);
