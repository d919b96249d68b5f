/** Profiles for four other services, on the compiled binary. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import { CloudHsm } from "../cloudhsm.ts";
import { commandsOf, filledIn } from "../documents/blocks.ts";
import { allowFile } from "../secrets.ts";
import { API_KEY, hsm, kes, nhn, PIN, ServiceKey, vault } from "../services.ts";
import {
  callRpc,
  fakeServer,
  onTestEnd,
  runBinary,
  startBinary,
  startPlugin,
  temporaryDirectory,
  temporaryFile,
} from "../support.ts";

const DEK = randomBytes(32);

const environment = (profile: string) => ({
  KEY4C_PROFILE: join(import.meta.dir, "../../src/commands/manifest/profiles", profile),
  KMS_USER_ID: "app",
  KMS_API_KEY: API_KEY,
  ...(profile === "hsm.json" && { KMS_PIN: PIN }),
  KMS_PROBE_INTERVAL: "100ms",
});

test.each([
  ["vault.json", vault, /\.v1$/, /\.v2$/],
  ["nhn.json", nhn, /\.v1$/, undefined],
  ["kes.json", kes, /[a-z2-7]{26}\.k[a-z2-7]{8}$/, undefined],
  ["hsm.json", hsm, /\.v1$/, /\.v2$/],
] as const)("%s", async (profile, service, before, after) => {
  const key = new ServiceKey();
  const server = fakeServer(service(key));
  const first = await startPlugin(server.url, environment(profile));
  const wrapped = await callRpc(first.client, V2.method.encrypt, { plaintext: DEK, uid: "u" });
  expect(wrapped.keyId).toMatch(before);

  const second = await startPlugin(server.url, environment(profile));
  const { ciphertext, keyId, annotations } = wrapped;
  const opened = await callRpc(second.client, V2.method.decrypt, {
    ciphertext,
    keyId,
    annotations,
  });
  expect(Buffer.from(opened.plaintext)).toEqual(DEK);

  if (after !== undefined) {
    key.versions.push(randomBytes(32));
    await second.until(/new local KEK.*\.v2"/);
    const again = await callRpc(second.client, V2.method.encrypt, { plaintext: DEK, uid: "u" });
    expect(again.keyId).toMatch(after);
  }
});

test("a failure that the service answers with 200 is one", async () => {
  const server = fakeServer(nhn(new ServiceKey()));
  const running = startBinary(["serve"], {
    ...environment("nhn.json"),
    KMS_ENDPOINT: `unix://${join(temporaryDirectory(), "kms.sock")}`,
    KEY4C_URL: server.url,
    KMS_KEY_ID: "demo",
    KMS_API_KEY: "wrong",
  });
  await running.until(/Key4C refuses the credential.*"kind":"denied".*HTTP status 200 401/);
});

test("a PIN that is refused is sent once, and the next one without a restart", async () => {
  const server = fakeServer(hsm(new ServiceKey()));
  const pin = temporaryFile("a-pin-that-is-wrong-1");
  const running = startBinary(["serve"], {
    ...environment("hsm.json"),
    KMS_ENDPOINT: `unix://${join(temporaryDirectory(), "kms.sock")}`,
    KEY4C_URL: server.url,
    KMS_KEY_ID: "demo",
    KMS_PIN: "",
    KMS_PIN_FILE: pin,
    KMS_LOG_LEVEL: "debug",
  });
  await running.until(/"kind":"denied".*HTTP status 200 160/);
  await Bun.sleep(5_000); // two probes, and more
  expect(server.requests.length).toBe(1);
  writeFileSync(pin, PIN);
  await running.until(/Key4C is ok/);
});

test("a PIN that no profile sends is refused at start", async () => {
  const { exitCode, stderr } = await runBinary(["serve"], {
    env: { KEY4C_URL: "https://key4c.example", KMS_KEY_ID: "a", KMS_USER_ID: "b", KMS_PIN: "c" },
  });
  expect([exitCode, stderr]).toEqual([
    2,
    "key4c-kms-plugin: KMS_PIN is set, and the profile (KEY4C_PROFILE) has no {pin} that would send it\nkey4c-kms-plugin: see: key4c-kms-plugin help serve\n",
  ]);
});

test("the helper of PROFILES.md hands a token over, and keeps the old one while the login fails", async () => {
  const [typed = ""] = commandsOf("docs/PROFILES.md", "If only a token is missing");
  const directory = temporaryDirectory();
  const service = new CloudHsm({ uuid: "uuid-of-the-helper", pin: PIN, apiKey: API_KEY });
  let isAway = false;
  const server = fakeServer((request, body) =>
    isAway
      ? new Response("", { status: 503 })
      : service.answer(
          new Request(request.url, {
            method: "POST",
            headers: { "Content-Type": "application/json; charset=UTF-8" },
          }),
          body,
        ),
  );
  const login = join(directory, "login.json");
  allowFile(login);
  writeFileSync(login, JSON.stringify({ uuid: "uuid-of-the-helper", pin: PIN, apiKey: API_KEY }));
  const script = filledIn(typed, { "https://hsm.example": server.url, "sleep 1200": "sleep 0.2" });
  const shell = Bun.spawn(["sh", "-c", script], { cwd: directory });
  onTestEnd(() => shell.kill());
  const token = join(directory, "api-key");
  allowFile(token);
  allowFile(`${token}.new`);
  const read = () => (existsSync(token) ? readFileSync(token, "utf8") : "");
  const eventually = async (is: () => boolean) => {
    for (let left = 200; !is() && left > 0; left--) {
      await Bun.sleep(50);
    }
    expect(is()).toBe(true);
  };
  await eventually(() => /^[\w-]{32}\n?$/.test(read()));
  expect(statSync(token).mode & 0o777).toBe(0o600);
  isAway = true;
  const logins = server.requests.length;
  await eventually(() => server.requests.length > logins + 2);
  expect(read()).toMatch(/^[\w-]{32}\n?$/);
});
