/**
 * HTTP for metrics. One scraper reads it, but every user of the node can reach it. So a connection has one request, which
 * is answered from its first line alone, with bounded size and time. No ready-made server fits: under Bun 1.4.5 Node's
 * ignores maxConnections and does not end connections, and Bun's answers a bad Host with a page of its own.
 */

import type { Socket } from "node:net";
import { errorCode } from "../system/files.ts";
import type { Log } from "../system/log.ts";
import { isLoopbackHost } from "../system/loopback.ts";
import { SparingListener } from "./sparing-listener.ts";

/** How often an address in use is tried again. A former plugin that still holds it gives it up when it ends. */
const RETRY_INTERVAL_MS = 1_000;
/** The request of a scraper has a few hundred bytes. */
export const MAX_REQUEST_BYTES = 8 * 1024;
/** From the first byte of a connection to the last. */
export const MAX_CONNECTION_MS = 5_000;
/** The metrics are made at most once in this time. A request that comes sooner waits for the next ones. */
export const METRICS_INTERVAL_MS = 1_000;

const OK = "200 OK";
const UNAVAILABLE = "503 Service Unavailable";

export interface HttpOptions {
  readonly host: string;
  readonly port: number;
  /** Whether the process serves its socket. Never depends on Key4C. */
  readonly live: () => boolean;
  /** Whether Status is ok, and the state in a sentence. */
  readonly ready: () => { readonly ok: boolean; readonly text: string };
  readonly metrics: () => string;
  readonly log: Log;
}

export interface HttpServer {
  /** Where it is served; undefined while the address is in use. */
  readonly url: string | undefined;
  stop(): void;
}

/**
 * Serves `/metrics`, and `/livez` and `/readyz` for people and their tools. An address in use is a warning, and
 * tried again.
 */
export function serveHttp(options: HttpOptions): HttpServer {
  const { host, port, log } = options;
  const open = new Set<Socket>();
  const metrics = atMostEvery(METRICS_INTERVAL_MS, options.metrics);
  let listener: SparingListener | undefined;
  let timer: Timer | undefined;
  let url: string | undefined;
  let warned = false;
  const start = () => {
    try {
      listener = new SparingListener(host, port, (socket) => {
        open.add(socket);
        socket.once("close", () => open.delete(socket));
        converse(socket, (line) => answer(line, options, metrics));
      });
      const shown = host.includes(":") ? `[${host}]` : host;
      url = `http://${shown}:${listener.port}/`;
      log.info("health and metrics", { url });
    } catch (error) {
      if (!warned) {
        const remedy = "change KMS_HTTP_ADDRESS, or leave it: the address is tried again";
        log.warn("no health and metrics yet", { cause: errorCode(error), host, port, remedy });
        warned = true;
      }
      timer = setTimeout(start, RETRY_INTERVAL_MS);
    }
  };
  if (!isLoopbackHost(host)) {
    log.warn(
      "KMS_HTTP_ADDRESS is not a loopback address: others can read key_id, counts and times",
      {
        host,
        remedy: "use 127.0.0.1:9640, or a firewall that lets only Prometheus through",
      },
    );
  }
  start();
  return {
    get url() {
      return url;
    },
    stop() {
      clearTimeout(timer);
      listener?.close();
      for (const socket of open) {
        socket.destroy();
      }
    },
  };
}

/** Reads one request, answers it and ends the connection, whatever else was sent. */
function converse(socket: Socket, respond: (requestLine: string) => Promise<string>): void {
  const timer = setTimeout(() => socket.destroy(), MAX_CONNECTION_MS);
  socket.once("close", () => clearTimeout(timer));
  let request = "";
  const read = (chunk: Buffer) => {
    request += chunk.toString("latin1");
    if (request.length > MAX_REQUEST_BYTES) {
      socket.destroy();
    } else if (request.includes("\r\n\r\n")) {
      socket.off("data", read).pause(); // more is not read: that would cost time
      void respond(request.slice(0, request.indexOf("\r\n"))).then((text) =>
        socket.end(text, () => socket.destroy()),
      );
    }
  };
  socket.on("data", read);
}

/** The whole answer, headers included. Only the first line of the request matters. */
async function answer(
  requestLine: string,
  options: HttpOptions,
  metrics: () => Promise<string>,
): Promise<string> {
  const [, method, path = ""] =
    /^([A-Z]+) (\/[^ ?]*)(?:\?[^ ]*)? HTTP\/1\.[01]$/.exec(requestLine) ?? [];
  const [status, text] =
    method === undefined
      ? ["400 Bad Request", "not a request of HTTP/1.1\n"]
      : method === "GET" || method === "HEAD"
        ? await resource(path, options, metrics)
        : ["405 Method Not Allowed", "only GET\n"];
  const head = [
    `HTTP/1.1 ${status}`,
    "Content-Type: text/plain; version=0.0.4; charset=utf-8",
    `Content-Length: ${Buffer.byteLength(text)}`,
    "Connection: close",
  ];
  return `${head.join("\r\n")}\r\n\r\n${method === "HEAD" ? "" : text}`;
}

async function resource(
  path: string,
  { live, ready }: HttpOptions,
  metrics: () => Promise<string>,
): Promise<[status: string, text: string]> {
  switch (path) {
    case "/livez":
      return live() ? [OK, "ok\n"] : [UNAVAILABLE, "the socket is gone or somebody else's\n"];
    case "/readyz": {
      const { ok, text } = ready();
      return [ok ? OK : UNAVAILABLE, `${text}\n`];
    }
    case "/metrics":
      return [OK, await metrics()];
    default:
      return ["404 Not Found", "there are /livez, /readyz and /metrics\n"];
  }
}

/** Makes a text at most so often. All calls that wait get the same new text; none gets an old one. */
function atMostEvery(intervalMs: number, make: () => string): () => Promise<string> {
  let nextMs = Number.NEGATIVE_INFINITY;
  let next: Promise<string> | undefined;
  return () => {
    next ??= Bun.sleep(Math.max(0, nextMs - performance.now())).then(() => {
      next = undefined;
      nextMs = performance.now() + intervalMs;
      return make();
    });
    return next;
  };
}
