/** Profiles for four other services, on the compiled binary. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import { CloudHsm } from "../cloudhsm.ts";
import { commandsOf, filledIn } from "../documents/blocks.ts";
import { USER_ID, vaultApprole } from "../example-services.ts";
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

const PROFILES = join(import.meta.dir, "../../src/commands/manifest/profiles");

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
  const [typed = ""] = commandsOf("docs/profile-services.md", "If only an access token is missing");
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
    for (let left = 1_200; !is() && left > 0; left--) {
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

type Started = Awaited<ReturnType<typeof startPlugin>>;

/** A profile of the examples, changed. */
const changed = (name: string, change: (text: string) => string) =>
  temporaryFile(change(readFileSync(join(PROFILES, name), "utf8")));
const withoutAad = (text: string) =>
  text.replaceAll(/,\s*"(aad|associated_data)": "\{aad(:hex)?\}"/g, "");
const asMembers = (text: string) =>
  text
    .replace('"ciphertext": "/out/blob"', '"ciphertext": { "blob": "/out/blob" }')
    .replace("{ciphertext}", "{ciphertext.blob}");

test.each([
  ["a token, and a login", "vault-approle", ["vault.json", "vault-approle.json"], ["ok", "ok"]],
  ["with AAD, and without", "vault", ["vault.json", withoutAad], ["ok", "INVALID_ARGUMENT"]],
  ["one text, and several members", "hsm", ["hsm.json", asMembers], ["UNAVAILABLE", "UNAVAILABLE"]],
] as const)("upgrade.md, Profiles side by side: %s", async (_, service, profiles, wanted) => {
  const key = new ServiceKey();
  const services = { vault, "vault-approle": vaultApprole, hsm };
  const server = fakeServer(services[service](key));
  const direct = fakeServer(vault(key)); // the same keys, and no login before them
  const plugins = await Promise.all(
    profiles.map(async (one) => {
      const path = typeof one === "string" ? join(PROFILES, one) : changed(`${service}.json`, one);
      return startPlugin(one === "vault.json" ? direct.url : server.url, {
        KEY4C_PROFILE: path,
        KMS_USER_ID: USER_ID,
        KMS_API_KEY: API_KEY,
        ...(service === "hsm" && { KMS_PIN: PIN }),
      });
    }),
  );
  const [one, other] = plugins as [Started, Started]; // two profiles
  const reads = async (writer: Started, reader: Started) => {
    const request = { plaintext: DEK, uid: "u" };
    const { ciphertext, keyId, annotations } = await callRpc(
      writer.client,
      V2.method.encrypt,
      request,
    );
    const asked = callRpc(reader.client, V2.method.decrypt, { ciphertext, keyId, annotations });
    return asked.then(
      ({ plaintext }) => (Buffer.from(plaintext).equals(DEK) ? "ok" : "other bytes"),
      ({ code }) => status[code],
    );
  };
  expect([await reads(other, one), await reads(one, other)]).toEqual([...wanted]);
  if (service === "hsm") {
    const wrapped = "the wrapped local KEK has";
    expect(one.output()).toContain(
      `${wrapped} the members blob: it was wrapped under another profile`,
    );
    expect(other.output()).toContain(`${wrapped} no members, and the profile's decrypt needs blob`);
  }
});
