/** What the README says is what the product does. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { $ } from "bun";
import { optionsTable } from "../src/config.ts";
import { onTestEnd, startBinary, temporaryDirectory } from "./support.ts";

const README = readFileSync(join(import.meta.dir, "../README.md"), "utf8");

test("the table of options is the table of options", () => {
  const shown = README.match(/<!-- options -->\n([\s\S]*)\n<!-- \/options -->/)?.[1];
  expect(shown).toBe(optionsTable());
});

test("the first screen works as it stands", async () => {
  const [start, second] = [...README.matchAll(/```sh\n([\s\S]*?)```/g)].map(
    (match) => match[1] ?? "",
  );
  expect(start).toBe("npm ci && npm start\n");
  const socket = join(temporaryDirectory(), "kms.sock");
  // What npm start runs, without its build.
  await startBinary(["serve", "--emulator"], { KMS_ENDPOINT: `unix://${socket}` }).until(
    /Key4C is ok/,
  );
  const directory = temporaryDirectory();
  await $`ln -s ${join(import.meta.dir, "../dist")} ${directory}/dist`;
  const shell = Bun.spawn(["sh", "-e", "-c", second ?? ""], {
    cwd: directory,
    env: { PATH: process.env["PATH"] ?? "", KMS_ENDPOINT: `unix://${socket}` },
    stdout: "pipe",
  });
  onTestEnd(() => shell.kill());
  const output = await shell.stdout.text();
  expect(await shell.exited).toBe(0);
  expect(output).toMatch(/^same\nsame\n\{"version":"v2","healthz":"ok","keyId":"k4c-/);
});
