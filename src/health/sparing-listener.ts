import { closeSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { duplicate } from "../system/libc.ts";

/** Connections open at once, and accepted before a pause. Prometheus needs one; the rest is for the API server. */
export const MAX_HTTP_CONNECTIONS = 8;
/** With this pause at most 80 connections a second cost anything. */
export const PAUSE_MS = 100;

/**
 * A TCP listener that cannot be used against the process. Every user of the node can reach loopback, and each connection
 * takes time from the one thread that also answers the API server. So few are accepted at once, and few in a second. The
 * others wait in the kernel. The address stays ours meanwhile: no other process can take it.
 */
export class SparingListener {
  readonly port: number;
  readonly #descriptor: number;
  readonly #serve: (socket: Socket) => void;
  #server: Server | undefined;
  #taken = 0;
  #open = 0;
  #timer: Timer | undefined;
  #isClosed = false;

  /** @throws Error with a code when the address cannot be had */
  constructor(host: string, port: number, serve: (socket: Socket) => void) {
    this.#serve = serve;
    const held = Bun.listen({ hostname: host, port, socket: { data() {} } });
    this.port = held.port;
    try {
      // The descriptor is there, but not in the types of Bun.
      const descriptor = "fd" in held ? Number(held.fd) : -1;
      this.#descriptor = duplicate(descriptor);
    } finally {
      held.stop(true); // in the same turn, so it has accepted no connection
    }
    this.#listen();
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    this.#server?.close();
    closeSync(this.#descriptor);
  }

  #listen(): void {
    this.#taken = 0;
    const server = createServer((socket) => {
      this.#taken += 1;
      this.#open += 1;
      if (this.#taken === MAX_HTTP_CONNECTIONS) {
        server.close(); // accepts no more connections, not even those that wait already
        this.#server = undefined;
      }
      socket.once("close", () => {
        this.#open -= 1;
        this.#resume();
      });
      socket.on("error", () => {}); // a client may break off at any time
      this.#serve(socket);
    });
    server.on("error", () => {
      this.#server = undefined; // no descriptor left: tried again
      this.#resume();
    });
    this.#server = server;
    try {
      server.listen({ fd: duplicate(this.#descriptor) });
    } catch {
      this.#server = undefined;
      this.#resume();
    }
  }

  #resume(): void {
    if (this.#server === undefined && this.#open === 0 && !this.#isClosed) {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#listen(), PAUSE_MS);
    }
  }
}
