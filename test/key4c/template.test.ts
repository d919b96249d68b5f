import { expect, test } from "bun:test";
import { decodeBytes, render, renderJson } from "../../src/key4c/template.ts";

test("placeholders are replaced once, so a value cannot smuggle another one in", () => {
  const values = { keyId: "{apiKey}", apiKey: "secret", aad: undefined };
  expect(render("/keys/{keyId}", values)).toBe("/keys/{apiKey}");
  expect(render("/keys/{keyId}", { keyId: "a/../b?c#d%" }, encodeURIComponent)).toBe(
    "/keys/a%2F..%2Fb%3Fc%23d%25",
  );
  expect(renderJson({ k: "{keyId}", n: 1, l: ["{keyId}", true, null] }, values)).toEqual({
    k: "{apiKey}",
    n: 1,
    l: ["{apiKey}", true, null],
  });
});

test("what names a value that is not there is left out", () => {
  expect(render("Bearer {apiKey}", {})).toBeUndefined();
  expect(renderJson({ aad: "{aad}", list: ["{aad}", "x"], keep: { aad: "{aad}" } }, {})).toEqual({
    list: ["x"],
    keep: {},
  });
});

test("bytes are written as the placeholder says, in base64 where it says nothing", () => {
  const values = { plaintext: Buffer.from("fb ff be".replaceAll(" ", ""), "hex") };
  expect(renderJson(["{plaintext}", "{plaintext:base64}", "{plaintext:hex}"], values)).toEqual([
    "+/++",
    "+/++",
    "fbffbe",
  ]);
  const short = { plaintext: Buffer.from([0xfb]) };
  expect(render("{plaintext:base64url}|{plaintext}", short)).toBe("-w|+w==");
});

test.each([
  ["base64", "+w==", ["+w", "+x==", "-w==", "+w= =", " +w==", "+w==\n", "fb", ""]],
  ["base64url", "-w", ["-w==", "-x", "+w", "-w ", "fb", ""]],
  ["hex", "fb", ["Fb", "fB", "0xfb", "f", "fbf", "fb ", " fb", "fb:", ""]],
] as const)("%s that is not canonical is no bytes", (encoding, right, wrong) => {
  const bytes = Buffer.from([0xfb]);
  expect(decodeBytes(right, encoding)).toEqual(bytes);
  expect(wrong.filter((one) => decodeBytes(one, encoding)?.equals(bytes))).toEqual([]);
});

test("capitals are hex too", () => {
  expect(decodeBytes("FBFFBE", "hex")).toEqual(Buffer.from([0xfb, 0xff, 0xbe]));
});

test("a value is placed into the parsed body, so that it cannot break out of its text", () => {
  const values = { ciphertext: '","admin":true,"x":"' };
  expect(JSON.parse(JSON.stringify(renderJson({ p: "{ciphertext}" }, values)))).toEqual({
    p: '","admin":true,"x":"',
  });
});
