/** `doctor --profile-check` on the compiled binary: what it finds in a wrong profile, and that it shows no secret. */
import { expect, test } from "bun:test";
import { createCipheriv, createDecipheriv } from "node:crypto";
import { readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Check } from "../../src/commands/doctor/check.ts";
import defaultProfile from "../../src/key4c/key4c.profile.json";
import { CloudHsm } from "../cloudhsm.ts";
import { commandsOf, filledIn } from "../documents/blocks.ts";
import { NO_CONFIG_FILE } from "../no-config.ts";
import { expectNoSecret, secret } from "../secrets.ts";
import { API_KEY, hsm, kes, nhn, PIN, ServiceKey, vault } from "../services.ts";
import {
  BINARY,
  emulator,
  fakeServer,
  onTestEnd,
  passOn,
  runBinary,
  temporaryDirectory,
  temporaryFile,
} from "../support.ts";

const USER_ID = "3f2a8b6c-user-0815";
for (const [name, value] of [
  ["KMS_API_KEY", API_KEY],
  ["KMS_PIN", PIN],
  ["KMS_USER_ID", USER_ID],
] as const) {
  secret(name, value);
}

const PROFILES = join(import.meta.dir, "../../src/commands/manifest/profiles");
const HSM = readFileSync(join(PROFILES, "hsm.json"), "utf8");

interface Options {
  readonly env?: Record<string, string>;
  readonly profile?: string;
}

/** Runs it in both forms, and searches both for secrets. */
async function profileCheck(url: string, { env = {}, profile }: Options = {}) {
  const all = {
    KEY4C_URL: url,
    KMS_KEY_ID: "demo",
    KMS_USER_ID: USER_ID,
    KMS_API_KEY: API_KEY,
    ...(profile !== undefined && { KEY4C_PROFILE: profile, KMS_PIN: PIN }),
    ...env,
  };
  const json = await runBinary(["doctor", "--profile-check", "--json"], { env: all });
  const text = await runBinary(["doctor", "--profile-check"], { env: all });
  for (const { stdout, stderr } of [json, text]) {
    expectNoSecret("stdout", stdout);
    expectNoSecret("stderr", stderr);
  }
  const checks: Check[] = JSON.parse(json.stdout.toString());
  const step = (name: string) => {
    const found = checks.find(({ check }) => check === name);
    if (found === undefined) {
      throw new Error(`no step ${name}`);
    }
    return found;
  };
  return { checks, step, text: text.stdout.toString(), exitCode: json.exitCode };
}

/** The HSM, with what it is sent as a secret from then on. */
function hsmServer() {
  return fakeServer((request, body) => {
    const { data } = JSON.parse(body);
    if (typeof data === "string") {
      secret("local KEK", Buffer.from(data, "hex"));
    }
    return hsm(key)(request, body);
  });
}
const key = new ServiceKey();

const withHsm = (change: (profile: string) => string) => ({
  profile: temporaryFile(change(HSM)),
});

test("the default profile fits the contract", async () => {
  const { checks, exitCode } = await profileCheck(emulator().url);
  expect([exitCode, checks.map(({ check, result }) => [check, result])]).toEqual([
    0,
    [
      ["configuration", "pass"],
      ["describe", "pass"],
      ["encrypt", "pass"],
      ["decrypt", "pass"],
      ["three ciphertexts", "pass"],
      ["another AAD", "pass"],
      ["a damaged ciphertext", "pass"],
      ["an unknown key", "pass"],
      ["revocation", "pass"],
      ["rotation", "pass"],
    ],
  ]);
});

test("a right profile: what was sent, what came back, and what each pointer found", async () => {
  const server = hsmServer();
  const { text, exitCode, step } = await profileCheck(
    server.url,
    withHsm((one) => one),
  );
  expect(exitCode).toBe(0);
  expect(step("encrypt").shown).toEqual([
    `→ POST ${server.url}/api/v2/keys/demo/encrypt`,
    "  X-Api-Key: █ KMS_API_KEY █",
    '  {"pin":"█ KMS_PIN █","data":"█ local KEK in hex █","aad":"█ 60 characters, hex of 30 bytes █"}',
    "← 200 application/json;charset=utf-8",
    expect.stringMatching(
      /^ {2}\{"rc":0,"out":\{"blob":"1\.█ \d+ characters, hex of \d+ bytes █","generation":"1"\}\}$/,
    ),
    "  success at /rc: 0",
    expect.stringMatching(/^ {2}ciphertext at \/out\/blob: "1\.█ \d+ characters/),
    '  version at /out/generation: "1"',
  ]);
  expect(step("decrypt").shown).toContain('  plaintext at /out/data: "█ local KEK in hex █"');
  expect(step("an unknown key").detail).toMatch(
    /^[a-z]{4}: Key4C answered describe with HTTP status 200 96; it counts as keyNotFound$/,
  );
  expect(text).toContain("✓ encrypt: version 1\n    → POST ");
});

test("the commands of PROFILES.md, where its files are", async () => {
  const [typed = ""] = commandsOf("docs/PROFILES.md", "How to work");
  const directory = temporaryDirectory();
  const files = { "api-key": API_KEY, pin: PIN };
  for (const [name, text] of Object.entries(files)) {
    writeFileSync(join(directory, name), text, { mode: 0o600 });
    onTestEnd(() => rmSync(join(directory, name))); // before the directory is searched for secrets
  }
  symlinkSync(BINARY, join(directory, "key4c-kms-plugin"));
  const shell = Bun.spawn(
    ["sh", "-ec", filledIn(typed, { "https://hsm.example": hsmServer().url })],
    {
      cwd: directory,
      env: { ...NO_CONFIG_FILE, PATH: `${directory}:${process.env["PATH"]}` },
      stdout: "pipe",
    },
  );
  expect(await shell.stdout.text()).toContain("✓ decrypt: the very bytes that were wrapped\n");
  expect(await shell.exited).toBe(0);
  expect(JSON.parse(readFileSync(join(directory, "profile-schema.json"), "utf8"))).toHaveProperty(
    "$schema",
  );
});

test("the example in PROFILES.md is what doctor says at each step", async () => {
  const profiles = readFileSync(join(import.meta.dir, "../../docs/PROFILES.md"), "utf8");
  const [section = ""] = profiles.split("\n## An example\n")[1]?.split("\n## ") ?? [];
  const blocks = [...section.matchAll(/```(\w+)\n([\s\S]*?)```/g)];
  const blocksOf = (kind: string) => blocks.filter(([, one]) => one === kind).map(([, , t]) => t);
  expect(JSON.parse(blocksOf("json")[0] ?? "")).toEqual(JSON.parse(HSM));
  /** What was wrong in the first draft, in the order in which it is mended. */
  const mended = [
    ['"{plaintext:hex}"', '"{plaintext}"'],
    ['"/out/blob"', '"/blob"'],
    ['{ "pointer": "/out/data", "encoding": "hex" }', '"/out/data"'],
    ['"codes": { "160": "denied", "96": "keyNotFound", "64": "invalid" }', '"codes": {}'],
  ] as const;
  const server = hsmServer();
  const steps = blocksOf("text");
  expect(steps.length).toBe(mended.length + 1);
  for (const [index, shown = ""] of steps.entries()) {
    const draft = mended
      .slice(index)
      .reduce((profile, [right, wrong]) => profile.replace(right, wrong), HSM);
    const { text } = await profileCheck(server.url, { profile: temporaryFile(draft) });
    const lines = text
      .replace(`, with ${NO_CONFIG_FILE.KMS_CONFIG}`, "")
      .replace(/: [a-z]{4}: Key4C answered/, ": wxyz: Key4C answered")
      .replaceAll(server.url, "https://hsm.example")
      .split("\n");
    for (const line of shown.trimEnd().split("\n")) {
      const at = lines.indexOf(line);
      expect(at < 0 ? lines : line).toEqual(line);
      lines.splice(0, at + 1); // the next one comes after it
    }
  }
});

test.each([
  ["vault.json", vault, "invalid"],
  ["nhn.json", nhn, "unavailable"], // its profile does not list that code
  ["kes.json", kes, "invalid"],
] as const)("%s", async (profile, service, damaged) => {
  const server = fakeServer(service(key));
  const env = { KEY4C_PROFILE: join(PROFILES, profile), KMS_USER_ID: "app" };
  const { step } = await profileCheck(server.url, { env });
  expect(step("decrypt").result).toBe("pass");
  expect(step("a damaged ciphertext")).toMatchObject({
    result: damaged === "invalid" ? "pass" : "fail",
    detail: expect.stringContaining(`it counts as ${damaged}`),
  });
});

test("a pointer that finds nothing is named, with what is there instead", async () => {
  const { step, exitCode } = await profileCheck(
    hsmServer().url,
    withHsm((one) => one.replace('"/out/blob"', '"/out/cipher/text"')),
  );
  expect(exitCode).toBe(1);
  expect(step("encrypt")).toMatchObject({
    result: "fail",
    detail: expect.stringContaining("/out/cipher/text is not a text"),
    shown: expect.arrayContaining([
      "  ciphertext at /out/cipher/text: nothing; /out has blob, generation",
    ]),
  });
  expect(step("decrypt").result).toBe("skip");
});

test("so is one that serve would never miss: a state that is nowhere is no state", async () => {
  const { step } = await profileCheck(
    hsmServer().url,
    withHsm((one) => one.replace('"/key/enabled"', '"/key/state"')),
  );
  expect(step("describe")).toMatchObject({
    result: "fail",
    detail: "nothing is at /key/state (state)",
    remedy: "correct /describe/result, or leave out what the service does not tell",
  });
  expect(step("encrypt").result).toBe("pass");
});

test("a wrong encoding: the answer shows which one it is", async () => {
  const { step } = await profileCheck(
    hsmServer().url,
    withHsm((one) => one.replace('"encoding": "hex"', '"encoding": "base64url"')),
  );
  expect(step("decrypt")).toMatchObject({
    result: "fail",
    detail: expect.stringContaining("/out/data is not 32 bytes in base64url"),
    shown: expect.arrayContaining(['  plaintext at /out/data: "█ local KEK in hex █"']),
  });
});

test("a service that takes AAD under another name, and so ignores it", async () => {
  const server = fakeServer((request, body) =>
    hsm(key)(request, JSON.stringify({ ...JSON.parse(body), aad: "" })),
  );
  const { step } = await profileCheck(
    server.url,
    withHsm((one) => one),
  );
  expect(step("another AAD")).toMatchObject({
    result: "fail",
    detail: "Key4C unwraps the local KEK all the same",
    remedy: expect.stringContaining("leave {aad} out"),
  });
});

test("a code that is not listed", async () => {
  const { step } = await profileCheck(
    hsmServer().url,
    withHsm((one) => one.replace('"64": "invalid"', '"65": "invalid"')),
  );
  expect(step("a damaged ciphertext")).toMatchObject({
    result: "fail",
    detail: expect.stringContaining("it counts as unavailable"),
    remedy: expect.stringContaining("/errors/codes"),
    shown: expect.arrayContaining(["  code at /rc: 64"]),
  });
});

test("a wrong ID that would look like a revocation", async () => {
  const { step } = await profileCheck(
    hsmServer().url,
    withHsm((one) => one.replace('"96": "keyNotFound"', '"96": "keyUnusable"')),
  );
  expect(step("an unknown key")).toMatchObject({
    result: "fail",
    remedy: expect.stringContaining("keyNotFound"),
  });
});

test("a refused PIN is sent once", async () => {
  const server = hsmServer();
  const wrong = "another-pin-that-is-wrong";
  secret("KMS_PIN", wrong);
  const { checks, step } = await profileCheck(server.url, {
    ...withHsm((one) => one),
    env: { KMS_PIN: wrong },
  });
  expect(step("describe")).toMatchObject({
    result: "fail",
    remedy: expect.stringContaining("correct KMS_USER_ID, KMS_API_KEY or KMS_PIN"),
  });
  expect(checks.slice(2, -2).every(({ result }) => result === "skip")).toBe(true);
  expect(server.requests.length).toBe(2); // of two runs
});

test("a service that is not there, a page, and a configuration that is not complete", async () => {
  const away = await profileCheck("http://127.0.0.1:9");
  expect(away.step("describe")).toMatchObject({
    result: "fail",
    remedy: expect.stringContaining("check KEY4C_URL (host and port)"),
    shown: expect.arrayContaining(["← no answer"]),
  });
  const page = fakeServer(
    () =>
      new Response(`<p>No access for ${USER_ID}</p>`, {
        status: 502,
        headers: { "Content-Type": "text/html" },
      }),
  );
  expect((await profileCheck(page.url)).step("describe").shown).toEqual(
    expect.arrayContaining(["← 502 text/html", '  "<p>No access for █ KMS_USER_ID █</p>"']),
  );
  const incomplete = await runBinary(["doctor", "--profile-check"], {
    env: { KEY4C_URL: page.url },
  });
  expect(incomplete.exitCode).toBe(1);
  expect(incomplete.stdout.toString()).toContain(
    "– describe: the configuration is to be corrected first\n",
  );
});

test("a service that gives everything back shows no secret", async () => {
  const echo = fakeServer(async (request, body) => {
    const { data } = JSON.parse(body);
    const bytes = Buffer.from(typeof data === "string" ? data : "", "hex");
    secret("local KEK", bytes);
    return Response.json(
      {
        rc: 0,
        key: { generation: "1", enabled: true, alg: API_KEY },
        out: {
          blob: Buffer.concat([Buffer.alloc(1), bytes]).toString("base64"),
          generation: "1",
          data: [...bytes],
        },
        [PIN]: { said: body, quoted: `${API_KEY.slice(0, 9)}…`, [request.url]: 1 },
        headers: [...request.headers],
        forms: ["hex", "base64", "base64url", "latin1"].map(
          (one) => bytes.toString(one as BufferEncoding), // these are
        ),
      },
      {
        headers: {
          "X-Key": API_KEY,
          "Set-Cookie": PIN,
          "Content-Type": `application/json; ${PIN}`,
        },
      },
    );
  });
  const { step } = await profileCheck(
    echo.url,
    withHsm((one) => one),
  );
  expect(step("encrypt").result).toBe("pass");
  expect(step("decrypt").result).toBe("fail");
});

/** An HSM that takes the IV from its caller: AES-256-GCM, or CBC, under a key of 32 bytes. */
function ivTaker(mode: "gcm" | "cbc") {
  const material = Buffer.alloc(32, 7);
  return fakeServer((request, body) => {
    const { keyId, iv, data } = JSON.parse(body);
    if (keyId !== "demo") {
      return Response.json({ rc: "E201" });
    }
    const bytes = Buffer.from(data, "hex");
    const nonce = Buffer.from(iv, "hex");
    const isEncrypt = request.url.endsWith("/e");
    try {
      if (mode === "cbc") {
        const cipher = (isEncrypt ? createCipheriv : createDecipheriv)(
          "aes-256-cbc",
          material,
          nonce,
        );
        return Response.json({
          rc: "0",
          out: cipher.update(bytes, undefined, "hex") + cipher.final("hex"),
        });
      }
      if (isEncrypt) {
        secret("local KEK", bytes);
        const cipher = createCipheriv("aes-256-gcm", material, nonce);
        const sealed = [cipher.update(bytes), cipher.final(), cipher.getAuthTag()];
        return Response.json({ rc: "0", out: Buffer.concat(sealed).toString("hex") });
      }
      const decipher = createDecipheriv("aes-256-gcm", material, nonce);
      decipher.setAuthTag(bytes.subarray(-16));
      const opened = Buffer.concat([decipher.update(bytes.subarray(0, -16)), decipher.final()]);
      return Response.json({ rc: "0", out: opened.toString("hex") });
    } catch {
      return Response.json({ rc: "E302" });
    }
  });
}

const ivProfile = (sent: string, result: unknown, back: object) =>
  temporaryFile(
    JSON.stringify({
      encrypt: {
        method: "POST",
        path: "/e",
        body: { keyId: "{keyId}", iv: sent, data: "{plaintext:hex}" },
        result: { ciphertext: result },
      },
      decrypt: {
        method: "POST",
        path: "/d",
        body: { keyId: "{keyId}", ...back },
        result: { plaintext: { pointer: "/out", encoding: "hex" } },
      },
      success: { pointer: "/rc", equals: "0" },
      errors: { code: "/rc", codes: { E201: "keyNotFound", E302: "invalid" } },
    }),
  );

test.each(["gcm", "cbc"] as const)(
  "a constant IV under %s is a failure, and a new one is none",
  async (mode) => {
    const server = ivTaker(mode);
    const zeros = "00".repeat(mode === "gcm" ? 12 : 16);
    const constant = ivProfile(zeros, "/out", { iv: zeros, data: "{ciphertext}" });
    const bad = await profileCheck(server.url, { env: { KEY4C_PROFILE: constant } });
    expect([bad.exitCode, bad.step("decrypt").result]).toEqual([1, "pass"]);
    expect(bad.step("three ciphertexts")).toMatchObject({
      result: "fail",
      detail: expect.stringContaining("the same IV is used twice"),
      remedy: expect.stringContaining("{random:12:hex}"),
    });
    const random = ivProfile(
      `{random:${zeros.length / 2}:hex}`,
      { iv: "{sent:iv}", data: "/out" },
      { iv: "{ciphertext.iv}", data: "{ciphertext.data}" },
    );
    const good = await profileCheck(server.url, { env: { KEY4C_PROFILE: random } });
    expect(good.step("three ciphertexts").result).toBe("pass");
    expect(good.step("revocation")).toMatchObject({ result: "warn" });
    expect(good.step("rotation")).toMatchObject({ result: "warn" });
  },
);

test("a login is a step of its own: one a run, and its token is shown in no encoding", async () => {
  const credentials = { uuid: USER_ID, pin: PIN, apiKey: API_KEY };
  const service = new CloudHsm(credentials);
  const server = fakeServer((request, body) => {
    const { data } = JSON.parse(body);
    if (typeof data === "string" && request.url.endsWith("/encrypt")) {
      secret("local KEK", Buffer.from(data, "hex"));
    }
    const token = /^Bearer (.*)$/.exec(request.headers.get("Authorization") ?? "")?.[1] ?? "";
    secret("the token", token);
    return service.answer(request, body);
  });
  const profile = join(PROFILES, "cloudhsm.json");
  const { checks, step, exitCode } = await profileCheck(server.url, { profile });
  expect(checks.filter(({ result }) => result !== "pass")).toEqual([]);
  expect([exitCode, service.logins]).toEqual([0, 2]); // of two runs
  expect(step("login").shown).toEqual([
    `→ POST ${server.url}/api/v1/token`,
    "  Content-Type: application/json; charset=UTF-8",
    '  {"uuid":"█ KMS_USER_ID █","pin":"█ KMS_PIN █","apiKey":"█ KMS_API_KEY █"}',
    "← 200 application/json;charset=utf-8",
    '  {"resultCode":"0000","resultMsg":"…","data":{"accessToken":"█ token █","tokenType":"Bearer","expiresIn":1800}}',
    '  success at /resultCode: "0000"',
    '  token at /data/accessToken: "█ token █"',
    "  expiresInSeconds at /data/expiresIn: 1800",
  ]);
  expect(step("encrypt").shown).toContain("  Authorization: Bearer █ token █");
  expect(
    step("encrypt").shown?.some((line) => line.startsWith("  ciphertext.iv at /data/iv: ")),
  ).toBe(true);

  const wrong = await profileCheck(server.url, {
    profile,
    env: { KMS_PIN: "wrong PIN of nobody" },
  });
  expect(wrong.step("login")).toMatchObject({
    result: "fail",
    detail: expect.stringContaining("HTTP status 200 E103"),
    remedy: expect.stringContaining("KMS_PIN"),
  });
  expect(wrong.step("describe").result).toBe("skip");
  expect(service.wrongPins).toBe(2); // of two runs
});

test("an answer with several members: what to write", async () => {
  const server = fakeServer(new CloudHsm({ uuid: USER_ID, pin: PIN, apiKey: API_KEY }).answer);
  const draft = readFileSync(join(PROFILES, "cloudhsm.json"), "utf8")
    .replace('{ "data": "/data/cipherText", "iv": "/data/iv" }', '"/data"')
    .replace("{ciphertext.data}", "{ciphertext}")
    .replace('"iv": "{ciphertext.iv}",', "");
  const { step } = await profileCheck(server.url, { profile: temporaryFile(draft) });
  expect(step("encrypt")).toMatchObject({
    result: "fail",
    remedy: expect.stringContaining(
      'the ciphertext has several members: write { "cipherText": "/data/cipherText", "iv": "/data/iv" }',
    ),
  });
});

test.each([
  ["plain text", "OK 1", "text/plain", 500, "the answer is not JSON (Content-Type: text/plain)"],
  ["a page", "<html></html>", "text/html", 502, "the answer is a page (HTML or XML) and not JSON"],
  ["nothing", "", "text/plain", 500, "the answer is empty, with HTTP status 500"],
])("an answer that is %s: what it is, and what to do", async (_, body, type, status, remedy) => {
  const answer = () => new Response(body, { status, headers: { "Content-Type": type } });
  const { step } = await profileCheck(fakeServer(answer).url);
  expect(step("describe")).toMatchObject({
    result: "fail",
    remedy: expect.stringContaining(remedy),
  });
});

test("a byte order mark is no fault", async () => {
  const { url } = emulator();
  const server = fakeServer(async (request, body) => {
    const answer = await passOn(url, request, body);
    return new Response(`\ufeff${await answer.text()}`, { status: answer.status });
  });
  expect((await profileCheck(server.url)).exitCode).toBe(0);
});

test("a status that is listed, and an answer that is no JSON: it does not say to list it", async () => {
  const service = hsm(key);
  const server = fakeServer(async (request, body) => {
    const answer = service(request, body);
    return (await answer.clone().text()).includes('"rc":64')
      ? new Response("bad data", { status: 400, headers: { "Content-Type": "text/plain" } })
      : answer;
  });
  const { step } = await profileCheck(
    server.url,
    withHsm((one) => one.replace('"errors": {', '"errors": { "statuses": { "400": "invalid" },')),
  );
  for (const name of ["another AAD", "a damaged ciphertext"]) {
    expect(step(name)).toMatchObject({
      result: "fail",
      remedy: expect.stringContaining("the answer is not JSON (Content-Type: text/plain)"),
    });
  }
});

test("a secret in a header of the profile is blacked out, and the profile is said not to be its place", async () => {
  const literal = "Zm9vYmFyOnNlY3JldC1vZi1zb21lYm9keQ==";
  secret("a header", literal);
  const { step, exitCode } = await profileCheck(
    hsmServer().url,
    withHsm((one) =>
      one.replace('"headers": {', `"headers": { "Proxy-Authorization": "Basic ${literal}",`),
    ),
  );
  expect(exitCode).toBe(0);
  expect(step("encrypt").shown).toContain(
    "  Proxy-Authorization: Basic █ of Proxy-Authorization █",
  );
  expect(step("secrets in the profile")).toMatchObject({
    result: "warn",
    detail: expect.stringContaining("the header Proxy-Authorization"),
  });
});

test("a wrong ID that looks like an outage is told; the ID that is asked for has the form of the real one", async () => {
  const missing = await profileCheck(emulator({ keyIds: ["0A9f-x"] }).url, {
    env: { KEY4C_PROFILE: temporaryFile(withoutNotFound()), KMS_KEY_ID: "0A9f-x" },
  });
  expect(missing.step("an unknown key")).toMatchObject({
    result: "warn",
    detail: expect.stringMatching(/^\d[A-Z]\d[a-z]-[a-z]: .*; it counts as unavailable$/),
    remedy: expect.stringContaining("keyNotFound"),
  });
});

function withoutNotFound(): string {
  const { KEY_NOT_FOUND: _, ...codes } = defaultProfile.errors.codes;
  return JSON.stringify({ ...defaultProfile, errors: { ...defaultProfile.errors, codes } });
}

test("a short secret blacks out nothing", async () => {
  const { text } = await profileCheck(emulator().url, {
    env: { KMS_USER_ID: "u", KMS_API_KEY: "key" },
  });
  expect(text).not.toMatch(/█ KMS_(USER_ID|API_KEY) █/);
  expect(text).toContain("HTTP status");
});
