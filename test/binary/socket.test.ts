/** The socket of the compiled binary: who may have its path, and what stays of it. */
import { expect, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import { testWith } from "../needs.ts";
import {
  BINARY,
  callRpc,
  grpcClient,
  onTestEnd,
  startBinary,
  startProcess,
  temporaryDirectory,
  withUntil,
} from "../support.ts";

/** Starts `serve --emulator` on a path. */
function serve(socket: string, env: Record<string, string> = {}) {
  return startBinary(["serve", "--emulator"], { KMS_ENDPOINT: `unix://${socket}`, ...env });
}

const healthzOf = async (socket: string) =>
  (await callRpc(grpcClient(socket), V2.method.status, {})).healthz;

test("makes its directory and a socket for its owner only, complete when it appears", async () => {
  const directory = join(temporaryDirectory(), "a/b");
  const socket = join(directory, "kms.sock");
  const plugin = serve(socket);
  await plugin.until(/Key4C is ok/);
  expect(lstatSync(directory).mode & 0o777).toBe(0o700);
  expect(lstatSync(socket).mode & 0o777).toBe(0o600);
  expect(readdirSync(directory)).toEqual(["kms.sock"]);
  expect(await plugin.stop()).toBe(0);
  expect(readdirSync(directory)).toEqual([]);
});

testWith("root")("mode and group are the user's", async () => {
  const socket = join(temporaryDirectory(), "kms.sock");
  await serve(socket, { KMS_SOCKET_MODE: "0660", KMS_SOCKET_GROUP: "daemon" }).until(/serving/);
  expect(lstatSync(socket).mode & 0o777).toBe(0o660);
  expect(lstatSync(socket).gid).toBe(1); // daemon, on Debian
});

testWith("root")("with a group, a directory that it makes lets the group through", async () => {
  const directory = join(temporaryDirectory(), "made");
  const env = { KMS_SOCKET_MODE: "0660", KMS_SOCKET_GROUP: "daemon" };
  await serve(join(directory, "kms.sock"), env).until(/serving/);
  expect([lstatSync(directory).mode & 0o777, lstatSync(directory).gid]).toEqual([0o710, 1]);
});

test("of two that start at the same moment one stays", async () => {
  for (let round = 0; round < 5; round++) {
    const socket = join(temporaryDirectory(), "kms.sock");
    const both = [serve(socket), serve(socket)];
    const ends = both.map(async (one, index) => ({ code: await one.exited, index }));
    const loser = await Promise.race(ends);
    expect(loser.code).toBe(1);
    expect(both[loser.index]?.output()).toMatch(
      /in use by another process|took the path of the socket/,
    );
    const winner = both[1 - loser.index];
    await winner?.until(/Key4C is ok/);
    expect(await healthzOf(socket)).toBe("ok");
    expect(await winner?.stop()).toBe(0);
  }
});

test("replaces what a killed process left, and nobody else's", async () => {
  const socket = join(temporaryDirectory(), "kms.sock");
  const killed = serve(socket);
  await killed.until(/Key4C is ok/);
  await killed.stop("SIGKILL");
  expect(existsSync(socket)).toBe(true);
  await serve(socket).until(/Key4C is ok/);
  expect(await healthzOf(socket)).toBe("ok");

  const second = serve(socket);
  expect(await second.exited).toBe(1);
  expect(second.output()).toContain("is in use by another process: stop that one or change");
  expect(await healthzOf(socket)).toBe("ok");
});

test("a socket whose owner is stuck is in use too", async () => {
  const socket = join(temporaryDirectory(), "kms.sock");
  const stuck = createServer();
  await new Promise<void>((resolve) => stuck.listen(socket, resolve));
  onTestEnd(() => stuck.close());
  const plugin = serve(socket);
  expect(await plugin.exited).toBe(1);
  expect(plugin.output()).toContain("is in use by another process");
});

test("a file that is no socket stays", async () => {
  const path = join(temporaryDirectory(), "kms.sock");
  writeFileSync(path, "precious");
  const plugin = serve(path);
  expect(await plugin.exited).toBe(1);
  expect(plugin.output()).toContain(`${path} exists and is not a socket: remove it or change`);
  expect(await Bun.file(path).text()).toBe("precious");
});

test("a directory that cannot be made is named", async () => {
  const file = join(temporaryDirectory(), "file");
  writeFileSync(file, "");
  const plugin = serve(join(file, "kms.sock"));
  expect(await plugin.exited).toBe(1);
  expect(plugin.output()).toContain(`cannot make the directory ${file}`);
});

test("at its end it removes its own socket, not one that took the path meanwhile", async () => {
  const socket = join(temporaryDirectory(), "kms.sock");
  const plugin = serve(socket);
  await plugin.until(/Key4C is ok/);
  await pastTheStart();
  const other = createServer();
  await new Promise<void>((resolve) => other.listen(`${socket}.other`, resolve));
  onTestEnd(() => other.close());
  renameSync(`${socket}.other`, socket);
  expect(await plugin.stop()).toBe(0);
  expect(lstatSync(socket).isSocket()).toBe(true);
});

test("warns of a directory in which others could bind first", async () => {
  const directory = join(temporaryDirectory(), "shared");
  mkdirSync(directory);
  chmodSync(directory, 0o1777);
  await serve(join(directory, "kms.sock")).until(/others can write to the directory.*0700/);
});

test("an idle client that never sent anything does not hold up the end", async () => {
  const socket = join(temporaryDirectory(), "kms.sock");
  const plugin = serve(socket);
  await plugin.until(/Key4C is ok/);
  const idle = await Bun.connect({ unix: socket, socket: { data() {} } });
  onTestEnd(() => idle.end());
  expect(await healthzOf(socket)).toBe("ok");
  expect(await plugin.stop()).toBe(0);
  expect(existsSync(socket)).toBe(false);
});

test("above 512 connections the silent one gives way, not the one that talks", async () => {
  const socket = join(temporaryDirectory(), "kms.sock");
  const plugin = serve(socket, { KMS_HTTP_ADDRESS: "127.0.0.1:0" });
  await plugin.until(/Key4C is ok/);
  const metrics = (await plugin.until(/"url":"(http:[^"]*)"/))[1];
  const talking = grpcClient(socket);
  const healthz = async (client: ReturnType<typeof grpcClient>) =>
    (await callRpc(client, V2.method.status, {})).healthz;
  expect(await healthz(talking)).toBe("ok");
  let closed = 0;
  const close = () => {
    closed += 1;
  };
  for (let number = 0; number < 600; number++) {
    const idle = await Bun.connect({ unix: socket, socket: { data() {}, close } });
    onTestEnd(() => idle.end());
    if (number % 100 === 99) {
      expect(await healthz(talking)).toBe("ok"); // by now the queue of those not yet accepted is empty
    }
  }
  expect(await healthz(talking)).toBe("ok");
  expect(await healthz(grpcClient(socket))).toBe("ok");
  const text = await (await fetch(`${metrics}metrics`)).text();
  expect(text).toMatch(/^key4c_kms_connections 512$/m);
  expect(closed).toBe(600 + 2 - 512);
});

/** Until then a socket of somebody else means that he started at the same moment, and the plugin gives way. */
const pastTheStart = () => Bun.sleep(1_000);

/** Waits until a new connection to a path is served. */
async function untilServed(socket: string): Promise<void> {
  while ((await healthzOf(socket).catch(() => undefined)) !== "ok") {
    await Bun.sleep(50); // the test's own timeout ends it
  }
}

test("a path that vanished is bound again, with its directory; open connections go on", async () => {
  const directory = join(temporaryDirectory(), "of-its-own");
  const socket = join(directory, "kms.sock");
  const plugin = serve(socket);
  await plugin.until(/Key4C is ok/);
  await pastTheStart();
  let isClosed = false;
  const close = () => {
    isClosed = true;
  };
  const idle = await Bun.connect({ unix: socket, socket: { data() {}, close } });
  onTestEnd(() => idle.end());
  for (const lost of [socket, directory, socket]) {
    rmSync(lost, { recursive: true });
    await untilServed(socket);
    expect(lstatSync(socket).mode & 0o777).toBe(0o600);
    expect(readdirSync(directory)).toEqual(["kms.sock"]);
  }
  expect(isClosed).toBe(false);
  expect(plugin.output().match(/had vanished.*bound again/g)?.length).toBe(3);
  expect(plugin.output()).not.toContain("no longer leads");
  expect(await plugin.stop()).toBe(0);
  expect(readdirSync(directory)).toEqual([]);
});

test("a path on which somebody else serves stays his, is told once, and is ours again when he has gone", async () => {
  const socket = join(temporaryDirectory(), "kms.sock");
  const plugin = serve(socket, { KMS_HTTP_ADDRESS: "127.0.0.1:0" });
  const url = (await plugin.until(/"url":"(http:[^"]*)"/))[1];
  const live = async () => (await fetch(`${url}livez`)).status;
  await plugin.until(/Key4C is ok/);
  expect(await live()).toBe(200);
  await pastTheStart();
  const other = createServer();
  await new Promise<void>((resolve) => other.listen(`${socket}.other`, resolve));
  renameSync(`${socket}.other`, socket); // a moment without any would let the plugin bind it again
  const { ino } = lstatSync(socket);
  await plugin.until(/"error".*no longer leads.*in use by another process/);
  await Bun.sleep(4_500); // it looks again
  expect(plugin.output().match(/no longer leads/g)?.length).toBe(1);
  expect(lstatSync(socket).ino).toBe(ino);
  expect(await live()).toBe(503);
  expect(await (await fetch(`${url}metrics`)).text()).toMatch(/^key4c_kms_socket_live 0$/m);
  rmSync(socket);
  await new Promise((resolve) => other.close(resolve));
  await untilServed(socket);
  await plugin.until(/leads to our socket again/);
  expect(await live()).toBe(200);
});

test("warns of a socket that everybody may use", async () => {
  const socket = join(temporaryDirectory(), "kms.sock");
  await serve(socket, { KMS_SOCKET_MODE: "0666" }).until(
    /every user of this machine can connect.*KMS_SOCKET_MODE=0600/,
  );
});

/** A plugin on a socket that systemd's own tool holds. @param hide a shell command before its start */
async function startHeld(hide: string) {
  const directory = join(temporaryDirectory(), "sockets");
  mkdirSync(directory);
  const socket = join(directory, "kms.sock");
  const start = `${hide}; exec "$1" serve --emulator --http-address 127.0.0.1:0`;
  const plugin = withUntil(
    startProcess([
      ...(["systemd-socket-activate", "--listen", socket] as const),
      ...["unshare", "--mount", "sh", "-ec", start, directory, BINARY],
    ]),
  );
  await plugin.until(/Listening on/); // its file is there before that
  expect(await healthzOf(socket)).toBe("ok");
  const [, url] = await plugin.until(/"msg":"health and metrics","url":"([^"]*)"/);
  return { plugin, socket, livez: async () => (await fetch(`${url}livez`)).status };
}

const LOOK_MS = 2_500; // it looks at the path every 2 s

testWith(
  "root",
  "mount namespaces",
  "systemd-socket-activate",
)(
  "a path of systemd's that this process cannot see is not lost, as below /tmp with PrivateTmp=yes",
  async () => {
    const { plugin, socket, livez } = await startHeld('mount -t tmpfs none "$0"');
    expect(plugin.output()).toMatch(/"warn","msg":"cannot look at the path.*PrivateTmp=/);
    await Bun.sleep(LOOK_MS);
    expect(plugin.output()).not.toContain("no longer leads");
    expect([await livez(), await healthzOf(socket)]).toEqual([200, "ok"]);
  },
);

testWith(
  "root",
  "mount namespaces",
  "systemd-socket-activate",
)("a path of systemd's that was there, and vanished, is lost", async () => {
  const { plugin, socket, livez } = await startHeld(":");
  rmSync(socket);
  await plugin.until(/"error","msg":"the path no longer leads to our socket/);
  expect(await livez()).toBe(503);
});
