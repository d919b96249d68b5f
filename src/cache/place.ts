/** Where local KEKs may be kept: in memory that no disk and no backup sees, or anywhere when they are sealed. */
import { existsSync, lstatSync, mkdirSync, readlinkSync, realpathSync, statfsSync } from "node:fs";
import { dirname, join } from "node:path";
import { ExitError } from "../system/errors.ts";
import { errorCode, readSmallFile } from "../system/files.ts";

/** The directory in KMS_PERSISTENT_CACHE that the plugin makes: a kubelet makes that one readable for everybody. */
const SUBDIRECTORY = "local-keks";
/** statfs(2). */
const TMPFS_MAGIC = 0x01021994;
/** The inode of the first PID namespace (PROC_PID_INIT_INO of the kernel). No container is in it. */
const FIRST_PID_NAMESPACE = "pid:[4026531836]";
/** Of st_mode (inode(7)). */
const OWN_DIRECTORY_MODE = 0o040700;
const OTHERS_WRITE = 0o022;
const STICKY = 0o1000;

export interface PlaceOptions {
  /** KMS_PERSISTENT_CACHE. */
  readonly directory: string;
  /** The path of the socket. */
  readonly socket: string;
  /** Whether KMS_PERSISTENT_CACHE_KEY_FILE is set. */
  readonly isSealed: boolean;
}

/** The plugin's own directory, without links. @throws Error with a sentence for the user */
export function ownDirectory(directory: string): string {
  try {
    return join(realpathSync(directory), SUBDIRECTORY);
  } catch (error) {
    throw new Error(`cannot look at ${directory} (${errorCode(error)})`);
  }
}

/**
 * Makes the plugin's own directory where it is not there.
 * @returns its path, without links
 * @throws ExitError where these options can never work; another Error where the machine may be set right while the plugin
 * runs. Both with a sentence for the user
 */
export function makePlace(options: PlaceOptions): string {
  makeDirectory(options.directory);
  const own = judgePlace(options);
  refuseStrangers(dirname(own));
  makeDirectory(own);
  refuseUnlessOwn(own);
  return own;
}

/** The same for whoever only looks, as any user. */
export function judgePlace({ directory, socket, isSealed }: PlaceOptions): string {
  const own = ownDirectory(directory);
  const socketDirectory = dirname(socket);
  const below = existsSync(socketDirectory) ? realpathSync(socketDirectory) : socketDirectory;
  if (isIn(own, below)) {
    throw new ExitError(2, `KMS_PERSISTENT_CACHE ${IN_THE_SOCKETS_DIRECTORY}`);
  }
  if (!isSealed) {
    refuseUnlessMemory(existsSync(own) ? own : dirname(own));
  }
  return own;
}

export const IN_THE_SOCKETS_DIRECTORY =
  "must not lie in the directory of the socket, which is mounted into kube-apiserver: give it one of its own, such as /run/key4c-kms-cache";

/** Whether a path is a directory, or in it. Neither is resolved. */
export function isIn(path: string, directory: string): boolean {
  return `${path}/`.startsWith(directory === "/" ? "/" : `${directory}/`);
}

function makeDirectory(path: string): void {
  try {
    mkdirSync(path, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw new Error(`cannot make ${path} (${errorCode(error)})`);
  }
}

/** Whoever writes to the directory could put the plugin's own one away, and a former one back. */
function refuseStrangers(directory: string): void {
  const { uid, mode } = lstatSync(directory);
  if (
    ![0, process.geteuid?.()].includes(uid) ||
    ((mode & OTHERS_WRITE) !== 0 && (mode & STICKY) === 0)
  ) {
    throw new Error(
      `${directory} is somebody else's, or others can write to it: chown it to the user of the plugin (${process.geteuid?.()}), chmod 0700`,
    );
  }
}

function refuseUnlessOwn(own: string): void {
  const { mode, uid } = lstatSync(own);
  if (mode !== OWN_DIRECTORY_MODE || uid !== process.geteuid?.()) {
    throw new Error(
      `${own} is no directory of mode 0700 that belongs to the user of the plugin (${process.geteuid?.()}): remove it`,
    );
  }
}

/** @throws ExitError where it is on a disk, or in memory that ends with the container; Error where that may be swapped */
function refuseUnlessMemory(directory: string): void {
  const sealIt = "or set KMS_PERSISTENT_CACHE_KEY_FILE, with which it may be anywhere";
  if (statfsSync(directory).type !== TMPFS_MAGIC) {
    throw new ExitError(
      2,
      `KMS_PERSISTENT_CACHE: ${directory} is not in memory (tmpfs): use one such as /run/key4c-kms-cache, ${sealIt}`,
    );
  }
  const { root, options } = mountOf(directory);
  if (root === "/" && isContainer()) {
    throw new ExitError(
      2,
      `KMS_PERSISTENT_CACHE: ${directory} ends with this container: mount a directory of the host that is on tmpfs (hostPath), such as /run/key4c-kms-cache, ${sealIt}`,
    );
  }
  const [, ...swaps] = readSmallFile("/proc/swaps").trim().split("\n");
  if (swaps.length > 0 && !options.includes("noswap")) {
    throw new Error(
      `${directory} may be swapped to disk: turn swap off, mount a tmpfs with noswap (Linux 6.4), ${sealIt}`,
    );
  }
}

/** A container's own mounts have the root `/`, like those of a machine; a directory of the host has its path there. */
function isContainer(): boolean {
  return (
    readlinkSync("/proc/self/ns/pid") !== FIRST_PID_NAMESPACE && !existsSync("/run/systemd/system")
  );
}

/** The mount that a path is on: which directory of its file system it shows, and the options of both. */
function mountOf(path: string): { readonly root: string; readonly options: readonly string[] } {
  const { dev } = lstatSync(path);
  const device = `${(dev >>> 8) & 0xfff}:${(dev & 0xff) | ((dev >>> 12) & 0xfff00)}`;
  let best = { point: "", root: "", options: [""] };
  // proc_pid_mountinfo(5): ID parent device root point options [tags…] - type source options
  for (const line of readSmallFile("/proc/self/mountinfo").trim().split("\n")) {
    const [, , of, root = "", point = "", mountOptions = "", ...more] = line
      .split(" ")
      .map(unescaped);
    // Of two on one point the last one is seen.
    if (of === device && isIn(path, point) && point.length >= best.point.length) {
      best = { point, root, options: [mountOptions, more.at(-1) ?? ""].join().split(",") };
    }
  }
  return best;
}

function unescaped(field: string): string {
  return field.replace(/\\([0-7]{3})/g, (_, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  );
}
