/**
 * `npm run bench`: how long the compiled binary takes to its first Status ok, what it holds idle, and its
 * rates under grpc-go, beside a bare grpc-go server in the same run. Rates of two runs or two machines
 * are not comparable; the ratios are.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Client, credentials } from "@grpc/grpc-js";
import { StatusRequestSchema, StatusResponseSchema } from "../src/gen/v2/api_pb.ts";

const BINARY = join(import.meta.dir, "../dist/key4c-kms-plugin");
const STARTS = 7;
const scratch = mkdtempSync(join(tmpdir(), "k4c-bench-"));
const loader = join(scratch, "bench");

interface Result {
  readonly perSecond: number;
  readonly p50Micros: number;
  readonly p99Micros: number;
  readonly errors: number;
}

function startPlugin(socket: string): Bun.Subprocess {
  return Bun.spawn([BINARY, "serve", "--emulator"], {
    env: { KMS_ENDPOINT: `unix://${socket}` },
    stdout: "ignore",
    stderr: "ignore",
  });
}

async function untilOk(socket: string): Promise<void> {
  for (;;) {
    const client = new Client(`unix://${socket}`, credentials.createInsecure());
    const healthz = await new Promise<string>((resolve) =>
      client.makeUnaryRequest(
        "/v2.KeyManagementService/Status",
        (request: Uint8Array) => Buffer.from(request),
        (bytes: Buffer) => fromBinary(StatusResponseSchema, bytes),
        toBinary(StatusRequestSchema, create(StatusRequestSchema)),
        (_, response) => resolve(response?.healthz ?? ""),
      ),
    );
    client.close();
    if (healthz === "ok") {
      return;
    }
    await Bun.sleep(1);
  }
}

/** Milliseconds from exec to the first Status ok. */
async function startMs(round: number): Promise<number> {
  const socket = join(scratch, `start-${round}.sock`);
  const beginMs = performance.now();
  const plugin = startPlugin(socket);
  await untilOk(socket);
  const tookMs = performance.now() - beginMs;
  plugin.kill();
  await plugin.exited;
  return tookMs;
}

function memoryMiB(pid: number): { rss: number; private: number } {
  const text = readFileSync(`/proc/${pid}/smaps_rollup`, "utf8");
  const kib = (name: string) => Number(text.match(new RegExp(`^${name}:\\s+(\\d+)`, "m"))?.[1]);
  return { rss: kib("Rss") / 1024, private: (kib("Private_Dirty") + kib("Private_Clean")) / 1024 };
}

async function load(socket: string, operation: string, callers: number): Promise<Result> {
  const child = Bun.spawn([
    loader,
    "-socket",
    socket,
    "-operation",
    operation,
    "-callers",
    String(callers),
  ]);
  return (await child.stdout.json()) as Result; // the loader's one line
}

const build = Bun.spawnSync(["go", "build", "-o", loader, "."], {
  cwd: join(import.meta.dir, "bench"),
});
if (build.exitCode !== 0) {
  throw new Error(`the loader needs Go: ${build.stderr}`);
}

const starts: number[] = [];
for (let round = 0; round < STARTS; round++) {
  starts.push(await startMs(round));
}
starts.sort((a, b) => a - b);
console.log(`exec to first Status ok: median ${starts[STARTS >> 1]?.toFixed(0)} ms of ${STARTS}`);

const socket = join(scratch, "plugin.sock");
const plugin = startPlugin(socket);
await untilOk(socket);
await Bun.sleep(3_000);
const idle = memoryMiB(plugin.pid);
console.log(
  `idle: RSS ${idle.rss.toFixed(0)} MiB, of which private ${idle.private.toFixed(0)} MiB`,
);

const referenceSocket = join(scratch, "reference.sock");
const reference = Bun.spawn([loader, "-serve", "-socket", referenceSocket]);
console.log(
  "| operation | callers | per second | p50 µs | p99 µs | errors | part of bare grpc-go |",
);
console.log("|---|---|---|---|---|---|---|");
for (const operation of ["encrypt", "decrypt", "status"]) {
  for (const callers of [1, 64]) {
    const ours = await load(socket, operation, callers);
    const theirs = await load(referenceSocket, operation, callers);
    const cells = [
      ours.perSecond.toFixed(0),
      ours.p50Micros.toFixed(0),
      ours.p99Micros.toFixed(0),
      ours.errors,
      (ours.perSecond / theirs.perSecond).toFixed(2),
    ];
    console.log(`| ${operation} | ${callers} | ${cells.join(" | ")} |`);
  }
}
const loaded = memoryMiB(plugin.pid);
console.log(
  `after the load: RSS ${loaded.rss.toFixed(0)} MiB, of which private ${loaded.private.toFixed(0)} MiB`,
);
plugin.kill();
reference.kill();
await Promise.all([plugin.exited, reference.exited]);
rmSync(scratch, { recursive: true });
