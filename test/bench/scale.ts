/**
 * What an API server's restart costs with KMS v1: every Secret is decrypted once, by a plugin that has just
 * started too. Beside it the way of other plugins, one call to the HSM for an object: our own plugin with
 * nothing in its cache, on data of which each has a local KEK of its own, so that each decrypt is one unwrap.
 */
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Client, credentials } from "@grpc/grpc-js";
import { startEmulator } from "../../src/emulator/emulator.ts";
import * as v1 from "../../src/gen/v1beta1/api_pb.ts";
import { startPlugin, stop, type Target, untilOk } from "./servers.ts";

const LATENCIES_MS = [0, 20, 100];
const WIDTHS = [1, 10];
/** Objects that are read one call each; the rest is computed. */
const MEASURED_CALLS = 1_000;

type Ciphers = readonly Buffer[];

export async function scale(quick: boolean): Promise<void> {
  const sizes = quick ? [100, 1_000] : [100, 1_000, 100_000];
  const kekCounts = quick ? [1, 100] : [1, 10, 100, 1_000, 5_000];
  const emulator = startEmulator({
    host: "127.0.0.1",
    port: 0,
    keyIds: ["bench"],
    dataFile: undefined,
    control: true,
  });
  const env = { KEY4C_URL: emulator.url, KMS_KEY_ID: "bench", KMS_USER_ID: "bench" };
  const control = async (path: string, body?: object) => {
    const method = body ? "PUT" : "GET";
    const options = { method, ...(body && { body: JSON.stringify(body) }) };
    const response = await fetch(`${emulator.url}/emulator/${path}`, options);
    return (await response.json()) as Record<string, number>; // stats
  };
  /** Starts a plugin, decrypts all, and tells milliseconds and calls to Key4C, those of the start left out. */
  const restart = async (ciphers: Ciphers, latencyMs: number, width: number, more = {}) => {
    const plugin = startPlugin({ ...env, ...more });
    await untilOk(plugin);
    await control("latency", { ms: latencyMs });
    const before = (await control("stats"))["decrypt"] ?? 0;
    const beginMs = performance.now();
    await decryptAll(plugin, ciphers, width);
    const tookMs = performance.now() - beginMs;
    await control("latency", { ms: 0 });
    const calls = ((await control("stats"))["decrypt"] ?? 0) - before;
    await stop(plugin);
    return { tookMs, calls };
  };
  const seconds = (ms: number) => (ms / 1000).toFixed(ms < 1e5 ? 2 : 0);

  const oneKek = await encryptAll(env, sizes.at(-1) ?? 0);
  const ownKeks = await encryptAll(
    { ...env, KMS_LOCAL_KEK_MAX_USES: "1" },
    Math.max(quick ? 100 : MEASURED_CALLS, ...kekCounts),
  );
  console.log("KMS v1, every object decrypted once after a restart; seconds (calls to Key4C)\n");
  console.log(`| Key4C | at a time | way | ${sizes.map((size) => `${size}`).join(" | ")} |`);
  console.log(`|---|---|---|${sizes.map(() => "---|").join("")}`);
  for (const latencyMs of LATENCIES_MS) {
    for (const width of WIDTHS) {
      const ours: string[] = [];
      for (const size of sizes) {
        const { tookMs, calls } = await restart(oneKek.slice(0, size), latencyMs, width);
        ours.push(`${seconds(tookMs)} (${calls})`);
      }
      const measured = quick ? 100 : MEASURED_CALLS;
      const each = await restart(ownKeks.slice(0, measured), latencyMs, width, {
        KMS_LOCAL_KEK_CACHE_SIZE: "0",
      });
      const theirs = sizes.map((size) => {
        const factor = size / measured;
        const mark = size > measured ? " computed" : "";
        return `${seconds(each.tookMs * factor)} (${Math.round(each.calls * factor)}${mark})`;
      });
      console.log(`| ${latencyMs} ms | ${width} | plugin | ${ours.join(" | ")} |`);
      console.log(`| ${latencyMs} ms | ${width} | a call an object | ${theirs.join(" | ")} |`);
    }
  }

  console.log("\nDistinct local KEKs in the data, Key4C 20 ms away, 10 and 100 at a time\n");
  console.log(
    "| local KEKs | seconds, 10 | unwraps | seconds, 100 | unwraps |\n|---|---|---|---|---|",
  );
  for (const count of kekCounts) {
    // Each local KEK twice, so that a second unwrap of one would show.
    const ciphers = [...ownKeks.slice(0, count), ...ownKeks.slice(0, count)];
    const cells: string[] = [];
    for (const width of [10, 100]) {
      const { tookMs, calls } = await restart(ciphers, 20, width);
      cells.push(seconds(tookMs), `${calls}`);
    }
    console.log(`| ${count} | ${cells.join(" | ")} |`);
  }
  await emulator.stop();
}

async function encryptAll(env: Record<string, string>, count: number): Promise<Ciphers> {
  const plugin = startPlugin(env);
  await untilOk(plugin);
  const client = new Client(`unix://${plugin.socket}`, credentials.createInsecure());
  const ciphers: Buffer[] = [];
  const request = toBinary(
    v1.EncryptRequestSchema,
    create(v1.EncryptRequestSchema, { version: "v1beta1", plain: new Uint8Array(32) }),
  );
  await inParallel(count, 16, async () => {
    const answer = await call(client, "Encrypt", request);
    ciphers.push(Buffer.from(fromBinary(v1.EncryptResponseSchema, answer).cipher));
  });
  client.close();
  await stop(plugin);
  return ciphers;
}

async function decryptAll({ socket }: Target, ciphers: Ciphers, width: number): Promise<void> {
  const client = new Client(`unix://${socket}`, credentials.createInsecure());
  await inParallel(ciphers.length, width, (at) => {
    const cipher = ciphers[at] ?? Buffer.alloc(0);
    const message = create(v1.DecryptRequestSchema, { version: "v1beta1", cipher });
    return call(client, "Decrypt", toBinary(v1.DecryptRequestSchema, message));
  });
  client.close();
}

async function inParallel(count: number, width: number, task: (at: number) => Promise<unknown>) {
  let next = 0;
  const worker = async () => {
    while (next < count) {
      await task(next++);
    }
  };
  await Promise.all(Array.from({ length: width }, worker));
}

function call(client: Client, method: string, request: Uint8Array): Promise<Buffer> {
  const path = `/v1beta1.KeyManagementService/${method}`;
  const toBuffer = (bytes: Uint8Array) => Buffer.from(bytes);
  return new Promise((resolve, reject) =>
    client.makeUnaryRequest(
      path,
      toBuffer,
      (bytes: Buffer) => bytes,
      request,
      (error, response) => (response ? resolve(response) : reject(error)),
    ),
  );
}
