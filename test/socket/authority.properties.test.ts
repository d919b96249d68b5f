/**
 * The filter of `:authority` against a reference that has the whole input in hand, on random frames and on
 * what real clients sent, however the bytes are cut into chunks.
 */
import { expect, test } from "bun:test";
import fc from "fast-check";
import { holds } from "../properties.ts";
import clientBytes from "../vectors/client-bytes.json";
import * as h2 from "./hpack.ts";

const FILL = "k".charCodeAt(0);

/** Thrown where a header block ends too early. */
class Truncated extends Error {}
/** Thrown at a number that can only be a mistake or an attack: the filter stops there for good. */
class Hopeless extends Error {}

/** What must come out, by the book: frames first, then the representations of each header block. */
function reference(input: Buffer): Buffer {
  const output = Buffer.from(input);
  if (!input.subarray(0, h2.PREFACE.length).equals(h2.PREFACE)) {
    return output;
  }
  try {
    for (const block of headerBlocks(input)) {
      rewrite(output, block);
    }
  } catch (error) {
    if (!(error instanceof Hopeless)) {
      throw error;
    }
  }
  return output;
}

/** Of each header block, where its bytes are in the input (RFC 9113 §4.3, §6.2, §6.10). */
function headerBlocks(input: Buffer): number[][] {
  const blocks: number[][] = [[]];
  for (let at = h2.PREFACE.length; at + 9 <= input.length; ) {
    const [length, type, flags] = [input.readUIntBE(at, 3), input[at + 3], input[at + 4] ?? 0];
    at += 9;
    let [from, to] = [at, at + length];
    if (type === h2.HEADERS) {
      blocks.push([]);
      const isPadded = (flags & h2.PADDED) !== 0 && length > 0;
      const padding = isPadded ? (input[at] ?? 0) : 0;
      from = Math.min(to, from + (isPadded ? 1 : 0) + (flags & h2.PRIORITY ? 5 : 0));
      to = Math.max(from, to - padding);
    }
    if (type === h2.HEADERS || type === h2.CONTINUATION) {
      for (let position = from; position < Math.min(to, input.length); position++) {
        blocks.at(-1)?.push(position);
      }
    }
    at += length;
  }
  return blocks;
}

/** Walks the representations of one block (RFC 7541 §6). */
function rewrite(output: Buffer, block: readonly number[]): void {
  let next = 0;
  const position = () => {
    const found = block[next++];
    if (found === undefined) {
      throw new Truncated();
    }
    return found;
  };
  const byte = () => output[position()] ?? 0;
  const number = (first: number, prefixBits: number) => {
    const max = 2 ** prefixBits - 1;
    let value = first & max;
    for (let more = value === max, digit = 0; more; digit++) {
      const one = byte();
      value += (one & 0x7f) * 128 ** digit;
      more = one >= 0x80;
      if (value > 2 ** 28 || digit === 5) {
        throw new Hopeless();
      }
    }
    return value;
  };
  try {
    while (next < block.length) {
      const first = byte();
      const binary = first.toString(2).padStart(8, "0");
      if (binary.startsWith("1")) {
        number(first, 7);
        continue;
      }
      if (binary.startsWith("001")) {
        number(first, 5);
        continue;
      }
      const index = number(first, binary.startsWith("01") ? 6 : 4);
      let isAuthority = index === 1;
      if (index === 0) {
        const start = byte();
        const name = Buffer.from(Array.from({ length: number(start, 7) }, byte));
        isAuthority = name.equals(start >= 0x80 ? h2.HUFFMAN_NAME : Buffer.from(":authority"));
      }
      const start = position();
      const sent = output[start] ?? 0;
      if (isAuthority && (sent & 0x7f) !== 0) {
        output[start] = sent & 0x7f;
      }
      for (let left = number(sent, 7); left > 0; left--) {
        const at = position();
        output[at] = isAuthority ? FILL : (output[at] ?? 0);
      }
    }
  } catch (error) {
    if (!(error instanceof Truncated)) {
      throw error;
    }
  }
}

/** Some bytes as they are sent, and as they must come out. */
type Pair = readonly [sent: Buffer, wanted: Buffer];
const unchanged = (bytes: Buffer): Pair => [bytes, bytes];
const join = (pairs: readonly Pair[]): Pair => [
  Buffer.concat(pairs.map(([sent]) => sent)),
  Buffer.concat(pairs.map(([, wanted]) => wanted)),
];

const bytes = (maxLength: number) => fc.uint8Array({ maxLength }).map((one) => Buffer.from(one));
const text = fc.oneof(
  bytes(12),
  bytes(300),
  // Long enough for every length of an integer that occurs; each byte looks like the start of a field.
  fc.integer({ min: 100, max: 20_000 }).map((length) => Buffer.alloc(length, 0x41)),
);

/** How a field may name itself, and whether that name is `:authority`. */
const name = fc.oneof(
  fc.constant({ index: 1, spelled: Buffer.alloc(0), isAuthority: true }),
  fc.integer({ min: 2, max: 300 }).map((index) => {
    return { index, spelled: Buffer.alloc(0), isAuthority: false };
  }),
  fc.constantFrom(h2.string(":authority"), h2.string(h2.HUFFMAN_NAME, true)).map((spelled) => {
    return { index: 0, spelled, isAuthority: true };
  }),
  fc
    .tuple(
      fc.oneof(
        bytes(150),
        fc.constantFrom(":authorit", ":authority:", ":Authority").map((one) => Buffer.from(one)),
        fc.constant(h2.HUFFMAN_NAME.subarray(0, 7)),
      ),
      fc.boolean(),
    )
    .filter(([one, huffman]) => !one.equals(huffman ? h2.HUFFMAN_NAME : Buffer.from(":authority")))
    .map(([one, huffman]) => ({ index: 0, spelled: h2.string(one, huffman), isAuthority: false })),
);

const representation: fc.Arbitrary<Pair> = fc.oneof(
  fc.integer({ min: 1, max: 300 }).map((index) => unchanged(h2.integer(0x80, 7, index))),
  fc.nat(10_000).map((size) => unchanged(h2.integer(0x20, 5, size))),
  fc
    .tuple(fc.constantFrom(...h2.LITERALS), name, text, fc.boolean())
    .map(([[, pattern, bits], { index, spelled, isAuthority }, value, huffman]): Pair => {
      const start = Buffer.concat([h2.integer(pattern, bits, index), spelled]);
      const wanted =
        isAuthority && value.length > 0
          ? h2.string(Buffer.alloc(value.length, FILL))
          : h2.string(value, huffman);
      return [Buffer.concat([start, h2.string(value, huffman)]), Buffer.concat([start, wanted])];
    }),
);

/** A header block in a HEADERS frame and any number of CONTINUATION frames. */
const headers: fc.Arbitrary<Pair> = fc
  .record({
    block: fc.array(representation, { maxLength: 8 }).map(join),
    cuts: fc.array(fc.nat(50_000), { maxLength: 4 }),
    padding: fc.option(bytes(255)),
    priority: fc.option(fc.uint8Array({ minLength: 5, maxLength: 5 })),
  })
  .map(({ block, cuts, padding, priority }) => {
    const flags = (padding ? h2.PADDED : 0) | (priority ? h2.PRIORITY : 0);
    const framed = (whole: Buffer) => {
      const ends = [...positions(cuts, whole.length), whole.length];
      const frames = ends.map((end, index) => {
        const fragment = whole.subarray(ends[index - 1] ?? 0, end);
        const last = end === whole.length && index === ends.length - 1 ? h2.END_HEADERS : 0;
        return index > 0
          ? h2.frame(h2.CONTINUATION, last, fragment)
          : h2.frame(
              h2.HEADERS,
              flags | last,
              Buffer.concat([
                padding ? Buffer.from([padding.length]) : Buffer.alloc(0),
                priority ?? Buffer.alloc(0),
                fragment,
                padding ?? Buffer.alloc(0),
              ]),
            );
      });
      return Buffer.concat(frames);
    };
    return [framed(block[0]), framed(block[1])];
  });

/** Any other frame; its payload may look like a field. */
const otherFrame = fc
  .tuple(
    fc.constantFrom(0, 2, 3, 4, 6, 7, 8, 200),
    fc.nat(255),
    fc.oneof(bytes(300), representation),
  )
  .map(([type, flags, payload]) =>
    unchanged(h2.frame(type, flags, Buffer.isBuffer(payload) ? payload : payload[0])),
  );

const cutsOf = fc.array(fc.nat(50_000), { maxLength: 20 });

/** Numbers as sorted places where so many bytes may be cut. */
function positions(cuts: readonly number[], length: number): number[] {
  return cuts.map((cut) => cut % (length + 1)).sort((a, b) => a - b);
}

holds(
  "valid header blocks: the authority is overwritten, nothing else, however they are cut",
  1_000,
  fc.property(fc.array(fc.oneof(headers, otherFrame), { maxLength: 5 }), cutsOf, (pairs, cuts) => {
    const [sent, wanted] = join([unchanged(h2.PREFACE), ...pairs]);
    expect(reference(sent)).toEqual(wanted);
    expect(h2.filtered(sent)).toEqual(wanted);
    expect(h2.filtered(sent, (length) => positions(cuts, length))).toEqual(wanted);
    expect(h2.filtered(sent, h2.everyByte)).toEqual(wanted);
  }),
);

const anyFrame = fc
  .tuple(
    fc.constantFrom(h2.HEADERS, h2.HEADERS, h2.CONTINUATION, 0, 4),
    fc.nat(255),
    fc.oneof(
      bytes(60),
      // Long integers, of honest and of absurd value.
      fc
        .tuple(representation, bytes(12), bytes(30))
        .map(([[field], middle, end]) =>
          Buffer.concat([field, Buffer.from([0x7f]), middle.map((one) => one | 0x80), end]),
        ),
    ),
  )
  .map(([type, flags, payload]) => h2.frame(type, flags, Buffer.from(payload)));

holds(
  "random frames: the same as the reference, of the same length, however they are cut",
  3_000,
  fc.property(fc.array(anyFrame, { maxLength: 6 }), fc.nat(400), cutsOf, (frames, lost, cuts) => {
    const whole = Buffer.concat([h2.PREFACE, ...frames]);
    const sent = whole.subarray(0, Math.max(h2.PREFACE.length, whole.length - (lost % 20)));
    const wanted = reference(sent);
    expect(h2.filtered(sent)).toEqual(wanted);
    expect(h2.filtered(sent, (length) => positions(cuts, length))).toEqual(wanted);
    expect(h2.filtered(sent, h2.everyByte)).toEqual(wanted);
  }),
);

holds(
  "what does not start with the preface comes out as it is",
  1_000,
  fc.property(
    fc.oneof(
      bytes(60),
      // A preface with one wrong byte.
      fc
        .tuple(fc.nat(h2.PREFACE.length - 1), fc.integer({ min: 1, max: 255 }))
        .map(([at, flip]) => {
          const wrong = Buffer.from(h2.PREFACE);
          wrong[at] = (wrong[at] ?? 0) ^ flip;
          return wrong;
        }),
    ),
    headers,
    cutsOf,
    (start, [block], cuts) => {
      const sent = Buffer.concat([start, block]);
      fc.pre(!sent.subarray(0, h2.PREFACE.length).equals(h2.PREFACE));
      expect(h2.filtered(sent, (length) => positions(cuts, length))).toEqual(sent);
    },
  ),
);

test.each(clientBytes.clients)(
  "$client: its path is overwritten wherever its bytes are cut",
  (one) => {
    const sent = Buffer.from(one.bytes, "hex");
    const whole = h2.filtered(sent);
    expect(whole).toEqual(reference(sent));
    // The length byte loses its Huffman bit, the value behind it becomes fill, and nothing else changes.
    const at =
      h2.everyByte(sent.length).find((position) => sent[position] !== whole[position]) ?? 0;
    const length = (sent[at] ?? 0) & 0x7f;
    const field = Buffer.from([length, ...Buffer.alloc(length, FILL)]);
    expect(length).toBeGreaterThan(5);
    expect(whole).toEqual(
      Buffer.concat([sent.subarray(0, at), field, sent.subarray(at + field.length)]),
    );

    const places = h2.everyByte(sent.length + 1);
    const dense = places.filter((place) => place <= at + field.length + 10 || place % 8 === 0);
    const cuts = [
      ...places.map((place) => [place]),
      ...dense.flatMap((a) => dense.map((b) => [a, b])),
    ];
    for (const cut of cuts.filter(([a = 0, b = a]) => a <= b)) {
      if (!h2.filtered(sent, () => cut).equals(whole)) {
        throw new Error(`cut at ${cut}`);
      }
    }
  },
);
