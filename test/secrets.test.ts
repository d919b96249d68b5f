/** The search for secrets finds them, in each form and in each place. */
import { expect, test } from "bun:test";
import { createDecipheriv, randomBytes } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { KeyManagementService as V2 } from "../src/gen/v2/api_pb.ts";
import { keyNameHash } from "../src/keys/key-id.ts";
import { allowFile, expectNoSecret, expectNoSecretInFiles, secret } from "./secrets.ts";
import { callRpc, emulator, startPlugin, temporaryDirectory, temporaryFile } from "./support.ts";

const BYTES = randomBytes(32);
secret("test", BYTES);

test.each([
  ["raw", BYTES],
  ["hex", BYTES.toString("hex")],
  ["HEX", BYTES.toString("hex").toUpperCase()],
  ["base64", BYTES.toString("base64")],
  ["base64url", BYTES.toString("base64url")],
  ["a Buffer, printed", Bun.inspect(Buffer.from(BYTES)).replaceAll(",", "")],
  ["an array", JSON.stringify([...BYTES])],
  ...[0, 1, 2, 3, 4, 5].map(
    (before) =>
      [
        `base64, ${before} bytes before it`,
        Buffer.concat([randomBytes(before), BYTES, randomBytes(5)]).toString("base64"),
      ] as const,
  ),
])("%s", (_, form) => {
  const output = Buffer.concat([Buffer.from("what comes before "), Buffer.from(form)]);
  expect(() => expectNoSecret("the output", output)).toThrow("a secret (test) is at byte");
  expect(() => expectNoSecret("the output", randomBytes(1_000).toString("base64"))).not.toThrow();
});

test("files, but not those that are meant to hold it", () => {
  const directory = join(temporaryDirectory(), "below");
  mkdirSync(directory);
  const path = join(directory, "a");
  writeFileSync(path, BYTES);
  expect(() => expectNoSecretInFiles(directory)).toThrow("secret");
  allowFile(path);
  expectNoSecretInFiles(directory);
});

test("what a plugin used is known: token, API key, DEK, KEK, local KEK", async () => {
  const dataFile = join(temporaryDirectory(), "key4c.json");
  const [userId, apiKey] = [`user-${crypto.randomUUID()}`, `key-${crypto.randomUUID()}`];
  const plugin = await startPlugin(emulator({ dataFile }).url, {
    KMS_USER_ID: "",
    KMS_USER_ID_FILE: temporaryFile(userId),
    KMS_API_KEY: apiKey,
  });
  const plaintext = randomBytes(32);
  const { annotations } = await callRpc(plugin.client, V2.method.encrypt, { plaintext });
  const [[, { versions }]] = JSON.parse(await Bun.file(dataFile).text());
  const wrapped = Buffer.from(String(Buffer.from(Object.values(annotations)[0] ?? [])), "base64");
  const kek = Buffer.from(versions[0], "base64");
  const aad = Buffer.concat([Buffer.from("key4c-kms-plugin/local-kek/v1:"), keyNameHash("demo")]);
  const decipher = createDecipheriv("aes-256-gcm", kek, wrapped.subarray(4, 16)).setAAD(aad);
  decipher.setAuthTag(wrapped.subarray(-16));
  const localKek = Buffer.concat([decipher.update(wrapped.subarray(16, -16)), decipher.final()]);
  for (const [what, value] of [
    ["KMS_USER_ID", userId],
    ["KMS_API_KEY", apiKey],
    ["DEK", plaintext],
    ["KEK", kek],
    ["local KEK", localKek],
  ] as const) {
    expect(() => expectNoSecret("x", value)).toThrow(`(${what})`);
  }
});
