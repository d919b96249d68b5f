/** The path of a listener while it lives, and its end under callers that are on their way. */
import { expect, test } from "bun:test";
import {
  existsSync,
  lutimesSync,
  mkdirSync,
  rmdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { connect as http2Connect } from "node:http2";
import { connect } from "node:net";
import { join } from "node:path";
import { $ } from "bun";
import { KeyManagementService } from "../../src/gen/v1beta1/api_pb.ts";
import { listen } from "../../src/socket/listen.ts";
import { addService } from "../../src/socket/rpc.ts";
import { UnaryServer } from "../../src/socket/unary-server.ts";
import { TestClock } from "../clock.ts";
import { eventually } from "../e2e/process.ts";
import { testWith } from "../needs.ts";
import { onTestEnd, recordingLog, silentLog, temporaryDirectory } from "../support.ts";

test("a call on a connection that was only just accepted is answered before the end", async () => {
  const grpc = new UnaryServer({});
  const version = { version: "v1beta1", runtimeName: "test", runtimeVersion: "0" };
  const unused = () => ({});
  addService(
    grpc,
    KeyManagementService,
    { version: () => version, encrypt: unused, decrypt: unused },
    { api: "v1", log: silentLog },
  );
  const path = join(temporaryDirectory(), "kms.sock");
  const listener = await listen(grpc, { path, mode: 0o600, gid: undefined }, silentLog);
  const socket = connect(path);
  onTestEnd(() => socket.destroy());
  await eventually("accepted", 10_000, () => listener.connections === 1);

  const closed = listener.close();
  const client = http2Connect("http://localhost", { createConnection: () => socket });
  client.on("error", () => {}); // the test looks at its call
  const { method } = KeyManagementService;
  const call = client.request({
    ":method": "POST",
    ":path": `/${KeyManagementService.typeName}/${method.version.name}`,
    "content-type": "application/grpc",
    te: "trailers",
  });
  const status = new Promise<unknown>((resolve) => {
    call.on("trailers", (trailers) => resolve(trailers["grpc-status"]));
    call.on("error", resolve);
    call.on("close", () => resolve("closed without an answer"));
  });
  call.end(Buffer.alloc(5)); // an empty message: not compressed, of length 0
  call.resume();
  expect(await status).toBe("0");
  client.close();
  await closed;
  expect(listener.connections).toBe(0);
});

test("who has ended looks at the path no more, whoever has it then", async () => {
  const path = join(temporaryDirectory(), "kms.sock");
  const clock = new TestClock();
  const place = { path, mode: 0o600, gid: undefined };
  const listener = await listen(new UnaryServer({}), place, silentLog, clock);
  expect([existsSync(path), clock.timers]).toEqual([true, 1]);
  await listener.close();
  expect([existsSync(path), clock.timers]).toEqual([false, 0]);
});

test("a path that is lost is told once, and once when it leads here again", async () => {
  const path = join(temporaryDirectory(), "kms.sock");
  const clock = new TestClock();
  const { log, lines } = recordingLog();
  const place = { path, mode: 0o600, gid: undefined };
  const listener = await listen(new UnaryServer({}), place, log, clock);
  onTestEnd(() => listener.close());
  const told = () => lines.map(({ level, msg }) => [level, msg]);
  rmSync(path);
  mkdirSync(path); // nobody can bind it
  const looks = async (isEnough: () => boolean) =>
    eventually("enough is told", 60_000, async () => {
      await clock.pass(2_000);
      return isEnough();
    });
  await looks(() => lines.length > 0);
  await clock.pass(60_000);
  const lost = ["error", "the path no longer leads to our socket: new connections do not reach us"];
  expect(told()).toEqual([lost]);
  expect(lines[0]).toMatchObject({ path, remedy: expect.stringContaining("do not restart") });
  rmdirSync(path);
  await looks(() => lines.length > 2);
  await clock.pass(60_000);
  expect(told()).toEqual([
    lost,
    ["warn", "the path of the socket had vanished, or led elsewhere: bound again"],
    ["info", "the path leads to our socket again"],
  ]);
});

test("a directory that it makes is open to the group of the socket, and to nobody else", async () => {
  for (const [gid, mode] of [
    [undefined, 0o700],
    [process.getgid?.(), 0o710],
  ] as const) {
    const directory = join(temporaryDirectory(), "made");
    const place = { path: join(directory, "kms.sock"), mode: 0o660, gid };
    const listener = await listen(new UnaryServer({}), place, silentLog, new TestClock());
    onTestEnd(() => listener.close());
    expect([statSync(directory).mode & 0o777, statSync(place.path).mode & 0o777]).toEqual([
      mode,
      0o660,
    ]);
  }
});

testWith("systemd-tmpfiles")(
  "a socket that lives is kept by who removes old files, and a dead one is not",
  async () => {
    const directory = temporaryDirectory();
    const path = join(directory, "sockets", "kms.sock");
    const clock = new TestClock();
    const place = { path, mode: 0o600, gid: undefined };
    const listener = await listen(new UnaryServer({}), place, silentLog, clock);
    onTestEnd(() => listener.close());
    const rules = join(directory, "rules.conf");
    // By the times that can be set: waiting would be a race with a busy machine.
    writeFileSync(rules, `e ${join(directory, "sockets")} 0700 - - am:1h\n`);
    const clean = () => $`systemd-tmpfiles --clean ${rules}`.quiet();
    const grow = () => lutimesSync(path, 1, 1);
    grow();
    await clock.pass(3_600_000 + 2_000);
    await clean();
    expect(existsSync(path)).toBe(true);
    grow(); // not touched again: as it would be without the touch
    await clean();
    expect(existsSync(path)).toBe(false);
    await clock.pass(2_000);
    await eventually("bound again", 10_000, () => existsSync(path));
  },
);
