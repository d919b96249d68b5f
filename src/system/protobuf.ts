/** Parts of protobuf messages, put together by hand where most of a message is the same each time. */

/** Kinds of fields (protobuf.dev/programming-guides/encoding). */
const WIRE_VARINT = 0;
const WIRE_64_BIT = 1;
const WIRE_LENGTH_DELIMITED = 2;
const WIRE_32_BIT = 5;
const VARINT_BITS = 7;
const VARINT_MORE = 0x80;

const NO_PARTS: ReadonlySet<number> = new Set();

/** Bytes in pieces, for {@link joined}. */
type Piece = ArrayLike<number>;

/** A field of bytes as `toBinary` writes it: number and type, length, bytes. Empty ones are not written (proto3). */
export function bytesField(fieldNumber: number, value: Uint8Array): readonly [Piece, Uint8Array] {
  const head: number[] = [];
  if (value.length > 0) {
    head.push((fieldNumber << 3) | WIRE_LENGTH_DELIMITED); // one byte up to field 15
    let length = value.length;
    for (; length >= VARINT_MORE; length >>>= VARINT_BITS) {
      head.push((length & (VARINT_MORE - 1)) | VARINT_MORE);
    }
    head.push(length);
  }
  return [head, value];
}

export function joined(...pieces: readonly Piece[]): Buffer {
  let length = 0;
  for (const piece of pieces) {
    length += piece.length;
  }
  const bytes = Buffer.allocUnsafe(length);
  let at = 0;
  for (const piece of pieces) {
    bytes.set(piece, at);
    at += piece.length;
  }
  return bytes;
}

/**
 * Whether a message begins with more than `max` fields, of any kind. It costs less than to decode them. Where the bytes
 * are no message it ends: the decoder refuses them.
 * @param parts numbers of the fields that are messages, whose own fields count too
 */
export function hasMoreFields(
  bytes: Uint8Array,
  max: number,
  parts: ReadonlySet<number> = NO_PARTS,
): boolean {
  let at = 0;
  // The low 32 bits, as the decoder takes them.
  const varint = (): number => {
    let value = 0;
    for (let shift = 0; at < bytes.length; shift += VARINT_BITS) {
      const byte = bytes[at++] as number; // below the length
      value |= shift < 32 ? (byte & (VARINT_MORE - 1)) << shift : 0;
      if (byte < VARINT_MORE) {
        break;
      }
    }
    return value >>> 0;
  };
  let count = 0;
  for (; at < bytes.length && count <= max; count++) {
    const tag = varint();
    const type = tag & 7;
    if (type === WIRE_VARINT) {
      varint();
    } else if (type === WIRE_LENGTH_DELIMITED) {
      const length = varint(); // which moves on
      at += parts.has(tag >>> 3) ? 0 : length;
    } else {
      at += type === WIRE_64_BIT ? 8 : type === WIRE_32_BIT ? 4 : 0; // a group is its fields
    }
  }
  return count > max;
}
