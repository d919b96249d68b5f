/**
 * Scenario 9: real services of others behind the profiles that `manifest profile` prints. What is faked in
 * test/services.ts from their documentation is here their own code.
 */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import { callRpc, failureOf, startPlugin } from "../support.ts";
import { Kes } from "./kes.ts";
import { OpenBao } from "./openbao.ts";
import { figure, seconds } from "./process.ts";

type Plugin = Awaited<ReturnType<typeof startPlugin>>;

const DEK = randomBytes(32);
const TEST_TIMEOUT_MS = 180_000;

const profile = (name: string) => ({
  KEY4C_PROFILE: join(import.meta.dir, "../../src/commands/manifest/profiles", name),
  KMS_PROBE_INTERVAL: "200ms",
});

test(
  "OpenBao: two replicas, a rotation, a retired version, restarts of either side",
  async () => {
    const openbao = await OpenBao.start("demo");
    const env = { ...profile("vault.json"), KMS_API_KEY: openbao.token };
    const first = await startPlugin(openbao.url, env);
    const second = await startPlugin(openbao.url, env);
    const v1 = await wrap(first);
    expect(v1.keyId).toMatch(/^k4c-[a-z2-7]{26}\.v1$/);
    expect(await unwrap(second, v1)).toEqual(DEK);

    const tookS = await seconds(async () => {
      await openbao.rotateKey("demo");
      await Promise.all([first, second].map((one) => one.until(/new local KEK.*\.v2"/)));
    });
    const v2 = await wrap(first);
    expect(v2.keyId).toBe(v1.keyId.replace(/\.v1$/, ".v2"));
    expect((await statusOf(second)).keyId).toBe(v2.keyId);
    for (const one of [first, second]) {
      expect(await unwrap(one, v1)).toEqual(DEK);
      expect(await unwrap(one, v2)).toEqual(DEK);
    }

    // With nothing in memory, on a service that has been restarted itself.
    await first.stop();
    await openbao.stop();
    await openbao.restart();
    await openbao.unseal();
    const third = await startPlugin(openbao.url, env);
    expect(await unwrap(third, v1)).toEqual(DEK);
    expect(await unwrap(third, v2)).toEqual(DEK);
    expect(await statusOf(third)).toMatchObject({ healthz: "ok", keyId: v2.keyId });

    await openbao.setMinDecryptionVersion("demo", 2);
    const fourth = await startPlugin(openbao.url, env);
    expect(await unwrap(fourth, v2)).toEqual(DEK);
    expect((await failureOf(unwrap(fourth, v1)))[0]).toBe(status.INVALID_ARGUMENT);
    figure(`OpenBao: a rotation seen by two plugins in ${tookS} s, with a probe each 0.2 s`);
  },
  TEST_TIMEOUT_MS,
);

test(
  "KES: two replicas, another key as its rotation, restarts of either side",
  async () => {
    const kes = await Kes.start("demo");
    const env = { ...profile("kes.json"), ...kes.env };
    const first = await startPlugin(kes.url, env);
    const second = await startPlugin(kes.url, env);
    const old = await wrap(first);
    // No version, KES has none, but what it calls a key's ID is a digest of the key itself.
    expect(old.keyId).toMatch(/^k4c-[a-z2-7]{26}\.k[a-z2-7]{8}$/);
    expect(await unwrap(second, old)).toEqual(DEK);

    await kes.createKey("next");
    const rotated = { ...env, KMS_KEY_ID: "next", KMS_PREVIOUS_KEY_IDS: "demo" };
    await first.stop();
    const third = await startPlugin(kes.url, rotated);
    const fresh = await wrap(third);
    expect(fresh.keyId).not.toBe(old.keyId);
    expect(await unwrap(third, old)).toEqual(DEK);
    // It does not know that key yet.
    expect((await failureOf(unwrap(second, fresh)))[0]).toBe(status.NOT_FOUND);

    await second.stop();
    await third.stop();
    await kes.stop();
    await kes.restart();
    const fourth = await startPlugin(kes.url, rotated);
    expect(await unwrap(fourth, old)).toEqual(DEK);
    expect(await unwrap(fourth, fresh)).toEqual(DEK);
    expect(await statusOf(fourth)).toMatchObject({ healthz: "ok", keyId: fresh.keyId });
  },
  TEST_TIMEOUT_MS,
);

function wrap({ client }: Plugin) {
  return callRpc(client, V2.method.encrypt, { plaintext: DEK, uid: "u" });
}

async function unwrap({ client }: Plugin, wrapped: Awaited<ReturnType<typeof wrap>>) {
  const { ciphertext, keyId, annotations } = wrapped;
  const answer = await callRpc(client, V2.method.decrypt, { ciphertext, keyId, annotations });
  return Buffer.from(answer.plaintext);
}

function statusOf({ client }: Plugin) {
  return callRpc(client, V2.method.status, {});
}
