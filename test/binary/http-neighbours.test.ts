/** What other users of the node can do on the HTTP address of the compiled binary: to its callers, nothing. */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { KeyManagementService as V1 } from "../../src/gen/v1beta1/api_pb.ts";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import { testWith } from "../needs.ts";
import { asNobody, DROPPING } from "../nobody.ts";
import {
  BINARY,
  callRpc,
  grpcClient,
  onTestEnd,
  runBinary,
  startBinary,
  startProcess,
  temporaryDirectory,
  withUntil,
} from "../support.ts";

/** Whoever is starved waits for ever; what an API server waits for, 3 s, is too little on a busy machine. */
const deadlineMs = 20_000;
const TURNS = 15;

/** A plugin with HTTP, under a limit of descriptors as a container may have it, and an honest caller. */
async function setup() {
  const socket = join(temporaryDirectory(), "kms.sock");
  const script = 'ulimit -n 1024; exec "$0" serve --emulator';
  const env = { KMS_ENDPOINT: `unix://${socket}`, KMS_HTTP_ADDRESS: "127.0.0.1:0" };
  const plugin = withUntil(startProcess(["sh", "-c", script, BINARY], env));
  const port = Number((await plugin.until(/"url":"http:\/\/127.0.0.1:(\d+)\/"/))[1]);
  await plugin.until(/Key4C is ok/);
  /** A connection of its own, a round trip and a Status. */
  const callHonestly = async () => {
    const client = grpcClient(socket);
    const plain = Buffer.alloc(32, 7);
    const { cipher } = await callRpc(client, V1.method.encrypt, { plain }, { deadlineMs });
    const back = await callRpc(client, V1.method.decrypt, { cipher }, { deadlineMs });
    expect(Buffer.from(back.plain)).toEqual(plain);
    expect((await callRpc(client, V2.method.status, {}, { deadlineMs })).healthz).toBe("ok");
    client.close();
  };
  const isLive = async () =>
    (await runBinary(["status", "--live", "--wait", "60s"], { env })).exitCode === 0;
  const figures = () => ({
    descriptors: readdirSync(`/proc/${plugin.pid}/fd`).length,
    rssMib:
      Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${plugin.pid}/status`, "utf8"))?.[1]) >> 10,
    logBytes: plugin.output().length,
  });
  return { plugin, socket, port, callHonestly, isLive, figures };
}

/** What a request of any form gets, and that the connection ends. */
function raw(port: number, text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    let answer = "";
    Bun.connect({
      hostname: "127.0.0.1",
      port,
      socket: {
        open: (socket) => void socket.write(text),
        data: (_, chunk) => {
          answer += chunk.toString();
        },
        close: () => resolve(answer),
        error: () => resolve(answer),
      },
    }).catch(reject);
  });
}

testWith(...DROPPING)(
  "64 connections of another user that pipeline requests for metrics",
  async () => {
    const { port, callHonestly, isLive, figures } = await setup();
    const node = Bun.which("node") ?? "node";
    const directory = temporaryDirectory();
    await Bun.$`chmod 755 ${directory} && cp ${join(import.meta.dir, "http-hammer.mjs")} ${directory}`;
    const hammer = asNobody([node, join(directory, "http-hammer.mjs"), String(port), "64", "50"]);
    await Bun.sleep(500);
    for (let turn = 0; turn < TURNS; turn++) {
      await callHonestly();
    }
    expect(await isLive()).toBe(true);
    expect(statSync(`/proc/${hammer.pid}`).isDirectory()).toBe(true); // it was there all the time
    const { descriptors, rssMib, logBytes } = figures();
    console.log(`hammered: ${descriptors} descriptors, ${rssMib} MiB, ${logBytes} bytes of log`);
    expect(descriptors).toBeLessThan(64);
    expect(rssMib).toBeLessThan(256);
    expect(logBytes).toBeLessThan(4_096);
  },
);

test("1,500 requests that stop halfway, at a limit of 1,024 descriptors", async () => {
  const { port, callHonestly, isLive, figures } = await setup();
  const half = "GET /metrics HTTP/1.1\r\nHost: a\r\n";
  const open = await Promise.all(
    Array.from({ length: 1_500 }, () =>
      Bun.connect({
        hostname: "127.0.0.1",
        port,
        socket: { open: (socket) => void socket.write(half), data() {} },
      }),
    ),
  );
  onTestEnd(() => open.map((socket) => socket.end()));
  for (let turn = 0; turn < TURNS; turn++) {
    await callHonestly();
  }
  expect(await isLive()).toBe(true);
  const { descriptors } = figures();
  console.log(`beside 1,500 half requests: ${descriptors} descriptors`);
  expect(descriptors).toBeLessThan(64);
  for (const socket of open) {
    socket.terminate();
  }
  expect(await raw(port, "GET /readyz HTTP/1.1\r\n\r\n")).toContain("\r\n\r\nok since ");
});

test("whoever has the port first decides about nothing", async () => {
  const squatter = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch: () => new Response("dead", { status: 500 }),
  });
  onTestEnd(() => squatter.stop(true));
  const socket = join(temporaryDirectory(), "kms.sock");
  const env = { KMS_ENDPOINT: `unix://${socket}`, KMS_HTTP_ADDRESS: `127.0.0.1:${squatter.port}` };
  await startBinary(["serve", "--emulator"], env).until(/no health and metrics yet/);
  for (const flags of [
    ["--live", "--wait", "60s"],
    ["--wait", "60s"],
  ]) {
    expect((await runBinary(["status", ...flags], { env })).exitCode).toBe(0);
  }
});

test("malformed requests get a short answer of ours or none, and nothing of them reaches the log", async () => {
  const { plugin, port, callHonestly, figures } = await setup();
  const before = figures().logBytes;
  const get = "GET /metrics HTTP/1.1\r\n";
  for (const [text, answer] of [
    [`${get}Host: ]\r\n\r\n`, /^HTTP\/1\.1 200 OK\r\n/],
    [`${get}Host: a\r\nHost: b\r\nmark\r\n\r\n`, /^HTTP\/1\.1 200 OK\r\n/],
    ["GET http://[/mark HTTP/1.1\r\nHost: a\r\n\r\n", /^HTTP\/1\.1 400 /],
    ["mark\r\n\r\n", /^HTTP\/1\.1 400 /],
    ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", /^HTTP\/1\.1 400 /],
    ["GET /%00/../mark HTTP/1.1\r\n\r\n", /^HTTP\/1\.1 404 /],
    ["GET /metrics?mark HTTP/1.0\r\n\r\n", /^HTTP\/1\.1 200 OK\r\n/],
    ["POST /metrics HTTP/1.1\r\nContent-Length: 4\r\n\r\nmark", /^HTTP\/1\.1 405 /],
    [`${get}X: ${"mark".repeat(4_000)}\r\n\r\n`, /^$/],
    [`${"\0".repeat(9_000)}`, /^$/],
    [`${get}\r\n`.repeat(50), /^HTTP\/1\.1 200 OK\r\n/],
  ] as const) {
    const got = await raw(port, text);
    expect([text.slice(0, 40), got]).toEqual([text.slice(0, 40), expect.stringMatching(answer)]);
    expect(got.match(/^HTTP\/1\.1 \d/gm)?.length ?? 0).toBeLessThanOrEqual(1); // of a connection
    expect(got).not.toMatch(/bun|mark|<html|\/work|\/tmp/i);
  }
  await callHonestly();
  expect(plugin.output()).not.toMatch(/mark/);
  expect(figures().logBytes).toBe(before);
});
