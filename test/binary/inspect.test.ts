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
import { callRpc, emulator, runBinary, startPlugin, temporaryFile } from "../support.ts";

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
  const old = {
    "/registry/secrets/a": await v1Value(plugin),
    "/registry/configmaps/b": await v2Value(plugin, true),
  };
  const first = await keyIdOf(plugin);
  await key4c.control("POST", "keys/demo/rotate");
  await plugin.until(/new local KEK.*\.v2\./);
  const second = await keyIdOf(plugin);
  const values = {
    ...old,
    "/registry/secrets/c": await v2Value(plugin, false),
    "/registry/stable.example/pandas/d": Buffer.from('{"kind":"Secret"}'),
  };
  const env = { KMS_ENDPOINT: `unix://${plugin.socket}` };
  const { stdout, stderr, exitCode } = await run([], etcdctl(values), env);
  expect(exitCode).toBe(3);
  const hex = expect.stringMatching(/^[0-9a-f]{16}$/);
  expect(fields(stdout)).toEqual([
    ["/registry/secrets/a", "key4c", "v1", first, hex, "stale", ""],
    ["/registry/configmaps/b", "key4c", "v2", first, hex, "stale", ""],
    ["/registry/secrets/c", "key4c", "v2", second, hex, "current", ""],
    ["/registry/stable.example/pandas/d", "-", "-", "-", "-", "plaintext", "not encrypted"],
  ]);
  expect(stderr).toContain(
    `4 objects (2 secrets, 1 configmaps, 1 pandas.stable.example), 2 local KEKs, current key_id ${second}`,
  );
  expect(stderr).toContain("3 key4c (provider)");
  expect(stderr).toContain("kubectl get secrets,configmaps,pandas.stable.example -A -o json");
  expect(stderr).toContain(`2 ${first} stale`);
  expect(stderr).toContain("3 not under the current key: rewrite them");
  const stale = await run(["--stale", "--json", "--current", second], etcdctl(values));
  expect(
    stale.stdout
      .toString()
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line).etcdKey),
  ).toEqual(["/registry/secrets/a", "/registry/configmaps/b", "/registry/stable.example/pandas/d"]);
  const newest = etcdctl({ "/c": values["/registry/secrets/c"] });
  const fine = await run(["--current", second], newest);
  expect([fine.exitCode, fine.stderr]).toEqual([
    0,
    expect.stringContaining("everything in the input is under the current key"),
  ]);
  const unknown = await run(["--endpoint", "unix:///nowhere/kms.sock"], newest);
  expect(unknown.exitCode).toBe(1);
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
    ["empty", Buffer.alloc(0), "unknown", /empty/],
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
    ["no object", Buffer.from("x"), "unknown", /no object of Kubernetes/],
    ["tabs\tand\nlines", Buffer.from("{}"), "plaintext", /not encrypted/],
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
  // The first few bytes of each are no object at all: no answer.
  expect([exitCode, fields(report).length]).toEqual([1, v1.length + v2.length - 2]);
});

test.each(["", "{", "[]", '{"kvs":[{"key":1}]}', '{"kvs":7}'])(
  "input that is no output of etcdctl is refused: %p",
  async (input) => {
    const { stderr, exitCode } = await run(["--current", KEY_ID], input);
    expect([exitCode, stderr.split("\n").length]).toEqual([1, 3]);
    expect(stderr).toContain("etcdctl get --prefix");
  },
);

test.each([
  ['{"header":{}}', "nothing in the input"],
  ['{"kvs":[],"count":0}', "nothing in the input"],
  ['{"kvs":[{"key":"YQ==","value":"e30="}],"more":true,"count":9}', "1 of 9 values"],
  ['{"kvs":[{"key":"YQ==","value":"e30="}],"count":2}', "1 of 2 values"],
  ['{"count":7}', "0 of 7 values"],
])("what is nothing, or not everything, is no answer: %p", async (input, said) => {
  const { stderr, exitCode } = await run(["--current", KEY_ID], input);
  expect([exitCode, stderr]).toEqual([1, expect.stringContaining(said)]);
});

test("broken values have advice of their own, and are not done", async () => {
  const plugin = await startPlugin(emulator().url);
  const value = await v2Value(plugin, true);
  const values = { "/registry/secrets/a": value, "/registry/secrets/b": value.subarray(0, 40) };
  const { stderr, exitCode } = await run(["--current", await keyIdOf(plugin)], etcdctl(values));
  expect([exitCode, stderr]).toEqual([3, expect.stringContaining("1 broken: no key opens them")]);
  expect(stderr).not.toContain("rewrite them");
});

const configuration = (...names: string[]) =>
  temporaryFile(
    [
      "apiVersion: apiserver.config.k8s.io/v1",
      "kind: EncryptionConfiguration",
      "resources:",
      "- resources: [secrets]",
      "  providers:",
      ...names.map((name) => `  - kms: { apiVersion: v2, name: ${name}, endpoint: "unix:///x" }`),
    ].join("\n"),
  );

test("names of providers: several are warned of, one that the EncryptionConfiguration lacks is not done", async () => {
  const plugin = await startPlugin(emulator().url);
  const value = await v2Value(plugin, true);
  const renamed = Buffer.from(value.toString("latin1").replace(":key4c:", ":old:"), "latin1");
  const values = etcdctl({ "/registry/secrets/a": value, "/registry/secrets/b": renamed });
  const keyId = await keyIdOf(plugin);
  const alone = await run(["--current", keyId], values);
  expect([alone.exitCode, alone.stderr]).toEqual([
    0,
    expect.stringContaining("WARNING: objects are under several providers (v2:key4c, v2:old)"),
  ]);
  const compared = (file: string) =>
    run(["--current", keyId, "--encryption-configuration", file], values);
  expect(await compared(configuration("key4c", "old"))).toMatchObject({ exitCode: 0 });
  const lacking = await compared(configuration("key4c"));
  expect([lacking.exitCode, lacking.stderr]).toEqual([
    3,
    expect.stringContaining('the EncryptionConfiguration has no provider "v2:old"'),
  ]);
  expect(await compared(configuration())).toMatchObject({ exitCode: 1, stdout: Buffer.alloc(0) });
});

test("--verify: Key4C itself gives back each local KEK once, without a plugin", async () => {
  const key4c = emulator({ keyIds: ["demo", "former"] });
  const plugin = await startPlugin(key4c.url);
  const former = await startPlugin(key4c.url, { KMS_KEY_ID: "former" });
  const values = {
    "/registry/secrets/a": await v2Value(plugin, true),
    "/registry/secrets/b": await v1Value(plugin),
    "/registry/secrets/c": await v2Value(former, true),
    "/registry/secrets/d": Buffer.from("{}"),
  };
  const keyId = await keyIdOf(plugin);
  await plugin.stop();
  await former.stop();
  const env = {
    KEY4C_URL: key4c.url,
    KMS_KEY_ID: "demo",
    KMS_PREVIOUS_KEY_IDS: "former",
    KMS_USER_ID: "u",
  };
  const before = await key4c.control("GET", "stats");
  const all = await run(["--verify"], etcdctl(values), env);
  const after = await key4c.control("GET", "stats");
  expect([all.exitCode, all.stderr]).toEqual([
    0,
    expect.stringContaining("2 local KEKs: 2 unwrapped, 0 refused"),
  ]);
  expect((after["decrypt"] ?? 0) - (before["decrypt"] ?? 0)).toBe(2);
  expect(
    fields(all.stdout).map(([keyId, , objects, verdict]) => [keyId, objects, verdict]),
  ).toEqual(
    expect.arrayContaining([
      [keyId, "2", "unwrapped"],
      [expect.stringMatching(/\.v1\.k/), "1", "unwrapped"],
    ]),
  );

  const { KMS_PREVIOUS_KEY_IDS, ...without } = env;
  const unknown = await run(["--verify", "--stale"], etcdctl(values), without);
  expect(unknown).toMatchObject({
    exitCode: 3,
    stderr: expect.stringContaining("1 object: under a key that is neither KMS_KEY_ID nor"),
  });
  expect(fields(unknown.stdout)).toEqual([
    [
      expect.anything(),
      expect.anything(),
      "1",
      "refused",
      expect.stringContaining("not configured"),
    ],
  ]);
  await key4c.control("POST", "keys/former/delete");
  expect(await run(["--verify"], etcdctl(values), env)).toMatchObject({ exitCode: 3 });

  const nothing = await run(["--verify"], etcdctl({ "/d": Buffer.from("{}") }), env);
  expect([nothing.exitCode, nothing.stderr]).toEqual([1, expect.stringContaining("no answer")]);
  key4c.stop();
  const away = await run(["--verify"], etcdctl(values), env);
  expect([away.exitCode, away.stderr]).toEqual([4, expect.stringContaining("ask again when")]);
  const both = await run(["--verify", "--decrypt"], etcdctl(values), env);
  expect([both.exitCode, both.stderr]).toEqual([2, expect.stringContaining("give one of them")]);
});

test("one object, one local KEK", async () => {
  const plugin = await startPlugin(emulator().url);
  const values = etcdctl({ [ETCD_KEY]: await v2Value(plugin, true) });
  const env = { KMS_ENDPOINT: `unix://${plugin.socket}` };
  expect((await run([], values, env)).stderr).toStartWith(
    "1 object (1 secrets), 1 local KEK, current",
  );
});

test("an input that is not etcd's: which line it must be of", async () => {
  const file = "ETCDCTL_ENDPOINTS=https://10.0.0.1:2379\nETCDCTL_CACERT=/etc/etcd/ca.pem\n";
  for (const [config, env, line] of [
    ["", {}, "ETCDCTL_ENDPOINTS=https://127.0.0.1:2379 ETCDCTL_CACERT=/etc/kubernetes/pki/etcd/ca"],
    [file, {}, "  ETCDCTL_ENDPOINTS=https://10.0.0.1:2379 ETCDCTL_CACERT=/etc/etcd/ca.pem etcdctl"],
    [file, { ETCDCTL_ENDPOINTS: "x" }, "  etcdctl get --prefix /registry/secrets/ -w json\n"],
  ] as const) {
    for (const input of ["", "no JSON", "[]"]) {
      const all = { ...env, KMS_CONFIG: temporaryFile(config) };
      const { exitCode, stderr } = await runBinary(["inspect"], { input, env: all });
      expect([exitCode, stderr]).toEqual([1, expect.stringContaining(line)]);
      expect(stderr).toContain(input === "" ? "input is empty" : "the input is not etcd's");
    }
  }
});

test("--verify: a key of the same ID with other material gives nothing back", async () => {
  const first = emulator();
  const plugin = await startPlugin(first.url);
  const values = etcdctl({ "/registry/secrets/a": await v2Value(plugin, true) });
  const env = { KEY4C_URL: emulator().url, KMS_KEY_ID: "demo", KMS_USER_ID: "u" };
  const { exitCode, stderr } = await run(["--verify"], values, env);
  expect([exitCode, stderr]).toEqual([
    3,
    expect.stringContaining("restart no plugin and no API server"),
  ]);
});

test("nothing that it prints is obeyed by a terminal", async () => {
  const plugin = await startPlugin(emulator().url);
  const evil = "\x1b]0;owned\x07\u009b31m\u202e\r";
  const value = await v2Value(plugin, true);
  const named = Buffer.concat([
    Buffer.from(`k8s:enc:kms:v2:${evil}:`),
    value.subarray("k8s:enc:kms:v2:key4c:".length),
  ]);
  const values = etcdctl({ [`/registry/${evil}/a`]: named, [`/registry/${evil}/b`]: value });
  const env = { KEY4C_URL: "http://127.0.0.1:9", KMS_KEY_ID: "other", KMS_USER_ID: "u" };
  for (const flags of [[], ["--json"], ["--current", evil], ["--verify"], ["--decrypt"]]) {
    const { stdout, stderr } = await run(
      ["--endpoint", "unix:///nowhere/s", ...flags],
      values,
      env,
    );
    const printed = stdout.toString() + stderr;
    expect(printed.length).toBeGreaterThan(100);
    expect([flags, printed.match(/[^\P{C}\n\t]/gu)]).toEqual([flags, null]);
  }
});

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
  const values = { [ETCD_KEY]: good, "/moved": good, "/plain": Buffer.from("{}") };
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

test("a list of kubectl's is called that", async () => {
  const { stderr, exitCode } = await run([], '{"kind":"List","apiVersion":"v1","items":[]}');
  expect([exitCode, stderr]).toEqual([1, expect.stringContaining("the input is kubectl's")]);
});
