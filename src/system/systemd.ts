/** The protocols between systemd and a service: passed sockets, credentials, notifications, watchdog. */
import { existsSync, fstatSync, readFileSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { describeError, ExitError } from "./errors.ts";
import { sendDatagram } from "./libc.ts";
import type { Log } from "./log.ts";

type Environment = Readonly<Record<string, string | undefined>>;

/** sd_listen_fds(3): the first descriptor that is passed. */
const LISTEN_FDS_START = 3;

/** A socket that systemd made and keeps: its descriptor here, and the path to which systemd bound it. */
export interface HeldSocket {
  readonly descriptor: number;
  readonly path: string;
}

/**
 * The listening socket that systemd holds for us (LISTEN_FDS, LISTEN_PID); undefined without one. It
 * outlives the process: calls that come during a restart wait in its queue.
 * @throws ExitError when what was passed is not exactly one unix stream socket that listens on a path
 */
export function inheritedSocket(env: Environment, pid: number): HeldSocket | undefined {
  if (env["LISTEN_FDS"] === undefined || env["LISTEN_PID"] !== String(pid)) {
    return undefined; // no socket, or one for another process whose environment we inherited
  }
  if (env["LISTEN_FDS"] !== "1") {
    throw new ExitError(
      1,
      `systemd passed ${env["LISTEN_FDS"]} sockets: the socket unit must have one ListenStream=`,
    );
  }
  const path = pathOfListener(LISTEN_FDS_START);
  // Bun would also listen on a TCP socket, where anyone could ask for plaintext. An abstract socket has no
  // permissions either.
  if (path?.startsWith("/") !== true) {
    throw new ExitError(
      1,
      "what systemd passed is not a unix stream socket: the socket unit needs ListenStream=/PATH",
    );
  }
  return { descriptor: LISTEN_FDS_START, path };
}

/** The path of a unix stream socket that listens; undefined for anything else. */
function pathOfListener(descriptor: number): string | undefined {
  try {
    if (!fstatSync(descriptor).isSocket()) {
      return undefined;
    }
    const inode = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/self/fd/${descriptor}`))?.[1];
    // proc_net_unix(5): Num RefCount Protocol Flags Type St Inode [Path]
    const [, flags = "", type = "", path] =
      readFileSync("/proc/self/net/unix", "utf8").match(
        new RegExp(`^\\S+ \\S+ \\S+ (\\S+) (\\S+) \\S+ +${inode}(?: (.*))?$`, "m"),
      ) ?? [];
    const SO_ACCEPTCON = 1 << 16;
    const SOCK_STREAM = 1;
    return (Number.parseInt(flags, 16) & SO_ACCEPTCON) !== 0 &&
      Number.parseInt(type, 16) === SOCK_STREAM
      ? path
      : undefined;
  } catch {
    return undefined;
  }
}

/** The file of a credential (LoadCredential= in the unit); undefined when there is none. */
export function credentialFile(env: Environment, name: string): string | undefined {
  const directory = env["CREDENTIALS_DIRECTORY"];
  const path = directory && join(directory, name);
  return path && existsSync(path) ? path : undefined;
}

export interface Supervisor {
  /** The socket accepts connections, so units ordered after this one may start. Key4C need not answer yet. */
  ready(): void;
  stopping(): void;
}

interface SupervisorOptions {
  /** Asked before each message to the watchdog. */
  readonly isLive: () => boolean;
  /** What `systemctl status` shows, in a line. */
  readonly status: () => string;
  readonly log: Log;
}

/** How often a message that systemd did not take is sent again, and a changed status is sent. */
const TELL_INTERVAL_MS = 1_000;

/**
 * Sends our state to the service manager (sd_notify(3)), and feeds its watchdog at half the interval that it wants
 * (sd_watchdog_enabled(3)). It never waits for a manager that does not read. Without NOTIFY_SOCKET it does nothing.
 */
export function supervisor(
  env: Environment,
  pid: number,
  { isLive, status, log }: SupervisorOptions,
): Supervisor {
  const path = env["NOTIFY_SOCKET"];
  if (!path) {
    return { ready() {}, stopping() {} };
  }
  let isWarned = false;
  const notify = (state: string): boolean => {
    let cause = "it does not read, or is not there";
    try {
      if (sendDatagram(path, state)) {
        isWarned = false;
        return true;
      }
    } catch (error) {
      cause = describeError(error);
    }
    if (!isWarned) {
      isWarned = true;
      log.warn("cannot notify systemd: trying again", { state, cause });
    }
    return false;
  };
  const isForUs = [undefined, String(pid)].includes(env["WATCHDOG_PID"]);
  const watchdogMs = isForUs ? Number(env["WATCHDOG_USEC"] ?? 0) / 1_000 / 2 : 0;
  const timers: Timer[] = [];
  let told: string | undefined;
  const tellStatus = () => {
    const now = status();
    const isNews = told === undefined || now !== told;
    // If systemd missed READY, it would start the service again. So READY is sent until systemd has taken it.
    if (isNews && notify(`${told === undefined ? "READY=1\n" : ""}STATUS=${now}`)) {
      told = now;
    }
  };
  return {
    ready() {
      tellStatus();
      timers.push(setInterval(tellStatus, TELL_INTERVAL_MS));
      if (watchdogMs >= 1) {
        timers.push(setInterval(() => isLive() && notify("WATCHDOG=1"), watchdogMs));
      }
    },
    stopping() {
      timers.forEach(clearInterval);
      notify("STOPPING=1");
    },
  };
}
