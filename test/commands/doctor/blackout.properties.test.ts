/** Nothing of a secret is shown, in whatever form and place a service gives it back. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import fc from "fast-check";
import { Blackout } from "../../../src/commands/doctor/blackout.ts";
import { holds } from "../../properties.ts";
import { expectNoSecret, secret } from "../../secrets.ts";

const KEY = randomBytes(32);
const API_KEY = `key/${randomBytes(18).toString("base64")}`;
const USER_ID = "3f2a8b6c-user-0017";
for (const [name, value] of [
  ["local KEK", KEY],
  ["KMS_API_KEY", API_KEY],
  ["KMS_USER_ID", USER_ID],
] as const) {
  secret(name, value);
}
const blackout = new Blackout({ name: "local KEK", bytes: KEY }, [
  ["KMS_API_KEY", API_KEY],
  ["KMS_USER_ID", USER_ID],
  ["KMS_PIN", undefined],
]);

const form = fc
  .tuple(
    fc.constantFrom(KEY, Buffer.from(API_KEY), Buffer.from(USER_ID)),
    fc.constantFrom("latin1", "hex", "HEX", "base64", "base64url", "percent", "shifted"),
    fc.nat(2),
  )
  .map(([bytes, how, before]) => {
    switch (how) {
      case "HEX":
        return bytes.toString("hex").toUpperCase();
      case "percent":
        return encodeURIComponent(bytes.toString("latin1"));
      case "shifted":
        return Buffer.concat([Buffer.alloc(before, 7), bytes]).toString("base64");
      default:
        return bytes.toString(how as BufferEncoding); // those that are left
    }
  });
/** Whole, or cut at either end, as a service quotes what it does not like. */
const piece = fc
  .tuple(form, fc.nat(40), fc.nat(40))
  .map(([text, from, length]) => (length === 0 ? text : text.slice(from, from + length)));
const words = fc.oneof(piece, fc.string(), fc.constantFrom(" ", ": ", '"', "invalid token", "…"));
const sentence = fc.array(words, { maxLength: 5 }).map((all) => all.join(""));
const { answer } = fc.letrec<{ answer: unknown }>((tie) => ({
  answer: fc.oneof(
    { depthSize: "small" },
    sentence,
    fc.constant([...KEY]),
    fc.integer(),
    fc.array(tie("answer"), { maxLength: 3 }),
    fc.dictionary(sentence, tie("answer"), { maxKeys: 3 }),
  ),
}));

holds(
  "no text, and no answer, shows a secret",
  2_000,
  fc.property(sentence, answer, fc.boolean(), (text, document, isKey) => {
    expectNoSecret("a known text", blackout.known(text));
    expectNoSecret("a text", blackout.text(text));
    expectNoSecret(
      "an answer",
      blackout.json(document, () => !isKey),
    );
  }),
);

test("what stands there instead says whose it is, and in which form", () => {
  expect(blackout.text(KEY.toString("hex").toUpperCase())).toBe("█ local KEK in hex █");
  expect(blackout.text(KEY.toString("base64"))).toBe("█ local KEK in base64 █");
  expect(blackout.text(KEY.toString("base64url"))).toBe("█ local KEK in base64url █");
  expect(blackout.known(`Bearer ${API_KEY}`)).toBe("Bearer █ KMS_API_KEY █");
  expect(blackout.known(`no token ${API_KEY.slice(0, 12)}…`)).toBe("no token █ KMS_API_KEY █…");
});

test("what is of use is shown, and what looks like a secret of somebody else is not", () => {
  const shown = {
    code: "INVALID_CIPHERTEXT_2",
    message: "no handler for route 'transit/encrypt/demo'",
    algorithm: "AES256-GCM_SHA256",
    version: 3,
    enabled: true,
    few: [1, 2, 3],
  };
  expect(blackout.json(shown)).toBe(JSON.stringify(shown));
  const other = randomBytes(32);
  expect(
    JSON.parse(
      blackout.json({
        hex: "0123456789abcdef0123",
        blob: `vault:v1:${Buffer.alloc(30, 0xd7).toString("base64")}`,
        bytes: [...other],
      }),
    ),
  ).toEqual({
    hex: "█ 20 characters, hex of 10 bytes █",
    blob: "vault:v1:█ 40 characters, base64 or base64url of 30 bytes █",
    bytes: "█ 32 numbers █",
  });
});

test("where a key is expected, no long text is shown", () => {
  const answer = { plaintext: "quite some words", rc: "ok" };
  expect(blackout.json(answer, () => false)).toBe('{"plaintext":"█ 16 characters █","rc":"ok"}');
});

test("an endless answer is cut", () => {
  const text = blackout.json(["so long. ".repeat(1_000)]);
  expect(text.length).toBeLessThan(2_100);
  expect(text).toEndWith("… (9004 characters)");
});

test("a secret of fewer than four characters blacks out nothing", () => {
  const short = new Blackout({ name: "local KEK", bytes: KEY }, [
    ["KMS_USER_ID", "u"],
    ["KMS_API_KEY", "us"],
  ]);
  expect(short.known("HTTP status 200")).toBe("HTTP status 200");
  expect(short.text("a user's stuff, in hex 75, in base64 dXM=")).toBe(
    "a user's stuff, in hex 75, in base64 dXM=",
  );
});
