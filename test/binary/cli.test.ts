/** The command line of the compiled binary. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import { testWith } from "../needs.ts";
import { NO_CONFIG_FILE } from "../no-config.ts";
import {
  BINARY,
  BUILD_VERSION,
  emulator,
  onTestEnd,
  runBinary,
  startBinary,
  startPlugin,
  startProcess,
  temporaryDirectory,
  temporaryFile,
} from "../support.ts";

/** `decrypt` takes what begins with `{` for JSON. */
const DEK = Buffer.concat([Buffer.from([0]), randomBytes(31)]);

test("version and help", async () => {
  for (const args of [["version"], ["--version"]]) {
    expect(await runBinary(args)).toMatchObject({ exitCode: 0, stderr: "" });
    const told = (await runBinary(args)).stdout.toString();
    expect(told.replace(/^key4c-kms-plugin (.*)\n$/, "$1")).toMatch(BUILD_VERSION);
  }
  for (const [args, text] of [
    [["help"], "Commands:\n  serve "],
    [["--help"], "Commands:\n  serve "],
    [["help", "serve"], "--local-kek-max-age DURATION, KMS_LOCAL_KEK_MAX_AGE"],
    [["serve", "--help"], "--local-kek-max-age DURATION, KMS_LOCAL_KEK_MAX_AGE"],
    [["encrypt", "-h"], "--api v1|v2"],
  ] as const) {
    const { stdout, stderr, exitCode } = await runBinary(args, { env: { KMS_ENDPOINT: "broken" } });
    expect([exitCode, stderr]).toEqual([0, ""]);
    expect(stdout.toString()).toContain(text);
  }
});

test("wrong usage: one line a problem, exit code 2, no stack", async () => {
  const { stderr, exitCode, stdout } = await runBinary(["serve", "--nonsense"]);
  expect(exitCode).toBe(2);
  expect(stdout.length).toBe(0);
  expect(stderr.split("\n").filter(Boolean)).toEqual([
    "key4c-kms-plugin: unknown option --nonsense of serve",
    expect.stringMatching(/^key4c-kms-plugin: KEY4C_URL \(--key4c-url\) is missing/),
    expect.stringMatching(/^key4c-kms-plugin: KMS_KEY_ID \(--key-id\) is missing/),
    expect.stringMatching(/^key4c-kms-plugin: KMS_USER_ID or KMS_USER_ID_FILE/),
    "key4c-kms-plugin: see: key4c-kms-plugin help serve",
  ]);
});

test("encrypt and decrypt give the bytes back, for both APIs", async () => {
  const { socket } = await startPlugin(emulator().url);
  const env = { KMS_ENDPOINT: `unix://${socket}` };
  const v2 = await runBinary(["encrypt"], { env, input: DEK });
  expect(Object.keys(JSON.parse(v2.stdout.toString()))).toEqual([
    "ciphertext",
    "keyId",
    "annotations",
  ]);
  expect((await runBinary(["decrypt"], { env, input: v2.stdout })).stdout).toEqual(DEK);
  const v1 = await runBinary(["encrypt", "--api", "v1"], { env, input: DEK });
  expect(v1.stdout.subarray(0, 4).toString("latin1")).toBe("k4c\x01");
  expect(
    (await runBinary(["decrypt", "--endpoint", env.KMS_ENDPOINT], { input: v1.stdout })).stdout,
  ).toEqual(DEK);
});

test("what cannot be decrypted is told by its status, exit code 1", async () => {
  const { socket } = await startPlugin(emulator().url);
  const env = { KMS_ENDPOINT: `unix://${socket}` };
  for (const [input, message] of [
    ["", "standard input is empty: there is nothing to unwrap"],
    ["garbage", "INVALID_ARGUMENT: the request is not valid"],
    ['{"ciphertext":"AA","keyId":"1","annotations":{}}', "NOT_FOUND"],
    ["{", "input must be"],
    ['{"ciphertext":1}', "input must be"],
    ["x".repeat(200_000), "Decrypt: the plugin takes 128 KiB at most"],
    ["x".repeat(300_000), "standard input: 262144 bytes at most, and this is 300000"],
    ["x".repeat(2_000_000), "and this is more than 1"],
  ] as const) {
    const { stderr, exitCode, stdout } = await runBinary(["decrypt"], { env, input });
    expect([exitCode, stdout.length]).toEqual([1, 0]);
    expect(stderr).toContain(message);
    expect(stderr.trim().split("\n").length).toBeLessThanOrEqual(2);
  }
});

test("a reader that wants no more is no error: nothing is said", async () => {
  const script = `{ "$0" version --licenses; echo "exit code $?" >&2; } | head -n 1`;
  const { output, exited } = startProcess(["sh", "-c", script, BINARY], {
    PATH: process.env["PATH"] ?? "",
  });
  await exited;
  expect(output().trim().split("\n").sort()).toEqual([
    "What key4c-kms-plugin is made of, and under which licences:",
    "exit code 141",
  ]);
});

test("status: one line of JSON and exit code 0 only if ok; --wait waits", async () => {
  const socket = join(temporaryDirectory(), "kms.sock");
  const env = { KMS_ENDPOINT: `unix://${socket}` };
  expect((await runBinary(["status"], { env })).exitCode).toBe(1);
  const waiting = runBinary(["status", "--wait", "120s"], { env: { ...env, KMS_KEY_ID: "demo" } });
  startBinary(["serve", "--emulator"], env);
  const { stdout, exitCode } = await waiting;
  expect(exitCode).toBe(0);
  const keyId = expect.stringMatching(/^k4c-fbajn2fxsguq6aegzffhmyn5zi\.v1\.k[a-z2-7]{8}$/);
  const line = {
    version: "v2",
    healthz: "ok",
    keyId,
    pluginVersion: expect.stringMatching(BUILD_VERSION),
  };
  expect(JSON.parse(stdout.toString())).toEqual({ ...line, kmsKeyId: "demo" });
  const unnamed = await runBinary(["status"], { env });
  expect(JSON.parse(unnamed.stdout.toString())).toEqual(line);
  const other = await runBinary(["status"], { env: { ...env, KMS_KEY_ID: "other" } });
  expect([other.exitCode, other.stderr, other.stdout.length]).toEqual([
    1,
    expect.stringContaining("ok, and uses another key"),
    0,
  ]);
});

test("status --live: one line of JSON, whatever Key4C does; without a plugin exit code 1, soon", async () => {
  const socket = join(temporaryDirectory(), "kms.sock");
  const env = { KMS_ENDPOINT: `unix://${socket}` };
  const nobody = await runBinary(["status", "--live"], { env });
  expect(nobody.exitCode).toBe(1);
  expect(nobody.stderr).toContain(
    "kms.sock: there is no such socket (KMS_ENDPOINT is from the environment)\n",
  );
  startBinary(["serve"], {
    ...env,
    KEY4C_URL: "http://127.0.0.1:9", // nobody listens there
    KMS_KEY_ID: "demo",
    KMS_USER_ID: "u",
  });
  const { stdout, exitCode } = await runBinary(["status", "--live", "--wait", "120s"], { env });
  expect(exitCode).toBe(0);
  const line = {
    live: true,
    runtimeName: "key4c-kms-plugin",
    runtimeVersion: expect.stringMatching(BUILD_VERSION),
  };
  expect(JSON.parse(stdout.toString())).toEqual(line);
  expect((await runBinary(["status"], { env })).exitCode).toBe(1); // is another question
});

test("status --live does not wait for a plugin that is stuck", async () => {
  const socket = join(temporaryDirectory(), "kms.sock");
  const stuck = createServer();
  await new Promise<void>((resolve) => stuck.listen(socket, resolve));
  onTestEnd(() => stuck.close());
  const { stderr, exitCode } = await runBinary(["status", "--live"], {
    env: { KMS_ENDPOINT: `unix://${socket}` },
  });
  expect(exitCode).toBe(1);
  expect(stderr).toContain("did not answer within 1.5 s (KMS_ENDPOINT is from the environment)\n");
});

test("encrypt says how much it takes before it asks a plugin", async () => {
  const env = { KMS_ENDPOINT: "unix:///nowhere/kms.sock" };
  const { stderr, exitCode, stdout } = await runBinary(["encrypt"], {
    env,
    input: randomBytes(600),
  });
  expect([exitCode, stdout.length]).toEqual([1, 0]);
  expect(stderr).toBe("key4c-kms-plugin: standard input: 512 bytes at most, and this is 600\n");
});

test("a call that nobody takes: what is wrong, and what to do", async () => {
  const directory = temporaryDirectory();
  const at = (name: string) => join(directory, name);
  // A socket that a process left, as a killed plugin does.
  const left = Bun.spawn([
    process.execPath,
    "-e",
    `Bun.listen({ unix: ${JSON.stringify(at("left"))}, socket: { data() {} } }); process.kill(process.pid, "SIGKILL")`,
  ]);
  await left.exited;
  const web = Bun.serve({ unix: at("web"), fetch: () => new Response("no gRPC") });
  onTestEnd(() => web.stop(true));
  for (const [path, message, remedy] of [
    [at("none"), `no plugin listens at unix://${at("none")}: there is no such socket`, "systemctl"],
    [at("none/none"), "there is no such socket", "crictl"],
    [at("left"), "the process that made it has ended", "is it running?"],
    [at("web"), "ended the connection", "does it speak gRPC"],
  ] as const) {
    for (const args of [["status"], ["encrypt"], ["decrypt"], ["status", "--live"]]) {
      const env = { KMS_ENDPOINT: `unix://${path}` };
      const { stderr, exitCode, stdout } = await runBinary(args, { env, input: DEK });
      expect([exitCode, stdout.length]).toEqual([1, 0]);
      const [first, ...remedies] = stderr.trimEnd().split("\n");
      expect(first).toContain(message);
      expect(remedies.join("\n")).toContain(remedy);
      expect(stderr).not.toMatch(/No connection established|Resolution note|ENOENT/);
    }
  }
});

testWith("root", "setpriv")("a call that this user may not make", async () => {
  const { socket } = await startPlugin(emulator().url);
  const nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] as const;
  const call = startProcess([...nobody, BINARY, "status", "--endpoint", `unix://${socket}`]);
  expect(await call.exited).toBe(1);
  expect(call.output()).toMatch(/this user may not use unix:.* \(EACCES\)\n.* as root/);
});

test("a plugin that cannot: its status, and what to do", async () => {
  const key4c = emulator();
  const { socket } = await startPlugin(key4c.url, {
    KMS_REVOCATION_GRACE: "0s",
    KMS_PROBE_INTERVAL: "100ms",
  });
  const env = { KMS_ENDPOINT: `unix://${socket}` };
  await key4c.control("POST", "keys/demo/disable");
  for (;;) {
    const { stderr, exitCode } = await runBinary(["status"], { env });
    if (exitCode === 1) {
      expect(stderr).toMatch(
        /^key4c-kms-plugin: Status: the plugin answers FAILED_PRECONDITION: the Key4C key is disabled or deleted\nkey4c-kms-plugin: enable the key in Key4C.*journalctl.*\n$/,
      );
      break;
    }
    await Bun.sleep(200);
  }
});

test("a result that nobody takes is an error of one line", async () => {
  const plugin = await startPlugin(emulator().url);
  const script = 'exec "$0" status --endpoint "$1" >/dev/full';
  const status = startProcess(["sh", "-c", script, BINARY, `unix://${plugin.socket}`]);
  expect(await status.exited).toBe(1);
  expect(status.output()).toBe("key4c-kms-plugin: cannot write the result (ENOSPC)\n");
});

test("serve --emulator prints what to paste into a second shell, and warns", async () => {
  const socket = join(temporaryDirectory(), "kms.sock");
  const plugin = startBinary(["serve", "--emulator"], { KMS_ENDPOINT: `unix://${socket}` });
  await plugin.until(/Key4C is ok/);
  expect(plugin.output()).toContain(`export KMS_ENDPOINT=unix://${socket}\n`);
  const lines = (await plugin.until(/# Ready[\s\S]* decrypt\n/))[0];
  const shell = Bun.spawn(["sh", "-ec", lines], {
    env: { ...NO_CONFIG_FILE, PATH: process.env["PATH"] ?? "" },
  });
  expect(await shell.stdout.text()).toMatch(/^\{"version":"v2","healthz":"ok".*\na-data-key\n$/);
  expect(plugin.output()).toMatch(/"warn".*EMULATOR.*lost at exit/);
});

test("with --emulator-data the key outlives the process", async () => {
  const directory = temporaryDirectory();
  const data = join(directory, "keys.json");
  const env = { KMS_ENDPOINT: `unix://${join(directory, "kms.sock")}` };
  const args = ["serve", "--emulator", "--emulator-data", data];
  const first = startBinary(args, env);
  await first.until(/Key4C is ok/);
  const { stdout: wrapped } = await runBinary(["encrypt"], { env, input: DEK });
  await first.stop("SIGKILL");
  await startBinary(args, env).until(/Key4C is ok/);
  expect((await runBinary(["decrypt"], { env, input: wrapped })).stdout).toEqual(DEK);
});

test("an emulator whose data file is something else leaves it alone", async () => {
  const data = join(temporaryDirectory(), "notes.txt");
  writeFileSync(data, "my notes");
  const { stderr, exitCode } = await runBinary([
    "serve",
    "--emulator",
    "--emulator-data",
    data,
    "--endpoint",
    "unix:///tmp/never.sock",
  ]);
  expect(exitCode).toBe(1);
  expect(stderr).toContain("is not a data file of the emulator");
  expect(readFileSync(data, "utf8")).toBe("my notes");
});

test("neither .env nor bunfig.toml of the directory it is started in has a say", async () => {
  const directory = temporaryDirectory();
  writeFileSync(join(directory, ".env"), "KMS_LOG_LEVEL=loud\n");
  writeFileSync(join(directory, "bunfig.toml"), 'preload = ["./preload.ts"]\n');
  writeFileSync(join(directory, "preload.ts"), 'console.log("PRELOADED");\n');
  const { stdout, stderr, exitCode } = await runBinary(["version"], { cwd: directory });
  expect([exitCode, stderr]).toEqual([0, ""]);
  expect(stdout.toString()).not.toContain("PRELOADED");
  const { stderr: problems } = await runBinary(["serve"], { cwd: directory });
  expect(problems).not.toContain("loud");
  expect(problems).not.toContain("KMS_LOG_LEVEL");
});

test("a path that is no socket is called that", async () => {
  const file = temporaryFile("");
  for (const path of [file, dirname(file)]) {
    const { stderr } = await runBinary(["status", "--endpoint", `unix://${path}`]);
    expect(stderr.toString()).toContain(`unix://${path} is not a socket\n`);
  }
});

test("nothing is not wrapped: mostly a pipeline is broken", async () => {
  const { socket } = await startPlugin(emulator().url);
  const args = ["encrypt", "--endpoint", `unix://${socket}`];
  expect(await runBinary(args, { input: "" })).toMatchObject({
    exitCode: 1,
    stderr: "key4c-kms-plugin: standard input is empty: there is nothing to wrap\n",
  });
});
