/** What several tests share. Everything here starts real parts: sockets, servers, processes. */
import { afterEach, setDefaultTimeout } from "bun:test";
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  create,
  type DescMethodUnary,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { Client, credentials, Metadata, type ServiceError } from "@grpc/grpc-js";
import { version } from "../package.json";
import { type EmulatorOptions, startEmulator } from "../src/emulator/emulator.ts";
import type { ErrorKind } from "../src/failures/kinds.ts";
import { PluginError } from "../src/failures/plugin-error.ts";
import type { Key4COptions } from "../src/key4c/calls.ts";
import { Key4C } from "../src/key4c/client.ts";
import { DEFAULT_PROFILE } from "../src/key4c/profile.ts";
import { createLog } from "../src/system/log.ts";
import { expectInReference } from "./log-messages.ts";
import { NO_CONFIG_FILE } from "./no-config.ts";
import {
  allowFile,
  emulatorKeys,
  expectNoSecret,
  expectNoSecretInFiles,
  secret,
  startedWith,
  wrappedLocalKek,
} from "./secrets.ts";

/** What the binary says of its version: the release, and the commit that it was built from. */
export const BUILD_VERSION = new RegExp(
  `^${version.replaceAll(".", "\\.")}\\+([0-9a-f]{12}(-dirty)?|unknown)$`,
);

export const BINARY = join(import.meta.dir, "../dist/key4c-kms-plugin");

/** Ends a test that hangs, also on a machine with ten times the work that it can do. */
const TEST_TIMEOUT_MS = 300_000;
/** How long a test waits for what must come: a deadline of the test, not of the plugin. */
const PATIENCE_MS = 120_000;
setDefaultTimeout(TEST_TIMEOUT_MS);

const cleanups: (() => unknown)[] = [];
/** A pod takes seconds to end on a busy machine. The tests' own timeouts do not hold for what runs after them. */
const CLEANUP_TIMEOUT_MS = 60_000;
afterEach(async () => {
  const failures: unknown[] = [];
  for (const cleanup of cleanups.splice(0).reverse()) {
    try {
      await cleanup();
    } catch (error) {
      failures.push(error); // the others still end what they started
    }
  }
  if (failures.length > 0) {
    throw failures[0];
  }
}, CLEANUP_TIMEOUT_MS);

/** Runs `cleanup` when the test ends, last registered first. */
export function onTestEnd(cleanup: () => unknown): void {
  cleanups.push(cleanup);
}

export function temporaryDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), "k4c-"));
  onTestEnd(() => {
    try {
      expectNoSecretInFiles(directory);
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  });
  return directory;
}

/** A file with the given text, in a directory of its own; it may be one that holds a secret. */
export function temporaryFile(text: string): string {
  const path = join(temporaryDirectory(), "file");
  allowFile(path);
  writeFileSync(path, text);
  return path;
}

export const silentLog = createLog({ level: "error", format: "json", write: () => {} });

/** A log whose lines can be read. */
export function recordingLog() {
  const lines: Record<string, unknown>[] = [];
  const write = (line: string) => {
    expectNoSecret("a log line", line);
    expectInReference(line);
    lines.push(JSON.parse(line));
  };
  return { lines, log: createLog({ level: "debug", format: "json", write }) };
}

/** The kind with which a promise fails; the text "ok" when it does not. */
export async function kindOf(promise: Promise<unknown>): Promise<ErrorKind | "ok"> {
  try {
    await promise;
    return "ok";
  } catch (error) {
    if (error instanceof PluginError) {
      return error.kind;
    }
    throw error;
  }
}

export function emulator(options: Partial<EmulatorOptions> = {}) {
  const dataFile = options.dataFile ?? join(temporaryDirectory(), "key4c.json");
  emulatorKeys(dataFile);
  const started = startEmulator({
    host: "127.0.0.1",
    port: 0,
    keyIds: ["demo"],
    dataFile,
    control: true,
    ...options,
  });
  onTestEnd(() => started.stop());
  const control = async (method: string, path: string, body?: object) => {
    const response = await fetch(`${started.url}/emulator/${path}`, {
      method,
      keepalive: false, // a kept connection may end just when it is to be used
      ...(body && { body: JSON.stringify(body) }),
    });
    if (!response.ok) {
      throw new Error(`emulator control ${path}: ${response.status}`);
    }
    return (await response.json()) as Record<string, number>; // stats or a key
  };
  return { url: started.url, control, stop: started.stop };
}

/** A client of Key4C for tests. */
export function key4cClient(options: Partial<Key4COptions> & { readonly url: string }): Key4C {
  return new Key4C({
    profile: DEFAULT_PROFILE,
    credentials: () => ({ userId: "test-user" }),
    tls: () => ({}),
    userAgent: "key4c-kms-plugin/test",
    log: silentLog,
    ...options,
  });
}

/**
 * Passes a request on to the Key4C at `url`. Each on a connection of its own: a kept one may end just when it is to be
 * used.
 */
export const passOn = (
  url: string,
  { url: from, method, headers }: Pick<Request, "url" | "method" | "headers">,
  body: string,
): Promise<Response> =>
  fetch(url + new URL(from).pathname, {
    method,
    headers,
    keepalive: false,
    ...(body !== "" && { body }),
  });

/** An HTTP server on loopback whose answers the test gives. */
export function fakeServer(
  answer: (request: Request, body: string) => Response | Promise<Response>,
): { readonly url: string; readonly requests: { request: Request; body: string }[] } {
  const requests: { request: Request; body: string }[] = [];
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    async fetch(request) {
      const body = await request.text();
      requests.push({ request, body });
      return answer(request, body);
    },
  });
  onTestEnd(() => server.stop(true));
  return { url: server.url.href.replace(/\/$/, ""), requests };
}

/** One call over a unix socket. @throws ServiceError */
export async function callRpc<
  I extends DescMethodUnary["input"],
  O extends DescMethodUnary["output"],
>(
  client: Client,
  method: { readonly input: I; readonly output: O } & DescMethodUnary,
  request: MessageInitShape<I>,
  { deadlineMs = PATIENCE_MS, metadata = new Metadata() } = {},
): Promise<MessageShape<O>> {
  const message = create(method.input, request);
  learnSecrets(message);
  const bytes = toBinary(method.input, message);
  const path = `/${method.parent.typeName}/${method.name}`;
  const answer = fromBinary(
    method.output,
    await callRaw(client, path, bytes, { deadlineMs, metadata }),
  );
  learnSecrets(answer);
  return answer;
}

/** DEKs, and the local KEKs that wrapped them, are secrets from here on. */
function learnSecrets(message: object): void {
  for (const [name, value] of Object.entries(message)) {
    if (name === "plain" || name === "plaintext") {
      secret("DEK", value as Uint8Array); // by the protocol
    } else if (name === "annotations") {
      for (const wrapped of Object.values(value as Record<string, Uint8Array>)) {
        wrappedLocalKek(Buffer.from(wrapped).toString());
      }
    }
  }
}

/**
 * For `callRpc`: the plugin is told a deadline that the caller itself does not keep. So the answer is the
 * plugin's own, however late a busy machine lets it arrive.
 */
export function toldDeadline(ms: number) {
  const metadata = new Metadata();
  metadata.set("grpc-timeout", `${ms}m`);
  return { deadlineMs: Number.POSITIVE_INFINITY, metadata };
}

/** The same with bytes in and out. */
export function callRaw(
  client: Client,
  path: string,
  request: Uint8Array,
  { deadlineMs = PATIENCE_MS, metadata = new Metadata() } = {},
): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    client.makeUnaryRequest(
      path,
      (message: Uint8Array) => Buffer.from(message),
      (message: Buffer) => message,
      request,
      metadata,
      { deadline: Date.now() + deadlineMs },
      (error: ServiceError | null, response) => {
        try {
          expectNoSecret("an error", error?.details ?? "");
          error === null && response ? resolve(response) : reject(error);
        } catch (leak) {
          reject(leak);
        }
      },
    );
  });
}

export function grpcClient(socketPath: string): Client {
  const client = new Client(`unix://${socketPath}`, credentials.createInsecure(), {
    "grpc.initial_reconnect_backoff_ms": 20, // tests restart plugins and do not want to wait a second
    "grpc.max_reconnect_backoff_ms": 100,
    "grpc.use_local_subchannel_pool": 1, // each client has a connection of its own
  });
  onTestEnd(() => client.close());
  return client;
}

/** The gRPC code and text with which a call fails. */
export async function failureOf(promise: Promise<unknown>): Promise<[number, string]> {
  try {
    await promise;
  } catch (error) {
    const { code, details } = error as ServiceError; // only gRPC calls are given
    return [code, details];
  }
  throw new Error("the call did not fail");
}

/** Starts the plugin against a Key4C and waits until it is ok. */
export async function startPlugin(url: string, env: Record<string, string> = {}) {
  const socket = join(temporaryDirectory(), "kms.sock");
  const running = startBinary(["serve"], {
    KMS_ENDPOINT: `unix://${socket}`,
    KEY4C_URL: url,
    KMS_KEY_ID: "demo",
    KMS_USER_ID: `user-${crypto.randomUUID()}`,
    KMS_HTTP_ADDRESS: "",
    KMS_LOG_LEVEL: "debug", // the more it writes, the more is searched for secrets
    ...env,
  });
  await running.until(/Key4C is ok/);
  return { ...running, socket, client: grpcClient(socket) };
}

export interface RunningBinary extends Running {
  /** Waits until the output matches. */
  until(pattern: RegExp): Promise<RegExpMatchArray>;
}

/** A process that the test started, and that ends with it. */
export interface Running {
  readonly pid: number;
  readonly exited: Promise<number>;
  /** Everything on stdout and stderr so far. */
  output(): string;
  stop(signal?: NodeJS.Signals): Promise<number>;
}

/** Starts a program with nothing in its environment but `env`. */
export function startProcess(
  command: readonly [string, ...string[]],
  env: Record<string, string> = {},
): Running {
  const directory = temporaryDirectory();
  const log = join(directory, "output");
  const descriptor = openSync(log, "a");
  const child = Bun.spawn([...command], {
    env: { ...NO_CONFIG_FILE, ...env },
    cwd: directory,
    stdin: "ignore",
    stdout: descriptor,
    stderr: descriptor,
  });
  closeSync(descriptor);
  const output = () => readFileSync(log, "utf8");
  startedWith(command, env);
  onTestEnd(async () => {
    const told = child.exitCode === null ? await httpBodies(output()) : "";
    child.kill("SIGKILL");
    await child.exited;
    startedWith(command, env); // a file with a credential may have another content by now
    expectNoSecret("the HTTP endpoints", told);
    expectNoSecret("argv", command.join("\0"));
    expectInReference(output());
  });
  return {
    pid: child.pid,
    exited: child.exited,
    output,
    async stop(signal = "SIGTERM") {
      child.kill(signal);
      return child.exited;
    },
  };
}

/** What the HTTP endpoints of a plugin tell whose output has their address. */
async function httpBodies(output: string): Promise<string> {
  const url = output.match(/"health and metrics","url":"(http:[^"]*)"/)?.[1];
  const paths = url === undefined ? [] : ["livez", "readyz", "metrics", "else"];
  const bodies = paths.map((path) =>
    fetch(url + path, { signal: AbortSignal.timeout(1_000) }).then(
      (response) => response.text(),
      () => "",
    ),
  );
  return (await Promise.all(bodies)).join();
}

/** Starts the compiled binary. */
export function startBinary(
  args: readonly string[],
  env: Record<string, string> = {},
): RunningBinary {
  if (!existsSync(BINARY)) {
    throw new Error("dist/key4c-kms-plugin is missing: npm run build");
  }
  return withUntil(startProcess([BINARY, ...args], env));
}

/** A process that can be waited for by what it prints. */
export function withUntil(running: Running): RunningBinary {
  return {
    ...running,
    async until(pattern) {
      let hasEnded = false;
      running.exited.then(() => {
        hasEnded = true;
      });
      for (const endMs = Date.now() + PATIENCE_MS; Date.now() < endMs; await Bun.sleep(10)) {
        const isLast = hasEnded; // what it printed before its end is there
        const match = running.output().match(pattern);
        if (match) {
          return match;
        }
        if (isLast) {
          break;
        }
      }
      throw new Error(`${pattern} did not appear in:\n${running.output().slice(0, 2_000)}`);
    },
  };
}

/** Runs a command of the compiled binary to its end, with nothing in its environment but `env`. */
export async function runBinary(
  args: readonly string[],
  { env = {}, input = "", cwd = "/" }: RunOptions = {},
) {
  const child = Bun.spawn([BINARY, ...args], {
    env: { ...NO_CONFIG_FILE, ...env },
    cwd,
    stdin: Buffer.from(input),
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr, exitCode] = await Promise.all([
    child.stdout.bytes(),
    child.stderr.text(),
    child.exited,
  ]);
  return { stdout: Buffer.from(stdout), stderr, exitCode };
}

interface RunOptions {
  readonly env?: Record<string, string>;
  readonly input?: Uint8Array | string;
  readonly cwd?: string;
}
