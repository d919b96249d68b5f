/** The few system calls that neither Bun nor Node offers. All use of bun:ffi is here. Linux, x86-64 and arm64. */
import { dlopen, FFIType } from "bun:ffi";

/** glibc, then musl by architecture; what `ldd` shows for the binary. */
const LIBC_NAMES = [
  "libc.so.6",
  `libc.musl-${process.arch === "arm64" ? "aarch64" : "x86_64"}.so.1`,
];

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
/** A service manager that does not read must not block us. */
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const POLLOUT = 4;
/** sockaddr_un.sun_path (unix(7)). */
const SUN_PATH_BYTES = 108;
const PR_SET_DUMPABLE = 4;
const LOCK_EX = 2;
const LOCK_NB = 4;

const { i32, u32, u64, ptr } = FFIType;
const SYMBOLS = {
  setenv: { args: [ptr, ptr, i32], returns: i32 },
  prctl: { args: [i32, u64, u64, u64, u64], returns: i32 },
  socket: { args: [i32, i32, i32], returns: i32 },
  sendto: { args: [i32, ptr, u64, i32, ptr, u32], returns: i32 },
  close: { args: [i32], returns: i32 },
  dup: { args: [i32], returns: i32 },
  flock: { args: [i32, i32], returns: i32 },
  poll: { args: [ptr, u64, i32], returns: i32 },
} as const;

type Libc = ReturnType<typeof dlopen<typeof SYMBOLS>>["symbols"];
let loaded: Libc | undefined;

/** @throws Error when there is no libc by a known name */
function libc(): Libc {
  for (const name of loaded === undefined ? LIBC_NAMES : []) {
    try {
      loaded = dlopen(name, SYMBOLS).symbols;
      break;
    } catch {
      // The next one.
    }
  }
  if (loaded === undefined) {
    throw new Error(`no libc by the name of ${LIBC_NAMES.join(" or ")}`);
  }
  return loaded;
}

/**
 * Sets a variable of the environment where Bun itself looks, which process.env does not reach (setenv(3)).
 * A variable that is already set keeps its value.
 */
export function setNativeEnvironment(name: string, value: string): void {
  libc().setenv(Buffer.from(`${name}\0`), Buffer.from(`${value}\0`), 0);
}

/**
 * Forbids core dumps of this process, and reading its memory to processes without CAP_SYS_PTRACE
 * (prctl(2), PR_SET_DUMPABLE).
 * @returns whether the kernel did so
 */
export function forbidDumps(): boolean {
  return libc().prctl(PR_SET_DUMPABLE, 0n, 0n, 0n, 0n) === 0;
}

/** struct pollfd: descriptor (4) || events (2) || what came true of them (2); both machines are little-endian. */
const pollfd = new Int32Array(2);

/** Whether a descriptor would take a write at once (poll(2)). Without a libc the answer is yes. */
export function takesMore(descriptor: number): boolean {
  pollfd[0] = descriptor;
  pollfd[1] = POLLOUT;
  try {
    libc().poll(pollfd, 1n, 0);
  } catch {
    return true;
  }
  return ((pollfd[1] >>> 16) & POLLOUT) !== 0;
}

/** Another descriptor for the same (dup(2)). @throws Error when there is none left */
export function duplicate(descriptor: number): number {
  const copy = libc().dup(descriptor);
  if (copy < 0) {
    throw new Error("no descriptor left");
  }
  return copy;
}

/**
 * Takes the lock of a file or directory for this process alone, without waiting (flock(2)). It ends with the descriptor,
 * so also with kill -9.
 * @returns whether it was free
 */
export function lock(descriptor: number): boolean {
  return libc().flock(descriptor, LOCK_EX | LOCK_NB) === 0;
}

/**
 * Sends one datagram to a unix socket, which Node's and Bun's own datagrams cannot. Never waits.
 * @param path of the socket; one that starts with `@` is abstract
 * @returns whether the kernel took it; false, for example, when the receiver has not read earlier ones
 */
export function sendDatagram(path: string, text: string): boolean {
  const name = Buffer.from(path.replace(/^@/, "\0"));
  if (name.length === 0 || name.length >= SUN_PATH_BYTES) {
    return false;
  }
  // struct sockaddr_un: family (2, in the byte order of the machine) || path
  const address = Buffer.concat([new Uint8Array(Uint16Array.of(AF_UNIX).buffer), name]);
  const { socket, sendto, close } = libc();
  const descriptor = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (descriptor < 0) {
    return false;
  }
  const message = Buffer.from(text);
  const sent = sendto(
    descriptor,
    message,
    BigInt(message.length),
    MSG_DONTWAIT | MSG_NOSIGNAL,
    address,
    address.length,
  );
  close(descriptor);
  return sent === message.length;
}
