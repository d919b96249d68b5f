/** A key that is disabled in Key4C: what changes in the compiled binary, when, and in which order. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { status } from "@grpc/grpc-js";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import {
  callRpc,
  emulator,
  failureOf,
  fakeServer,
  passOn,
  startPlugin,
  temporaryFile,
} from "../support.ts";

const DEK = randomBytes(32);
/** Long enough for a busy machine to look at what is before it. */
const GRACE_MS = 6_000;
const UNUSABLE = [status.FAILED_PRECONDITION, "the Key4C key is disabled or deleted"];

test("revoked after the grace, not sooner; a gateway's 403 never; enabling recovers", async () => {
  const key4c = emulator({ keyIds: ["demo", "old"] });
  let gateway: (() => Response) | undefined;
  const proxy = fakeServer((request, body) => gateway?.() ?? passOn(key4c.url, request, body));
  const env = {
    KMS_PROBE_INTERVAL: "200ms",
    KMS_REVOCATION_GRACE: `${GRACE_MS}ms`,
    KMS_HTTP_ADDRESS: "127.0.0.1:0",
  };
  const userIdFile = temporaryFile("user");
  const former = await startPlugin(key4c.url, { KMS_KEY_ID: "old" });
  const direct = await startPlugin(key4c.url, { ...env, KMS_PREVIOUS_KEY_IDS: "old" });
  const gated = await startPlugin(proxy.url, {
    ...env,
    KMS_USER_ID: "",
    KMS_USER_ID_FILE: userIdFile,
  });
  const http = async ({ until }: typeof direct) => (await until(/"url":"(http:[^"]*)"/))[1] ?? "";
  const [directUrl, gatedUrl] = [await http(direct), await http(gated)];
  const metric = async (url: string, line: string) =>
    (await (await fetch(`${url}metrics`)).text()).includes(`\n${line}\n`);
  const encrypt = ({ client }: typeof direct) =>
    callRpc(client, V2.method.encrypt, { plaintext: DEK });
  const own = await encrypt(direct);
  const old = await encrypt(former);
  const decrypt = async ({ ciphertext, keyId, annotations }: typeof own) => {
    const request = { ciphertext, keyId, annotations };
    return Buffer.from((await callRpc(direct.client, V2.method.decrypt, request)).plaintext);
  };
  expect(await decrypt(old)).toEqual(DEK);

  // A gateway's page, and a token file caught half-written, for as long as the rest takes.
  gateway = () => new Response("<h1>403 Forbidden</h1>", { status: 403 });
  writeFileSync(userIdFile, "");
  const disabledAtMs = performance.now();
  await key4c.control("POST", "keys/demo/disable");
  await direct.until(/"state":"degraded"/);
  expect(await metric(directUrl, 'key4c_kms_state{state="degraded"} 1')).toBe(true);
  expect((await encrypt(direct)).keyId).toBe(own.keyId);
  expect(await decrypt(own)).toEqual(DEK);
  expect((await fetch(`${directUrl}readyz`)).status).toBe(200);

  while (
    !/the key is revoked: its local KEKs are dropped.*"state":"revoked"/.test(direct.output())
  ) {
    await Bun.sleep(50);
  }
  // Not a measurement: sooner would be a defect.
  expect(performance.now() - disabledAtMs).toBeGreaterThanOrEqual(GRACE_MS);
  expect(await failureOf(callRpc(direct.client, V2.method.status, {}))).toEqual(UNUSABLE as never);
  expect(await failureOf(encrypt(direct))).toEqual(UNUSABLE as never);
  expect(await failureOf(decrypt(own))).toEqual(UNUSABLE as never);
  expect(await decrypt(old)).toEqual(DEK); // nobody else's
  expect((await fetch(`${directUrl}readyz`)).status).toBe(503);
  expect((await fetch(`${directUrl}livez`)).status).toBe(200);
  expect(await metric(directUrl, 'key4c_kms_state{state="revoked"} 1')).toBe(true);
  expect(
    await metric(directUrl, 'key4c_kms_key_revoked{key="k4c-fbajn2fxsguq6aegzffhmyn5zi"} 1'),
  ).toBe(true);

  // The other plugin has been behind the gateway all the time, and is merely degraded.
  expect(await metric(gatedUrl, 'key4c_kms_state{state="degraded"} 1')).toBe(true);
  expect((await encrypt(gated)).keyId).toBe(own.keyId);
  gateway = undefined;

  await key4c.control("POST", "keys/demo/enable");
  while (
    !(await metric(directUrl, 'key4c_kms_state{state="ok"} 1')) ||
    !(await metric(gatedUrl, 'key4c_kms_state{state="ok"} 1'))
  ) {
    await Bun.sleep(50);
  }
  expect((await encrypt(direct)).keyId).toBe(own.keyId);
  expect(await decrypt(own)).toEqual(DEK);
  expect(proxy.requests.at(-1)?.request.headers.get("X-Key4C-User-Id")).toBe("user");
});
