/** The servers that the benchmarks load, each a process of its own, and what the benchmarks know of a process. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Client, credentials } from "@grpc/grpc-js";
import { compile, ROOT } from "../../src/build/compile.ts";
import { StatusRequestSchema, StatusResponseSchema } from "../../src/gen/v2/api_pb.ts";
import { NO_CONFIG_FILE } from "../no-config.ts";

export const BINARY = join(ROOT, "dist/key4c-kms-plugin");
export const scratch = mkdtempSync(join(tmpdir(), "k4c-bench-"));
process.on("exit", () => rmSync(scratch, { recursive: true, force: true }));
const children: Bun.Subprocess[] = [];
let started = 0;

export interface Target {
  readonly name: string;
  readonly socket: string;
  readonly process: Bun.Subprocess;
}

/** Ends every server. */
export async function cleanUp(): Promise<void> {
  for (const child of children) {
    child.kill();
    await child.exited;
  }
}

export function freeSocket(): string {
  return join(scratch, `${started++}.sock`);
}

export function startServer(
  name: string,
  socket: string,
  command: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Target {
  const child = Bun.spawn([...command], {
    env: { ...NO_CONFIG_FILE, ...env },
    stdout: "ignore",
    stderr: "ignore",
  });
  keepUntilTheEnd(child);
  return { name, socket, process: child };
}

export function keepUntilTheEnd(child: Bun.Subprocess): void {
  children.push(child);
}

/** The plugin with a Key4C inside, or with the one that `env` names. */
export function startPlugin(
  env: Readonly<Record<string, string>> = {},
  binary: string = BINARY,
): Target {
  const emulator = env["KEY4C_URL"] === undefined ? ["--emulator"] : [];
  const socket = freeSocket();
  const settings = { KMS_ENDPOINT: `unix://${socket}`, KMS_HTTP_ADDRESS: "", ...env };
  return startServer("plugin", socket, [binary, "serve", ...emulator], settings);
}

/** A Key4C of its own, which takes so long to answer. */
export async function startEmulator(
  latencyMs: number,
): Promise<{ readonly url: string; readonly process: Bun.Subprocess }> {
  const command = [BINARY, "emulator", "--control", "--listen", "127.0.0.1:0"];
  const child = Bun.spawn(command, { env: NO_CONFIG_FILE, stdout: "pipe", stderr: "ignore" });
  keepUntilTheEnd(child);
  const { value } = await child.stdout.getReader().read();
  const url = /http\S+/.exec(new TextDecoder().decode(value))?.[0] ?? "";
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify({ ms: latencyMs });
  const answer = await fetch(`${url}/emulator/latency`, { method: "PUT", headers, body });
  if (!answer.ok) {
    throw new Error(`the emulator answers ${answer.status}`);
  }
  return { url, process: child };
}

/** The empty grpc-js service, compiled as the plugin is. */
export async function buildFloor(): Promise<string> {
  const binary = join(scratch, "floor");
  await compile(binary, { source: "test/bench/floor.ts" });
  return binary;
}

export async function startFloor(): Promise<Target> {
  const binary = await buildFloor();
  const socket = freeSocket();
  return startServer("floor", socket, [binary, socket]);
}

/** Builds the loader in Go; undefined without Go. */
export function buildLoader(): string | undefined {
  if (Bun.which("go") === null) {
    return undefined;
  }
  return buildGo("bench", ".");
}

/** @returns the path of the binary */
export function buildGo(name: string, source: string): string {
  const binary = join(scratch, name);
  run(["go", "build", "-o", binary, source], import.meta.dir);
  return binary;
}

export function startReference(loader: string): Target {
  const socket = freeSocket();
  return startServer("grpc-go", socket, [loader, "-serve", socket]);
}

function run(command: string[], cwd: string): void {
  const { exitCode, stderr } = Bun.spawnSync(command, { cwd });
  if (exitCode !== 0) {
    throw new Error(`${command.join(" ")}: ${stderr}`);
  }
}

const START_LIMIT_MS = 30_000;

/** Waits until a plugin's Status is ok, or any server answers it so. @throws Error when that takes too long */
export async function untilOk({ name, socket }: Target): Promise<void> {
  for (const beginMs = performance.now(); performance.now() - beginMs < START_LIMIT_MS; ) {
    const client = new Client(`unix://${socket}`, credentials.createInsecure(), {
      "grpc.use_local_subchannel_pool": 1, // else it would inherit the back-off of the one before
    });
    const healthz = await new Promise<string>((resolve) =>
      client.makeUnaryRequest(
        "/v2.KeyManagementService/Status",
        (request: Uint8Array) => Buffer.from(request),
        (bytes: Buffer) => fromBinary(StatusResponseSchema, bytes),
        toBinary(StatusRequestSchema, create(StatusRequestSchema)),
        { deadline: Date.now() + 3_000 },
        (_, response) => resolve(response?.healthz ?? ""),
      ),
    );
    client.close();
    if (healthz === "ok") {
      return;
    }
    await Bun.sleep(1);
  }
  throw new Error(`${name}: Status is not ok after ${START_LIMIT_MS / 1_000} s`);
}

export async function stop({ process: child }: Target): Promise<void> {
  child.kill();
  await child.exited;
}

export function memoryMiB({ process: { pid } }: Target): { rss: number; own: number } {
  const text = readFileSync(`/proc/${pid}/smaps_rollup`, "utf8");
  const kib = (name: string) => Number(text.match(new RegExp(`^${name}:\\s+(\\d+)`, "m"))?.[1]);
  return { rss: kib("Rss") / 1024, own: (kib("Private_Dirty") + kib("Private_Clean")) / 1024 };
}

export function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}
