/**
 * No wrong answer: through the two services, whatever was changed in what the API server stored is
 * refused, also when Key4C itself would not notice.
 */
import { expect } from "bun:test";
import { randomBytes } from "node:crypto";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import fc from "fast-check";
import { EnvelopeSchema } from "../../src/gen/key4c/envelope/v1/envelope_pb.ts";
import * as v1 from "../../src/gen/v1beta1/api_pb.ts";
import * as v2 from "../../src/gen/v2/api_pb.ts";
import { WRAPPED_KEK_ANNOTATION } from "../../src/keys/annotations.ts";
import {
  decodeEnvelope,
  type Envelope,
  encodeEnvelope,
  kekHeader,
  LocalKek,
} from "../../src/keys/envelope.ts";
import { formatKeyId, kcvHash, keyNameHash, NO_KCV } from "../../src/keys/key-id.ts";
import type { Keyring } from "../../src/keys/keyring.ts";
import { kmsV1, kmsV2 } from "../../src/main.ts";
import { holds } from "../properties.ts";
import { kindOf } from "../support.ts";
import { FakeKey4C, keyring, ready } from "./fake-key4c.ts";

/** What the API server stores of one DEK and gives back to Decrypt; without a key_id it is v1's. */
interface Stored {
  readonly ciphertext: Uint8Array;
  readonly keyId?: string;
  readonly annotations?: Record<string, Uint8Array>;
}

const KEY_IDS = ["demo", "former"] as const;
const REFUSALS = ["invalid", "noKeyId", "unknownKey"];
const CALL = { hasLeft: () => false, userAgent: () => "", requestId: undefined };
async function decrypt(ring: Keyring, { ciphertext, keyId, annotations }: Stored) {
  if (keyId === undefined) {
    const request = create(v1.DecryptRequestSchema, { cipher: ciphertext });
    return (await kmsV1(ring).decrypt(request, CALL)).plain;
  }
  const request = create(v2.DecryptRequestSchema, {
    ciphertext,
    keyId,
    annotations: annotations ?? {},
  });
  return (await kmsV2(ring).decrypt(request, CALL)).plaintext;
}

function stored(envelope: Envelope, keyId?: string): Stored {
  return keyId === undefined
    ? { ciphertext: encodeEnvelope(envelope, true) }
    : {
        ciphertext: encodeEnvelope(envelope, false),
        keyId,
        annotations: annotation(Buffer.from(envelope.header.wrappedLocalKek)),
      };
}

const annotation = (value: Uint8Array) => ({ [WRAPPED_KEK_ANNOTATION]: value });

/**
 * A keyring whose Key4C unwraps everything: what is refused, our own checks refuse. A real one may well
 * take two texts for one, such as two base64 forms of the same bytes.
 */
function credulous(unwrap: (wrapped: string) => Buffer): Keyring {
  const key4c = new FakeKey4C();
  key4c.unwrap = async (_, wrapped) => Buffer.from(unwrap(wrapped));
  return keyring(key4c, { previousKeyIds: ["former"] });
}

const dek = fc.uint8Array({ maxLength: 512 });
const anyText = fc.string({ unit: "binary", minLength: 1, maxLength: 120 });
const wrappedKek = fc.oneof(
  anyText,
  anyText.map((text) => `\ufeff${text}`), // a byte order mark is part of the text
);
const version = fc.oneof(fc.nat(3), fc.nat(2 ** 32 - 1), fc.constant(2 ** 32 - 1));
const anyKcvHash = fc.constantFrom(NO_KCV, kcvHash("demo", "A1B2C3"), kcvHash("demo", "A1B2C4"));
const header = fc
  .record({
    kcvHash: anyKcvHash,
    keyNameHash: fc.constantFrom(...KEY_IDS).map(keyNameHash),
    keyVersion: version,
    aadSent: fc.boolean(),
    wrappedLocalKek: wrappedKek,
  })
  .map(kekHeader);

const kcv = fc.constantFrom(undefined, "A1B2C3", "0F".repeat(32));

holds(
  "what Encrypt returned, Decrypt opens to the very bytes",
  200,
  fc.asyncProperty(
    dek,
    wrappedKek,
    fc.option(version),
    kcv,
    async (plaintext, wrapped, ...told) => {
      const key4c = new FakeKey4C();
      const [keyVersion, kcvText] = told;
      key4c.version = keyVersion ?? undefined;
      key4c.kcv = kcvText;
      key4c.nameOf = () => wrapped;
      const ring = await ready(key4c, { cacheSize: 0 });
      const former = await kmsV1(ring).encrypt(
        create(v1.EncryptRequestSchema, { plain: plaintext }),
        CALL,
      );
      const request = create(v2.EncryptRequestSchema, { plaintext });
      const { ciphertext, keyId, annotations } = await kmsV2(ring).encrypt(request, CALL);
      const all = [{ ciphertext: former.cipher }, { ciphertext, keyId, annotations }] as Stored[]; // set, by the handlers
      const restarted = keyring(key4c); // knows no local KEK
      for (const one of all) {
        expect(Buffer.from((await decrypt(ring, one)) ?? [0])).toEqual(Buffer.from(plaintext));
        expect(Buffer.from((await decrypt(restarted, one)) ?? [0])).toEqual(Buffer.from(plaintext));
      }
    },
  ),
);

/** What may be put before or behind: anything, and fields that protobuf reads, known ones and others. */
const addition = fc.oneof(
  fc.uint8Array({ minLength: 1, maxLength: 40 }),
  fc
    .tuple(fc.integer({ min: 1, max: 15 }), fc.uint8Array({ maxLength: 40 }))
    .map(([field, value]) => Buffer.from([(field << 3) | 2, value.length, ...value])),
  fc
    .tuple(fc.integer({ min: 1, max: 15 }), fc.nat(127))
    .map(([field, value]) => Buffer.from([field << 3, value])),
);

/** Every single flipped bit and every truncation of some bytes, and the given additions. */
function* changed(bytes: Uint8Array, additions: readonly Uint8Array[]): Generator<Buffer> {
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    const flipped = Buffer.from(bytes);
    flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    yield flipped;
  }
  for (let length = 0; length < bytes.length; length++) {
    yield Buffer.from(bytes.subarray(0, length));
  }
  for (const addition of additions) {
    yield Buffer.concat([bytes, addition]);
    yield Buffer.concat([addition, bytes]);
  }
}

holds(
  "every flipped bit, every truncation and any extension is refused, in v1 and v2",
  12,
  fc.asyncProperty(
    header,
    dek,
    fc.array(addition, { minLength: 1, maxLength: 20 }),
    async (kek, plaintext, additions) => {
      const bytes = randomBytes(32);
      const ring = credulous(() => bytes);
      const envelope = new LocalKek(Buffer.from(bytes)).seal(kek, plaintext);
      const keyId = formatKeyId(kek);
      const [one, two] = [stored(envelope), stored(envelope, keyId)];
      expect(await decrypt(ring, one)).toEqual(Buffer.from(plaintext));
      expect(await decrypt(ring, two)).toEqual(Buffer.from(plaintext));

      const wrong: Stored[] = [];
      for (const ciphertext of changed(one.ciphertext, additions)) {
        wrong.push({ ciphertext });
      }
      for (const ciphertext of changed(two.ciphertext, additions)) {
        wrong.push({ ...two, ciphertext });
      }
      for (const value of changed(Buffer.from(kek.wrappedLocalKek), additions)) {
        wrong.push({ ...two, annotations: annotation(value) });
      }
      for (const text of changed(Buffer.from(keyId), additions)) {
        wrong.push({ ...two, keyId: text.toString("latin1") });
      }
      wrong.push({ ...two, annotations: {} });
      wrong.push({
        ...two,
        annotations: { ...two.annotations, "other.example": new Uint8Array() },
      });
      for (const bad of wrong) {
        const kind = await kindOf(decrypt(ring, bad));
        if (!REFUSALS.includes(kind)) {
          throw new Error(`${kind}: ${JSON.stringify(bad)}`);
        }
      }
    },
  ),
);

/** The format as its definition has it, without anything that is kept from one envelope to the next. */
function isEnvelope(bytes: Uint8Array, wrapped: string | undefined): boolean {
  const body = bytes.subarray(4);
  let message: ReturnType<typeof fromBinary<typeof EnvelopeSchema>>;
  try {
    message = fromBinary(EnvelopeSchema, body, { readUnknownFields: false });
  } catch {
    return false;
  }
  const { keyNameHash, kcvHash, iv, ciphertext, wrappedLocalKek } = message;
  return (
    Buffer.from(bytes.subarray(0, 4)).equals(Buffer.from("k4c\x01")) &&
    Buffer.from(toBinary(EnvelopeSchema, message)).equals(body) &&
    keyNameHash.length === 16 &&
    [0, 5].includes(kcvHash.length) &&
    iv.length === 12 &&
    ciphertext.length >= 16 &&
    ciphertext.length <= 512 + 16 &&
    (wrappedLocalKek === "") === (wrapped !== undefined)
  );
}

holds(
  "an envelope is judged alike whether its header was met before or not",
  60,
  fc.property(
    fc.array(header, { minLength: 1, maxLength: 3 }),
    fc.uint8Array({ maxLength: 545 }),
    fc.array(addition, { minLength: 1, maxLength: 20 }),
    fc.boolean(),
    (headers, ciphertext, additions, isInside) => {
      const iv = randomBytes(12);
      for (const one of headers) {
        const wrapped = isInside ? undefined : one.wrappedLocalKek;
        const known = encodeEnvelope({ header: one, iv, ciphertext: Buffer.alloc(16) }, isInside);
        expect(decodeEnvelope(known, wrapped).header).toEqual(one); // met now
        const bytes = encodeEnvelope({ header: one, iv, ciphertext }, isInside);
        for (const each of [bytes, ...changed(bytes, additions)]) {
          let envelope: Envelope | undefined;
          try {
            envelope = decodeEnvelope(each, wrapped);
          } catch {}
          if ((envelope !== undefined) !== isEnvelope(each, wrapped)) {
            throw new Error(`${envelope ? "taken" : "refused"}: ${each.toString("hex")}`);
          }
          if (envelope !== undefined) {
            expect(encodeEnvelope(envelope, isInside)).toEqual(each);
          }
        }
      }
    },
  ),
);

/** The parts of what is stored, which an attacker who can write to etcd may mix. */
const PARTS = [
  "iv",
  "ciphertext",
  "keyNameHash",
  "keyVersion",
  "kcvHash",
  "aadSent",
  "wrappedLocalKek",
  "keyId",
] as const;

interface Parts extends Record<(typeof PARTS)[number], unknown> {
  readonly iv: Uint8Array;
  readonly ciphertext: Uint8Array;
  readonly keyNameHash: Uint8Array;
  readonly keyVersion: number;
  readonly kcvHash: Uint8Array;
  readonly aadSent: boolean;
  readonly wrappedLocalKek: string;
  readonly keyId: string;
}

function partsOf({ header: kek, iv, ciphertext }: Envelope): Parts {
  const { fingerprint: _, ...fields } = kek;
  return { iv, ciphertext, ...fields, keyId: formatKeyId(kek) };
}

holds(
  "any mixture of the parts of two ciphertexts is refused, under one local KEK and under two",
  60,
  fc.asyncProperty(
    header,
    header,
    fc.constantFrom("same header", "same local KEK", "two local KEKs"),
    dek,
    dek,
    async (headerA, otherHeader, what, dekA, dekB) => {
      const headerB = what === "same header" ? headerA : otherHeader;
      fc.pre(what !== "two local KEKs" || headerA.wrappedLocalKek !== headerB.wrappedLocalKek);
      const bytesA = randomBytes(32);
      const bytesB = what === "two local KEKs" ? randomBytes(32) : bytesA;
      const a = partsOf(new LocalKek(Buffer.from(bytesA)).seal(headerA, dekA));
      const b = partsOf(new LocalKek(Buffer.from(bytesB)).seal(headerB, dekB));
      const ring = credulous((wrapped) => (wrapped === a.wrappedLocalKek ? bytesA : bytesB));

      for (let mask = 0; mask < 2 ** PARTS.length; mask++) {
        const pick = (index: number) => ((mask >> index) & 1 ? b : a);
        const mixed = Object.fromEntries(
          PARTS.map((part, index) => [part, pick(index)[part]]),
        ) as unknown as Parts; // each from one of two Parts
        const { iv, ciphertext, keyId, ...fields } = mixed;
        const envelope = { header: kekHeader(fields), iv, ciphertext };
        for (const api of [stored(envelope), stored(envelope, keyId)]) {
          // The request's key_id does not exist in v1.
          const same = (parts: Parts) =>
            Bun.deepEquals(
              api.keyId === undefined ? { ...mixed, keyId: parts.keyId } : mixed,
              parts,
            );
          if (same(a) || same(b)) {
            const expected = Buffer.from(same(a) ? dekA : dekB);
            expect(Buffer.from((await decrypt(ring, api)) ?? [0])).toEqual(expected);
          } else {
            expect(REFUSALS).toContain(await kindOf(decrypt(ring, api)));
          }
        }
      }
    },
  ),
);

const MAGIC = Buffer.from("k4c\x01", "latin1");
const anyBytes = fc.uint8Array({ maxLength: 300 });
const garbage = fc.oneof(
  anyBytes,
  anyBytes.map((bytes) => Buffer.concat([MAGIC, bytes])),
  // What the schema reads, with lengths that are sometimes right.
  fc
    .record({
      keyNameHash: fc.oneof(fc.uint8Array({ maxLength: 20 }), fc.constant(keyNameHash("demo"))),
      keyVersion: version,
      kcvHash: fc.oneof(anyKcvHash, fc.uint8Array({ maxLength: 7 })),
      aadSent: fc.boolean(),
      wrappedLocalKek: fc.oneof(fc.constant(""), wrappedKek),
      iv: fc.oneof(
        fc.uint8Array({ maxLength: 20 }),
        fc.uint8Array({ minLength: 12, maxLength: 12 }),
      ),
      ciphertext: fc.uint8Array({ maxLength: 600 }),
    })
    .map((fields) =>
      Buffer.concat([MAGIC, toBinary(EnvelopeSchema, create(EnvelopeSchema, fields))]),
    ),
);
const anyAnnotations = fc.oneof(
  anyBytes.map(annotation),
  fc.dictionary(fc.oneof(fc.string(), fc.constant(WRAPPED_KEK_ANNOTATION)), anyBytes),
);

holds(
  "random bytes are refused as such and crash nothing",
  3_000,
  fc.asyncProperty(
    anyBytes,
    garbage,
    fc.oneof(
      fc.string(),
      fc
        .record({
          keyNameHash: fc.constant(keyNameHash("demo")),
          keyVersion: version,
          kcvHash: anyKcvHash,
        })
        .map(formatKeyId),
    ),
    anyAnnotations,
    async (noise, ciphertext, keyId, annotations) => {
      const bytes = randomBytes(32);
      const ring = credulous(() => bytes);
      expect(await kindOf(decrypt(ring, { ciphertext: noise }))).toBe("invalid");
      expect(REFUSALS).toContain(await kindOf(decrypt(ring, { ciphertext })));
      expect(REFUSALS).toContain(await kindOf(decrypt(ring, { ciphertext, keyId, annotations })));
    },
  ),
);
