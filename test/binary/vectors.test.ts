/**
 * Data in etcd outlive every version of the plugin: what test/vectors/format-* hold must decrypt for ever. A
 * file there is never changed; a new format gets a new one. The keys are the emulator's own, made for
 * this, and guard nothing.
 */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { KeyManagementService as V1 } from "../../src/gen/v1beta1/api_pb.ts";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import { API_KEY, kes, nhn, ServiceKey } from "../services.ts";
import { callRpc, emulator, fakeServer, startPlugin, temporaryFile } from "../support.ts";

interface Vectors {
  /** The emulator's data file; absent where Key4C is one of the services. */
  readonly emulator?: unknown;
  /** A service of test/services.ts, with its key in base64. */
  readonly service?: { readonly name: keyof typeof SERVICES; readonly key: string };
  readonly kmsKeyId: string;
  readonly previousKeyIds: string;
  /** Bytes in base64. */
  readonly v1: readonly { readonly plaintext: string; readonly cipher: string }[];
  readonly v2: readonly {
    readonly plaintext: string;
    readonly ciphertext: string;
    readonly keyId: string;
    readonly annotations: Readonly<Record<string, string>>;
  }[];
}

const bytes = (base64: string) => Buffer.from(base64, "base64");
const SERVICES = { kes, nhn };

function key4cOf({ service, emulator: data }: Vectors) {
  if (service === undefined) {
    const dataFile = temporaryFile(JSON.stringify(data));
    return { url: emulator({ keyIds: [], dataFile }).url, env: {} };
  }
  const { url } = fakeServer(SERVICES[service.name](new ServiceKey([bytes(service.key)])));
  const profile = join(
    import.meta.dir,
    "../../src/commands/manifest/profiles",
    `${service.name}.json`,
  );
  return { url, env: { KEY4C_PROFILE: profile, KMS_USER_ID: "app", KMS_API_KEY: API_KEY } };
}

const directory = join(import.meta.dir, "../vectors");

const names = readdirSync(directory).filter((name) => name.startsWith("format-"));

test.each(names)("%s decrypts", async (name) => {
  const vectors: Vectors = JSON.parse(readFileSync(join(directory, name), "utf8"));
  const { url, env } = key4cOf(vectors);
  const { client } = await startPlugin(url, {
    ...env,
    KMS_KEY_ID: vectors.kmsKeyId,
    KMS_PREVIOUS_KEY_IDS: vectors.previousKeyIds,
  });
  for (const { plaintext, cipher } of vectors.v1) {
    const { plain } = await callRpc(client, V1.method.decrypt, { cipher: bytes(cipher) });
    expect(Buffer.from(plain).toString("base64")).toBe(plaintext);
  }
  for (const { plaintext, ciphertext, keyId, annotations } of vectors.v2) {
    const opened = await callRpc(client, V2.method.decrypt, {
      ciphertext: bytes(ciphertext),
      keyId,
      annotations: Object.fromEntries(
        Object.entries(annotations).map(([key, value]) => [key, bytes(value)]),
      ),
    });
    expect(Buffer.from(opened.plaintext).toString("base64")).toBe(plaintext);
  }
  expect(vectors.v1.length + vectors.v2.length).toBeGreaterThan(0);
});
