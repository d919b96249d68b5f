/** What is served for people and their tools, with a health that the test decides; test/binary/http.test.ts has the real one. */
import { expect, test } from "bun:test";
import { once } from "node:events";
import { createServer, connect as netConnect, type Socket } from "node:net";
import { serveHttp } from "../../src/health/http.ts";
import { MAX_HTTP_CONNECTIONS } from "../../src/health/sparing-listener.ts";
import { eventually } from "../e2e/process.ts";
import { onTestEnd, recordingLog } from "../support.ts";

interface Setup {
  readonly host?: string;
  readonly port?: number;
}

function served({ host = "127.0.0.1", port = 0 }: Setup = {}) {
  const now = { isLive: true, isReady: true, made: 0 };
  const { log, lines } = recordingLog();
  const server = serveHttp({
    host,
    port,
    live: () => now.isLive,
    ready: () => ({ ok: now.isReady, text: now.isReady ? "ok since then" : "not yet" }),
    metrics: () => `made ${++now.made}\n`,
    log,
  });
  onTestEnd(() => server.stop());
  const at = () => new URL(server.url ?? "http://nowhere");
  const get = async (path: string, method = "GET") => {
    const answer = await fetch(new URL(path, at()), { method, keepalive: false });
    return [answer.status, await answer.text()];
  };
  /** A connection, and all that comes back on it until it ends. */
  const converse = (text: string) => {
    const socket = netConnect(Number(at().port), at().hostname);
    onTestEnd(() => socket.destroy());
    const answer = new Promise<string>((resolve) => {
      let received = "";
      socket.on("data", (chunk) => {
        received += chunk;
      });
      socket.on("error", () => {});
      socket.on("close", () => resolve(received));
    });
    socket.write(text);
    return { socket, answer };
  };
  return { now, server, lines, get, converse };
}

test("each path says what it is about", async () => {
  const { now, get } = served();
  expect(await get("livez")).toEqual([200, "ok\n"]);
  expect(await get("readyz?verbose")).toEqual([200, "ok since then\n"]);
  now.isReady = false;
  expect(await get("livez")).toEqual([200, "ok\n"]);
  expect(await get("readyz")).toEqual([503, "not yet\n"]);
  now.isLive = false;
  expect(await get("livez")).toEqual([503, "the socket is gone or somebody else's\n"]);
  expect(await get("metrics")).toEqual([200, "made 1\n"]);
  expect(await get("other")).toEqual([404, "there are /livez, /readyz and /metrics\n"]);
  expect(await get("livez", "HEAD")).toEqual([503, ""]);
  expect(await get("livez", "POST")).toEqual([405, "only GET\n"]);
});

test("one request a connection, with the length of the answer", async () => {
  const { converse } = served();
  const { answer } = converse("GET /livez HTTP/1.1\r\n\r\nGET /livez HTTP/1.1\r\n\r\n");
  expect(await answer).toBe(
    [
      "HTTP/1.1 200 OK",
      "Content-Type: text/plain; version=0.0.4; charset=utf-8",
      "Content-Length: 3",
      "Connection: close",
      "",
      "ok\n",
    ].join("\r\n"),
  );
  expect(await converse("HELO\r\n\r\n").answer).toStartWith("HTTP/1.1 400 Bad Request\r\n");
  expect(await converse(`GET /${"x".repeat(20_000)}`).answer).toBe(""); // it is not read on
});

test("calls that wait for metrics get the same new text", async () => {
  const { now, get } = served();
  await get("metrics");
  const texts = await Promise.all(Array.from({ length: 4 }, () => get("metrics")));
  expect([new Set(texts.map(String)), now.made]).toEqual([new Set(["200,made 2\n"]), 2]);
});

test("few connections are served at once; who waits is served when they have ended, again and again", async () => {
  const { get, converse } = served();
  const silent: Socket[] = [];
  for (let count = 0; count < MAX_HTTP_CONNECTIONS; count++) {
    const { socket } = converse("GET");
    await once(socket, "connect"); // before whoever is to wait
    silent.push(socket);
  }
  let isAnswered = false;
  const waiting = get("livez").finally(() => {
    isAnswered = true;
  });
  await Bun.sleep(500);
  expect(isAnswered).toBe(false);
  for (const socket of silent) {
    socket.destroy();
  }
  expect(await waiting).toEqual([200, "ok\n"]);
  for (let count = 0; count < 2 * MAX_HTTP_CONNECTIONS; count++) {
    expect(await get("livez")).toEqual([200, "ok\n"]);
  }
});

test("an address in use is told once, and tried again", async () => {
  const other = createServer();
  await new Promise<void>((resolve) => other.listen(0, "127.0.0.1", resolve));
  const { port } = other.address() as { port: number }; // of a TCP server
  const { server, lines, get } = served({ port });
  expect([server.url, lines.length]).toEqual([undefined, 1]);
  expect(lines[0]).toMatchObject({ level: "warn", msg: "no health and metrics yet", port });
  await new Promise((resolve) => other.close(resolve));
  await eventually("served", 60_000, () => server.url !== undefined);
  expect(await get("livez")).toEqual([200, "ok\n"]);
  expect(lines).toHaveLength(2);
});

test("an address that others reach is served with a warning", async () => {
  const { lines, get } = served({ host: "0.0.0.0" });
  expect(lines.map(({ level }) => level)).toEqual(["warn", "info"]);
  expect(await get("livez")).toEqual([200, "ok\n"]);
});
