/** Cases of kubernetes.md §7, by their numbers, that no other test of the compiled binary holds. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { connect } from "node:net";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { KeyManagementService as V1 } from "../../src/gen/v1beta1/api_pb.ts";
import { type EncryptResponse, KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import {
  callRpc,
  emulator,
  failureOf,
  fakeServer,
  grpcClient,
  onTestEnd,
  passOn,
  startPlugin,
} from "../support.ts";
import { bendKey4C, hangs } from "./bent-key4c.ts";

const DEK = randomBytes(32);
const INVALID = [status.INVALID_ARGUMENT, "the request is not valid"] as [number, string];
const UNKNOWN_KEY = [
  status.NOT_FOUND,
  "the ciphertext belongs to a key that is not configured",
] as [number, string];
const ANNOTATION = "wrapped-kek.key4c-kms-plugin.io";

type Plugin = Awaited<ReturnType<typeof startPlugin>>;

const ask = ({ client }: Plugin) => callRpc(client, V2.method.status, {});
const encrypt = ({ client }: Plugin) => callRpc(client, V2.method.encrypt, { plaintext: DEK });
const decrypt = (
  { client }: Plugin,
  { ciphertext, keyId, annotations }: Omit<EncryptResponse, "$typeName">,
) => callRpc(client, V2.method.decrypt, { ciphertext, keyId, annotations });
const encryptV1 = async ({ client }: Plugin) =>
  (await callRpc(client, V1.method.encrypt, { plain: DEK })).cipher;
const decryptV1 = ({ client }: Plugin, cipher: Uint8Array) =>
  callRpc(client, V1.method.decrypt, { cipher });

/** Calls in batches, so that one connection is never given more than it should be. */
async function inBatches<T>(items: readonly T[], call: (item: T) => Promise<unknown>) {
  for (let at = 0; at < items.length; at += 200) {
    await Promise.all(items.slice(at, at + 200).map(call));
  }
}

test("case 15: two thousand ciphertexts of one DEK all differ", async () => {
  const plugin = await startPlugin(emulator().url);
  const seen = new Set<string>();
  await inBatches(Array.from({ length: 2_000 }), async () =>
    seen.add(Buffer.from(await encryptV1(plugin)).toString("latin1")),
  );
  expect(seen.size).toBe(2_000);
});

test("cases 21, 22, 24: the largest wrapped KEK and the longest key ID fit every limit", async () => {
  const keyId = "K".repeat(256);
  const { url } = emulator({ keyIds: [keyId] });
  // A service whose wrapped keys are as large as allowed: the emulator's, padded.
  const padded = fakeServer(async (request, body) => {
    const answer = await passOn(url, request, body.replace(/~+/, ""));
    const document = (await answer.json()) as Record<string, string>; // the contract's objects
    return Response.json({
      ...document,
      ...(document["ciphertext"] && { ciphertext: document["ciphertext"].padEnd(16 * 1024, "~") }),
    });
  });
  const plugin = await startPlugin(padded.url, { KMS_KEY_ID: keyId });
  const response = await encrypt(plugin);
  expect(response.ciphertext.length).toBeGreaterThan(0);
  expect(response.ciphertext.length).toBeLessThanOrEqual(1_024);
  expect(response.keyId.length).toBeLessThanOrEqual(1_024);
  const entries = Object.entries(response.annotations);
  for (const [name] of entries) {
    expect(name).toMatch(
      /^(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)+$/,
    );
  }
  const total = entries.reduce((sum, [name, value]) => sum + name.length + value.length, 0);
  expect(total).toBeLessThanOrEqual(32_768);
  const cipher = await encryptV1(plugin);
  expect(cipher.length).toBeGreaterThan(16 * 1024);
  expect(cipher.length).toBeLessThanOrEqual(65_535);
  expect(Buffer.from((await decryptV1(plugin, cipher)).plain)).toEqual(DEK);
  expect(Buffer.from((await decrypt(plugin, response)).plaintext)).toEqual(DEK);
});

test("case 23: key_id holds nothing of the key's ID or the credential", async () => {
  const plugin = await startPlugin(emulator({ keyIds: ["my-key-id"] }).url, {
    KMS_KEY_ID: "my-key-id",
    KMS_USER_ID: "my-user-id",
  });
  expect((await ask(plugin)).keyId).toMatch(/^k4c-[a-z2-7]{26}\.v1\.k[a-z2-7]{8}$/);
});

test("cases 27, 28: every flipped bit, truncation and extension is refused, with one text", async () => {
  const plugin = await startPlugin(emulator().url);
  const cipher = await encryptV1(plugin);
  const response = await encrypt(plugin);
  const flips = (bytes: Uint8Array) =>
    Array.from({ length: bytes.length * 8 }, (_, bit) => {
      const copy = Buffer.from(bytes);
      copy[bit >> 3] = (copy[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      return copy;
    });
  const resized = (bytes: Uint8Array) => [
    ...Array.from({ length: bytes.length }, (_, length) => Buffer.from(bytes.subarray(0, length))),
    Buffer.concat([bytes, Buffer.alloc(1)]),
    Buffer.concat([bytes, bytes]),
    Buffer.concat([bytes, Buffer.from([0x7a, 1, 0])]), // an unknown field, which protobuf would skip
  ];
  await inBatches([...flips(cipher), ...resized(cipher)], async (bad) => {
    const namesAnotherKey =
      !bad.subarray(6, 22).equals(cipher.subarray(6, 22)) && bad.length === cipher.length;
    const expected = namesAnotherKey ? UNKNOWN_KEY : INVALID;
    expect(await failureOf(decryptV1(plugin, bad))).toEqual(expected);
  });
  const { ciphertext, keyId } = response;
  await inBatches([...flips(ciphertext), ...resized(ciphertext)], async (bad) => {
    expect(await failureOf(decrypt(plugin, { ...response, ciphertext: bad }))).toEqual(INVALID);
  });
  const wrapped = response.annotations[ANNOTATION] ?? Buffer.alloc(0);
  await inBatches([...flips(wrapped).slice(0, 80), ...resized(wrapped)], async (bad) => {
    const annotations = { [ANNOTATION]: bad };
    expect(await failureOf(decrypt(plugin, { ciphertext, keyId, annotations }))).toEqual(INVALID);
  });
});

test("case 33: a ciphertext of another cluster's key of the same name does not open", async () => {
  const ours = await startPlugin(emulator().url);
  const theirs = await startPlugin(emulator().url);
  // Its key check value is one that this process was never told: it may be that of a replica which is ahead.
  const UNCERTAIN: [number, string] = [status.UNAVAILABLE, "Key4C is not available"];
  expect(await failureOf(decrypt(ours, await encrypt(theirs)))).toEqual(UNCERTAIN);
  expect(await failureOf(decryptV1(ours, await encryptV1(theirs)))).toEqual(UNCERTAIN);
});

test("case 35: Status and Encrypt agree under continuous rotation with 64 callers", async () => {
  const key4c = emulator();
  const plugin = await startPlugin(key4c.url, { KMS_PROBE_INTERVAL: "100ms" });
  let done = false;
  const versions = new Set<number>();
  const versionOf = (keyId: string) => {
    const version = Number(/\.v(\d+)\./.exec(keyId)?.[1]);
    versions.add(version);
    return version;
  };
  const callers = Array.from({ length: 64 }, async () => {
    while (!done) {
      const before = versionOf((await ask(plugin)).keyId);
      const response = await encrypt(plugin);
      const between = versionOf(response.keyId);
      const after = versionOf((await ask(plugin)).keyId);
      // A pair may differ only if a switch lies between its two answers, and never goes back.
      expect(before).toBeLessThanOrEqual(between);
      expect(between).toBeLessThanOrEqual(after);
      expect(Buffer.from((await decrypt(plugin, response)).plaintext)).toEqual(DEK);
      await Bun.sleep(10); // what rotates needs a processor, too
    }
  });
  let rotated = 0;
  while (versions.size < 8) {
    const seen = versions.size;
    rotated = (await key4c.control("POST", "keys/demo/rotate"))["version"] ?? 0;
    while (versions.size === seen) {
      await Bun.sleep(10); // a version that is left before it was proven is never published
    }
  }
  done = true;
  await Promise.all(callers);
  // Nothing moves any more once the last rotation has arrived.
  while (versionOf((await ask(plugin)).keyId) < rotated) {
    await Bun.sleep(10);
  }
  const last = (await ask(plugin)).keyId;
  expect((await encrypt(plugin)).keyId).toBe(last);
});

test("case 39: a thousand Statuses cost Key4C nothing, and do not wait for it", async () => {
  const key4c = bendKey4C(emulator().url);
  const plugin = await startPlugin(key4c.url, { KMS_PROBE_INTERVAL: "1h" });
  const before = key4c.requests.length;
  key4c.behaviour = hangs;
  await inBatches(Array.from({ length: 1_000 }), () => ask(plugin));
  expect(key4c.requests.length).toBe(before);
});

test("case 42: a restart storm of KMS v1, two thousand Decrypts one after the other", async () => {
  const key4c = emulator();
  const noProbe = { KMS_PROBE_INTERVAL: "1h" };
  const cipher = await encryptV1(await startPlugin(key4c.url, noProbe));
  const restarted = await startPlugin(key4c.url, noProbe);
  for (let round = 0; round < 2_000; round++) {
    const { plain } = await decryptV1(restarted, cipher);
    expect(DEK.equals(plain)).toBe(true);
  }
  // Three, or a few more: on a busy machine an attempt is repeated.
  expect((await key4c.control("GET", "stats"))["decrypt"]).toBeLessThan(10);
});

/** A metric without labels of a plugin with HTTP. */
async function metric(plugin: Plugin, name: string): Promise<number> {
  const url = (await plugin.until(/"url":"(http:[^"]*)"/))[1] ?? "";
  const text = await (await fetch(`${url}metrics`)).text();
  return Number(text.split(`\n${name} `)[1]?.split("\n")[0] ?? 0);
}

test("case 49: neighbours that say nothing, or half of something, keep nobody waiting", async () => {
  const plugin = await startPlugin(emulator().url, { KMS_HTTP_ADDRESS: "127.0.0.1:0" });
  const preface = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  const openings = [
    Buffer.alloc(0),
    preface.subarray(0, 10),
    preface,
    Buffer.concat([preface, Buffer.from("0000ff", "hex")]), // a frame header cut short
  ];
  for (let round = 0; round < 200; round++) {
    const socket = connect(plugin.socket);
    socket.on("error", () => {});
    onTestEnd(() => socket.destroy());
    await new Promise<void>((resolve) => socket.once("connect", () => resolve()));
    const opening = openings[round % openings.length];
    if (opening?.length) {
      socket.write(opening);
    }
  }
  while ((await metric(plugin, "key4c_kms_connections")) < 200) {
    await Bun.sleep(10);
  }
  const fresh = grpcClient(plugin.socket);
  const { ciphertext, keyId, annotations } = await callRpc(fresh, V2.method.encrypt, {
    plaintext: DEK,
  });
  await inBatches(Array.from({ length: 500 }), () =>
    callRpc(fresh, V2.method.decrypt, { ciphertext, keyId, annotations }),
  );
  expect(await metric(plugin, "key4c_kms_connections")).toBeGreaterThan(200);
});

test("a client that never reads its answers is no longer read", async () => {
  const plugin = await startPlugin(emulator().url, { KMS_HTTP_ADDRESS: "127.0.0.1:0" });
  const url = (await plugin.until(/"url":"(http:[^"]*)"/))[1] ?? "";
  const answered = async () =>
    Number(
      (await (await fetch(`${url}metrics`)).text()).match(
        /rpc_duration_seconds_count\{api="v2",method="Encrypt",code="OK"\} (\d+)/,
      )?.[1] ?? 0,
    );
  const REQUESTS = 50_000;
  const STILL = 6;
  const neverReads = () => {
    const script = join(import.meta.dir, "never-reads.mjs");
    const started = Bun.spawn(["node", script, plugin.socket, `${REQUESTS}`]);
    onTestEnd(() => started.kill("SIGKILL"));
    return started;
  };
  let client = neverReads();
  // Until the number stands still, longer than a busy machine makes it: all is served, or nothing more is read.
  for (let still = 0, before = -1, now = 0; still < STILL || now === 0; ) {
    before = now;
    await Bun.sleep(500);
    now = await answered();
    still = now === before ? still + 1 : 0;
    if (now === 0 && client.exitCode !== null) {
      client = neverReads(); // more streams at once than it may: it can be cut off before anything was answered
    }
  }
  expect(await answered()).toBeLessThan(REQUESTS / 10);
  expect((await encrypt(plugin)).ciphertext.length).toBeGreaterThan(0);
});
