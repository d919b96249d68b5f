/** What the plugin once returned stays readable, whatever happens to the process or to Key4C's answers. */
import { expect, test } from "bun:test";
import { createDecipheriv, createHash, randomBytes } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { KeyManagementService as V1 } from "../../src/gen/v1beta1/api_pb.ts";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import defaultProfile from "../../src/key4c/key4c.profile.json";
import {
  callRpc,
  emulator,
  failureOf,
  fakeServer,
  grpcClient,
  passOn,
  startBinary,
  startPlugin,
  temporaryDirectory,
  temporaryFile,
} from "../support.ts";

const KILLS = 50;
const MIN_RETURNED = KILLS * 10;
const CALLERS = 16;

test("kill -9 at random moments under load: everything that was returned decrypts", async () => {
  const { url, control } = emulator();
  const socket = join(temporaryDirectory(), "kms.sock");
  const env = {
    KMS_ENDPOINT: `unix://${socket}`,
    KEY4C_URL: url,
    KMS_KEY_ID: "demo",
    KMS_USER_ID: "u",
    KMS_HTTP_ADDRESS: "",
    KMS_LOCAL_KEK_MAX_USES: "50", // so that kills meet renewals too
    KMS_PROBE_INTERVAL: "100ms",
  };
  const client = grpcClient(socket);
  const returned: { dek: Buffer; cipher: Uint8Array }[] = [];
  let done = false;
  const callers = Array.from({ length: CALLERS }, async () => {
    while (!done) {
      const dek = randomBytes(32);
      try {
        const { cipher } = await callRpc(
          client,
          V1.method.encrypt,
          { plain: dek },
          { deadlineMs: 500 },
        );
        returned.push({ dek, cipher });
      } catch {
        await Bun.sleep(5); // the plugin is dead just now
      }
    }
  });
  // A busy machine kills more often, until there is enough to be lost.
  for (let kill = 0; kill < KILLS || returned.length <= MIN_RETURNED; kill++) {
    const before = returned.length;
    const plugin = startBinary(["serve"], env);
    while (returned.length === before) {
      await Bun.sleep(2);
    }
    if (kill % 10 === 5) {
      await control("POST", "keys/demo/rotate");
    }
    await Bun.sleep(Math.random() * 40);
    await plugin.stop("SIGKILL");
  }
  done = true;
  await Promise.all(callers);

  const survivor = await startPlugin(url);
  expect(returned.length).toBeGreaterThan(MIN_RETURNED);
  for (let at = 0; at < returned.length; at += 500) {
    await Promise.all(
      returned.slice(at, at + 500).map(async ({ dek, cipher }) => {
        const { plain } = await callRpc(survivor.client, V1.method.decrypt, { cipher });
        expect(dek.equals(plain)).toBe(true);
      }),
    );
  }
});

/** Requests go to the emulator, answers through `change`. */
function between(url: string, change: (path: string, answer: Record<string, unknown>) => unknown) {
  return fakeServer(async (request, body) => {
    const { pathname } = new URL(request.url);
    const answer = await passOn(url, request, body);
    const document = (await answer.json()) as Record<string, unknown>; // the contract's objects
    return Response.json(answer.ok ? change(pathname, document) : document, {
      status: answer.status,
    });
  });
}

/** Another character in the midst of it. */
const mangled = (base64: string) =>
  base64.replace(/^(.{40})(.)/, (_, before, one) => before + (one === "A" ? "B" : "A"));

const profileWith = (change: (profile: typeof defaultProfile) => void) => {
  const profile = structuredClone(defaultProfile);
  change(profile);
  return temporaryFile(JSON.stringify(profile));
};

test.each([
  [
    "the profile takes the ciphertext from a wrong place",
    (url: string) => ({
      url,
      env: {
        KEY4C_PROFILE: profileWith((profile) => {
          profile.encrypt.result = { ciphertext: "/label", version: "/version" };
        }),
      },
    }),
    /"state":"starting".*\/label is not a text/,
  ],
  [
    "the profile takes the plaintext from a wrong place",
    (url: string) => ({
      url: between(url, (_, answer) => ({ ...answer, echo: randomBytes(32).toString("base64") }))
        .url,
      env: {
        KEY4C_PROFILE: profileWith((profile) => {
          profile.decrypt.result = { plaintext: "/echo" };
        }),
      },
    }),
    /"state":"starting".*does not unwrap the local KEK/,
  ],
  [
    "Key4C mangles what it wraps",
    (url: string) => ({
      url: between(url, (path, answer) =>
        path.endsWith("/encrypt")
          ? { ...answer, ciphertext: mangled(String(answer["ciphertext"])) }
          : answer,
      ).url,
      env: {},
    }),
    /"state":"starting".*does not unwrap the local KEK/,
  ],
  [
    "Key4C answers with the wrap of another key",
    (url: string) => {
      const foreign = randomBytes(60).toString("base64");
      const change = (path: string, answer: object) =>
        path.endsWith("/encrypt") ? { ...answer, ciphertext: foreign } : answer;
      return { url: between(url, change).url, env: {} };
    },
    /"state":"starting".*does not unwrap the local KEK/,
  ],
] as const)("no local KEK becomes current when %s", async (_, make, logged) => {
  const { url, env } = make(emulator().url);
  const socket = join(temporaryDirectory(), "kms.sock");
  const plugin = startBinary(["serve"], {
    KMS_ENDPOINT: `unix://${socket}`,
    KEY4C_URL: url,
    KMS_KEY_ID: "demo",
    KMS_USER_ID: "u",
    KMS_HTTP_ADDRESS: "",
    ...env,
  });
  await plugin.until(logged);
  const client = grpcClient(socket);
  for (const call of [
    callRpc(client, V2.method.status, {}),
    callRpc(client, V2.method.encrypt, { plaintext: Buffer.alloc(32) }),
    callRpc(client, V1.method.encrypt, { plain: Buffer.alloc(32) }),
  ]) {
    expect((await failureOf(call))[0]).toBe(status.UNAVAILABLE);
  }
  expect(plugin.output()).not.toContain("new local KEK");
});

test("an older release reads what this one writes: format 1 by a reader of its own", async () => {
  const dataFile = join(temporaryDirectory(), "keys.json");
  const { url } = emulator({ dataFile });
  const { client } = await startPlugin(url);
  const dek = randomBytes(32);
  const { ciphertext, keyId, annotations } = await callRpc(client, V2.method.encrypt, {
    plaintext: dek,
  });
  const { cipher } = await callRpc(client, V1.method.encrypt, { plain: dek });
  expect(existsSync(dataFile)).toBe(true);
  const [[, { versions }]] = JSON.parse(readFileSync(dataFile, "utf8"));
  const wrapped = Buffer.from(annotations["wrapped-kek.key4c-kms-plugin.io"] ?? []).toString();
  expect(keyId).toStartWith("k4c-fbajn2fxsguq6aegzffhmyn5zi.v1.k");
  expect(readFormat1(ciphertext, wrapped, versions)).toEqual(dek);
  expect(readFormat1(cipher, undefined, versions)).toEqual(dek);
});

/** The stored format as README and envelope.proto of 0.1.0 give it, without the product's code. */
function readFormat1(
  bytes: Uint8Array,
  annotation: string | undefined,
  versions: string[],
): Buffer {
  const stored = Buffer.from(bytes);
  expect(stored.subarray(0, 4).toString("hex")).toBe("6b346301");
  const fields: Buffer[] = [];
  const numbers: number[] = [];
  for (let at = 4; at < stored.length; ) {
    const tag = stored[at] ?? 0;
    const value = stored[at + 1] ?? 0; // every length and number here is below 128
    numbers[tag >> 3] = value;
    fields[tag >> 3] = stored.subarray(at + 2, at + 2 + value);
    at += (tag & 7) === 2 ? 2 + value : 2;
  }
  const [, hash, , , inside, iv, sealed, kcvHash] = fields as [
    never,
    Buffer,
    never,
    never,
    Buffer | undefined,
    Buffer,
    Buffer,
    Buffer,
  ]; // of a protobuf message: what is absent fails below
  const wrapped = annotation ?? inside?.toString() ?? "";
  expect(inside === undefined).toBe(annotation !== undefined);
  const purpose = Buffer.concat([Buffer.from("key4c-kms-plugin/local-kek/v1:"), hash]);
  const kek = Buffer.from(versions[0] ?? "", "base64");
  const box = Buffer.from(wrapped, "base64"); // the emulator's: version || IV || encrypted || tag
  const localKek = open(kek, box.subarray(4, 16), box.subarray(16), purpose);
  const version = Buffer.alloc(4);
  version.writeUInt32BE(numbers[2] ?? 0);
  const fingerprint = createHash("sha256").update(wrapped).digest();
  const texts = ["key4c-kms-plugin/kcv/v1", "demo", kcvOf(kek)];
  const digest = createHash("sha256").update(lengthPrefixed(texts)).digest();
  expect(kcvHash).toEqual(digest.subarray(0, 5));
  const sent = Buffer.from([numbers[3] ?? 0]);
  const aad = [stored.subarray(0, 4), hash, version, sent, fingerprint, kcvHash];
  return open(localKek, iv, sealed, Buffer.concat(aad));
}

/** The emulator's. */
const kcvOf = (kek: Buffer) =>
  createHash("sha256").update(kek).digest("hex").slice(0, 6).toUpperCase();

const lengthPrefixed = (texts: readonly string[]) =>
  Buffer.concat(
    texts.flatMap((text) => {
      const length = Buffer.alloc(4);
      length.writeUInt32BE(text.length);
      return [length, Buffer.from(text)];
    }),
  );

function open(key: Buffer, iv: Buffer, sealed: Buffer, aad: Buffer): Buffer {
  const decipher = createDecipheriv("aes-256-gcm", key, iv)
    .setAAD(aad)
    .setAuthTag(sealed.subarray(-16));
  return Buffer.concat([decipher.update(sealed.subarray(0, -16)), decipher.final()]);
}
