/** What may stand in the place of a file that the compiled binary reads again. */
import { expect, test } from "bun:test";
import {
  copyFileSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { $ } from "bun";
import { rpcs } from "../faults/callers.ts";
import { allowFile } from "../secrets.ts";
import { emulator, onTestEnd, runBinary, temporaryDirectory } from "../support.ts";
import { eventually, launchOk } from "./bent-key4c.ts";

const TOLD = "a file cannot be used: its last good content stays in use";
const AGAIN = "a file can be used again";
const OPTIONS = ["KMS_KEY_ID_FILE", "KMS_PREVIOUS_KEY_IDS_FILE", "KMS_USER_ID_FILE"] as const;

async function started() {
  const directory = temporaryDirectory();
  const path = Object.fromEntries(OPTIONS.map((option) => [option, join(directory, option)]));
  const pathOf = (option: string) => path[option] ?? "";
  for (const option of OPTIONS) {
    allowFile(pathOf(option));
  }
  writeFileSync(pathOf("KMS_KEY_ID_FILE"), "demo\n");
  writeFileSync(pathOf("KMS_PREVIOUS_KEY_IDS_FILE"), "old\n");
  writeFileSync(pathOf("KMS_USER_ID_FILE"), "user-1\n");
  const key4c = emulator({ keyIds: ["demo", "old"] });
  const plugin = await launchOk(key4c.url, { KMS_KEY_ID: "", ...path });
  // What never ends must be gone before the files are searched for secrets. (The last registered runs first.)
  onTestEnd(() => {
    for (const option of OPTIONS) {
      rmSync(pathOf(option), { force: true });
    }
  });
  const lines = (msg: string, option: string) =>
    plugin
      .output()
      .split("\n")
      .filter((line) => line.includes(`"msg":"${msg}","option":"${option}"`));
  /** What the metrics say of files and keys, by one request: the plugin answers few of them. */
  const metrics = async () => {
    const http = /"url":"(http:[^"]*)"/.exec(plugin.output())?.[1];
    const text = await (await fetch(`${http}metrics`)).text();
    const labels = (pattern: RegExp) => [...text.matchAll(pattern)].map(([, label]) => label);
    return {
      unusable: labels(/^key4c_kms_file_unusable{option="(\w+)"} 1$/gm),
      isKeyChangeFailed: text.includes("\nkey4c_kms_key_change_failed 1\n"),
      keys: labels(/^key4c_kms_key_revoked{key="([^"]+)"}/gm).length,
    };
  };
  return { plugin, pathOf, lines, metrics };
}

test("a FIFO in the place of any of them stops nothing, and is told once", async () => {
  const { plugin, pathOf, lines, metrics } = await started();
  for (const option of OPTIONS) {
    copyFileSync(pathOf(option), `${pathOf(option)}.kept`);
    await $`mkfifo ${pathOf(option)}.fifo`.quiet();
    // By one rename: a moment without any file would be told, too.
    renameSync(`${pathOf(option)}.fifo`, pathOf(option));
  }
  for (const option of OPTIONS) {
    await eventually("told", () => lines(TOLD, option).length > 0);
  }
  await Bun.sleep(500); // probes
  expect(await metrics()).toEqual({ unusable: [...OPTIONS], isKeyChangeFailed: true, keys: 2 });
  expect((await rpcs.status(plugin.client)).healthz).toBe("ok");
  for (const option of OPTIONS) {
    const cause = `"cause":"${pathOf(option)} is not a regular file"`;
    expect(lines(TOLD, option)).toEqual([expect.stringContaining(cause)]);
    renameSync(`${pathOf(option)}.kept`, pathOf(option));
  }
  for (const option of OPTIONS) {
    await eventually("told that it is over", () => lines(AGAIN, option).length === 1);
  }
  expect(await metrics()).toEqual({ unusable: [], isKeyChangeFailed: false, keys: 2 });
});

test("a device without an end does not fill the memory", async () => {
  const { plugin, pathOf, lines } = await started();
  const path = pathOf("KMS_USER_ID_FILE");
  rmSync(path);
  symlinkSync("/dev/zero", path);
  await eventually("told", () => lines(TOLD, "KMS_USER_ID_FILE").length > 0);
  await Bun.sleep(500);
  const rssKib = Number(
    /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${plugin.pid}/status`, "utf8"))?.[1],
  );
  expect(rssKib).toBeLessThan(300 * 1024);
  expect(await plugin.state()).toBe("ok");
});

test("a file of the key that nobody can use is told, and raises the alert of a key change", async () => {
  const { plugin, pathOf, lines, metrics } = await started();
  writeFileSync(`${pathOf("KMS_KEY_ID_FILE")}.new`, "next\ndemo\n");
  // By one rename: a moment with an empty file would be told, too.
  renameSync(`${pathOf("KMS_KEY_ID_FILE")}.new`, pathOf("KMS_KEY_ID_FILE"));
  await eventually("told", () => lines(TOLD, "KMS_KEY_ID_FILE").length === 1);
  expect(lines(TOLD, "KMS_KEY_ID_FILE")[0]).toContain("must be the ID of a key");
  expect((await metrics()).isKeyChangeFailed).toBe(true);
  expect(await plugin.state()).toBe("ok");
});

test("an empty list of previous keys keeps the last one; the word none empties it", async () => {
  const { pathOf, lines, metrics } = await started();
  const option = "KMS_PREVIOUS_KEY_IDS_FILE";
  writeFileSync(pathOf(option), "");
  await eventually("told", () => lines(TOLD, option).length === 1);
  expect(await metrics()).toMatchObject({ unusable: [option], keys: 2 });
  writeFileSync(pathOf(option), "none\n");
  await eventually("told that it is over", () => lines(AGAIN, option).length === 1);
  expect(await metrics()).toMatchObject({ unusable: [], keys: 1 });
});

test("a FIFO at the start is refused at once", async () => {
  const fifo = join(temporaryDirectory(), "fifo");
  await $`mkfifo ${fifo}`.quiet();
  const { exitCode, stderr } = await runBinary(["serve"], {
    env: { KEY4C_URL: "http://127.0.0.1:9", KMS_KEY_ID: "demo", KMS_USER_ID_FILE: fifo },
  });
  expect([exitCode, stderr]).toEqual([
    2,
    expect.stringContaining(`KMS_USER_ID_FILE (--user-id-file) ${fifo} is not a regular file`),
  ]);
});
