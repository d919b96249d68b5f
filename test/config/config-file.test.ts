/** The settings file: what it may hold, who may read it, and which source wins. */
import { expect, test } from "bun:test";
import { chmodSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseCommandLine } from "../../src/config/config.ts";
import { emulator, runBinary, startPlugin, temporaryDirectory } from "../support.ts";

const GOOD = { KEY4C_URL: "https://key4c.example", KMS_KEY_ID: "k", KMS_USER_ID: "u" };

/** A settings file that only its owner can read. */
function configFile(text: string, mode = 0o600): string {
  const path = join(temporaryDirectory(), "config");
  writeFileSync(path, text);
  chmodSync(path, mode);
  return path;
}

/** What parseCommandLine refuses, line by line. */
function problems(path: string, argv: string[] = [], env: Record<string, string> = GOOD) {
  try {
    parseCommandLine(argv, env, path);
    return [];
  } catch (error) {
    return (error as Error).message.split("\n").slice(0, -1);
  }
}

test("flag before environment before file; comments, quotes and blanks", () => {
  const path = configFile(`# settings of this node
KEY4C_URL = "https://file.example"
KMS_KEY_ID=file
KMS_USER_ID='u'

  KMS_PROBE_INTERVAL=1m
KMS_OUTAGE_GRACE=
KMS_LOG_LEVEL=error
`);
  const line = parseCommandLine(
    ["serve", "--log-level", "debug"],
    { KMS_PROBE_INTERVAL: "2m" },
    path,
  );
  expect(line.config).toMatchObject({
    key4cUrl: "https://file.example",
    kmsKeyId: "file",
    kmsUserId: "u",
    probeInterval: 120_000,
    logLevel: "debug",
  });
  expect(line.config.outageGrace).toBeUndefined();
  expect(Object.fromEntries(line.origins)).toEqual({
    KEY4C_URL: path,
    KMS_KEY_ID: path,
    KMS_USER_ID: path,
    KMS_PROBE_INTERVAL: "the environment",
    KMS_LOG_LEVEL: "the command line",
  });
});

test("the highest source that names X or X_FILE wins over both below it", () => {
  const keyFile = configFile("of-the-file");
  const path = configFile(
    `KEY4C_URL=https://k.example\nKMS_USER_ID=u\nKMS_KEY_ID_FILE=${keyFile}\n`,
  );
  const idOf = (argv: string[], env: Record<string, string>) => {
    const { config } = parseCommandLine(argv, env, path);
    return [config.kmsKeyId, config.kmsKeyIdFile?.current];
  };
  expect(idOf([], {})).toEqual([undefined, "of-the-file"]);
  expect(idOf([], { KMS_KEY_ID: "environment" })).toEqual(["environment", undefined]);
  expect(idOf(["serve", "--key-id", "flag"], { KMS_KEY_ID_FILE: "/nowhere" })).toEqual([
    "flag",
    undefined,
  ]);
  // Of one source still one of them.
  expect(problems(path, [], { KMS_KEY_ID: "a", KMS_KEY_ID_FILE: keyFile })).toEqual([
    "KMS_KEY_ID (--key-id) and KMS_KEY_ID_FILE (--key-id-file): give one of them",
  ]);
});

test("a credential of systemd counts before what the file names, which the service may not read", () => {
  const directory = temporaryDirectory();
  const secretFile = join(directory, "kms-user-id");
  writeFileSync(secretFile, "of-systemd");
  const text = `KEY4C_URL=https://k.example\nKMS_KEY_ID=k\nKMS_USER_ID_FILE=${directory}/not-readable\n`;
  // As systemd makes it: an ACL lets the service's user read it, which shows as a right of the group.
  writeFileSync(join(directory, "config"), `${text}KMS_API_KEY=a-secret\n`);
  chmodSync(join(directory, "config"), 0o440);
  const { config, configFile: found } = parseCommandLine([], { CREDENTIALS_DIRECTORY: directory });
  expect([config.kmsUserIdFile?.current, config.kmsApiKey]).toEqual(["of-systemd", "a-secret"]);
  expect(found?.path).toBe(join(directory, "config"));
  rmSync(join(directory, "config")); // before the directory is searched for secrets
  rmSync(secretFile);
});

test("what is wrong in it is named by its line, and nothing that may be a secret is shown", () => {
  const path = configFile(
    "KMS_USRE_ID=hidden-1\nKMS_KEY_ID=a\nhidden-2\nKMS_KEY_ID=b\nhidden3==\nKMS_NO_SUCH_THING=x\nexport KEY4C_URL=x\nKMS_CONFIG=/x\n",
  );
  const lines = problems(path);
  expect(lines).toEqual([
    `${path}, line 1: unknown name KMS_USRE_ID; did you mean KMS_USER_ID?`,
    `${path}, line 3: must be NAME=VALUE, or begin with #`,
    `${path}, line 4: KMS_KEY_ID stands twice`,
    `${path}, line 5: unknown name; names are those of the environment`,
    `${path}, line 6: unknown name KMS_NO_SUCH_THING; names are those of the environment`,
    `${path}, line 7: must be NAME=VALUE, or begin with #`,
    `${path}, line 8: unknown name KMS_CONFIG; names are those of the environment`,
  ]);
});

test("a value that is wrong says where it came from", () => {
  const path = configFile("KMS_PROBE_INTERVAL=soon\n");
  expect(problems(path)[0]).toEndWith(`(from ${path})`);
  expect(problems(path, [], { ...GOOD, KMS_PROBE_INTERVAL: "x" })[0]).toEndWith(
    " (from the environment)",
  );
  expect(problems(path, ["serve", "--probe-interval", "x"])[0]).toMatch(/ from 0\.1s to \d+s$/);
  expect(problems(path, [], {})).toContain(
    `KEY4C_URL (--key4c-url) is missing: the address of Key4C; or try --emulator (${path} has none)`,
  );
});

test.each([
  ["KMS_USER_ID=hidden", "KMS_USER_ID"],
  ["KMS_PIN=hidden", "KMS_PIN"],
  ["HTTPS_PROXY=http://me:hidden@proxy:3128", "HTTPS_PROXY"],
])("a secret in a file that others can read is refused: %s", (line, name) => {
  for (const mode of [0o640, 0o604, 0o620]) {
    const [problem = ""] = problems(configFile(`${line}\n`, mode));
    expect(problem).toContain(`has ${name}, and not only its owner can read it: chmod 0600`);
    expect(problem).not.toContain("hidden");
  }
  expect(problems(configFile(`${line}\n`))).toEqual(
    name === "KMS_PIN" ? [expect.stringContaining("{pin}")] : [],
  );
  expect(problems(configFile("KMS_LOG_LEVEL=info\n", 0o644))).toEqual([]);
});

test("a file that is named must be readable; the default one need not be there", () => {
  const directory = temporaryDirectory();
  const nowhere = join(directory, "none");
  expect(parseCommandLine([], GOOD, nowhere)).toMatchObject({
    warnings: [],
    configFile: undefined,
  });
  const [flag] = problems("/dev/null", ["serve", "--config", nowhere]);
  expect(flag).toBe(`KMS_CONFIG (--config) cannot read ${nowhere} (ENOENT)`);
  expect(problems("/dev/null", [], { ...GOOD, KMS_CONFIG: nowhere })).toEqual([`${flag}`]);
  mkdirSync(join(directory, "config"));
  // EISDIR stands for every reason but absence.
  const { warnings } = parseCommandLine(["status"], {}, join(directory, "config"));
  expect(warnings).toEqual([expect.stringContaining("so its settings are not used")]);
  expect(problems(join(directory, "config"), ["status", "--wait", "x"], {})[0]).toContain(
    "so its settings are not used",
  );
});

test("a plugin that is not there: the message says where its address came from", async () => {
  const { exitCode, stderr } = await runBinary(["status", "--live"], {
    env: { KMS_ENDPOINT: "unix:///nowhere/kms.sock" },
  });
  expect([exitCode, stderr]).toEqual([
    1,
    expect.stringContaining("there is no such socket (KMS_ENDPOINT is from the environment)"),
  ]);
});

test("every command reads it: a drill in a bare shell finds plugin and key", async () => {
  const key4c = emulator();
  const { socket } = await startPlugin(key4c.url);
  const directory = temporaryDirectory();
  const path = join(directory, "config");
  const userId = join(directory, "user-id");
  writeFileSync(userId, "drill");
  writeFileSync(
    path,
    `KEY4C_URL=${key4c.url}\nKMS_KEY_ID=demo\nKMS_USER_ID_FILE=${userId}\nKMS_ENDPOINT=unix://${socket}\n`,
  );
  const env = { KMS_CONFIG: path };
  const status = await runBinary(["status"], { env });
  expect(JSON.parse(status.stdout.toString())).toMatchObject({ healthz: "ok", kmsKeyId: "demo" });
  const other = await runBinary(["status", "--key-id", "other"], { env });
  expect([other.exitCode, other.stderr]).toEqual([
    1,
    expect.stringContaining("KMS_KEY_ID (other, from the command line)"),
  ]);
  const wrapped = await runBinary(["encrypt"], { env, input: "dek" });
  expect((await runBinary(["decrypt"], { env, input: wrapped.stdout })).stdout.toString()).toBe(
    "dek",
  );
  const doctor = await runBinary(["doctor"], { env });
  expect([doctor.exitCode, doctor.stdout.toString()]).toEqual([
    0,
    expect.stringContaining(`✓ configuration: complete and well-formed, with ${path}`),
  ]);
  rmSync(userId);
});
