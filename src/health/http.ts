import { errorCode } from "../system/files.ts";
import type { Log } from "../system/log.ts";

/** How often a taken address is tried again: the process that we replace gives it up when it ends. */
const RETRY_INTERVAL_MS = 1_000;

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
  stop(): void;
}

/** Serves `/livez`, `/readyz` and `/metrics`. An address in use is a warning, and tried again. */
export function serveHttp(options: HttpOptions): HttpServer {
  const { host, port, log } = options;
  let server: Bun.Server<undefined> | undefined;
  let timer: Timer | undefined;
  let warned = false;
  const start = () => {
    try {
      server = Bun.serve({ hostname: host, port, fetch: (request) => answer(request, options) });
      log.info("health and metrics", { url: server.url.href });
    } catch (error) {
      if (!warned) {
        const remedy = "change KMS_HTTP_ADDRESS, or leave it: the address is tried again";
        log.warn("no health and metrics yet", { cause: errorCode(error), host, port, remedy });
        warned = true;
      }
      timer = setTimeout(start, RETRY_INTERVAL_MS);
    }
  };
  start();
  return {
    stop() {
      clearTimeout(timer);
      void server?.stop(true);
    },
  };
}

function answer(request: Request, { live, ready, metrics }: HttpOptions): Response {
  if (request.method !== "GET" && request.method !== "HEAD") {
    return new Response("only GET\n", { status: 405 });
  }
  switch (new URL(request.url).pathname) {
    case "/livez":
      return live()
        ? new Response("ok\n")
        : new Response("the socket is gone or somebody else's\n", { status: 503 });
    case "/readyz": {
      const { ok, text } = ready();
      return new Response(`${text}\n`, { status: ok ? 200 : 503 });
    }
    case "/metrics":
      return new Response(metrics(), {
        headers: { "Content-Type": "text/plain; version=0.0.4; charset=utf-8" },
      });
    default:
      return new Response("there are /livez, /readyz and /metrics\n", { status: 404 });
  }
}
