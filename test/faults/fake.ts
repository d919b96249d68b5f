/**
 * A Key4C that can be broken and mended while it runs: HTTPS by hand over TCP, because a proper server
 * refuses to misbehave. What it answers honestly is what the emulator behind it answers.
 */
import { readFileSync } from "node:fs";
import type { Socket, TCPSocketListener } from "bun";
import type { Pki } from "../pki.ts";
import { freePort } from "../ports.ts";

/** One request and what can be done to it. */
export interface Exchange {
  readonly method: string;
  readonly path: string;
  readonly userId: string | undefined;
  readonly body: string;
  /** What the emulator answers, perhaps to another body. */
  honest(body?: string): Promise<{ readonly status: number; readonly text: string }>;
  /** Resolves when the bytes are on their way; false when the connection is gone. */
  write(bytes: string | Uint8Array): Promise<boolean>;
  /** A whole answer. */
  answer(status: number, text: string, headers?: readonly string[]): Promise<boolean>;
  /** Ends the connection properly. */
  end(): void;
  /** What comes on this connection from now on is not answered. */
  ignoreTheRest(): void;
  /** Ends it at once, with whatever was written still unsent. */
  reset(): void;
}

export type Behaviour = (exchange: Exchange) => unknown;

interface Connection {
  received: Buffer;
  isOpen: boolean;
  isIgnored: boolean;
  /** Told when it can take more bytes, or is gone. */
  wake: (() => void) | undefined;
  /** Requests on one connection are answered one after the other. */
  answered: Promise<unknown>;
}

export async function answerHonestly(exchange: Exchange): Promise<void> {
  const { status, text } = await exchange.honest();
  await exchange.answer(status, text);
}

export class FakeKey4C {
  behaviour: Behaviour = answerHonestly;
  /** The most connections at once, ever. */
  peakConnections = 0;
  requests = 0;
  readonly #emulatorUrl: string;
  readonly #open = new Set<Socket<Connection>>();
  #listener: TCPSocketListener<Connection> | undefined;
  readonly #port = freePort();

  constructor(emulatorUrl: string) {
    this.#emulatorUrl = emulatorUrl;
  }

  get port(): number {
    return this.#port;
  }

  /** Listens, at the same port each time. Without a certificate it speaks no TLS. */
  listen(
    certificate: { readonly pki: Pki; readonly name: string } | undefined,
    host = "127.0.0.1",
  ): void {
    this.close();
    this.#listener = Bun.listen<Connection>({
      hostname: host,
      port: this.#port,
      ...(certificate && {
        tls: {
          cert: readFileSync(certificate.pki.file(`${certificate.name}.pem`), "utf8"),
          key: readFileSync(certificate.pki.file(`${certificate.name}.key`), "utf8"),
        },
      }),
      socket: {
        open: (socket) => {
          socket.data = {
            received: Buffer.of(),
            isOpen: true,
            isIgnored: false,
            wake: undefined,
            answered: Promise.resolve(),
          };
          this.#open.add(socket);
          this.peakConnections = Math.max(this.peakConnections, this.#open.size);
        },
        data: (socket, chunk) => {
          if (!socket.data.isIgnored) {
            socket.data.received = Buffer.concat([socket.data.received, chunk]);
            this.#serve(socket);
          }
        },
        drain: (socket) => socket.data.wake?.(),
        close: (socket) => {
          this.#open.delete(socket);
          if (socket.data) {
            socket.data.isOpen = false;
            socket.data.wake?.();
          }
        },
        error: () => {}, // such as a client that does not like the certificate
      },
    });
  }

  /** From now on connections are refused; those that are open are cut. */
  close(): void {
    this.#listener?.stop(true);
    this.#listener = undefined;
    this.cut();
  }

  /** Ends every open connection. */
  cut(): void {
    for (const socket of this.#open) {
      socket.terminate();
    }
    this.#open.clear();
  }

  #serve(socket: Socket<Connection>): void {
    const { data } = socket;
    for (;;) {
      const headEnd = data.received.indexOf("\r\n\r\n");
      if (headEnd < 0) {
        return;
      }
      const [first = "", ...lines] = data.received.subarray(0, headEnd).toString().split("\r\n");
      const headers = new Map(
        lines.map((line) => {
          const colon = line.indexOf(":");
          return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()];
        }),
      );
      const bodyAt = headEnd + 4;
      const end = bodyAt + Number(headers.get("content-length") ?? 0);
      if (data.received.length < end) {
        return;
      }
      const [method = "", path = ""] = first.split(" ");
      const body = data.received.subarray(bodyAt, end).toString();
      data.received = data.received.subarray(end);
      this.requests += 1;
      const exchange = this.#exchange(socket, method, path, headers.get("x-key4c-user-id"), body);
      data.answered = data.answered.then(() => this.behaviour(exchange)).catch(() => socket.end());
    }
  }

  #exchange(
    socket: Socket<Connection>,
    method: string,
    path: string,
    userId: string | undefined,
    body: string,
  ): Exchange {
    const { data } = socket;
    const write = async (bytes: string | Uint8Array) => {
      for (let rest = Buffer.from(bytes); data.isOpen; ) {
        rest = rest.subarray(Math.max(0, socket.write(rest)));
        if (rest.length === 0) {
          return true;
        }
        await new Promise<void>((resolve) => {
          data.wake = resolve;
        });
      }
      return false;
    };
    return {
      method,
      path,
      userId,
      body,
      honest: async (otherBody = body) => {
        const response = await fetch(this.#emulatorUrl + path, {
          method,
          headers: { "X-Key4C-User-Id": userId ?? "" },
          ...(method === "POST" && { body: otherBody }),
        });
        return { status: response.status, text: await response.text() };
      },
      write,
      answer: (status, text, headers = []) => write(answerBytes(status, text, headers)),
      end: () => socket.end(),
      ignoreTheRest: () => {
        data.isIgnored = true;
      },
      reset: () => socket.terminate(),
    };
  }
}

export function answerBytes(status: number, text: string, headers: readonly string[] = []): string {
  const length = `Content-Length: ${Buffer.byteLength(text)}`;
  const head = [`HTTP/1.1 ${status} ${status}`, "Content-Type: application/json", length];
  return `${[...head, ...headers].join("\r\n")}\r\n\r\n${text}`;
}
