/**
 * `bun test/bench/builds.ts [--rounds N] [--calls N] BINARY…`: what builds of the plugin cost at the start, in turns.
 * Each round starts every binary once, the first one last in every second round. Medians, and the ratio to the first.
 */
import { readdirSync, readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { create, toBinary } from "@bufbuild/protobuf";
import { Client, credentials } from "@grpc/grpc-js";
import { EncryptRequestSchema } from "../../src/gen/v2/api_pb.ts";
import {
  cleanUp,
  median,
  memoryMiB,
  startEmulator,
  startPlugin,
  stop,
  untilOk,
} from "./servers.ts";

const ENCRYPT = Buffer.from(
  toBinary(
    EncryptRequestSchema,
    create(EncryptRequestSchema, { plaintext: new Uint8Array(32), uid: crypto.randomUUID() }),
  ),
);
const CALLERS = 64;

const { values, positionals: binaries } = parseArgs({
  options: {
    rounds: { type: "string", default: "20" },
    calls: { type: "string", default: "20000" },
    idle: { type: "string", default: "2000" },
  },
  allowPositionals: true,
});
const calls = Number(values.calls);

/** CPU of all threads of a process, in ms; /proc/PID/stat counts in steps of 10. */
function cpuMs(pid: number): number {
  const tasks = readdirSync(`/proc/${pid}/task`);
  const nanos = tasks.map((task) =>
    Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, "utf8").split(" ")[0]),
  );
  return nanos.reduce((sum, one) => sum + one, 0) / 1e6;
}

async function measure(binary: string, url: string): Promise<Record<string, number>> {
  const env = { KEY4C_URL: url, KMS_USER_ID: "bench", KMS_KEY_ID: "demo" };
  const beginMs = performance.now();
  const plugin = startPlugin(env, binary);
  const { pid } = plugin.process;
  await untilOk(plugin);
  const readyMs = performance.now() - beginMs;
  const readyCpuMs = cpuMs(pid);
  await Bun.sleep(Number(values.idle));
  const idle = memoryMiB(plugin);
  const client = new Client(`unix://${plugin.socket}`, credentials.createInsecure(), {
    "grpc.use_local_subchannel_pool": 1,
  });
  const asIs = (bytes: Buffer) => bytes;
  const call = (path: string, request: Buffer) =>
    new Promise<void>((resolve, reject) =>
      client.makeUnaryRequest(path, asIs, asIs, request, (error) =>
        error === null ? resolve() : reject(error),
      ),
    );
  const timed = async (path: string, request: Buffer) => {
    const fromMs = performance.now();
    await call(path, request);
    return performance.now() - fromMs;
  };
  await call("/v2.KeyManagementService/Status", Buffer.alloc(0));
  const encrypt = () => timed("/v2.KeyManagementService/Encrypt", ENCRYPT);
  const firstMs = await encrypt();
  const secondMs = await encrypt();
  const load = async () => {
    const before = cpuMs(pid);
    const fromMs = performance.now();
    let left = calls;
    await Promise.all(
      Array.from({ length: CALLERS }, async () => {
        while (left-- > 0) {
          await encrypt();
        }
      }),
    );
    return {
      cpu: ((cpuMs(pid) - before) / calls) * 100,
      rate: calls / ((performance.now() - fromMs) / 1000),
    };
  };
  const row: Record<string, number> = {
    "ready ms": readyMs,
    "CPU to ready ms": readyCpuMs,
    "idle RSS MiB": idle.rss,
    "private MiB": idle.own,
    "first Encrypt ms": firstMs,
    "second ms": secondMs,
  };
  if (calls > 0) {
    const first = await load();
    const later = await load();
    row["first: CPU s per 100,000"] = first.cpu;
    row["later"] = later.cpu;
    row["later: a second"] = later.rate;
    row["loaded RSS MiB"] = memoryMiB(plugin).rss;
  }
  client.close();
  await stop(plugin);
  return row;
}

const { url } = await startEmulator(0);
const rows = new Map<string, Record<string, number>[]>(binaries.map((binary) => [binary, []]));
for (let round = 0; round <= Number(values.rounds); round++) {
  for (const binary of round % 2 === 0 ? binaries : [...binaries].reverse()) {
    const row = await measure(binary, url);
    if (round > 0) {
      rows.get(binary)?.push(row); // the first warms up
    }
  }
}
const names = Object.keys(rows.get(binaries[0] ?? "")?.[0] ?? {});
const of = (binary: string, name: string) =>
  median((rows.get(binary) ?? []).map((row) => row[name] ?? Number.NaN));
console.log(`| medians of ${values.rounds} | ${binaries.join(" | ")} |`);
console.log(`|---|${binaries.map(() => "---|").join("")}`);
for (const name of names) {
  const [first = Number.NaN, ...others] = binaries.map((binary) => of(binary, name));
  const cells = others.map((one) => `${one.toFixed(2)} (${(one / first).toFixed(2)})`);
  console.log(`| ${name} | ${[first.toFixed(2), ...cells].join(" | ")} |`);
}
await cleanUp();
process.exit(0);
