import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { COMMANDS, type Command } from "../../src/config/commands.ts";
import { OPTION_LIST, parseCommandLine, previousKeyIdsOf } from "../../src/config/config.ts";
import { GROUPS, OPTIONS } from "../../src/config/options.ts";
import { ExitError } from "../../src/system/errors.ts";
import { temporaryDirectory, temporaryFile } from "../support.ts";

const GOOD = { KEY4C_URL: "https://key4c.example", KMS_KEY_ID: "k", KMS_USER_ID: "u" };

/** The lines of an ExitError 2, without the one that says where to read on. */
function problems(argv: string[], env: Record<string, string>): string[] {
  try {
    parseCommandLine(argv, env);
  } catch (error) {
    if (error instanceof ExitError && error.exitCode === 2) {
      const lines = error.message.split("\n");
      expect(lines.pop()).toMatch(/^see: key4c-kms-plugin help/);
      return lines;
    }
    throw error;
  }
  return [];
}

test("defaults", () => {
  const { command, config } = parseCommandLine([], GOOD);
  expect(command).toBe("serve");
  expect(config).toMatchObject({
    kmsEndpoint: "/run/key4c-kms/kms.sock",
    key4cUrl: "https://key4c.example",
    kmsKeyId: "k",
    socketMode: 0o600,
    localKekMaxUses: 1_048_576,
    localKekMaxAge: 604_800_000,
    localKekCacheSize: 16_384,
    probeInterval: 30_000,
  });
});

test("a flag wins over the environment, and an empty variable is unset", () => {
  const { config } = parseCommandLine(
    ["serve", "--key-id", "flag", "--probe-interval=90s", "--log-level", "debug"],
    { ...GOOD, KMS_KEY_ID: "env", KMS_PROBE_INTERVAL: "1h", KMS_PREVIOUS_KEY_IDS: "" },
  );
  expect(config).toMatchObject({ kmsKeyId: "flag", probeInterval: 90_000, logLevel: "debug" });
  expect(config.previousKeyIds).toBeUndefined();
});

test("under a systemd that ignored LoadCredential=, the missing credential is explained", () => {
  const { KMS_USER_ID: _, ...without } = GOOD;
  const [line = ""] = problems([], { ...without, NOTIFY_SOCKET: "/run/systemd/notify" });
  expect(line).toContain("manifest systemd-service --environment-file");
  expect(problems([], without)[0]).not.toContain("systemd");
  const newer = { ...without, NOTIFY_SOCKET: "/run/n", CREDENTIALS_DIRECTORY: "/nowhere" };
  expect(problems([], newer)[0]).not.toContain("systemd");
});

test("every problem is named at once, one line each", () => {
  const lines = problems(["serve", "--probe-interval", "soon", "extra", "--nonsense"], {
    KMS_ENDPOINT: "/tmp/kms.sock",
    KMS_SOCKET_MODE: "rw",
    KEY4C_CERT_FILE: "/nowhere/cert.pem",
    KMS_USER_ID: "two words",
  });
  const expected = [
    "unknown option --nonsense",
    "serve takes no argument: 1 given",
    "KMS_ENDPOINT (--endpoint) must be unix:///PATH",
    "KMS_USER_ID must be 1 to 4096 visible ASCII characters",
    "KEY4C_CERT_FILE (--key4c-cert-file) cannot read /nowhere/cert.pem (ENOENT)",
    "KMS_SOCKET_MODE (--socket-mode) must be permission bits such as 0600",
    "KMS_PROBE_INTERVAL (--probe-interval) must be a duration such as 90s",
    "KEY4C_URL (--key4c-url) is missing",
    "KMS_KEY_ID (--key-id) is missing",
    "KEY4C_CERT_KEY_FILE (--key4c-cert-key-file): give both or none",
  ];
  expect(lines.length).toBe(expected.length);
  for (const [index, text] of expected.entries()) {
    expect(lines[index]).toContain(text);
  }
});

/** A value that starts so is the path of a file with the rest as its content. */
const CONTENT = "content of a file: ";

test.each([
  [{ KEY4C_URL: "http://key4c.example" }, "must be https://"],
  [{ KEY4C_URL: "https://user:pw@key4c.example" }, "without user"],
  [{ KEY4C_URL: "https://key4c.example/?a=b" }, "without user, query"],
  [{ KEY4C_URL: "https://key4c.example/?" }, "without user, query"],
  [{ KEY4C_URL: "https://key4c.example/#" }, "without user, query"],
  [{ KEY4C_URL: "http://127.0.0.2:9641" }, "http only for loopback"],
  [{ KEY4C_URL: "key4c.example" }, "must be https://"],
  [{ KMS_KEY_ID: ".." }, "must be the ID of a key"],
  [{ KMS_KEY_ID: "a,b" }, "no comma"],
  [{ KMS_PREVIOUS_KEY_IDS: "a,,b" }, "KMS_PREVIOUS_KEY_IDS (--previous-key-ids) must be the ID"],
  [{ KMS_PREVIOUS_KEY_IDS: Array(65).fill("a").join() }, "at most 64 IDs of keys, and are 65"],
  [{ KMS_ENDPOINT: "unix://tmp/kms.sock" }, "three slashes"],
  [{ KMS_ENDPOINT: "unix:///@kms" }, "abstract socket"],
  [{ KMS_ENDPOINT: "tcp://127.0.0.1:1" }, "must be unix:///PATH"],
  [{ KMS_ENDPOINT: `unix:///${"x".repeat(120)}` }, "at most 100 bytes"],
  [{ KMS_LOCAL_KEK_MAX_USES: "0" }, "must be a whole number from 1 to 4294967296"],
  [{ KMS_LOCAL_KEK_MAX_USES: "1e3" }, "must be a whole number"],
  [{ KMS_LOCAL_KEK_MAX_AGE: "5" }, "must be a duration"],
  [{ KMS_LOCAL_KEK_CACHE_SIZE: "-1" }, "must be a whole number from 0"],
  [{ KMS_SOCKET_GROUP: "no-such-group" }, "a name in /etc/group"],
  [{ KMS_LOG_LEVEL: "loud" }, "must be one of debug, info, warn, error"],
  [{ KMS_USER_ID_FILE: "/nowhere" }, "cannot read /nowhere (ENOENT)"],
  [{ KMS_USER_ID: "u", KMS_USER_ID_FILE: "/nowhere" }, "give one of them"],
  [{ KMS_API_KEY_FILE: `${CONTENT} \n` }, "is empty"],
  [{ KEY4C_CA_FILE: `${CONTENT}hello` }, "holds no certificate in PEM form"],
  [
    { KEY4C_PROFILE: `${CONTENT}{"encrypt":1}` },
    "KEY4C_PROFILE (--key4c-profile) /encrypt: must be an object",
  ],
  [{ KEY4C_PROFILE: `${CONTENT}hello` }, "is not JSON"],
] as [Record<string, string>, string][])("refuses %p", (env, message) => {
  const given = Object.entries(env).map(([name, value]) => [
    name,
    value.startsWith(CONTENT) ? temporaryFile(value.slice(CONTENT.length)) : value,
  ]);
  expect(problems([], { ...GOOD, ...Object.fromEntries(given) }).join("\n")).toContain(message);
});

test("no message shows a secret", () => {
  const secret = "not visible ASCII: é";
  const shown = problems([], { ...GOOD, KMS_USER_ID: secret, KMS_API_KEY: secret }).join("\n");
  expect(shown).toContain("KMS_API_KEY must be");
  expect(shown).not.toContain("é");
  expect(shown).not.toContain("not visible ASCII");
});

test("the emulator needs nothing else, and nothing that it would ignore", () => {
  expect(problems(["--emulator"], {})).toEqual([]);
  expect(problems(["--emulator"], GOOD)[0]).toContain("give one of them");
  expect(problems(["--emulator-data", "f"], GOOD)[0]).toContain("only with --emulator");
});

test("a command takes its own options only", () => {
  expect(problems(["status", "--api=v1"], {})).toEqual([
    "unknown option --api of status; it is an option of encrypt, manifest",
  ]);
  expect(parseCommandLine(["encrypt", "--api", "v1"], {}).config.api).toBe("v1");
  expect(problems(["emulator", "--tls-cert-file", "/x"], {}).join()).toContain("give both or none");
  expect(problems(["emulator", "--listen", "0.0.0.0:1"], {})[0]).toContain("127.0.0.1:PORT");
});

test("a secret file is read again when it changes, and a broken one keeps the old value", () => {
  const path = join(temporaryDirectory(), "token");
  writeFileSync(path, "first\n");
  const { KMS_USER_ID: _, ...env } = GOOD;
  const { config } = parseCommandLine([], { ...env, KMS_USER_ID_FILE: path });
  expect(config.kmsUserIdFile?.current).toBe("first");
  writeFileSync(path, "second");
  expect(config.kmsUserIdFile?.current).toBe("second");
  for (const broken of ["", "two words", `${randomBytes(10)}\0`]) {
    writeFileSync(path, broken);
    expect(config.kmsUserIdFile?.current).toBe("second");
  }
  writeFileSync(path, "third");
  expect(config.kmsUserIdFile?.current).toBe("third");
});

test("each row of options.json has what the type of an option says, and no more", () => {
  const texts = (values: readonly unknown[]) => values.every((one) => typeof one === "string");
  const areCommands = (names: readonly string[]) =>
    names.length > 0 && names.every((name) => COMMANDS.includes(name as Command));
  const wrong = OPTION_LIST.filter(([, { commands, group, help, parse, ...rest }]) => {
    const { env, flag, value, default: fallback, ...others } = rest;
    const byCommand = typeof help === "string" ? { serve: help } : help;
    const isWell =
      areCommands(commands) &&
      (group === undefined || Object.hasOwn(GROUPS, group)) &&
      areCommands(Object.keys(byCommand)) &&
      typeof parse === "function" &&
      texts(Object.values(byCommand)) &&
      texts([env, flag, value, fallback].filter((one) => one !== undefined)) &&
      Object.keys(others).length === 0;
    return !isWell;
  });
  expect(wrong).toEqual([]);
});

test("names are the documented ones: a flag is the kebab form of its environment name", () => {
  for (const { env, flag } of Object.values(OPTIONS) as { env?: string; flag?: string }[]) {
    if (env !== undefined && flag !== undefined) {
      expect(flag).toBe(env.replace(/^KMS_/, "").toLowerCase().replaceAll("_", "-"));
    }
  }
  expect(
    "flag" in OPTIONS.kmsUserId || "flag" in OPTIONS.kmsApiKey || "flag" in OPTIONS.kmsPin,
  ).toBe(false);
});

test.each([
  [["encrpyt"], 'unknown command "encrpyt"; did you mean encrypt?'],
  [["stat"], 'unknown command "stat"; did you mean status?'],
  [["wrap"], "unknown command: one of serve, doctor, "],
  [["encrpyt", "--help"], 'unknown command "encrpyt"; did you mean encrypt?'],
  [["help", "hlep"], 'unknown COMMAND "hlep"; did you mean help?'],
  [["help", "encrypt", "decrypt"], "help takes one argument, [COMMAND]: 2 given"],
  [["version", "two"], "version takes no argument: 1 given"],
  [["emulator", "stop"], "unknown ACTION: one of rotate, disable, enable, outage, recover"],
  [
    ["status", "--endpiont=unix:///x"],
    "unknown option --endpiont of status; did you mean --endpoint?",
  ],
  [["status", "--stale"], "unknown option --stale of status; it is an option of inspect"],
  [["--endpoint", "unix:///x", "status"], "a command stands first: key4c-kms-plugin status"],
])("%p: what was meant, perhaps", (argv, message) => {
  expect(problems(argv, GOOD)[0]).toContain(message);
});

test.each([
  ...[["--pin"], ["status", "--user-id"], ["encrypt", "-p"], ["manifest", "static-pod", "--pin"]],
  ...[
    ["emulator", "--token"],
    ["help", "--token"],
    ["version", "--token"],
  ],
])("the value of %p, which is no flag, is not said", (...argv) => {
  const secret = "5ecret-of-mine";
  const flag = argv.pop() ?? "";
  const isLong = flag.startsWith("--");
  for (const given of [[flag, secret], [isLong ? `${flag}=${secret}` : flag + secret]]) {
    const lines = problems([...argv, ...given], GOOD);
    expect(lines).toEqual([expect.stringContaining(`unknown option ${flag} of `)]);
    expect(lines.join()).not.toContain(secret);
  }
});

test("a word too many is not said, nor a command that moves the cursor", () => {
  expect(problems(["status", "5ecret"], {})).toEqual(["status takes no argument: 1 given"]);
  expect(problems(["\u001b[2Jx"], {})[0]).toMatch(/^unknown command: one of serve/);
});

test("a credential of systemd stands for an option that names a file", () => {
  const directory = temporaryDirectory();
  writeFileSync(join(directory, "kms-user-id"), "from-systemd\n");
  const env = {
    KEY4C_URL: "https://key4c.example",
    KMS_KEY_ID: "k",
    CREDENTIALS_DIRECTORY: directory,
  };
  expect(parseCommandLine([], env).config.kmsUserIdFile?.current).toBe("from-systemd");
  const other = temporaryFile("from-file");
  const { config } = parseCommandLine(["--user-id-file", other], env);
  expect(config.kmsUserIdFile?.current).toBe("from-file");
  writeFileSync(join(directory, "kms-api-key"), "two words");
  expect(problems([], env)).toEqual([
    `KMS_API_KEY_FILE (--api-key-file) the content of ${join(directory, "kms-api-key")} must be 1 to 4096 visible ASCII characters (from a credential of systemd)`,
  ]);
});

test("a path in the place of an ID is told, and what may be a secret in the place of a path is not shown", () => {
  expect(problems([], { ...GOOD, KMS_KEY_ID: "/etc/key4c-kms/key-id" })).toEqual([
    "KMS_KEY_ID (--key-id) must be the ID of a key, and this is a path: KMS_KEY_ID_FILE takes a path (from the environment)",
  ]);
  const { KMS_USER_ID, ...without } = GOOD;
  expect(problems(["--user-id-file", "the-token-itself"], without)).toEqual([
    "KMS_USER_ID_FILE (--user-id-file) must be the path of a file that is there (not shown: it may be the secret)",
  ]);
});

test.each([
  [["serve", "--pin 1234-S3CR3T"]],
  [["status", "--api-key S3CR3T"]],
  [["status", "--api-key:S3CR3T"]],
  [["--a\u001b[31m\nkey4c-kms-plugin: S3CR3T"]],
  [["S3CR3T"]],
  [["emulator", "--token", "x", "S3CR3T"]],
])("what lost its place may be a secret, and is not shown: %p", (argv) => {
  const told = problems(argv, GOOD).join("\n");
  expect(told).not.toBe("");
  for (const part of ["S3CR3T", "1234", "\u001b"]) {
    expect(told).not.toContain(part);
  }
});

test("while a key is changed, the list of previous keys may name the one that wraps", () => {
  const given = { ...GOOD, KMS_PREVIOUS_KEY_IDS: "a,k,b" };
  for (const command of ["serve", "inspect", "doctor"]) {
    const { config, problems: told } = parseCommandLine([command], given);
    expect([told, previousKeyIdsOf(config)]).toEqual([[], ["a", "b"]]);
  }
});

test("the list of previous keys in a file", () => {
  const listed = (text: string) => {
    const { config } = parseCommandLine([], {
      ...GOOD,
      KMS_PREVIOUS_KEY_IDS_FILE: temporaryFile(text),
    });
    return [...previousKeyIdsOf(config)];
  };
  const ids = (count: number) => Array.from({ length: count }, (_, index) => `id-${index}`);
  expect(listed("a\nb, c,,\n")).toEqual(["a", "b", "c"]);
  expect(listed("none\n")).toEqual([]);
  expect(listed("none\na\n")).toEqual(["a"]); // where somebody appends
  expect(listed("")).toEqual([]);
  expect(listed(ids(64).join("\n"))).toEqual(ids(64));
  expect(() => listed(ids(65).join("\n"))).toThrow("at most 64 IDs");
});

/** A profile that sends these. */
const sending = (placeholders: readonly string[]) =>
  temporaryFile(
    JSON.stringify({
      encrypt: {
        method: "POST",
        path: "/e",
        body: ["{plaintext}", ...placeholders],
        result: { ciphertext: "/c" },
      },
      decrypt: { method: "POST", path: "/d", body: "{ciphertext}", result: { plaintext: "/p" } },
    }),
  );

test("KMS_USER_ID and KMS_PIN are required where the profile sends them, and only there", () => {
  const { KMS_USER_ID: _, ...without } = GOOD;
  const told = (KEY4C_PROFILE: string, more = {}) =>
    problems([], { ...without, KEY4C_PROFILE, ...more });
  expect(told(sending(["{apiKey}"]))).toEqual([]);
  expect(told(sending(["{userId}"]))[0]).toContain("KMS_USER_ID or KMS_USER_ID_FILE");
  expect(told(sending(["{pin}"]))[0]).toContain("KMS_PIN or KMS_PIN_FILE");
  expect(told(sending(["{pin}"]), { KMS_PIN: "x" })).toEqual([]);
});

test("a PIN is taken as it stands, but for one line end", () => {
  const pinOf = (text: string) => {
    const env = { ...GOOD, KEY4C_PROFILE: sending(["{pin}"]), KMS_PIN_FILE: temporaryFile(text) };
    return parseCommandLine([], env).config.kmsPinFile?.current;
  };
  for (const [text, pin] of [
    [" 1 2 3 ", " 1 2 3 "],
    [" 1 2 3 \n", " 1 2 3 "],
    ["1 2 3\r\n", "1 2 3"],
  ] as const) {
    expect(pinOf(text)).toBe(pin);
  }
  for (const text of ["1\n2", "1\n\n", "\t1", "é"]) {
    expect(() => pinOf(text)).toThrow("printable ASCII characters in one line");
  }
});
