import { randomBytes } from "node:crypto";
import {
  chmodSync,
  chownSync,
  lstatSync,
  lutimesSync,
  mkdirSync,
  renameSync,
  rmSync,
  statSync,
  unlinkSync,
} from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { dirname } from "node:path";
import { ExitError } from "../system/errors.ts";
import { errorCode, isNothing, lookAt } from "../system/files.ts";
import type { Log } from "../system/log.ts";
import type { HeldSocket } from "../system/systemd.ts";

/** A working plugin accepts a local connection at once. */
const CONNECT_TIMEOUT_MS = 1_000;
/** Appended to the path while the socket is not ready: a dot and hexadecimal digits. */
const TEMPORARY_SUFFIX_BYTES = 3;
/** sockaddr_un.sun_path is 108 bytes with its NUL; the temporary name must fit too. */
export const MAX_SOCKET_PATH_BYTES = 107 - 1 - 2 * TEMPORARY_SUFFIX_BYTES;

/** A listening server and its path. */
export interface BoundSocket {
  /** Whether the path still leads to it, as far as this process can see. */
  isOurs(): boolean;
  /** Makes its times those of now, if the path is ours. */
  touch(): void;
  /** Stops accepting, and removes the path if it is ours. Open connections stay. */
  close(): void;
}

type Accept = (socket: Socket) => void;

export interface SocketOptions {
  readonly path: string;
  /** Permission bits of the socket. */
  readonly mode: number;
  /** Numeric group of the socket; undefined leaves it. */
  readonly gid: number | undefined;
}

/**
 * Binds to a path of our own. When the socket appears there, it has its permissions and accepts connections.
 * @throws ExitError when the path cannot be bound, with what to do
 */
export async function bindPath(accept: Accept, options: SocketOptions): Promise<BoundSocket> {
  const { path } = options;
  prepareDirectory(options);
  await refuseLiveOwner(path);
  const server = createServer({ allowHalfOpen: false }, accept);
  const identity = await bind(server, options);
  return {
    isOurs: () => isSame(path, identity),
    touch() {
      const now = new Date();
      try {
        if (isSame(path, identity)) {
          lutimesSync(path, now, now);
        }
      } catch {
        // It has just vanished, which is noticed elsewhere.
      }
    },
    close() {
      if (isSame(path, identity)) {
        unlinkSync(path);
      }
      server.close();
    },
  };
}

/**
 * Takes a socket that systemd made and keeps. The path belongs to systemd: it stays when we end, for the next process.
 * The kernel does not say whether a path leads to a descriptor. So we assume that it does now, and check that the file at
 * the path stays the same. A path that was never seen is not lost: others may see it.
 */
export async function bindHeld(
  accept: Accept,
  { descriptor, path }: HeldSocket,
  log: Log,
): Promise<BoundSocket> {
  const found = lookAt(path);
  if (typeof found !== "object") {
    const remedy = isNothing(found)
      ? "ListenStream= below /run: PrivateTmp= hides the machine's /tmp and /var/tmp from the service"
      : "DirectoryMode=0711 in the socket unit";
    log.warn("cannot look at the path of the socket: if it vanishes, nobody notices", {
      path,
      remedy,
    });
  }
  const server = createServer({ allowHalfOpen: false }, accept);
  await listening(server, { fd: descriptor });
  return {
    isOurs: () => typeof found !== "object" || isSame(path, found),
    touch() {}, // systemd-tmpfiles knows it by its name
    close: () => server.close(),
  };
}

/** Warns about what opens the socket to others. For a socket of systemd the remedy is a setting of its unit. */
export function warnOfOthers(place: SocketOptions | HeldSocket, log: Log): void {
  const { path } = place;
  const isHeld = "descriptor" in place;
  const mode = (which: string) => {
    const found = lookAt(which, statSync);
    return typeof found === "object" ? found.mode : 0;
  };
  if ((mode(dirname(path)) & 0o022) !== 0) {
    log.warn("others can write to the directory of the socket and could bind there first", {
      directory: dirname(path),
      remedy: "use a directory of its own with mode 0700, such as /run/key4c-kms",
    });
  }
  if ((mode(path) & 0o002) !== 0) {
    log.warn("every user of this machine can connect to the socket and have DEKs unwrapped", {
      path,
      remedy: isHeld ? "SocketMode=0600 in the socket unit" : "set KMS_SOCKET_MODE=0600",
    });
  }
}

function listening(server: Server, where: { path: string } | { fd: number }): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(where, () => {
      server.off("error", reject);
      resolve();
    });
  });
}

function prepareDirectory({ path, gid }: SocketOptions): void {
  const directory = dirname(path);
  try {
    const made = mkdirSync(directory, { recursive: true, mode: 0o700 });
    if (made !== undefined && gid !== undefined) {
      chownSync(directory, -1, gid); // otherwise members of the group could not reach the socket
      chmodSync(directory, 0o710);
    }
  } catch (error) {
    throw new ExitError(
      1,
      `cannot make the directory ${directory} (${errorCode(error)}): create it or change KMS_ENDPOINT`,
    );
  }
}

/** @throws ExitError when the path has a file that is not a socket, or a socket on which a process answers */
async function refuseLiveOwner(path: string): Promise<void> {
  const found = lookAt(path);
  if (isNothing(found)) {
    return;
  }
  if (typeof found === "string") {
    throw cannotListen(path, found); // a directory that we may not search
  }
  if (!found.isSocket()) {
    throw new ExitError(1, `${path} exists and is not a socket: remove it or change KMS_ENDPOINT`);
  }
  const answer = await connectTo(path);
  // Only these two say that nobody listens. A full backlog or a forbidden connect means that a process does.
  const answered = !["ECONNREFUSED", "ENOENT"].includes(answer);
  if (answered) {
    throw new ExitError(
      1,
      `${path} is in use by another process: stop that one or change KMS_ENDPOINT`,
    );
  }
}

function cannotListen(path: string, code: string): ExitError {
  return new ExitError(
    1,
    `cannot listen on ${path} (${code}): check the directory's owner and mode, or change KMS_ENDPOINT`,
  );
}

/** "connected", the code of the failure, or "no answer" when the owner is stuck. */
export function connectTo(path: string): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect(path);
    const settle = (answer: string) => {
      socket.destroy();
      resolve(answer);
    };
    socket.once("connect", () => settle("connected"));
    socket.once("error", (error) => settle(errorCode(error)));
    socket.setTimeout(CONNECT_TIMEOUT_MS, () => settle("no answer"));
  });
}

interface SocketIdentity {
  readonly dev: number;
  readonly ino: number;
}

/** Binds under a temporary name, sets the permissions, and renames it over a stale socket. */
async function bind(server: Server, options: SocketOptions): Promise<SocketIdentity> {
  const { path, mode, gid } = options;
  const temporary = `${path}.${randomBytes(TEMPORARY_SUFFIX_BYTES).toString("hex")}`;
  try {
    await listening(server, { path: temporary });
    giveToGroup(temporary, gid);
    chmodSync(temporary, mode);
    const { dev, ino } = lstatSync(temporary); // before the rename: after it, another process may have taken the path
    renameSync(temporary, path);
    return { dev, ino };
  } catch (error) {
    server.close();
    rmSync(temporary, { force: true });
    if (error instanceof ExitError) {
      throw error;
    }
    throw cannotListen(path, errorCode(error));
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
  const found = lookAt(path);
  return typeof found === "object" && found.dev === dev && found.ino === ino;
}
