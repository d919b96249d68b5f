import type { Socket } from "node:net";
import { type Server as GrpcServer, ServerCredentials, setLogger } from "@grpc/grpc-js";
import { type Clock, systemClock } from "../system/clock.ts";
import { describeError } from "../system/errors.ts";
import type { Log } from "../system/log.ts";
import type { HeldSocket } from "../system/systemd.ts";
import { Connection } from "./connection.ts";
import {
  type BoundSocket,
  bindHeld,
  bindPath,
  type SocketOptions,
  warnOfOthers,
} from "./unix-socket.ts";

/** How long calls in progress may take after SIGTERM; the API server's default timeout is 3 s. */
const DRAIN_TIMEOUT_MS = 5_000;

/**
 * An API server has a handful; a container may have 1,024 descriptors in all. Above the limit a new connection replaces
 * the one that was silent longest. So silent clients cannot lock out one that talks.
 */
export const MAX_CONNECTIONS = 512;

/** How long the shutdown waits for the first bytes of a new connection: its client may have written them already. */
const UNHEARD_TIMEOUT_MS = 200;
const UNHEARD_LOOK_MS = 10;

/** How often the plugin checks that the path still leads to its socket. A lost path is bound again within 5 s. */
const WATCH_INTERVAL_MS = 2_000;

/**
 * systemd-tmpfiles removes what is old from /tmp. It spares a live socket by the name at which it was bound, and ours was
 * renamed; so its times are kept young. Nobody ages a directory by less than an hour.
 */
const TOUCH_INTERVAL_MS = 3_600_000;

/** Where to listen: on a path of our own, or on a socket that systemd made and keeps. */
export type Place = SocketOptions | HeldSocket;

export interface Listener {
  /** Whether the path still leads to the socket that was bound. */
  isOurs(): boolean;
  /** Whether systemd holds the socket. Then a restart of the process does not bring back a lost path. */
  readonly isHeld: boolean;
  /** Open connections. */
  readonly connections: number;
  /** Stops accepting, lets calls in progress end (at most 5 s) and removes the socket if it is ours. */
  close(): Promise<void>;
}

/**
 * Serves gRPC on a unix socket.
 * @throws ExitError when the socket cannot be bound, with what to do
 */
export async function listen(
  grpc: GrpcServer,
  place: Place,
  log: Log,
  clock = systemClock,
): Promise<Listener> {
  // By default grpc-js logs to console, which blocks while nobody reads standard error.
  const trace = (text: string) => log.debug("gRPC", { text });
  setLogger({
    error: (text: string) => log.warn("the gRPC library reports a fault", { text }),
    info: trace,
    debug: trace,
  });
  const injector = grpc.createConnectionInjector(ServerCredentials.createInsecure());
  const open = new Set<Connection>();
  const accept = (socket: Socket) => {
    const connection = new Connection(socket);
    const displaced = open.size >= MAX_CONNECTIONS ? quietest(open) : undefined;
    if (displaced !== undefined) {
      open.delete(displaced);
      displaced.destroy();
    }
    open.add(connection);
    connection.once("close", () => open.delete(connection));
    injector.injectConnection(connection);
  };
  const isHeld = "descriptor" in place;
  let bound = await (isHeld ? bindHeld(accept, place, log) : bindPath(accept, place));
  warnOfOthers(place, log);
  const bindAgain = async (path: SocketOptions) => {
    const lost = bound;
    bound = await bindPath(accept, path);
    lost.close();
    log.warn("the path of the socket had vanished, or led elsewhere: bound again", {
      path: path.path,
    });
  };
  const stopWatching = watch(
    place.path,
    () => bound,
    isHeld ? undefined : () => bindAgain(place),
    log,
    clock,
  );
  return {
    isOurs: () => bound.isOurs(),
    isHeld,
    get connections() {
      return open.size;
    },
    async close() {
      await stopWatching();
      bound.close();
      await untilHeard(open);
      const closed = [...open].map((connection) => {
        const closing = new Promise<void>((resolve) => connection.once("close", () => resolve()));
        if (connection.heardAtMs === 0) {
          connection.destroy(); // it has not spoken HTTP/2, so it would not understand a GOAWAY
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

/**
 * Checks regularly that the path still leads to our socket, and keeps it young. Open connections continue in any case.
 * @param bindAgain undefined when only systemd can bind the path
 * @returns a function that ends it
 */
function watch(
  path: string,
  bound: () => BoundSocket,
  bindAgain: (() => Promise<void>) | undefined,
  log: Log,
  clock: Clock,
): () => Promise<void> {
  const isOurs = () => bound().isOurs();
  let isLost = false;
  let looking: Promise<void> | undefined;
  let touchedMs = clock.nowMs();
  const look = async () => {
    let cause = "only systemd can bind it again";
    if (!isOurs()) {
      await bindAgain?.().catch((error) => {
        cause = describeError(error);
      });
    }
    if (!isOurs() && !isLost) {
      isLost = true;
      log.error("the path no longer leads to our socket: new connections do not reach us", {
        path,
        cause,
        remedy:
          bindAgain === undefined
            ? "when Key4C answers: systemctl restart key4c-kms-plugin.socket, which restarts the plugin too; the service alone does not help"
            : "it is tried again until it can be bound; do not restart the plugin for it",
      });
    } else if (isOurs() && isLost) {
      isLost = false;
      log.info("the path leads to our socket again", { path });
    }
  };
  let cancel: () => void;
  const lookLater = () => {
    cancel = clock.after(WATCH_INTERVAL_MS, () => {
      if (clock.nowMs() - touchedMs >= TOUCH_INTERVAL_MS) {
        touchedMs = clock.nowMs();
        bound().touch();
      }
      looking = look().finally(lookLater);
    });
  };
  lookLater();
  return async () => {
    cancel();
    await looking;
    cancel(); // the one that followed
  };
}

/** A connection that is destroyed before its first bytes are read fails a call that its client has sent already. */
async function untilHeard(connections: Iterable<Connection>): Promise<void> {
  const endMs = performance.now() + UNHEARD_TIMEOUT_MS;
  const isUnheard = ({ heardAtMs }: Connection) => heardAtMs === 0;
  while ([...connections].some(isUnheard) && performance.now() < endMs) {
    await Bun.sleep(UNHEARD_LOOK_MS);
  }
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
