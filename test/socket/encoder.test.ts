/** What is put together by hand is what protobuf's own encoder writes. */
import { expect, test } from "bun:test";
import { create, type DescMessage, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import fc from "fast-check";
import { EnvelopeSchema } from "../../src/gen/key4c/envelope/v1/envelope_pb.ts";
import * as v1 from "../../src/gen/v1beta1/api_pb.ts";
import * as v2 from "../../src/gen/v2/api_pb.ts";
import { encodeEnvelope, kekHeader } from "../../src/keys/envelope.ts";
import { encoderOf } from "../../src/socket/encoder.ts";
import { holds } from "../properties.ts";

/** Lengths on both sides of where protobuf's own takes one byte more. */
const bytes = fc.oneof(
  fc.uint8Array({ maxLength: 200 }),
  fc.constantFrom(0, 127, 128, 16_383, 16_384).map((length) => new Uint8Array(length).fill(1)),
);
/** Few, so that an answer often has what the one before had. */
const text = fc.constantFrom("", "ok", "v2", "k4c-a.v1", "\u{1f511}".repeat(40));
const annotations = fc.constantFrom(
  Object.freeze({}),
  Object.freeze({ "a.example": Buffer.from("1") }),
  Object.freeze({ "a.example": Buffer.from("2"), "b.example": Buffer.alloc(0) }),
);
const some = { requiredKeys: [] as [] };

/** One encoder, and answers one after the other. */
function agrees<S extends DescMessage>(schema: S, answer: fc.Arbitrary<MessageInitShape<S>>): void {
  holds(
    `${schema.typeName}: every answer is encoded as protobuf does`,
    200,
    fc.property(fc.array(answer, { minLength: 1, maxLength: 6 }), (answers) => {
      const encode = encoderOf(schema);
      for (const one of answers) {
        expect(encode(one)).toEqual(Buffer.from(toBinary(schema, create(schema, one))));
      }
    }),
  );
}

agrees(v1.EncryptResponseSchema, fc.record({ cipher: bytes }, some));
agrees(v1.DecryptResponseSchema, fc.record({ plain: bytes }, some));
agrees(
  v1.VersionResponseSchema,
  fc.record({ version: text, runtimeName: text, runtimeVersion: text }, some),
);
agrees(v2.StatusResponseSchema, fc.record({ version: text, healthz: text, keyId: text }, some));
agrees(v2.EncryptResponseSchema, fc.record({ ciphertext: bytes, keyId: text, annotations }, some));
agrees(v2.DecryptResponseSchema, fc.record({ plaintext: bytes }, some));

test("an object that may have changed is encoded again", () => {
  const encode = encoderOf(v2.EncryptResponseSchema);
  const values = { "a.example": Buffer.from("1") };
  const answer = { ciphertext: Buffer.from("c"), annotations: values };
  const former = encode(answer);
  values["a.example"] = Buffer.from("2");
  const schema = v2.EncryptResponseSchema;
  expect(encode(answer)).toEqual(Buffer.from(toBinary(schema, create(schema, answer))));
  expect(encode(answer)).not.toEqual(former);
});

holds(
  "an envelope is encoded as protobuf does",
  300,
  fc.property(
    fc.record({
      keyNameHash: fc.uint8Array({ maxLength: 40 }),
      keyVersion: fc.nat(2 ** 32 - 1),
      kcvHash: fc.uint8Array({ maxLength: 10 }),
      aadSent: fc.boolean(),
      wrappedLocalKek: fc.string({ unit: "binary", maxLength: 300 }),
    }),
    bytes,
    bytes,
    fc.boolean(),
    (fields, iv, ciphertext, isInside) => {
      const wrappedLocalKek = isInside ? fields.wrappedLocalKek : "";
      const message = create(EnvelopeSchema, { ...fields, wrappedLocalKek, iv, ciphertext });
      const expected = Buffer.concat([Buffer.from("k4c\x01"), toBinary(EnvelopeSchema, message)]);
      const envelope = { header: kekHeader(fields), iv, ciphertext };
      expect(encodeEnvelope(envelope, isInside)).toEqual(expected);
      expect(encodeEnvelope(envelope, isInside)).toEqual(expected); // by what was kept of the header
    },
  ),
);
