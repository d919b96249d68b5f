/** The log of the compiled binary when nobody takes it: the work goes on, lines are dropped and counted. */
import { describe, expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { closeSync, constants, openSync, readFileSync, readSync, writeSync } from "node:fs";
import { join } from "node:path";
import { KeyManagementService as V1 } from "../../src/gen/v1beta1/api_pb.ts";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import type { LogLevel } from "../../src/system/log.ts";
import {
  BINARY,
  callRpc,
  grpcClient,
  onTestEnd,
  startProcess,
  temporaryDirectory,
} from "../support.ts";

const DEK = randomBytes(32);
/** Holds of a log what a pipe and the plugin keep of it, and no more. */
const MAX_KEPT_BYTES = 64 * 1024 + 256 * 1024;

/** Starts `serve --emulator` with standard error as a shell writes it, and waits until it is ok. */
async function serve(redirection: string, env: Record<string, string> = {}) {
  const socket = join(temporaryDirectory(), "kms.sock");
  const script = `exec "$0" serve --emulator ${redirection}`;
  const plugin = startProcess(["sh", "-c", script, BINARY], {
    KMS_ENDPOINT: `unix://${socket}`,
    ...env,
  });
  const client = grpcClient(socket);
  const roundTrip = async () => {
    const { cipher } = await callRpc(client, V1.method.encrypt, { plain: DEK });
    return Buffer.from((await callRpc(client, V1.method.decrypt, { cipher })).plain);
  };
  const isOk = async () =>
    (await callRpc(client, V2.method.status, {}, { deadlineMs: 3_000 })).healthz === "ok";
  while (!(await isOk().catch(() => false))) {
    await Bun.sleep(20); // the test's own timeout ends it
  }
  return { plugin, roundTrip };
}

/** A pipe with a name, and a reader that does not read; full from the start. */
async function stuckReader() {
  const path = join(temporaryDirectory(), "pipe");
  await Bun.$`mkfifo ${path}`;
  const reader = openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  let filledBytes = 0;
  for (const chunk = Buffer.alloc(4096, "\n"); ; ) {
    try {
      filledBytes += writeSync(reader, chunk);
    } catch {
      return { path, reader, filledBytes };
    }
  }
}

/** Those that write most and least. */
describe.each(["debug", "error"] satisfies LogLevel[])("at level %s", (level) => {
  const env = { KMS_LOG_LEVEL: level };

  /** It works, and ends when it is told to. */
  async function expectWork({ plugin, roundTrip }: Awaited<ReturnType<typeof serve>>) {
    for (let turn = 0; turn < 20; turn++) {
      expect(await roundTrip()).toEqual(DEK);
    }
    expect(await plugin.stop()).toBe(0);
  }

  test.each([
    ["a full disk", "2>/dev/full"],
    ["closed", "2>&-"],
    ["a directory", "2</"],
  ])("standard error that is %s stops nothing", async (_, redirection) => {
    await expectWork(await serve(redirection, env));
  });

  test("a reader that hangs stops nothing", async () => {
    const { path, reader } = await stuckReader();
    onTestEnd(() => closeSync(reader));
    await expectWork(await serve(`2>${path}`, env));
  });

  test("a reader that has gone stops nothing", async () => {
    const { path, reader } = await stuckReader();
    const served = await serve(`2>${path}`, env);
    closeSync(reader);
    await expectWork(served);
  });
});

test("wrong usage ends, though nobody can be told", async () => {
  const script = 'exec "$0" serve --nonsense 2>/dev/full';
  expect(await startProcess(["sh", "-c", script, BINARY]).exited).toBe(2);
});

test("what a stuck reader does not take is bounded, dropped and counted, and a line tells it when it is over", async () => {
  const { path, reader, filledBytes } = await stuckReader();
  onTestEnd(() => closeSync(reader));
  const { plugin, roundTrip } = await serve(`2>${path}`, {
    KMS_LOG_LEVEL: "debug",
    KMS_HTTP_ADDRESS: "127.0.0.1:0",
  });
  const rssKib = () =>
    Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${plugin.pid}/status`, "utf8"))?.[1]);
  const turns = 4_000;
  for (let turn = 0; turn < turns; turn += 50) {
    await Promise.all(Array.from({ length: 50 }, roundTrip));
  }
  console.log(`RSS after ${2 * turns} RPCs with a stuck reader: ${rssKib() >> 10} MiB`);

  // Now it reads again.
  let text = "";
  const buffer = Buffer.alloc(64 * 1024);
  while (!/log lines were dropped.*\n/.test(text)) {
    try {
      text += buffer.toString("utf8", 0, readSync(reader, buffer));
    } catch {
      await Bun.sleep(10); // nothing there just now
    }
  }
  const lines = text
    .slice(filledBytes)
    .split("\n")
    .filter(Boolean)
    .map((line): Record<string, unknown> => JSON.parse(line)); // each is whole
  const loss = lines.find(
    ({ msg }) => msg === "log lines were dropped while standard error took none",
  );
  const kept = lines.filter(({ msg }) => msg === "RPC").length;
  expect(text.length - filledBytes).toBeLessThan(MAX_KEPT_BYTES);
  expect(Number(loss?.["lines"]) + kept).toBeGreaterThanOrEqual(2 * turns);
  const url = lines.find(({ msg }) => msg === "health and metrics")?.["url"];
  const metrics = await (await fetch(`${url}metrics`)).text();
  expect(metrics).toContain(`\nkey4c_kms_log_lines_dropped_total ${loss?.["lines"]}\n`);
  expect(await plugin.stop()).toBe(0);
});
