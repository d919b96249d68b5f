import { randomBytes } from "node:crypto";
import {
  chmodSync,
  chownSync,
  lstatSync,
  mkdirSync,
  renameSync,
  rmSync,
  statSync,
  unlinkSync,
} from "node:fs";
import { connect, createServer, type Server as NetServer } from "node:net";
import { dirname } from "node:path";
import { type Server as GrpcServer, ServerCredentials } from "@grpc/grpc-js";
import { Connection } from "./connection.ts";
import { ExitError } from "./errors.ts";
import { errorCode } from "./files.ts";
import type { Log } from "./observe.ts";

/** A local connect answers at once; whoever takes longer is not a working plugin. */
const LIVE_OWNER_TIMEOUT_MS = 1_000;
/** How long calls in progress may take after SIGTERM; the API server's default timeout is 3 s. */
const DRAIN_TIMEOUT_MS = 5_000;
/** Appended to the path while the socket is not ready: a dot and hexadecimal digits. */
const TEMPORARY_SUFFIX_BYTES = 3;
/** sockaddr_un.sun_path is 108 bytes with its NUL; the temporary name must fit too. */
export const MAX_SOCKET_PATH_BYTES = 107 - 1 - 2 * TEMPORARY_SUFFIX_BYTES;

export interface ListenOptions {
  readonly path: string;
  /** Permission bits of the socket. */
  readonly mode: number;
  /** Numeric group of the socket; undefined leaves it. */
  readonly gid: number | undefined;
  readonly log: Log;
}

export interface Listener {
  /** Whether the path still leads to the socket that was bound. */
  isOurs(): boolean;
  /** Open connections. */
  readonly connections: number;
  /** Stops accepting, lets calls in progress end (at most 5 s) and removes the socket if it is ours. */
  close(): Promise<void>;
}

/**
 * Serves gRPC on a unix socket. The socket appears under its path complete: with its permissions, and
 * accepting.
 * @throws ExitError when the path cannot be had, with what to do
 */
export async function listen(grpc: GrpcServer, options: ListenOptions): Promise<Listener> {
  const { path, log } = options;
  prepareDirectory(options);
  await refuseLiveOwner(path);
  const injector = grpc.createConnectionInjector(ServerCredentials.createInsecure());
  const open = new Set<Connection>();
  const server = createServer({ allowHalfOpen: false }, (socket) => {
    const connection = new Connection(socket);
    open.add(connection);
    connection.once("close", () => open.delete(connection));
    injector.injectConnection(connection);
  });
  const identity = await bind(server, options);
  server.on("error", (error) => log.error("socket failed", { cause: errorCode(error) }));
  return {
    isOurs: () => isSame(path, identity),
    get connections() {
      return open.size;
    },
    async close() {
      if (isSame(path, identity)) {
        unlinkSync(path);
      }
      server.close();
      const closed = [...open].map((connection) => {
        const closing = new Promise<void>((resolve) => connection.once("close", () => resolve()));
        if (!connection.hasSpoken) {
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

function prepareDirectory({ path, gid, log }: ListenOptions): void {
  const directory = dirname(path);
  try {
    const made = mkdirSync(directory, { recursive: true, mode: 0o700 });
    if (made !== undefined && gid !== undefined) {
      chownSync(directory, -1, gid); // else its members could not reach the socket
      chmodSync(directory, 0o710);
    }
    if ((statSync(directory).mode & 0o022) !== 0) {
      log.warn("others can write to the directory of the socket and could bind there first", {
        directory,
        remedy: "use a directory of its own with mode 0700, such as /run/key4c-kms",
      });
    }
  } catch (error) {
    throw new ExitError(
      1,
      `cannot make the directory ${directory} (${errorCode(error)}): create it or change KMS_ENDPOINT`,
    );
  }
}

/** Leaves a path alone that holds no socket, or one on which somebody answers. */
async function refuseLiveOwner(path: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) {
    return;
  }
  if (!found.isSocket()) {
    throw new ExitError(1, `${path} exists and is not a socket: remove it or change KMS_ENDPOINT`);
  }
  const answered = await new Promise<boolean>((resolve) => {
    const socket = connect(path);
    const settle = (answers: boolean) => {
      socket.destroy();
      resolve(answers);
    };
    socket.once("connect", () => settle(true));
    // Only these two say that nobody listens; a full backlog or a forbidden connect says that somebody does.
    socket.once("error", (error) => settle(!["ECONNREFUSED", "ENOENT"].includes(errorCode(error))));
    socket.setTimeout(LIVE_OWNER_TIMEOUT_MS, () => settle(true)); // somebody holds it, even if stuck
  });
  if (answered) {
    throw new ExitError(
      1,
      `${path} is in use by another process: stop that one or change KMS_ENDPOINT`,
    );
  }
}

interface SocketIdentity {
  readonly dev: number;
  readonly ino: number;
}

/** Binds under a temporary name, sets permissions and renames over what is stale. */
async function bind(server: NetServer, options: ListenOptions): Promise<SocketIdentity> {
  const { path, mode, gid } = options;
  const temporary = `${path}.${randomBytes(TEMPORARY_SUFFIX_BYTES).toString("hex")}`;
  try {
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(temporary, () => {
        server.off("error", reject);
        resolve();
      });
    });
    giveToGroup(temporary, gid);
    chmodSync(temporary, mode);
    renameSync(temporary, path);
    const { dev, ino } = lstatSync(path);
    return { dev, ino };
  } catch (error) {
    server.close();
    rmSync(temporary, { force: true });
    if (error instanceof ExitError) {
      throw error;
    }
    throw new ExitError(
      1,
      `cannot listen on ${path} (${errorCode(error)}): check the directory's owner and mode, or change KMS_ENDPOINT`,
    );
  }
}

function giveToGroup(path: string, gid: number | undefined): void {
  try {
    if (gid !== undefined) {
      chownSync(path, -1, gid);
    }
  } catch (error) {
    throw new ExitError(
      1,
      `cannot give the socket to the group ${gid} (${errorCode(error)}): change KMS_SOCKET_GROUP, or run as a member`,
    );
  }
}

function isSame(path: string, { dev, ino }: SocketIdentity): boolean {
  const found = lstatSync(path, { throwIfNoEntry: false });
  return found?.dev === dev && found.ino === ino;
}
