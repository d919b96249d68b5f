import { expect, test } from "bun:test";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import fc from "fast-check";
import { bytesField, hasMoreFields, joined } from "../src/system/protobuf.ts";
import { holds } from "./properties.ts";

const fieldNumber = fc.integer({ min: 1, max: 2 ** 29 - 1 });
/** One field of any kind, as protobuf's own writer writes it. */
const field = fc.oneof(
  fc
    .tuple(fieldNumber, fc.nat(2 ** 32 - 1))
    .map(([at, value]) => new BinaryWriter().tag(at, WireType.Varint).uint32(value)),
  fc
    .tuple(fieldNumber, fc.nat(2 ** 32 - 1))
    .map(([at, value]) => new BinaryWriter().tag(at, WireType.Bit32).fixed32(value)),
  fc
    .tuple(fieldNumber, fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }))
    .map(([at, value]) => new BinaryWriter().tag(at, WireType.Bit64).fixed64(value)),
  fc
    .tuple(fieldNumber, fc.uint8Array({ maxLength: 300 }))
    .map(([at, value]) => new BinaryWriter().tag(at, WireType.LengthDelimited).bytes(value)),
);

holds(
  "fields are counted, whatever they are",
  300,
  fc.property(
    fc.array(
      field.map((one) => one.finish()),
      { maxLength: 12 },
    ),
    fc.nat(12),
    (fields, max) => {
      expect(hasMoreFields(joined(...fields), max)).toBe(fields.length > max);
    },
  ),
);

holds(
  "bytes that are no message end the count",
  300,
  fc.property(fc.uint8Array({ maxLength: 400 }), (bytes) => {
    expect(hasMoreFields(bytes, bytes.length)).toBe(false);
  }),
);

test("an empty field of bytes is not written", () => {
  expect(joined(...bytesField(1, new Uint8Array(0))).length).toBe(0);
});

test("a length above 32 bits is read as the decoder reads it, and parts are counted where they are named", () => {
  // Field 2, a length of 2^32 in five bytes, which the decoder takes for 0.
  const overlong = joined([0x12, 0x80, 0x80, 0x80, 0x80, 0x10], ...Array(40).fill([0x08, 0x01]));
  expect(hasMoreFields(overlong, 32)).toBe(true);
  const entry = joined(...bytesField(4, joined(...Array(40).fill([0x08, 0x01]))));
  expect([hasMoreFields(entry, 32), hasMoreFields(entry, 32, new Set([4]))]).toEqual([false, true]);
});
