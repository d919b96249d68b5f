/** A certificate and its key that are renewed one after the other. */
import { expect } from "bun:test";
import { copyFileSync, renameSync } from "node:fs";
import { join } from "node:path";
import { KeyPair } from "../../src/config/key-pair.ts";
import { certificates, privateKey } from "../../src/config/option-types.ts";
import { testWith } from "../needs.ts";
import { makePki } from "../pki.ts";
import { temporaryDirectory } from "../support.ts";

const pki = makePki();
const CERTIFICATE = "crt";
const KEY = "key";

async function watchedPair() {
  const directory = temporaryDirectory();
  const put = (name: string, what: string) => {
    const from = pki.file(`${name}.${what === KEY ? "key" : "pem"}`);
    copyFileSync(from, join(directory, "next"));
    renameSync(join(directory, "next"), join(directory, what));
  };
  for (const name of ["one", "two", "three"]) {
    await pki.issue(name, "DNS:localhost");
  }
  put("one", CERTIFICATE);
  put("one", KEY);
  const path = (what: string) => join(directory, what);
  const pair = new KeyPair(certificates(path(CERTIFICATE)), privateKey(path(KEY)));
  const reports: (string | undefined)[] = [];
  pair.fault.watch((text) => reports.push(text));
  return { pair, put, path, reports };
}

const ORDERS = [
  [CERTIFICATE, KEY],
  [KEY, CERTIFICATE],
] as const;

for (const [first, second] of ORDERS) {
  testWith("openssl")(`the ${first} first: the pair before stays in use`, async () => {
    const { pair, put, path, reports } = await watchedPair();
    const before = pair.current;
    put("two", first);
    expect(pair.current).toEqual(before);
    expect(reports).toEqual([
      `${path(first)} waits for ${path(second)}: ${path(KEY)} is not the key of that certificate`,
    ]);
    put("two", second);
    const { cert, key } = pair.current;
    expect(cert).not.toBe(before.cert);
    expect(key).not.toBe(before.key);
    expect(reports.slice(1)).toEqual([undefined]);
  });
}

testWith("openssl")("both new and not of each other, and back to the pair in use", async () => {
  const { pair, put, reports } = await watchedPair();
  const before = pair.current;
  put("two", CERTIFICATE);
  put("three", KEY);
  expect(pair.current).toEqual(before);
  put("one", CERTIFICATE);
  put("one", KEY);
  expect(pair.current).toEqual(before);
  expect(reports).toEqual([expect.stringContaining("is not the key of"), undefined]);
});
