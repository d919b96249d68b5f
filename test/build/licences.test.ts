/** `version --licenses`: in step with what is bundled, and in the compiled binary. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { LICENCES } from "../../src/build/compile.ts";
import { bundledPackages } from "../../src/build/sbom.ts";
import { run } from "../e2e/process.ts";
import { BINARY } from "../support.ts";
import { licences } from "./licences.ts";

test("what is committed is what `npm run generate` makes", async () => {
  expect(readFileSync(LICENCES, "utf8")).toBe(await licences());
});

test("the binary has the licence of each package that it carries, of Bun, and of what Bun links", async () => {
  const text = await run([BINARY, "version", "--licenses"]);
  expect(text).toBe(readFileSync(LICENCES, "utf8"));
  const titles = [...text.matchAll(/^===== ([^\s:]+)/gm)].map(([, name]) => name);
  for (const name of [...(await bundledPackages()), "key4c-kms-plugin", "bun"]) {
    expect(titles).toContain(name);
  }
  // One word of each text, so that an empty section does not pass.
  for (const words of [
    "Copyright 2021-2026 Buf Technologies",
    "Copyright 2008 Google Inc.",
    "Copyright (c) 2021 Zilong Yao",
    "Copyright Eemeli Aro",
    "Bun statically links JavaScriptCore",
  ]) {
    expect(text).toContain(words);
  }
});

test("each library of Bun's list has its notice", () => {
  const text = readFileSync(LICENCES, "utf8");
  const [, list = ""] = text.match(/## Linked libraries\n([\s\S]*?)\n## /) ?? [];
  const [, notices = ""] = text.match(/===== Libraries in bun =====\n([\s\S]*?)\n----- /) ?? [];
  // The rows of the table: `name` in a link. libuv is linked on Windows only.
  const names = [...list.matchAll(/^\| .*?\[`?([^`\]]+)`?\]\(/gm)].map(([, name = ""]) => name);
  expect(names.length).toBeGreaterThan(20);
  const isNamed = (name: string) => notices.toLowerCase().includes(name.toLowerCase());
  expect(names.filter((name) => !isNamed(name))).toEqual(["libuv"]);
});
