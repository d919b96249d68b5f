import { createServer } from "node:net";
import { type Server as GrpcServer, ServerCredentials } from "@grpc/grpc-js";
import { errorCode } from "../system/files.ts";
import type { Log } from "../system/log.ts";
import { Connection } from "./connection.ts";
import { bindDescriptor, bindPath, type SocketOptions } from "./unix-socket.ts";

/** How long calls in progress may take after SIGTERM; the API server's default timeout is 3 s. */
const DRAIN_TIMEOUT_MS = 5_000;

/**
 * An API server has a handful; a container may have 1,024 descriptors in all. Above it the connection that
 * was silent longest gives way to the new one, so that whoever talks is not locked out by who does not.
 */
const MAX_CONNECTIONS = 512;

/** Where to listen: on a path of our own, or on a socket that systemd made and keeps. */
export type Place = SocketOptions | { readonly descriptor: number };

export interface Listener {
  /** Whether the path still leads to the socket that was bound. */
  isOurs(): boolean;
  /** Open connections. */
  readonly connections: number;
  /** Stops accepting, lets calls in progress end (at most 5 s) and removes the socket if it is ours. */
  close(): Promise<void>;
}

/**
 * Serves gRPC on a unix socket.
 * @throws ExitError when it cannot be had, with what to do
 */
export async function listen(grpc: GrpcServer, place: Place, log: Log): Promise<Listener> {
  const injector = grpc.createConnectionInjector(ServerCredentials.createInsecure());
  const open = new Set<Connection>();
  const server = createServer({ allowHalfOpen: false }, (socket) => {
    const connection = new Connection(socket);
    const displaced = open.size >= MAX_CONNECTIONS ? quietest(open) : undefined;
    if (displaced !== undefined) {
      open.delete(displaced);
      displaced.destroy();
    }
    open.add(connection);
    connection.once("close", () => open.delete(connection));
    injector.injectConnection(connection);
  });
  const bound =
    "descriptor" in place
      ? await bindDescriptor(server, place.descriptor)
      : await bindPath(server, place);
  server.on("error", (error) => log.error("socket failed", { cause: errorCode(error) }));
  return {
    isOurs: bound.isOurs,
    get connections() {
      return open.size;
    },
    async close() {
      bound.release();
      server.close();
      const closed = [...open].map((connection) => {
        const closing = new Promise<void>((resolve) => connection.once("close", () => resolve()));
        if (connection.heardAtMs === 0) {
          connection.destroy(); // it would not understand a GOAWAY
        }
        return closing;
      });
      // Sends GOAWAY and lets calls in progress end. Under Bun its callback comes before they have.
      grpc.tryShutdown(() => {});
      const timeout = Bun.sleep(DRAIN_TIMEOUT_MS).then(() => "timeout");
      if ((await Promise.race([Promise.all(closed), timeout])) === "timeout") {
        log.warn("connections were still open at the end", { connections: open.size });
      }
      grpc.forceShutdown();
      for (const connection of open) {
        connection.destroy();
      }
    },
  };
}

function quietest(connections: Iterable<Connection>): Connection | undefined {
  let found: Connection | undefined;
  for (const connection of connections) {
    if (found === undefined || connection.heardAtMs < found.heardAtMs) {
      found = connection;
    }
  }
  return found;
}
