/** Completion as the shells do it, by the scripts that the compiled binary prints. */
import { expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { MANIFEST_NAMES } from "../../src/commands/manifest/manifest.ts";
import { COMMANDS } from "../../src/config/commands.ts";
import { testWith } from "../needs.ts";
import { BINARY, onTestEnd, temporaryDirectory } from "../support.ts";

/** Lines to be completed at their end, and what is offered; in a directory with the file "a file.json". */
const LINES: readonly (readonly [line: string, offered: readonly string[]])[] = [
  ["", COMMANDS],
  ["en", ["encrypt"]],
  ["manifest ", Object.keys(MANIFEST_NAMES)],
  ["manifest sy", ["systemd-service", "systemd-socket"]],
  ["help in", ["inspect"]],
  ["emulator ", ["rotate", "disable", "enable", "outage", "heal"]],
  ["completion ", ["bash", "zsh", "fish"]],
  ["encrypt --", ["--api", "--endpoint", "--help"]],
  ["status --w", ["--wait"]],
  ["manifest static-pod --kube", ["--kubeadm-api"]],
  ["manifest k3s --key4c-ca", ["--key4c-ca-file"]],
  ["encrypt --api ", ["v1", "v2"]],
  ["manifest k3s --log-level ", ["debug", "error", "info", "warn"]],
  ["serve --log-format j", ["json"]],
  ["--log-format t", ["text"]],
  ["--emulator-d", ["--emulator-data"]],
  ["serve --user-id-file a", ["a file.json"]],
  ["manifest k3s --output a", ["a file.json"]],
  ["version ", ["--licenses", "--help"]],
  ["nonsense ", []],
];

/** Some of them, for shells that start slowly. */
const FEW = LINES.filter(([line]) =>
  [
    "",
    "manifest sy",
    "emulator ",
    "encrypt --",
    "encrypt --api ",
    "serve --user-id-file a",
  ].includes(line),
);

/** What bash's function puts into COMPREPLY. */
async function bash(line: string): Promise<string[]> {
  const words = ["key4c-kms-plugin", ...line.split(" ")];
  const script = `source <("$BINARY" completion bash); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
complete -p key4c-kms-plugin >/dev/null && _key4c_kms_plugin && printf '%s\\n' "\${COMPREPLY[@]}"`;
  return offered(["bash", "-c", script, "bash", ...words]);
}

function fish(line: string): Promise<string[]> {
  const script = 'eval $BINARY completion fish | source; complete -C "key4c-kms-plugin $argv[1]"';
  return offered(["fish", "--no-config", "-c", script, line]);
}

async function zsh(line: string): Promise<string[]> {
  const seen = await offered(["zsh", "-f", join(import.meta.dir, "completion.zsh"), line]);
  return seen.flatMap((one) => one.replaceAll("\r", "").match(/^OFFERED:(.*)/)?.[1] ?? []);
}

async function offered(command: readonly string[]): Promise<string[]> {
  const directory = temporaryDirectory();
  writeFileSync(join(directory, "a file.json"), "");
  const shell = Bun.spawn([...command], {
    cwd: directory,
    env: { PATH: process.env["PATH"] ?? "", HOME: directory, BINARY },
    stdout: "pipe",
    stderr: "pipe",
  });
  onTestEnd(() => shell.kill());
  const output = await shell.stdout.text();
  expect(await shell.stderr.text()).toBe("");
  return output
    .split("\n")
    .map((one) => one.split("\t")[0] ?? "") // fish has a description behind it
    .filter(Boolean);
}

const sorted = (words: readonly string[]) => [...words].sort();

test.each(LINES)("bash, %p", async (line, words) => {
  expect(sorted(await bash(line))).toEqual(sorted(words));
});

test("bash, for the three words that it makes of --flag=value", async () => {
  expect(await bash("encrypt --api =")).toEqual(["v1", "v2"]);
  expect(await bash("serve --log-level = d")).toEqual(["debug"]);
});

testWith("fish").each(FEW)("fish, %p", async (line, words) => {
  expect(sorted(await fish(line))).toEqual(sorted(words));
});

testWith("zsh").each(FEW)("zsh, %p", async (line, words) => {
  expect(sorted(await zsh(line))).toEqual(sorted(words));
});
