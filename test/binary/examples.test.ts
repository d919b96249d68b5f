/** Every profile that `manifest profile` prints, on the compiled binary: what becomes of a key and a credential. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { renameSync, writeFileSync } from "node:fs";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import { CloudHsm } from "../cloudhsm.ts";
import { fortanixGcm, fortanixKwp, infisical, USER_ID, vaultApprole } from "../example-services.ts";
import { allowFile } from "../secrets.ts";
import { API_KEY, hsm, kes, nhn, PIN, type Service, ServiceKey, vault } from "../services.ts";
import {
  callRpc,
  emulator,
  fakeServer,
  runBinary,
  startPlugin,
  temporaryFile,
} from "../support.ts";

const DEK = randomBytes(32);

/** The made-up HSM in the conditions of a key. */
const cloudhsm: Service = (key) => {
  const service = new CloudHsm({ uuid: USER_ID, pin: PIN, apiKey: API_KEY });
  return (request, body) => {
    if (key.condition === "throttled") {
      return new Response("<h1>busy</h1>", { status: 429 });
    }
    service.accepts(key.apiKey);
    service.state.demo = { ok: "ACTIVE", disabled: "STOP", deleted: "DESTROYED" }[
      key.condition
    ] as "ACTIVE";
    return service.answer(request, body);
  };
};

interface Row {
  readonly name: string;
  readonly service: Service;
  /** What the log says; undefined where the service or its profile has no such thing. */
  readonly rotated?: RegExp | undefined;
  readonly disabled?: RegExp | undefined;
  readonly deleted: RegExp;
  readonly throttled?: RegExp | undefined;
}
const REVOKED = /"state":"revoked"/;
/** Lines of a state: a call that looks through what is held may be throttled, and changes none. */
const NOT_FOUND = /"state":"\w+".*"kind":"keyNotFound"/;
const THROTTLED = /"state":"\w+".*"kind":"throttled"/;
const VERSION_2 = /new local KEK.*\.v2"/;

const ROWS: readonly Row[] = [
  {
    name: "cloudhsm",
    service: cloudhsm,
    disabled: REVOKED,
    deleted: REVOKED,
    throttled: THROTTLED,
  },
  { name: "hsm", service: hsm, rotated: VERSION_2, disabled: REVOKED, deleted: NOT_FOUND },
  { name: "vault", service: vault, rotated: VERSION_2, deleted: NOT_FOUND, throttled: THROTTLED },
  {
    name: "vault-approle",
    service: vaultApprole,
    rotated: VERSION_2,
    deleted: NOT_FOUND,
    throttled: THROTTLED,
  },
  { name: "kes", service: kes, deleted: NOT_FOUND, throttled: THROTTLED },
  { name: "nhn", service: nhn, deleted: NOT_FOUND, throttled: THROTTLED },
  {
    name: "infisical",
    service: infisical,
    rotated: VERSION_2,
    disabled: REVOKED,
    deleted: NOT_FOUND,
    throttled: THROTTLED,
  },
  {
    name: "fortanix-gcm",
    service: fortanixGcm,
    rotated: /new local KEK.*"keyId":"k4c-\w+\.k\w{8}"[\s\S]*new local KEK.*\.k\w{8}"/, // by its key check value, after 10 s
    disabled: REVOKED,
    deleted: /"state":"degraded"/,
    throttled: THROTTLED,
  },
  {
    name: "fortanix-kwp",
    service: fortanixKwp,
    disabled: REVOKED,
    deleted: /"state":"degraded"/,
    throttled: THROTTLED,
  },
];

const printed = async (name: string) =>
  temporaryFile((await runBinary(["manifest", "profile", name])).stdout.toString());

test.each(ROWS)("$name", async ({ name, service, rotated, disabled, deleted, throttled }) => {
  const key = new ServiceKey();
  const server = fakeServer(service(key));
  const secret = temporaryFile(API_KEY);
  const replace = (text: string) => {
    allowFile(`${secret}.new`);
    writeFileSync(`${secret}.new`, text);
    renameSync(`${secret}.new`, secret);
  };
  const profile = await printed(name);
  const env = {
    KEY4C_PROFILE: profile,
    KMS_USER_ID: name === "nhn" ? "app" : USER_ID,
    KMS_API_KEY_FILE: secret,
    ...(["hsm", "cloudhsm"].includes(name) && { KMS_PIN: PIN }),
    KMS_PROBE_INTERVAL: "200ms",
    KMS_REVOCATION_GRACE: "0s",
  };
  const first = await startPlugin(server.url, env);
  const { ciphertext, keyId, annotations } = await callRpc(first.client, V2.method.encrypt, {
    plaintext: DEK,
    uid: "u",
  });
  await first.stop();

  const plugin = await startPlugin(server.url, env);
  const decrypt = async () => {
    const request = { ciphertext, keyId, annotations };
    return Buffer.from((await callRpc(plugin.client, V2.method.decrypt, request)).plaintext);
  };
  expect(await decrypt()).toEqual(DEK);
  const since = (from: number, pattern: RegExp) =>
    plugin.until(new RegExp(`^[\\s\\S]{${from}}[\\s\\S]*?(?:${pattern.source})`));
  /** What the log says of a condition, and that all is well after it. */
  const passes = async (condition: ServiceKey["condition"], told: RegExp) => {
    const from = plugin.output().length;
    key.condition = condition;
    await since(from, told);
    const to = plugin.output().length;
    key.condition = "ok";
    await since(to, /Key4C is ok/);
    expect(await decrypt()).toEqual(DEK);
  };
  if (rotated !== undefined) {
    key.versions.push(randomBytes(32));
    await plugin.until(rotated);
    expect(await decrypt()).toEqual(DEK);
  }
  if (throttled !== undefined) {
    await passes("throttled", throttled);
  }
  if (disabled !== undefined) {
    await passes("disabled", disabled);
  }
  await passes("deleted", deleted);
  const from = plugin.output().length;
  key.apiKey = "s.another-token-of-the-service";
  await since(from, /"kind":"denied"/);
  expect(await decrypt()).toEqual(DEK);
  if (!["hsm", "kes"].includes(name)) {
    const to = plugin.output().length; // a PIN, and a certificate, are presented again after 30 s
    replace(key.apiKey);
    await since(to, /Key4C is ok/);
    expect(await decrypt()).toEqual(DEK);
  }
});

test("the default profile is what the emulator speaks", async () => {
  const plugin = await startPlugin(emulator().url, { KEY4C_PROFILE: await printed("key4c") });
  expect((await callRpc(plugin.client, V2.method.status, {})).healthz).toBe("ok");
});

test("a name that there is not is refused with those that there are", async () => {
  const { exitCode, stderr } = await runBinary(["manifest", "profile", "valut"]);
  expect(exitCode).toBe(2);
  expect(stderr).toContain('no profile "valut"; there are key4c, cloudhsm, hsm, vault');
  expect((await runBinary(["manifest", "static-pod", "more"])).exitCode).toBe(2);
});
