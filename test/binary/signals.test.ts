/** Signals to the compiled binary while it works, and to commands that end by themselves. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { constants } from "node:os";
import { KeyManagementService as V1 } from "../../src/gen/v1beta1/api_pb.ts";
import { testWith } from "../needs.ts";
import {
  BINARY,
  callRpc,
  emulator,
  fakeServer,
  passOn,
  startPlugin,
  startProcess,
  temporaryDirectory,
} from "../support.ts";

const DEK = randomBytes(32);

/** A plugin whose Decrypt waits for Key4C, which answers when it is let, and the answer that is to come. */
async function withCallInFlight() {
  const emulated = emulator();
  const { promise: isLet, resolve: letAnswer } = Promise.withResolvers<void>();
  let isHeld = false;
  const key4c = fakeServer(async (request, body) => {
    if (isHeld && request.url.endsWith("/decrypt")) {
      await isLet;
    }
    return passOn(emulated.url, request, body);
  });
  const first = await startPlugin(key4c.url);
  const { cipher } = await callRpc(first.client, V1.method.encrypt, { plain: DEK });
  await first.stop();
  const plugin = await startPlugin(key4c.url);
  isHeld = true;
  let isAnswered = false;
  const answer = callRpc(plugin.client, V1.method.decrypt, { cipher }).finally(() => {
    isAnswered = true;
  });
  await callRpc(plugin.client, V1.method.version, {}); // on the same connection: the plugin has the Decrypt
  const expectStillInFlight = () => expect(isAnswered).toBe(false);
  expectStillInFlight();
  return { plugin, answer, expectStillInFlight, letAnswer };
}

test.each(["SIGHUP", "SIGUSR1", "SIGUSR2"] as const)("%s does no harm", async (signal) => {
  const { plugin, answer, expectStillInFlight, letAnswer } = await withCallInFlight();
  process.kill(plugin.pid, signal);
  process.kill(plugin.pid, signal);
  await callRpc(plugin.client, V1.method.version, {});
  expectStillInFlight();
  letAnswer();
  expect(Buffer.from((await answer).plain)).toEqual(DEK);
  await callRpc(plugin.client, V1.method.encrypt, { plain: DEK });
  expect(await plugin.stop()).toBe(0);
});

test.each(["SIGTERM", "SIGINT", "SIGHUP"] as const)(
  "%s does not cut what drains since a SIGTERM",
  async (second) => {
    const { plugin, answer, expectStillInFlight, letAnswer } = await withCallInFlight();
    process.kill(plugin.pid, "SIGTERM");
    await plugin.until(/"stopping"/);
    process.kill(plugin.pid, second);
    await Bun.sleep(500); // it has an effect, if any
    expectStillInFlight();
    letAnswer();
    expect(Buffer.from((await answer).plain)).toEqual(DEK);
    expect(await plugin.exited).toBe(0);
  },
);

testWith("root").each([
  ["SIGTERM", ["status", "--wait", "1h"], 143],
  ["SIGINT", ["status", "--wait", "1h"], 130],
  ["SIGTERM", ["emulator", "--listen", "127.0.0.1:0"], 0],
] as const)("as PID 1 %s ends %p", async (signal, args, exitCode) => {
  const command = ["unshare", "--pid", "--fork", "--kill-child", BINARY, ...args] as const;
  const outer = startProcess(command, {
    KMS_ENDPOINT: `unix://${temporaryDirectory()}/kms.sock`,
    PATH: process.env["PATH"] ?? "",
  });
  const child = () => readFileSync(`/proc/${outer.pid}/task/${outer.pid}/children`, "utf8").trim();
  const isReady = () => {
    const caught = /^SigCgt:\s*(\w+)$/m.exec(
      child() === "" ? "" : readFileSync(`/proc/${child()}/status`, "utf8"),
    )?.[1];
    return (BigInt(`0x${caught ?? 0}`) & (1n << BigInt(constants.signals[signal] - 1))) !== 0n;
  };
  while (!isReady()) {
    await Bun.sleep(10); // it does not catch the signal yet
  }
  process.kill(Number(child()), signal);
  expect(await outer.exited).toBe(exitCode);
});
