/** `inspect` of the compiled binary, on values such as kube-apiserver stores them. */
import { expect, test } from "bun:test";
import { createCipheriv, createHmac, randomBytes } from "node:crypto";
import { create, toBinary } from "@bufbuild/protobuf";
import {
  EncryptedObjectSchema,
  SecretSchema,
  UnknownSchema,
} from "../../src/gen/kubernetes/storage/v1/storage_pb.ts";
import { KeyManagementService as V1 } from "../../src/gen/v1beta1/api_pb.ts";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import { callRpc, emulator, runBinary, startPlugin } from "../support.ts";

const ETCD_KEY = "/registry/secrets/default/db";
const SECRET = Buffer.concat([
  Buffer.from("k8s\0"),
  toBinary(
    UnknownSchema,
    create(UnknownSchema, {
      typeMeta: { apiVersion: "v1", kind: "Secret" },
      raw: toBinary(
        SecretSchema,
        create(SecretSchema, {
          metadata: { name: "db", namespace: "default", labels: { app: "x" } },
          data: { password: Buffer.from("hunter2") },
          type: "Opaque",
        }),
      ),
    }),
  ),
]);
const SECRET_JSON = {
  apiVersion: "v1",
  kind: "Secret",
  metadata: { name: "db", namespace: "default", labels: { app: "x" }, annotations: {} },
  type: "Opaque",
  data: { password: Buffer.from("hunter2").toString("base64") },
};

/** `nonce || encrypted || tag`, as aes.go of k8s.io/apiserver. */
function gcm(key: Buffer, plaintext: Buffer, aad: string): Buffer {
  const nonce = randomBytes(12);
  const cipher = createCipheriv("aes-256-gcm", key, nonce).setAAD(Buffer.from(aad));
  return Buffer.concat([nonce, cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]);
}

type Plugin = Awaited<ReturnType<typeof startPlugin>>;

async function v1Value({ client }: Plugin, object = SECRET, cbc = false): Promise<Buffer> {
  const dek = randomBytes(32);
  const { cipher } = await callRpc(client, V1.method.encrypt, { plain: dek });
  const length = Buffer.alloc(2);
  length.writeUInt16BE(cipher.length);
  let data = gcm(dek, object, ETCD_KEY);
  if (cbc) {
    const iv = randomBytes(16);
    const aes = createCipheriv("aes-256-cbc", dek, iv);
    data = Buffer.concat([iv, aes.update(object), aes.final()]);
  }
  return Buffer.concat([Buffer.from("k8s:enc:kms:v1:key4c:"), length, cipher, data]);
}

async function v2Value({ client }: Plugin, seed: boolean, object = SECRET): Promise<Buffer> {
  const source = randomBytes(32);
  const wrapped = await callRpc(client, V2.method.encrypt, { plaintext: source });
  const info = seed ? randomBytes(32) : Buffer.alloc(0);
  const key = seed
    ? createHmac("sha256", source)
        .update(info)
        .update(Buffer.from([1]))
        .digest()
    : source;
  const stored = create(EncryptedObjectSchema, {
    encryptedData: Buffer.concat([info, gcm(key, object, ETCD_KEY)]),
    keyId: wrapped.keyId,
    encryptedDekSource: wrapped.ciphertext,
    annotations: wrapped.annotations,
    encryptedDekSourceType: seed ? 1 : 0,
  });
  return Buffer.concat([
    Buffer.from("k8s:enc:kms:v2:key4c:"),
    toBinary(EncryptedObjectSchema, stored),
  ]);
}

const run = (args: string[], input: Uint8Array | string, env: Record<string, string> = {}) =>
  runBinary(["inspect", ...args], { env, input });

/** As `etcdctl get --prefix … -w json` prints it. */
const etcdctl = (pairs: Record<string, Buffer>) =>
  JSON.stringify({
    header: { revision: 1 },
    kvs: Object.entries(pairs).map(([key, value]) => ({
      key: Buffer.from(key).toString("base64"),
      value: value.toString("base64"),
      version: 1,
    })),
    count: Object.keys(pairs).length,
  });

/** The lines of the report, split. */
const fields = (stdout: Buffer) =>
  stdout
    .toString()
    .trim()
    .split("\n")
    .map((line) => line.split("\t"));

/** One that could be. */
const KEY_ID = "k4c-fbajn2fxsguq6aegzffhmyn5zi.v1";
/** As Status tells it now. */
const keyIdOf = async ({ client }: Plugin) => (await callRpc(client, V2.method.status, {})).keyId;

test("one line an object, a verdict against Status, a summary; --stale lists what must be rewritten", async () => {
  const key4c = emulator();
  const plugin = await startPlugin(key4c.url, { KMS_PROBE_INTERVAL: "100ms" });
  const old = { "/a": await v1Value(plugin), "/b": await v2Value(plugin, true) };
  const first = await keyIdOf(plugin);
  await key4c.control("POST", "keys/demo/rotate");
  await plugin.until(/new local KEK.*\.v2\./);
  const second = await keyIdOf(plugin);
  const values = {
    ...old,
    "/c": await v2Value(plugin, false),
    "/d": Buffer.from('{"kind":"Secret"}'),
  };
  const env = { KMS_ENDPOINT: `unix://${plugin.socket}` };
  const { stdout, stderr, exitCode } = await run([], etcdctl(values), env);
  expect(exitCode).toBe(0);
  const hex = expect.stringMatching(/^[0-9a-f]{16}$/);
  expect(fields(stdout)).toEqual([
    ["/a", "key4c", "v1", first, hex, "stale", ""],
    ["/b", "key4c", "v2", first, hex, "stale", ""],
    ["/c", "key4c", "v2", second, hex, "current", ""],
    ["/d", "-", "-", "-", "-", "plaintext", "not encrypted"],
  ]);
  expect(stderr).toContain(`4 objects, 2 local KEKs, current key_id ${second}`);
  expect(stderr).toContain(`2 ${first} stale`);
  expect(stderr).toContain("3 not under the current key: rewrite them");
  const stale = await run(["--stale", "--json", "--current", second], etcdctl(values));
  expect(
    stale.stdout
      .toString()
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line).etcdKey),
  ).toEqual(["/a", "/b", "/d"]);
  const fine = await run(["--current", second], etcdctl({ "/c": values["/c"] }));
  expect(fine.stderr).toContain("everything is under the current key: nothing to do");
  const unknown = await run(
    ["--endpoint", "unix:///nowhere/kms.sock"],
    etcdctl({ "/c": values["/c"] }),
  );
  expect(fields(unknown.stdout)[0]?.[5]).toBe("ours");
  expect(unknown.stderr).toContain("the current key_id is not known");
  // The fingerprint is that of the log.
  expect(plugin.output()).toContain(`"fingerprint":"${fields(stdout)[2]?.[4]}"`);
});

test("one raw value on standard input", async () => {
  const plugin = await startPlugin(emulator().url);
  const keyId = await keyIdOf(plugin);
  const { stdout } = await run(
    ["--etcd-key", ETCD_KEY, "--current", keyId],
    await v2Value(plugin, true),
  );
  expect(fields(stdout)[0]?.slice(0, 4)).toEqual([ETCD_KEY, "key4c", "v2", keyId]);
});

test("garbage, truncations, plaintext and others' values get a clear line each, never a crash", async () => {
  const plugin = await startPlugin(emulator().url);
  const [v1, v2] = [await v1Value(plugin), await v2Value(plugin, true)];
  const foreignV2 = toBinary(
    EncryptedObjectSchema,
    create(EncryptedObjectSchema, {
      keyId: "1",
      encryptedDekSource: Buffer.from("vault:v1:x"),
      annotations: { "x.example": Buffer.alloc(1) },
    }),
  );
  const foreignV1 = Buffer.concat([Buffer.from([0, 5]), Buffer.from("other"), randomBytes(40)]);
  const cases: [string, Buffer, string, RegExp][] = [
    ["empty", Buffer.alloc(0), "broken", /empty/],
    ["prefix only", Buffer.from("k8s:enc:"), "broken", /cut short/],
    ["aescbc", Buffer.from("k8s:enc:aescbc:v1:key1:\x01\x02"), "foreign", /^$/],
    ["v1 without a body", Buffer.from("k8s:enc:kms:v1:key4c:"), "broken", /cut short/],
    ["v2 without a body", Buffer.from("k8s:enc:kms:v2:key4c:"), "broken", /without a wrapped DEK/],
    [
      "v1 of another",
      Buffer.concat([Buffer.from("k8s:enc:kms:v1:x:"), foreignV1]),
      "foreign",
      /not our format/,
    ],
    [
      "v2 of another",
      Buffer.concat([Buffer.from("k8s:enc:kms:v2:x:"), foreignV2]),
      "foreign",
      /another plugin/,
    ],
    [
      "v2 garbage",
      Buffer.concat([Buffer.from("k8s:enc:kms:v2:x:"), Buffer.alloc(50, 0xff)]),
      "broken",
      /damaged/,
    ],
    ["tabs\tand\nlines", Buffer.from("x"), "plaintext", /not encrypted/],
  ];
  const { stdout } = await run(
    ["--current", KEY_ID],
    etcdctl(Object.fromEntries(cases.map(([name, value]) => [name, value]))),
  );
  const lines = fields(stdout);
  expect(lines.length).toBe(cases.length);
  for (const [index, [name, , verdict, why]] of cases.entries()) {
    expect([name, lines[index]?.length, lines[index]?.[5]]).toEqual([name, 7, verdict]);
    expect(lines[index]?.[6]).toMatch(why);
  }
  // Every truncation of both: some line, never a crash, and never an intact object.
  const cut = (value: Buffer) =>
    Array.from({ length: value.length - 1 }, (_, end) => value.subarray(0, end + 1));
  const truncated = Object.fromEntries(
    [...cut(v1), ...cut(v2)].map((value, index) => [`/${index}`, value]),
  );
  const { stdout: report, exitCode } = await run(["--current", KEY_ID], etcdctl(truncated));
  expect([exitCode, fields(report).length]).toEqual([0, v1.length + v2.length - 2]);
});

test.each(["", "{", "[]", '{"kvs":[{"key":1}]}', '{"kvs":7}'])(
  "input that is no output of etcdctl is refused: %p",
  async (input) => {
    const { stderr, exitCode } = await run(["--current", KEY_ID], input);
    expect([exitCode, stderr.split("\n").length]).toEqual([1, 2]);
    expect(stderr).toContain("etcdctl get --prefix");
  },
);

test("--decrypt shows a Secret as JSON and anything else as it is, without a plugin", async () => {
  const key4c = emulator();
  const plugin = await startPlugin(key4c.url);
  const values = [
    await v1Value(plugin),
    await v1Value(plugin, SECRET, true),
    await v2Value(plugin, false),
    await v2Value(plugin, true),
  ];
  const other = Buffer.from('{"kind":"ConfigMap"}');
  const raw = await v2Value(plugin, true, other);
  await plugin.stop();
  const env = { KEY4C_URL: key4c.url, KMS_KEY_ID: "demo", KMS_USER_ID: "u" };
  for (const value of values) {
    const { stdout, stderr, exitCode } = await run(
      ["--decrypt", "--etcd-key", ETCD_KEY],
      value,
      env,
    );
    expect([exitCode, JSON.parse(stdout.toString())]).toEqual([0, SECRET_JSON]);
    expect(stderr).toContain("WARNING: what follows on standard output are secrets in clear text");
  }
  expect((await run(["--decrypt", "--etcd-key", ETCD_KEY], raw, env)).stdout).toEqual(other);
  const all = await run(["--decrypt"], etcdctl({ [ETCD_KEY]: values[3] as Buffer }), env);
  expect(JSON.parse(all.stdout.toString())).toEqual({ key: ETCD_KEY, object: SECRET_JSON });
});

test.each(["BUN_CONFIG_VERBOSE_FETCH", "NODE_TLS_REJECT_UNAUTHORIZED"])(
  "refuses to run with %s set, as serve does",
  async (name) => {
    const { stderr, exitCode } = await run(["--current", KEY_ID], "{}", { [name]: "0" });
    expect(exitCode).toBe(2);
    expect(stderr).toContain(name);
  },
);

test("--decrypt says which values it could not decrypt, and does the others", async () => {
  const key4c = emulator();
  const plugin = await startPlugin(key4c.url);
  const good = await v2Value(plugin, true);
  const env = { KEY4C_URL: key4c.url, KMS_KEY_ID: "demo", KMS_USER_ID: "u" };
  const values = { [ETCD_KEY]: good, "/moved": good, "/plain": Buffer.from("x") };
  const { stdout, stderr, exitCode } = await run(["--decrypt"], etcdctl(values), env);
  expect([exitCode, stdout.toString().trim().split("\n").length]).toEqual([1, 1]);
  expect(stderr).toContain("/moved: the object does not authenticate: wrong DEK, wrong etcd key");
  expect(stderr).toContain("/plain: is plaintext, nothing of ours");
  expect(stderr).toContain("2 of 3 values could not be decrypted");
  const missing = await run(["--decrypt"], etcdctl(values));
  expect([missing.exitCode, missing.stderr]).toEqual([
    2,
    expect.stringContaining("KEY4C_URL (--key4c-url) is missing"),
  ]);
});
