/** HTTP/2 frames and HPACK fields by hand, for what no client library would send. */
import { AuthorityFilter } from "../../src/socket/authority.ts";

export const PREFACE = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
export const HEADERS = 1;
export const CONTINUATION = 9;
export const END_HEADERS = 4;
export const PADDED = 8;
export const PRIORITY = 0x20;

export function frame(type: number, flags: number, payload: Buffer): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(1, 5);
  return Buffer.concat([head, payload]);
}

/** RFC 7541 §5.1 */
export function integer(pattern: number, prefixBits: number, value: number): Buffer {
  const max = 2 ** prefixBits - 1;
  if (value < max) {
    return Buffer.from([pattern | value]);
  }
  const bytes = [pattern | max];
  let rest = value - max;
  for (; rest >= 128; rest = Math.floor(rest / 128)) {
    bytes.push((rest % 128) | 0x80);
  }
  return Buffer.from([...bytes, rest]);
}

export function string(text: string | Buffer, huffman = false): Buffer {
  return Buffer.concat([
    integer(huffman ? 0x80 : 0, 7, text.length),
    typeof text === "string" ? Buffer.from(text, "latin1") : text,
  ]);
}

/** The ways to write a literal field with an indexed name (RFC 7541 §6.2). */
export const LITERALS = [
  ["with incremental indexing", 0x40, 6],
  ["without indexing", 0x00, 4],
  ["never indexed", 0x10, 4],
] as const;

/** ":authority", Huffman-coded; `go run` of golang.org/x/net/http2/hpack gave it. */
export const HUFFMAN_NAME = Buffer.from("b83b5339ec327d7f", "hex");

/** What the filter makes of some bytes that arrive in chunks. */
export function filtered(input: Buffer, cuts: (length: number) => number[] = () => []): Buffer {
  const filter = new AuthorityFilter();
  const bytes = Buffer.from(input);
  let from = 0;
  for (const to of [...cuts(bytes.length), bytes.length]) {
    filter.transform(bytes.subarray(from, to));
    from = to;
  }
  return bytes;
}

export const everyByte = (length: number) => Array.from({ length }, (_, at) => at);
