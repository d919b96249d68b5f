/** Profiles for three other services, on the compiled binary. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import { API_KEY, kes, nhn, ServiceKey, vault } from "../services.ts";
import { callRpc, fakeServer, startBinary, startPlugin, temporaryDirectory } from "../support.ts";

const DEK = randomBytes(32);

const environment = (profile: string) => ({
  KEY4C_PROFILE: join(import.meta.dir, "../profiles", profile),
  KMS_USER_ID: "app",
  KMS_API_KEY: API_KEY,
  KMS_PROBE_INTERVAL: "100ms",
});

test.each([
  ["vault.json", vault, ".v1", ".v2"],
  ["nhn.json", nhn, ".v1", undefined],
  ["kes.json", kes, "", undefined],
] as const)("%s", async (profile, service, versionBefore, versionAfter) => {
  const key = new ServiceKey();
  const server = fakeServer(service(key));
  const first = await startPlugin(server.url, environment(profile));
  const wrapped = await callRpc(first.client, V2.method.encrypt, { plaintext: DEK, uid: "u" });
  expect(wrapped.keyId).toMatch(new RegExp(`^k4c-[a-z2-7]{26}${RegExp.escape(versionBefore)}$`));

  const second = await startPlugin(server.url, environment(profile));
  const { ciphertext, keyId, annotations } = wrapped;
  const opened = await callRpc(second.client, V2.method.decrypt, {
    ciphertext,
    keyId,
    annotations,
  });
  expect(Buffer.from(opened.plaintext)).toEqual(DEK);

  if (versionAfter !== undefined) {
    key.versions.push(randomBytes(32));
    await second.until(new RegExp(`new local KEK.*${RegExp.escape(versionAfter)}"`));
    const after = await callRpc(second.client, V2.method.encrypt, { plaintext: DEK, uid: "u" });
    expect(after.keyId).toEndWith(versionAfter);
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
