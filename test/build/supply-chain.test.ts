/** That the check of the supply chain can fail: each thing it wants, broken in a copy. */
import { expect, test } from "bun:test";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { startProcess, temporaryDirectory } from "../support.ts";

const ROOT = join(import.meta.dir, "../..");
const GRPC = "node_modules/@grpc/grpc-js";

async function check(manifest: string, lock: string, installed = ""): Promise<[number, string]> {
  const directory = temporaryDirectory();
  writeFileSync(join(directory, "package.json"), manifest);
  writeFileSync(join(directory, "package-lock.json"), lock);
  if (installed !== "") {
    mkdirSync(join(directory, GRPC), { recursive: true });
    writeFileSync(join(directory, GRPC, "package.json"), installed);
  }
  const running = startProcess([
    process.execPath,
    join(import.meta.dir, "supply-chain.ts"),
    directory,
  ]);
  return [await running.exited, running.output()];
}

const manifest = readFileSync(join(ROOT, "package.json"), "utf8");
const lock = readFileSync(join(ROOT, "package-lock.json"), "utf8");

test("what is committed passes", async () => {
  expect(await check(manifest, lock)).toEqual([0, expect.stringContaining(" 0 problems")]);
});

test.each([
  ["is not on the list", manifest, lock.replace('"license": "MIT"', '"license": "SSPL-1.0"')],
  ["is not on the list", manifest, lock.replace("AND BSD-3-Clause", "AND GPL-3.0")],
  ["no SHA-512", manifest, lock.replace('"sha512-', '"sha1-')],
  [
    "not from the public registry",
    manifest,
    lock.replace('"integrity"', '"resolved": "https://mirror.example/x.tgz", "integrity"'),
  ],
  ["install script", manifest.replace('"protobufjs": false', '"other": false'), lock],
  ["which has no install script", manifest.replace('"bun": true', '"debug": true'), lock],
  ["not an exact version", manifest.replace('"1.14.7"', '"^1.14.7"'), lock],
  ["differ from package.json", manifest.replace('"1.14.7"', '"1.14.8"'), lock],
])("%s", async (problem, changedManifest, changedLock) => {
  expect([changedManifest, changedLock]).not.toEqual([manifest, lock]);
  expect(await check(changedManifest, changedLock)).toEqual([1, expect.stringContaining(problem)]);
});

test.each([
  ["is not on the list", { version: "1.14.7", license: "UNLICENSED" }],
  ["1.0.0 is installed", { version: "1.0.0", license: "Apache-2.0" }],
])("what is installed: %s", async (problem, installed) => {
  expect(await check(manifest, lock, JSON.stringify(installed))).toEqual([
    1,
    expect.stringContaining(problem),
  ]);
});
