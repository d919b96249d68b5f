/** What systemd tells a service in its environment, and what a service tells systemd. */
import { existsSync, fstatSync, readFileSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { describeError, ExitError } from "./errors.ts";
import { sendDatagram } from "./libc.ts";
import type { Log } from "./log.ts";

type Environment = Readonly<Record<string, string | undefined>>;

/** sd_listen_fds(3): the first descriptor that is passed. */
const LISTEN_FDS_START = 3;

/**
 * The listening socket that systemd holds for us (LISTEN_FDS, LISTEN_PID); undefined without one. It
 * outlives the process: calls that come during a restart wait in its queue.
 * @throws ExitError when what was passed is not exactly one unix stream socket that listens
 */
export function inheritedSocket(env: Environment, pid: number): number | undefined {
  if (env["LISTEN_FDS"] === undefined || env["LISTEN_PID"] !== String(pid)) {
    return undefined; // meant for nobody, or for another process whose environment we have
  }
  if (env["LISTEN_FDS"] !== "1") {
    throw new ExitError(
      1,
      `systemd passed ${env["LISTEN_FDS"]} sockets: the socket unit must have one ListenStream=`,
    );
  }
  if (!isListeningUnixStream(LISTEN_FDS_START)) {
    throw new ExitError(
      1,
      "what systemd passed is not a unix stream socket: the socket unit needs ListenStream=/PATH",
    );
  }
  return LISTEN_FDS_START;
}

/** Bun would listen on a TCP socket just as well, on which anyone could ask for plaintext. */
function isListeningUnixStream(descriptor: number): boolean {
  try {
    if (!fstatSync(descriptor).isSocket()) {
      return false;
    }
    const inode = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/self/fd/${descriptor}`))?.[1];
    // proc_net_unix(5): Num RefCount Protocol Flags Type St Inode [Path]
    const found = readFileSync("/proc/self/net/unix", "utf8")
      .split("\n")
      .map((line) => line.trim().split(/\s+/))
      .find((fields) => inode !== undefined && fields[6] === inode);
    const SO_ACCEPTCON = 1 << 16;
    const SOCK_STREAM = 1;
    return (
      found !== undefined &&
      (Number.parseInt(found[3] ?? "", 16) & SO_ACCEPTCON) !== 0 &&
      Number.parseInt(found[4] ?? "", 16) === SOCK_STREAM
    );
  } catch {
    return false;
  }
}

/** The file of a credential (LoadCredential= in the unit); undefined when there is none. */
export function credentialFile(env: Environment, name: string): string | undefined {
  const directory = env["CREDENTIALS_DIRECTORY"];
  const path = directory && join(directory, name);
  return path && existsSync(path) ? path : undefined;
}

export interface Supervisor {
  /** The socket accepts: whoever is ordered after us may start. Key4C need not be there yet. */
  ready(): void;
  stopping(): void;
}

/**
 * Tells the service manager of our state (sd_notify(3)), and that we live at half the interval it wants
 * (sd_watchdog_enabled(3)). Without NOTIFY_SOCKET it does nothing.
 * @param isLive asked before each sign of life
 */
export function supervisor(
  env: Environment,
  pid: number,
  { isLive, log }: { readonly isLive: () => boolean; readonly log: Log },
): Supervisor {
  const path = env["NOTIFY_SOCKET"];
  if (!path) {
    return { ready() {}, stopping() {} };
  }
  const notify = (state: string) => {
    try {
      if (!sendDatagram(path, state)) {
        log.warn("systemd cannot be told", { state });
      }
    } catch (error) {
      log.warn("systemd cannot be told", { state, cause: describeError(error) });
    }
  };
  const isForUs = [undefined, String(pid)].includes(env["WATCHDOG_PID"]);
  const intervalMs = isForUs ? Number(env["WATCHDOG_USEC"] ?? 0) / 1_000 / 2 : 0;
  let timer: Timer | undefined;
  return {
    ready() {
      notify("READY=1");
      if (intervalMs >= 1) {
        timer = setInterval(() => isLive() && notify("WATCHDOG=1"), intervalMs);
      }
    },
    stopping() {
      clearInterval(timer);
      notify("STOPPING=1");
    },
  };
}
