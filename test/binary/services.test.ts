/** Profiles for four other services, on the compiled binary. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import { API_KEY, hsm, kes, nhn, PIN, ServiceKey, vault } from "../services.ts";
import {
  callRpc,
  fakeServer,
  runBinary,
  startBinary,
  startPlugin,
  temporaryDirectory,
  temporaryFile,
} from "../support.ts";

const DEK = randomBytes(32);

const environment = (profile: string) => ({
  KEY4C_PROFILE: join(import.meta.dir, "../profiles", profile),
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
