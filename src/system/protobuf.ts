/** Parts of protobuf messages, put together by hand where most of a message is the same each time. */

const WIRE_LENGTH_DELIMITED = 2;
const VARINT_BITS = 7;
const VARINT_MORE = 0x80;

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
