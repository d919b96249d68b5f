/** The demo that `npm start` prints, typed into a shell: rotate, outage, recover, revoke, enable. */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { emulatorInside } from "../../src/commands/emulator.ts";
import { parseCommandLine } from "../../src/config/config.ts";
import { testWith } from "../needs.ts";
import { NO_CONFIG_FILE } from "../no-config.ts";
import { makePki, startHttpsEmulator } from "../pki.ts";
import {
  emulator,
  onTestEnd,
  runBinary,
  silentLog,
  startBinary,
  temporaryDirectory,
} from "../support.ts";

/** What the plugin logs when the effect of each step that waits (`sleep`) is there. */
const EFFECTS = [
  /new local KEK.*\.v2\./,
  /"degraded"/,
  /Key4C is ok/,
  /"revoked"/,
  /Key4C is ok/,
] as const;

test("the steps that npm start prints do what they say", async () => {
  const { scripts } = await Bun.file(join(import.meta.dir, "../../package.json")).json();
  const [, flags = ""] = scripts.start.match(/dist\/key4c-kms-plugin (serve .*)$/) ?? [];
  const socket = join(temporaryDirectory(), "kms.sock");
  const plugin = startBinary(flags.split(" "), { KMS_ENDPOINT: `unix://${socket}` });
  await plugin.until(/Key4C is ok/);
  const [steps] = await plugin.until(/# Ready[\s\S]*emulator enable.*\n/);
  const lines = steps.split("\n").filter((line) => !line.startsWith("{")); // the log is between them
  expect(lines.every((line) => line.length <= 100 || line.startsWith("export "))).toBe(true);

  const shell = Bun.spawn(["sh"], {
    env: { ...NO_CONFIG_FILE, PATH: process.env["PATH"] ?? "", TMPDIR: temporaryDirectory() },
    stdin: "pipe",
    stdout: "pipe",
    stderr: "pipe",
  });
  onTestEnd(() => shell.kill());
  // A person waits for two seconds; a busy machine may need more, so this waits for the effect.
  const parts = lines.join("\n").split(/sleep \d;/);
  expect(parts.length).toBe(EFFECTS.length + 1);
  for (const [index, part] of parts.entries()) {
    const from = plugin.output().length;
    shell.stdin.write(`${part}\n`);
    await shell.stdin.flush();
    const effect = EFFECTS[index];
    while (effect !== undefined && !effect.test(plugin.output().slice(from))) {
      await Bun.sleep(20);
    }
  }
  await shell.stdin.end();
  const status = (version: string) => expect.stringContaining(`.${version}.`);
  const readyz = (state: string) => expect.stringMatching(new RegExp(`^${state} since `));
  const [key = "", ...shown] = (await shell.stdout.text()).trimEnd().split("\n");
  expect(Buffer.from(key, "base64").length).toBe(32);
  expect(shown).toEqual([
    ...[key, readyz("ok")],
    ...[status("v1"), "key demo: version 2, ENABLED", status("v2"), key],
    ...["Key4C answers nothing but 503", status("v2"), readyz("degraded"), key],
    ...["Key4C answers again", readyz("ok")],
    ...["key demo: version 2, DISABLED", readyz("revoked")],
    ...["key demo: version 2, ENABLED", status("v2"), key],
  ]);
  expect((await shell.stderr.text()).match(/the Key4C key is disabled or deleted/g)).toHaveLength(
    2,
  );
});

test.each([[], ["--emulator-control"]])(
  "serve --emulator %p: who may change it",
  async (...flags) => {
    const { config } = parseCommandLine(["serve", "--emulator", ...flags], {});
    const inside = emulatorInside(config, silentLog);
    onTestEnd(() => inside.stop());
    const isAllowed = flags.length > 0;
    expect((await fetch(`${inside.url}/emulator/stats`)).status).toBe(isAllowed ? 200 : 404);
    const steps = inside.nextSteps("unix:///k", "http://127.0.0.1:1/");
    expect(steps.includes("KEY4C_URL")).toBe(isAllowed);
  },
);

test("nobody changes an emulator that was not told to allow it", async () => {
  const { url } = emulator({ control: false });
  for (const action of ["rotate", "disable", "enable", "outage", "recover"]) {
    const { stderr, exitCode } = await runBinary(["emulator", action, "--key4c-url", url]);
    expect([exitCode, stderr]).toEqual([1, expect.stringContaining("it runs without --control")]);
  }
});

testWith("openssl")("emulator ACTION hears KEY4C_CA_FILE", async () => {
  const pki = makePki();
  await pki.issue("server", "IP:127.0.0.1");
  const KEY4C_URL = await startHttpsEmulator(pki, "server");
  const env = { KEY4C_URL, KEY4C_CA_FILE: pki.file("ca.pem") };
  expect((await runBinary(["emulator", "rotate"], { env })).stdout.toString()).toBe(
    "key demo: version 2, ENABLED\n",
  );
  const { stderr } = await runBinary(["emulator", "rotate"], { env: { KEY4C_URL } });
  expect(stderr).toMatch(/does not answer \([A-Z_]+\): does it run/); // a code, and no sentence of Bun's
});

test("emulator ACTION: no emulator, another service, no address", async () => {
  const other = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response("hello") });
  onTestEnd(() => other.stop(true));
  const { url } = emulator();
  for (const [env, code, message] of [
    [{}, 2, "must be the loopback address that the emulator printed"],
    [{ KEY4C_URL: "https://key4c.example" }, 2, "must be the loopback address"],
    [{ KEY4C_URL: "http://127.0.0.1:9" }, 1, "does not answer"],
    [{ KEY4C_URL: other.url.href }, 1, "answers 200: is it one?"],
  ] as [Record<string, string>, number, string][]) {
    const { stderr, exitCode, stdout } = await runBinary(["emulator", "rotate"], { env });
    expect([exitCode, stdout.length]).toEqual([code, 0]);
    expect(stderr).toContain(message);
    expect(stderr.trim().split("\n").length).toBe(1);
  }
  const args = ["emulator", "rotate", "--key4c-url", url, "--key-id", "none"];
  expect((await runBinary(args)).stderr).toContain("no such key");
});
