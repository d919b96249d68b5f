/** What the compiled binary answers to requests, good and bad (kubernetes.md §7, cases 1–34). */
import { describe, expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { status } from "@grpc/grpc-js";
import { KeyManagementService as V1 } from "../../src/gen/v1beta1/api_pb.ts";
import type { EncryptResponse } from "../../src/gen/v2/api_pb.ts";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import { MAX_PLAINTEXT_BYTES } from "../../src/keys/envelope.ts";
import {
  callRaw,
  callRpc,
  emulator,
  failureOf,
  fakeServer,
  grpcClient,
  passOn,
  startBinary,
  startPlugin,
  temporaryDirectory,
  toldDeadline,
} from "../support.ts";

const DEK = randomBytes(32);
const ANNOTATION = "wrapped-kek.key4c-kms-plugin.io";
const INVALID = [status.INVALID_ARGUMENT, "the request is not valid"] as [number, string];
const NO_KEY_ID = [status.INVALID_ARGUMENT, "the request has no key_id"] as [number, string];
const TOO_LARGE = [
  status.INVALID_ARGUMENT,
  `the plaintext has more than ${MAX_PLAINTEXT_BYTES} bytes`,
] as [number, string];
const UNKNOWN_KEY = [
  status.NOT_FOUND,
  "the ciphertext belongs to a key that is not configured",
] as [number, string];

/** A plugin on an emulator, with what the tests call on it. */
async function setup(env: Record<string, string> = {}, keyIds = ["demo", "other"]) {
  const key4c = emulator({ keyIds });
  const plugin = await startPlugin(key4c.url, env);
  const { client } = plugin;
  const v1 = { version: "v1beta1" };
  return {
    key4c,
    plugin,
    client,
    status: () => callRpc(client, V2.method.status, {}),
    encrypt: (plaintext: Uint8Array = DEK) =>
      callRpc(client, V2.method.encrypt, { plaintext, uid: crypto.randomUUID() }),
    decrypt: ({ ciphertext, keyId, annotations }: Partial<EncryptResponse>) =>
      callRpc(client, V2.method.decrypt, {
        uid: crypto.randomUUID(),
        ...(ciphertext && { ciphertext }),
        ...(keyId && { keyId }),
        ...(annotations && { annotations }),
      }),
    encryptV1: (plain: Uint8Array) => callRpc(client, V1.method.encrypt, { ...v1, plain }),
    decryptV1: (cipher: Uint8Array) => callRpc(client, V1.method.decrypt, { ...v1, cipher }),
  };
}

test("v1: Version, Encrypt, Decrypt", async () => {
  const { client, encryptV1, decryptV1 } = await setup();
  const version = await callRpc(client, V1.method.version, { version: "v1beta1" });
  expect(version).toMatchObject({ version: "v1beta1", runtimeName: "key4c-kms-plugin" });
  for (const plain of [DEK, Buffer.from("ping"), Buffer.alloc(0), randomBytes(512)]) {
    const { cipher } = await encryptV1(plain);
    expect(cipher.length).toBeGreaterThan(0);
    expect(cipher.length).toBeLessThanOrEqual(65_535);
    expect(Buffer.from((await decryptV1(cipher)).plain)).toEqual(Buffer.from(plain));
  }
});

test("v2: Status, Encrypt, Decrypt agree on key_id and stay inside the limits", async () => {
  const { status, encrypt, decrypt } = await setup();
  const { version, healthz, keyId } = await status();
  expect([version, healthz]).toEqual(["v2", "ok"]);
  const response = await encrypt();
  expect(response.keyId).toBe(keyId);
  expect(Object.keys(response.annotations)).toEqual([ANNOTATION]);
  expect(response.ciphertext.length).toBeLessThanOrEqual(1_024);
  expect(Buffer.from((await decrypt(response)).plaintext)).toEqual(DEK);
});

describe("bad input gets its status, one text a kind, and changes nothing", () => {
  let s: Awaited<ReturnType<typeof setup>>;
  let good: EncryptResponse;

  /** Each case: what is wrong, the call, the answer. */
  const cases: [string, () => Promise<unknown>, [number, string]][] = [
    [
      "malformed protobuf",
      () => callRaw(s.client, "/v2.KeyManagementService/Encrypt", Buffer.from("ffff", "hex")),
      INVALID,
    ],
    [
      "invalid UTF-8 in key_id",
      () => callRaw(s.client, "/v2.KeyManagementService/Decrypt", Buffer.from("1a02fffe", "hex")),
      INVALID,
    ],
    [
      "unknown method",
      () => callRaw(s.client, "/v2.KeyManagementService/Rotate", Buffer.alloc(0)),
      [status.UNIMPLEMENTED, expect.any(String) as never],
    ],
    [
      "unknown service",
      () => callRaw(s.client, "/v2alpha1.KeyManagementService/Status", Buffer.alloc(0)),
      [status.UNIMPLEMENTED, expect.any(String) as never],
    ],
    ["plaintext of 513 bytes", () => s.encrypt(randomBytes(MAX_PLAINTEXT_BYTES + 1)), TOO_LARGE],
    [
      "plaintext of 1 MiB",
      () => s.encrypt(randomBytes(2 ** 20)),
      [status.RESOURCE_EXHAUSTED, expect.any(String) as never],
    ],
    [
      "plaintext above 4 MiB",
      () => s.encrypt(randomBytes(2 ** 22 + 1)),
      [status.RESOURCE_EXHAUSTED, expect.any(String) as never],
    ],
    [
      "v1 plaintext of 513 bytes",
      () => s.encryptV1(randomBytes(MAX_PLAINTEXT_BYTES + 1)),
      TOO_LARGE,
    ],
    ["nothing at all", () => s.decrypt({}), NO_KEY_ID],
    ["no ciphertext", () => s.decrypt({ ...good, ciphertext: Buffer.alloc(0) }), INVALID],
    ["no key_id", () => s.decrypt({ ...good, keyId: "" }), NO_KEY_ID],
    ["key_id of another plugin", () => s.decrypt({ ...good, keyId: "1" }), UNKNOWN_KEY],
    [
      "key_id of an unknown key",
      () => s.decrypt({ ...good, keyId: `k4c-${"a".repeat(26)}.v1` }),
      UNKNOWN_KEY,
    ],
    [
      "key_id of another version",
      () => s.decrypt({ ...good, keyId: good.keyId.replace(".v1", ".v2") }),
      INVALID,
    ],
    ["no annotations", () => s.decrypt({ ...good, annotations: {} }), INVALID],
    [
      "an annotation renamed",
      () =>
        s.decrypt({
          ...good,
          annotations: { [`x-${ANNOTATION}`]: good.annotations[ANNOTATION] as Uint8Array },
        }),
      INVALID,
    ],
    [
      "an annotation added",
      () => s.decrypt({ ...good, annotations: { ...good.annotations, "a.b": Buffer.alloc(0) } }),
      INVALID,
    ],
    [
      "an annotation changed",
      () => s.decrypt({ ...good, annotations: { [ANNOTATION]: Buffer.from("AAAA") } }),
      INVALID,
    ],
    [
      "an annotation that is no text",
      () => s.decrypt({ ...good, annotations: { [ANNOTATION]: Buffer.from([0xff]) } }),
      INVALID,
    ],
    [
      "an annotation of 17 KiB",
      () => s.decrypt({ ...good, annotations: { [ANNOTATION]: Buffer.alloc(17 * 1024, 65) } }),
      INVALID,
    ],
    ["a v2 ciphertext as v1 cipher", () => s.decryptV1(good.ciphertext), INVALID],
    [
      "a v1 cipher as v2 ciphertext",
      async () => s.decrypt({ ...good, ciphertext: (await s.encryptV1(DEK)).cipher }),
      INVALID,
    ],
    ["an empty v1 cipher", () => s.decryptV1(Buffer.alloc(0)), INVALID],
    ["random bytes as v1 cipher", () => s.decryptV1(randomBytes(200)), INVALID],
    ["the largest v1 cipher", () => s.decryptV1(randomBytes(65_535)), INVALID],
  ];

  test("all cases, on one connection that goes on working", async () => {
    s = await setup();
    good = await s.encrypt();
    for (const [name, call, answer] of cases) {
      expect([name, await failureOf(call())]).toEqual([name, answer]);
      expect(Buffer.from((await s.decrypt(good)).plaintext)).toEqual(DEK);
    }
    expect(s.plugin.output()).not.toContain("unexpected");
  });

  test("parts of two ciphertexts cannot be exchanged, whatever local KEK they have", async () => {
    s = await setup({ KMS_LOCAL_KEK_MAX_USES: "1" });
    const [a, b] = [await s.encrypt(), await s.encrypt(randomBytes(32))];
    expect(a.annotations).not.toEqual(b.annotations);
    expect(await failureOf(s.decrypt({ ...a, annotations: b.annotations }))).toEqual(INVALID);
    expect(await failureOf(s.decrypt({ ...a, ciphertext: b.ciphertext }))).toEqual(INVALID);
    expect(Buffer.from((await s.decrypt(a)).plaintext)).toEqual(DEK);
  });
});

test("unknown fields are ignored", async () => {
  const { client } = await setup();
  const request = Buffer.concat([Buffer.from([0x0a, 32]), DEK, Buffer.from([0x7a, 1, 0])]);
  const answer = await callRaw(client, "/v2.KeyManagementService/Encrypt", request);
  expect(answer.length).toBeGreaterThan(32);
});

test("a rotation is noticed by the probe; Status and Encrypt change together; old data read", async () => {
  const { key4c, plugin, status, encrypt, decrypt } = await setup({ KMS_PROBE_INTERVAL: "100ms" });
  const before = await encrypt();
  await key4c.control("POST", "keys/demo/rotate");
  await plugin.until(/new local KEK.*\.v2\./);
  const after = await encrypt();
  expect((await status()).keyId).toBe(after.keyId);
  const nameOf = (keyId: string) => keyId.replace(/\.k[a-z2-7]{8}$/, "");
  expect(nameOf(after.keyId)).toBe(nameOf(before.keyId).replace(".v1", ".v2"));
  expect(Buffer.from((await decrypt(before)).plaintext)).toEqual(DEK);
});

test("two plugins on one Key4C read each other's data and report the same key_id", async () => {
  const one = await setup();
  const two = await startPlugin(one.key4c.url, { KMS_USER_ID: "another-user" });
  expect((await callRpc(two.client, V2.method.status, {})).keyId).toBe((await one.status()).keyId);
  const { ciphertext, keyId, annotations } = await one.encrypt();
  const opened = await callRpc(two.client, V2.method.decrypt, { ciphertext, keyId, annotations });
  expect(Buffer.from(opened.plaintext)).toEqual(DEK);
  const { cipher } = await callRpc(two.client, V1.method.encrypt, { plain: DEK });
  expect(Buffer.from((await one.decryptV1(cipher)).plain)).toEqual(DEK);
});

test("data of a previous key are read when it is listed, and not when it is not", async () => {
  const old = await setup();
  const [v2, { cipher }] = [await old.encrypt(), await old.encryptV1(DEK)];
  const { ciphertext, keyId, annotations } = v2;
  const listed = await startPlugin(old.key4c.url, {
    KMS_KEY_ID: "other",
    KMS_PREVIOUS_KEY_IDS: "demo",
  });
  const opened = await callRpc(listed.client, V2.method.decrypt, {
    ciphertext,
    keyId,
    annotations,
  });
  expect(Buffer.from(opened.plaintext)).toEqual(DEK);
  const openedV1 = await callRpc(listed.client, V1.method.decrypt, { cipher });
  expect(Buffer.from(openedV1.plain)).toEqual(DEK);

  const unlisted = await startPlugin(old.key4c.url, { KMS_KEY_ID: "other" });
  expect(
    await failureOf(
      callRpc(unlisted.client, V2.method.decrypt, { ciphertext, keyId, annotations }),
    ),
  ).toEqual(UNKNOWN_KEY);
  expect(await failureOf(callRpc(unlisted.client, V1.method.decrypt, { cipher }))).toEqual(
    UNKNOWN_KEY,
  );
});

test("a restart costs one wrap and two unwraps, whatever the number of callers", async () => {
  const noProbe = { KMS_PROBE_INTERVAL: "1h" };
  const { key4c, client } = await setup(noProbe);
  const ciphers = await Promise.all(
    Array.from({ length: 1_000 }, () => callRpc(client, V1.method.encrypt, { plain: DEK })),
  );
  expect(await key4c.control("GET", "stats")).toMatchObject({ encrypt: 1, decrypt: 1 });
  const restarted = await startPlugin(key4c.url, noProbe);
  const opened = await Promise.all(
    ciphers.map(({ cipher }) => callRpc(restarted.client, V1.method.decrypt, { cipher })),
  );
  expect(opened.every(({ plain }) => DEK.equals(plain))).toBe(true);
  expect(await key4c.control("GET", "stats")).toMatchObject({ encrypt: 2, decrypt: 3 });
});

test("a caller leaves before its deadline, and the call it started fills the cache", async () => {
  const { key4c, encrypt } = await setup({ KMS_PROBE_INTERVAL: "1h" });
  const { ciphertext, keyId, annotations } = await encrypt();
  const restarted = await startPlugin(key4c.url, { KMS_PROBE_INTERVAL: "1h" }); // the first comes after a random part of it
  await key4c.control("PUT", "latency", { ms: 1_000 });
  const decrypt = (deadlineMs: number) =>
    callRpc(
      restarted.client,
      V2.method.decrypt,
      { ciphertext, keyId, annotations },
      toldDeadline(deadlineMs),
    );
  expect(await failureOf(decrypt(500))).toEqual([
    status.DEADLINE_EXCEEDED,
    "no result before the deadline",
  ]);
  expect(Buffer.from((await decrypt(60_000)).plaintext)).toEqual(DEK);
  expect(await key4c.control("GET", "stats")).toMatchObject({ decrypt: 3 });
});

test("while Key4C is away, known keys work on and the plugin says what it lacks", async () => {
  const {
    key4c,
    plugin,
    status: ask,
    encrypt,
    decrypt,
  } = await setup({ KMS_PROBE_INTERVAL: "100ms" });
  const response = await encrypt();
  await key4c.stop();
  await plugin.until(/Key4C is unreachable.*"kind":"unavailable".*"remedy":"check KEY4C_URL/);
  expect((await ask()).healthz).toBe("ok");
  expect(Buffer.from((await decrypt(response)).plaintext)).toEqual(DEK);
  expect((await encrypt()).keyId).toBe(response.keyId);
});

test("the plugin starts while Key4C is down and becomes ok by itself", async () => {
  const key4c = emulator();
  await key4c.control("POST", "keys/demo/disable");
  const socket = `${temporaryDirectory()}/kms.sock`;
  const plugin = startBinary(["serve"], {
    KMS_ENDPOINT: `unix://${socket}`,
    KEY4C_URL: key4c.url,
    KMS_KEY_ID: "demo",
    KMS_USER_ID: "u",
    KMS_PROBE_INTERVAL: "100ms",
  });
  await plugin.until(/there is no local KEK yet.*"kind":"keyUnusable"/);
  const client = grpcClient(socket);
  const unusable = [status.FAILED_PRECONDITION, "the Key4C key is disabled or deleted"] as [
    number,
    string,
  ];
  expect(await failureOf(callRpc(client, V2.method.status, {}))).toEqual(unusable);
  expect(await failureOf(callRpc(client, V2.method.encrypt, { plaintext: DEK }))).toEqual(unusable);
  await key4c.control("POST", "keys/demo/enable");
  await plugin.until(/Key4C is ok/);
  expect((await callRpc(client, V2.method.status, {})).healthz).toBe("ok");
});

test("each line of the log is JSON, has the uid, and holds no secret", async () => {
  const secret = "user-id-that-is-secret";
  const { plugin, client } = await setup({ KMS_USER_ID: secret, KMS_LOG_LEVEL: "debug" });
  const uid = crypto.randomUUID();
  const response = await callRpc(client, V2.method.encrypt, { plaintext: DEK, uid });
  await failureOf(callRpc(client, V1.method.decrypt, { cipher: Buffer.from("x") }));
  const evil = 'evil"}\n{"msg":"forged';
  await callRpc(client, V2.method.encrypt, { plaintext: DEK, uid: evil });
  await plugin.stop();
  const lines = plugin
    .output()
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  expect(lines).toContainEqual(
    expect.objectContaining({
      msg: "RPC",
      method: "/v2.KeyManagementService/Encrypt",
      uid,
      code: "OK",
    }),
  );
  expect(lines.filter(({ method }) => method?.endsWith("v2.KeyManagementService/Encrypt"))).toEqual(
    [expect.objectContaining({ uid }), expect.not.objectContaining({ uid: expect.anything() })],
  );
  expect(plugin.output()).not.toContain("evil");
  for (const encoding of ["latin1", "hex", "base64"] as const) {
    expect(plugin.output()).not.toContain(DEK.toString(encoding));
  }
  expect(plugin.output()).not.toContain(secret);
  expect(plugin.output()).not.toContain(Buffer.from(response.ciphertext).toString("base64"));
});

test("the uid of a request is that of the call to Key4C; one that is no uid is not", async () => {
  const { key4c, encrypt } = await setup();
  const { ciphertext, keyId, annotations } = await encrypt();
  const proxy = fakeServer((request, body) => passOn(key4c.url, request, body));
  for (const uid of [crypto.randomUUID(), "evil\r\nX-Injected: 1"]) {
    const restarted = await startPlugin(proxy.url, { KMS_PROBE_INTERVAL: "1h" }); // each request is counted
    const already = proxy.requests.length;
    await callRpc(restarted.client, V2.method.decrypt, { ciphertext, keyId, annotations, uid });
    const sent = proxy.requests.slice(already).map(({ request }) => request.headers);
    expect(sent.map((headers) => headers.get("X-Request-Id") === uid)).toEqual([
      !uid.includes("evil"),
    ]);
    expect(sent.some((headers) => headers.has("X-Injected"))).toBe(false);
    await restarted.stop();
  }
});
