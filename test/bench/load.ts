/**
 * The loader of a machine without Go: the switches and the line of main.go, with grpc-js as the client. It is
 * slower than what it loads, so its ratios say less.
 */
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { create, type DescMessage, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Client, credentials } from "@grpc/grpc-js";
import * as v1 from "../../src/gen/v1beta1/api_pb.ts";
import * as v2 from "../../src/gen/v2/api_pb.ts";

const CLOCK_TICK_MICROS = 10_000;
const DEK = crypto.getRandomValues(new Uint8Array(32));
const UID = "7b3f1a52-5d0e-4f6b-9f3a-0c6f2f1f9a11";

const { values } = parseArgs({
  options: {
    targets: { type: "string", default: "" },
    api: { type: "string", default: "v2" },
    operation: { type: "string", default: "encrypt" },
    callers: { type: "string", default: "1" },
    connections: { type: "string", default: "1" },
    rounds: { type: "string", default: "10" },
    slice: { type: "string", default: "1000ms" },
  },
});
const sliceMs = Number.parseInt(values.slice, 10);

function call(client: Client, path: string, request: Buffer): Promise<Buffer> {
  const asIs = (bytes: Buffer) => bytes;
  return new Promise((resolve, reject) =>
    client.makeUnaryRequest(path, asIs, asIs, request, (error, response) =>
      response ? resolve(response) : reject(error),
    ),
  );
}

function encode<S extends DescMessage>(schema: S, message: Parameters<typeof create<S>>[1]) {
  return Buffer.from(toBinary(schema, create(schema, message)));
}

/** Path and bytes of the request to repeat. */
async function repeatable(client: Client): Promise<readonly [string, Buffer]> {
  const path = (method: string) =>
    `/${values.api === "v1" ? "v1beta1" : "v2"}.KeyManagementService/${method}`;
  const encrypt =
    values.api === "v1"
      ? encode(v1.EncryptRequestSchema, { version: "v1beta1", plain: DEK })
      : encode(v2.EncryptRequestSchema, { plaintext: DEK, uid: UID });
  if (values.operation === "status") {
    return [path("Status"), encode(v2.StatusRequestSchema, {})];
  }
  if (values.operation === "encrypt") {
    return [path("Encrypt"), encrypt];
  }
  const answer = await call(client, path("Encrypt"), encrypt);
  if (values.api === "v1") {
    const { cipher } = fromBinary(v1.EncryptResponseSchema, answer);
    return [path("Decrypt"), encode(v1.DecryptRequestSchema, { version: "v1beta1", cipher })];
  }
  const { ciphertext, keyId, annotations } = fromBinary(v2.EncryptResponseSchema, answer);
  const decrypt = { ciphertext, keyId, annotations, uid: UID };
  return [path("Decrypt"), encode(v2.DecryptRequestSchema, decrypt)];
}

function cpuMicros(pid: string): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1)?.split(" ") ?? [];
  return (Number(fields[11]) + Number(fields[12])) * CLOCK_TICK_MICROS; // utime, stime
}

async function prepare(target: string) {
  const [socket = "", pid = ""] = target.split("@");
  const options = { "grpc.use_local_subchannel_pool": 1 };
  const clients = Array.from(
    { length: Number(values.connections) },
    () => new Client(`unix://${socket}`, credentials.createInsecure(), options),
  );
  const calls: (() => Promise<unknown>)[] = [];
  for (let caller = 0; caller < Number(values.callers); caller++) {
    const client = clients[caller % clients.length] as Client; // there is one at least
    const [path, request] = await repeatable(client);
    calls.push(() => call(client, path, request));
  }
  return async () => {
    const micros: number[] = [];
    let errors = 0;
    const before = cpuMicros(pid);
    const startMs = performance.now();
    await Promise.all(
      calls.map(async (one) => {
        for (let atMs = startMs; atMs - startMs < sliceMs; ) {
          await one().catch(() => errors++);
          const endMs = performance.now();
          micros.push((endMs - atMs) * 1000);
          atMs = endMs;
        }
      }),
    );
    const seconds = (performance.now() - startMs) / 1000;
    micros.sort((a, b) => a - b);
    const at = (part: number) => micros[Math.floor(part * (micros.length - 1))];
    return {
      calls: micros.length,
      perSecond: micros.length / seconds,
      p50Micros: at(0.5),
      p99Micros: at(0.99),
      p999Micros: at(0.999),
      cpuMicros: (cpuMicros(pid) - before) / micros.length,
      errors,
    };
  };
}

const loads = await Promise.all(values.targets.split(",").map(prepare));
const results: unknown[][] = loads.map(() => []);
for (let round = -1; round < Number(values.rounds); round++) {
  for (const [at, load] of loads.entries()) {
    const result = await load();
    if (round >= 0) {
      results[at]?.push(result); // the first warms up
    }
  }
}
console.log(JSON.stringify(results));
process.exit(0);
