/**
 * Scenario 10: what a profile meets at real services: credentials that are wrong or expire, the profile check, and
 * the client of kube-apiserver on the other side of the plugin.
 */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import type { Check } from "../../src/commands/doctor/check.ts";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import { allowFile, expectNoSecret } from "../secrets.ts";
import { API_KEY, hsm, PIN, ServiceKey } from "../services.ts";
import {
  callRpc,
  failureOf,
  fakeServer,
  grpcClient,
  runBinary,
  startBinary,
  startPlugin,
  temporaryDirectory,
  temporaryFile,
} from "../support.ts";
import { Kes } from "./kes.ts";
import { OpenBao } from "./openbao.ts";
import { run } from "./process.ts";

const DEK = randomBytes(32);
const TEST_TIMEOUT_MS = 600_000;
const PROFILES = join(import.meta.dir, "../../src/commands/manifest/profiles");
const INTEROP = join(import.meta.dir, "../interop/current");

const profile = (name: string) => ({
  KEY4C_PROFILE: join(PROFILES, name),
  KMS_PROBE_INTERVAL: "200ms",
});

/** As an operator should: a half-written file is never seen. */
function replaceFile(path: string, text: string): void {
  const beside = `${path}.new`;
  allowFile(beside);
  writeFileSync(beside, text);
  renameSync(beside, path);
}

test(
  "OpenBao: a wrong token, the right one, its end, and the next: no restart, and nothing is dropped",
  async () => {
    const openbao = await OpenBao.start("demo");
    const token = temporaryFile("s.a-token-that-is-wrong");
    const socket = join(temporaryDirectory(), "kms.sock");
    const plugin = startBinary(["serve"], {
      ...profile("vault.json"),
      KMS_ENDPOINT: `unix://${socket}`,
      KEY4C_URL: openbao.url,
      KMS_KEY_ID: "demo",
      KMS_USER_ID: "unused",
      KMS_API_KEY_FILE: token,
      KMS_HTTP_ADDRESS: "",
    });
    await plugin.until(/Key4C refuses the credential; there is no local KEK yet/);
    const client = grpcClient(socket);
    expect((await failureOf(callRpc(client, V2.method.status, {})))[0]).toBe(
      status.FAILED_PRECONDITION,
    );

    // Long enough for a busy machine to use it, short enough to wait for.
    replaceFile(token, await openbao.issueToken("demo", "10s"));
    await plugin.until(/Key4C is ok/);
    const encrypt = () => callRpc(client, V2.method.encrypt, { plaintext: DEK, uid: "u" });
    const { ciphertext, keyId, annotations } = await encrypt();
    const decrypt = async () => {
      const request = { ciphertext, keyId, annotations };
      return Buffer.from((await callRpc(client, V2.method.decrypt, request)).plaintext);
    };

    await plugin.until(/Key4C refuses the credential; known local KEKs continue to work/);
    expect(await decrypt()).toEqual(DEK);
    expect((await encrypt()).keyId).toBe(keyId);
    expect((await callRpc(client, V2.method.status, {})).healthz).toBe("ok");

    replaceFile(token, await openbao.issueToken("demo", "1h"));
    await plugin.until(/Key4C is ok[\s\S]*Key4C is ok/);
    expect(await decrypt()).toEqual(DEK);
  },
  TEST_TIMEOUT_MS,
);

test(
  "OpenBao by AppRole: tokens of 10 s for 40 s, and no call fails; a secret that is destroyed is refused, the next one is used",
  async () => {
    const openbao = await OpenBao.start("demo");
    const { roleId, secretId } = await openbao.makeRole("demo", "10s");
    const secretFile = temporaryFile(secretId);
    const env = {
      ...profile("vault-approle.json"),
      KMS_USER_ID: roleId,
      KMS_API_KEY_FILE: secretFile,
      KMS_LOCAL_KEK_CACHE_SIZE: "0", // each decrypt of another local KEK asks OpenBao
      KMS_LOCAL_KEK_MAX_USES: "1",
    };
    const plugin = await startPlugin(openbao.url, env);
    const endMs = Date.now() + 40_000;
    let calls = 0;
    for (; Date.now() < endMs; calls++) {
      const wrapped = await callRpc(plugin.client, V2.method.encrypt, { plaintext: DEK, uid: "u" });
      const { ciphertext, keyId, annotations } = wrapped;
      const request = { ciphertext, keyId, annotations };
      const { plaintext } = await callRpc(plugin.client, V2.method.decrypt, request);
      expect(Buffer.from(plaintext)).toEqual(DEK);
      await Bun.sleep(100);
    }
    expect(calls).toBeGreaterThan(20);
    expect(plugin.output()).not.toContain('"level":"warn"');
    const logins = plugin.output().match(/"operation":"login","kind":"ok"/g) ?? [];
    expect(logins.length).toBeGreaterThanOrEqual(4);
    expect(logins.length).toBeLessThanOrEqual(8);

    await openbao.destroySecretId(secretId);
    await plugin.until(/Key4C refuses the credential; known local KEKs continue to work/);
    replaceFile(secretFile, await openbao.newSecretId());
    await plugin.until(/Key4C refuses the credential[\s\S]*Key4C is ok/);
    const { checks } = await profileCheck(openbao.url, {
      ...env,
      KMS_API_KEY_FILE: secretFile,
    });
    expect(checks.filter(({ result }) => result === "fail")).toEqual([]);
  },
  TEST_TIMEOUT_MS,
);

test(
  "KES: a client whom its policy does not name is denied, not away",
  async () => {
    const kes = await Kes.start("demo");
    const env = { ...profile("kes.json"), ...kes.strangerEnv };
    const plugin = startBinary(["serve"], {
      ...env,
      KMS_ENDPOINT: `unix://${join(temporaryDirectory(), "kms.sock")}`,
      KEY4C_URL: kes.url,
      KMS_KEY_ID: "demo",
      KMS_USER_ID: "unused",
      KMS_HTTP_ADDRESS: "",
    });
    await plugin.until(/Key4C refuses the credential.*"kind":"denied"/);
    const { step } = await profileCheck(kes.url, env);
    expect(step("describe")).toMatchObject({
      result: "fail",
      detail: expect.stringContaining("HTTP status 403; it counts as denied"),
    });
  },
  TEST_TIMEOUT_MS,
);

test(
  "KES: other key material under the same name has another key_id",
  async () => {
    const kes = await Kes.start("demo");
    const env = { ...profile("kes.json"), ...kes.env };
    const keyIds: string[] = [];
    for (let round = 0; round < 2; round++) {
      const plugin = await startPlugin(kes.url, env);
      keyIds.push((await callRpc(plugin.client, V2.method.status, {})).keyId);
      await plugin.stop();
      await kes.deleteKey("demo");
      await kes.createKey("demo");
    }
    const [before, after] = keyIds;
    expect(after?.slice(0, 30)).toBe(before?.slice(0, 30) ?? "");
    expect(after).not.toBe(before);
  },
  TEST_TIMEOUT_MS,
);

test(
  "3 s of a firewall's page: a right PIN is used again, and nobody has to do anything",
  async () => {
    const answer = hsm(new ServiceKey());
    let isBlocked = false;
    const server = fakeServer((request, body) =>
      isBlocked
        ? new Response("<h1>Access denied by policy 4711</h1>", { status: 403 })
        : answer(request, body),
    );
    const gateway = JSON.parse(readFileSync(join(PROFILES, "hsm.json"), "utf8"));
    gateway.errors.statuses = { "403": "denied" };
    const plugin = await startPlugin(server.url, {
      KEY4C_PROFILE: temporaryFile(JSON.stringify(gateway)),
      KMS_PROBE_INTERVAL: "1s",
      KMS_API_KEY: API_KEY,
      KMS_PIN: PIN,
    });
    isBlocked = true;
    await plugin.until(/Key4C refuses the credential/); // a busy machine may probe late
    await Bun.sleep(3_000);
    isBlocked = false;
    const before = server.requests.length;
    await plugin.until(/Key4C is ok[\s\S]*Key4C is ok/);
    expect(server.requests.length).toBeGreaterThan(before);
  },
  TEST_TIMEOUT_MS,
);

test(
  "the profile check passes against both, and says what is wrong",
  async () => {
    const openbao = await OpenBao.start("demo");
    const token = await openbao.issueToken("demo", "1h");
    const onOpenBao = { ...profile("vault.json"), KMS_API_KEY: token };
    const good = await profileCheck(openbao.url, onOpenBao);
    expect(notPassed(good.checks)).toEqual([
      ["an unknown key", "warn"], // its policy names one key, so any other is denied
      ["revocation", "warn"],
    ]);
    expect(good.step("encrypt").shown).toContainEqual(
      expect.stringMatching(/^ {2}ciphertext at \/data\/ciphertext: "vault:v1:█ \d+ characters/),
    );
    const wrong = temporaryFile(
      (await Bun.file(onOpenBao.KEY4C_PROFILE).text()).replace("/data/plaintext", "/plaintext"),
    );
    const { step } = await profileCheck(openbao.url, { ...onOpenBao, KEY4C_PROFILE: wrong });
    expect(step("decrypt")).toMatchObject({
      result: "fail",
      detail: expect.stringContaining("/plaintext is not 32 bytes in base64"),
    });
    const another = await profileCheck(openbao.url, { ...onOpenBao, KMS_KEY_ID: "another" });
    expect(another.step("describe").result).toBe("fail");

    const kes = await Kes.start("demo");
    const onKes = await profileCheck(kes.url, { ...profile("kes.json"), ...kes.env });
    expect(notPassed(onKes.checks)).toEqual([["revocation", "warn"]]);
  },
  TEST_TIMEOUT_MS,
);

test(
  "kube-apiserver's client reads and writes 2,000 Secrets through the plugin, on both, over all restarts",
  async () => {
    const openbao = await OpenBao.start("demo");
    const kes = await Kes.start("demo");
    for (const settings of [
      { ...profile("vault.json"), KEY4C_URL: openbao.url, KMS_API_KEY: openbao.token },
      { ...profile("kes.json"), KEY4C_URL: kes.url, ...kes.env },
    ]) {
      const lines = Object.entries(settings).map(([name, value]) => `${name}=${value}`);
      const output = await run(
        ["go", "test", "-count=1", "-v", "-run", "^TestObjectsSurviveRestarts$", "."],
        {
          PATH: process.env["PATH"] ?? "",
          HOME: process.env["HOME"] ?? "",
          KEY4C_KMS_SERVICE: lines.join("\n"),
        },
        "",
        INTEROP,
      );
      expect(output).toContain("--- PASS: TestObjectsSurviveRestarts/KMS_v2");
    }
  },
  TEST_TIMEOUT_MS,
);

test(
  "a token that may use one key, and no other, is enough",
  async () => {
    const openbao = await OpenBao.start("demo");
    await openbao.createKey("other");
    const env = { ...profile("vault.json"), KMS_API_KEY: await openbao.issueToken("demo", "1h") };
    const { client } = await startPlugin(openbao.url, env);
    expect((await callRpc(client, V2.method.status, {})).healthz).toBe("ok");
    const { step } = await profileCheck(openbao.url, { ...env, KMS_KEY_ID: "other" });
    expect(step("describe").detail).toContain("it counts as denied");
  },
  TEST_TIMEOUT_MS,
);

const notPassed = (checks: readonly Check[]) =>
  checks.filter(({ result }) => result !== "pass").map(({ check, result }) => [check, result]);

async function profileCheck(url: string, settings: Record<string, string>) {
  const { stdout, stderr } = await runBinary(["doctor", "--profile-check", "--json"], {
    env: { KEY4C_URL: url, KMS_KEY_ID: "demo", KMS_USER_ID: "unused-user-id", ...settings },
  });
  expectNoSecret("stdout", stdout);
  expectNoSecret("stderr", stderr);
  const checks: Check[] = JSON.parse(stdout.toString());
  const step = (name: string) => {
    const found = checks.find(({ check }) => check === name);
    if (found === undefined) {
      throw new Error(`no step ${name}: ${stdout}`);
    }
    return found;
  };
  return { checks, step };
}
