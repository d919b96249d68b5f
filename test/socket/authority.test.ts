import { expect, test } from "bun:test";
import * as h2 from "./hpack.ts";

const METHOD_POST = Buffer.from([0x83]);
const PATH = Buffer.concat([h2.integer(0x40, 6, 4), h2.string("/v2.KeyManagementService/Status")]);

/** A block with an authority between other fields, as sent and as it must come out. */
function block(authority: Buffer, expected: Buffer): [Buffer, Buffer] {
  const other = Buffer.concat([h2.integer(0x40, 6, 58), h2.string("grpc-go/1.56.3")]);
  return [
    Buffer.concat([METHOD_POST, PATH, authority, other]),
    Buffer.concat([METHOD_POST, PATH, expected, other]),
  ];
}

function literal(pattern: number, bits: number, value: string | Buffer, huffman = false): Buffer {
  return Buffer.concat([h2.integer(pattern, bits, 1), h2.string(value, huffman)]);
}

/** Cases: name, bytes after the preface, what must come out. */
const CASES: [string, Buffer, Buffer][] = [];
for (const [name, pattern, bits] of h2.LITERALS) {
  for (const value of [
    "/tmp/kms.sock",
    "%2Ftmp%2Fkms.sock",
    "localhost",
    "@kms",
    `/${"x".repeat(300)}`,
  ]) {
    const [input, output] = block(
      literal(pattern, bits, value),
      literal(pattern, bits, "k".repeat(value.length)),
    );
    CASES.push([
      `${name}: ${value.slice(0, 20)}`,
      h2.frame(h2.HEADERS, h2.END_HEADERS, input),
      h2.frame(h2.HEADERS, h2.END_HEADERS, output),
    ]);
  }
}
const huffmanValue = Buffer.from("62c5fe57a7", "hex");
const [huffmanIn, huffmanOut] = block(
  literal(0x40, 6, huffmanValue, true),
  literal(0x40, 6, "kkkkk", false),
);
CASES.push([
  "a Huffman-coded value becomes a plain one of the same wire length",
  h2.frame(h2.HEADERS, h2.END_HEADERS, huffmanIn),
  h2.frame(h2.HEADERS, h2.END_HEADERS, huffmanOut),
]);
for (const [name, nameBytes] of [
  ["raw", h2.string(":authority")],
  ["Huffman-coded", h2.string(h2.HUFFMAN_NAME, true)],
] as const) {
  const field = (value: string) =>
    Buffer.concat([Buffer.from([0x40]), nameBytes, h2.string(value)]);
  const [input, output] = block(field("/run/kms.sock"), field("k".repeat(13)));
  CASES.push([
    `a literal name, ${name}`,
    h2.frame(h2.HEADERS, h2.END_HEADERS, input),
    h2.frame(h2.HEADERS, h2.END_HEADERS, output),
  ]);
}
const [plainIn, plainOut] = block(literal(0x40, 6, "/a.sock"), literal(0x40, 6, "kkkkkkk"));
const padding = Buffer.concat([Buffer.alloc(5), literal(0x40, 6, "/pad")]); // looks like a field
const priority = Buffer.from([0, 0, 0, 0, 0x41]); // its weight looks like the start of a literal
CASES.push([
  "padding and priority are skipped",
  h2.frame(
    h2.HEADERS,
    h2.END_HEADERS | h2.PADDED | h2.PRIORITY,
    Buffer.concat([Buffer.from([padding.length]), priority, plainIn, padding]),
  ),
  h2.frame(
    h2.HEADERS,
    h2.END_HEADERS | h2.PADDED | h2.PRIORITY,
    Buffer.concat([Buffer.from([padding.length]), priority, plainOut, padding]),
  ),
]);
for (let cut = 0; cut <= plainIn.length; cut++) {
  CASES.push([
    `continued after byte ${cut}`,
    Buffer.concat([
      h2.frame(h2.HEADERS, 0, plainIn.subarray(0, cut)),
      h2.frame(h2.CONTINUATION, h2.END_HEADERS, plainIn.subarray(cut)),
    ]),
    Buffer.concat([
      h2.frame(h2.HEADERS, 0, plainOut.subarray(0, cut)),
      h2.frame(h2.CONTINUATION, h2.END_HEADERS, plainOut.subarray(cut)),
    ]),
  ]);
}

test.each(CASES)("overwrites the authority, %s", (_, input, output) => {
  const surrounded = (middle: Buffer) =>
    Buffer.concat([
      h2.PREFACE,
      h2.frame(4, 0, Buffer.alloc(0)),
      middle,
      h2.frame(0, 1, Buffer.from("DATA A/b")),
      middle,
    ]);
  expect(h2.filtered(surrounded(input))).toEqual(surrounded(output));
  expect(h2.filtered(surrounded(input), h2.everyByte)).toEqual(surrounded(output));
});

test("leaves everything else alone", () => {
  const untouched = [
    ["an empty authority", h2.frame(h2.HEADERS, h2.END_HEADERS, literal(0x40, 6, ""))],
    [
      "an empty Huffman-coded authority",
      h2.frame(h2.HEADERS, h2.END_HEADERS, literal(0x40, 6, "", true)),
    ],
    ["no authority", h2.frame(h2.HEADERS, h2.END_HEADERS, Buffer.concat([METHOD_POST, PATH]))],
    ["an indexed authority", h2.frame(h2.HEADERS, h2.END_HEADERS, Buffer.from([0x81]))],
    [
      "a name from the dynamic table",
      h2.frame(
        h2.HEADERS,
        h2.END_HEADERS,
        Buffer.concat([h2.integer(0x40, 6, 62), h2.string("/x")]),
      ),
    ],
    [
      "a table size update",
      h2.frame(h2.HEADERS, h2.END_HEADERS, Buffer.concat([h2.integer(0x20, 5, 4096), METHOD_POST])),
    ],
    [
      "another literal name",
      h2.frame(
        h2.HEADERS,
        h2.END_HEADERS,
        Buffer.concat([Buffer.from([0x40]), h2.string(":authoritz"), h2.string("/x")]),
      ),
    ],
    [
      "a longer name",
      h2.frame(
        h2.HEADERS,
        h2.END_HEADERS,
        Buffer.concat([Buffer.from([0x40]), h2.string(":authority2"), h2.string("/x")]),
      ),
    ],
    ["DATA that looks like a field", h2.frame(0, 0, literal(0x40, 6, "/tmp/kms.sock"))],
    [
      "an empty HEADERS frame",
      h2.frame(h2.HEADERS, h2.END_HEADERS | h2.PADDED | h2.PRIORITY, Buffer.alloc(0)),
    ],
    [
      "padding longer than its frame",
      h2.frame(h2.HEADERS, h2.PADDED, Buffer.from([200, 0x41, 1, 0x2f])),
    ],
  ] as const;
  for (const [name, bytes] of untouched) {
    const input = Buffer.concat([h2.PREFACE, bytes]);
    expect([name, h2.filtered(input).toString("hex")]).toEqual([name, input.toString("hex")]);
  }
});

test("padding that claims more than its frame ends with the frame", () => {
  const lying = h2.frame(h2.HEADERS, h2.END_HEADERS | h2.PADDED, Buffer.from([200, 0x83]));
  const [input, wanted] = [plainIn, plainOut].map((block) =>
    Buffer.concat([h2.PREFACE, lying, h2.frame(h2.HEADERS, h2.END_HEADERS, block)]),
  );
  expect(h2.filtered(input as Buffer)).toEqual(wanted as Buffer); // two in, two out
});

test("what is not HTTP/2 passes", () => {
  const input = Buffer.concat([
    Buffer.from("GET / HTTP/1.1\r\n\r\n"),
    h2.frame(h2.HEADERS, 4, plainIn),
  ]);
  expect(h2.filtered(input)).toEqual(input);
});

test("an integer without end ends the filter, not the process", () => {
  const endless = Buffer.concat([Buffer.from([0x7f]), Buffer.alloc(100_000, 0xff)]);
  const input = Buffer.concat([
    h2.PREFACE,
    h2.frame(h2.HEADERS, 0, endless),
    h2.frame(h2.HEADERS, 4, plainIn),
  ]);
  expect(h2.filtered(input)).toEqual(input);
});
