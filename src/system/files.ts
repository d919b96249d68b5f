import {
  type BigIntStats,
  closeSync,
  constants,
  existsSync,
  fchmodSync,
  fstatSync,
  fsyncSync,
  lstatSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  type Stats,
  statSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { describeError } from "./errors.ts";

/** Secrets, certificates and profiles are far smaller; a larger file is the wrong file. */
export const MAX_FILE_BYTES = 1024 * 1024;

/** Why something cannot be used now. Whoever watches it is told at once, and of each change. */
export class Fault {
  #text: string | undefined;
  #report: (text: string | undefined) => void = () => {};

  /** A sentence for the log; undefined when there is none. */
  get text(): string | undefined {
    return this.#text;
  }

  set(text: string | undefined): void {
    if (text !== this.#text) {
      this.#text = text;
      this.#report(text);
    }
  }

  watch(report: (text: string | undefined) => void): void {
    this.#report = report;
    if (this.#text !== undefined) {
      report(this.#text);
    }
  }
}

/**
 * A regular file that may be replaced while we run (a renewed token, a rotated CA). It is read again when it changes. What
 * cannot be used (absent, empty, half-written, a FIFO) keeps the last good value and is its {@link fault}. It is looked
 * at only when its value is asked for.
 */
export class ReloadedFile<T> {
  readonly path: string;
  readonly fault = new Fault();
  readonly #parse: (text: string) => T;
  #value: T;
  /** Of the content that is in use. */
  #identity = "";
  #revision = 0;

  /**
   * @param emptyAtStart the value of a file that is empty now; undefined: an empty one cannot be used
   * @throws Error with a sentence for the user, when the file cannot be used now
   */
  constructor(path: string, parse: (text: string) => T, emptyAtStart?: T) {
    this.path = path;
    this.#parse = parse;
    try {
      this.#value = this.#read();
    } catch (error) {
      if (emptyAtStart === undefined || !(error instanceof EmptyFileError)) {
        throw error;
      }
      this.#value = emptyAtStart;
      this.fault.set(error.message);
    }
  }

  /** The value of the newest valid content. */
  get current(): T {
    try {
      if (identityAt(this.path) !== this.#identity) {
        this.#value = this.#read();
      }
      this.fault.set(undefined);
    } catch (error) {
      this.fault.set(describeError(error)); // and the file is tried again at the next use
    }
    return this.#value;
  }

  /** How often the file was read, with the same content too: another number where it was written since. */
  get revision(): number {
    return this.#revision;
  }

  #read(): T {
    const { bytes, stats } = readBounded(this.path, "regular");
    const value = this.#parse(nonEmptyText(this.path, bytes));
    this.#identity = identityOf(stats);
    this.#revision += 1;
    return value;
  }
}

class EmptyFileError extends Error {}

/** The text of a file. @throws Error with a sentence for the user, never with the content. */
export function readSmallFile(path: string): string {
  return nonEmptyText(path, readSmallBytes(path));
}

function nonEmptyText(path: string, bytes: Buffer): string {
  const text = bytes.toString("utf8");
  if (text.trim() === "") {
    throw new EmptyFileError(`${path} is empty`);
  }
  return text;
}

/** The bytes of a file, which may be empty. @throws Error with a sentence for the user, never with the content. */
export function readSmallBytes(path: string): Buffer {
  return readBounded(path, "any").bytes;
}

/**
 * @param kind what is read once may be a pipe. A file that is read again must be a regular one: a FIFO would stop the
 * process until somebody writes, and a device may have no end
 */
function readBounded(path: string, kind: "any" | "regular"): { bytes: Buffer; stats: BigIntStats } {
  const buffer = Buffer.alloc(MAX_FILE_BYTES + 1);
  let stats: BigIntStats;
  let length = 0;
  try {
    const flags = constants.O_RDONLY | (kind === "regular" ? constants.O_NONBLOCK : 0);
    const descriptor = openSync(path, flags);
    try {
      stats = fstatSync(descriptor, { bigint: true });
      if (kind === "any" || stats.isFile()) {
        length = readInto(buffer, descriptor);
      }
    } finally {
      closeSync(descriptor);
    }
  } catch (error) {
    throw new Error(`cannot read ${path} (${errorCode(error)})`);
  }
  if (kind === "regular" && !stats.isFile()) {
    throw new Error(`${path} is not a regular file`);
  }
  if (length > MAX_FILE_BYTES) {
    throw new Error(`${path} is larger than ${MAX_FILE_BYTES} bytes`);
  }
  return { bytes: buffer.subarray(0, length), stats };
}

/**
 * Writes a file as a whole: to a new file beside it, which is synced and then renamed. After a crash or on a full disk
 * there is the old file or the new one, never a part. Until the rename the new file's name begins with a dot, so that a
 * kubelet that watches the directory ignores it.
 * @throws Error with a sentence for the user. Also when the path leads to something other than a regular file: the
 * rename would replace it, such as /dev/null for the whole machine
 */
export function replaceFile(path: string, content: string | Uint8Array, mode: number): void {
  if (lstatSync(path, { throwIfNoEntry: false })?.isFile() === false) {
    throw new Error(`${path} is no regular file`);
  }
  const directory = dirname(path);
  const temporary = join(directory, `.${basename(path)}.${crypto.randomUUID().slice(0, 8)}`);
  try {
    const descriptor = openSync(temporary, "wx", mode);
    try {
      withDescriptor(descriptor, () => {
        fchmodSync(descriptor, mode); // whatever the umask
        writeFileSync(descriptor, content); // writeSync may write only a part
        fsyncSync(descriptor);
      });
      renameSync(temporary, path);
    } catch (error) {
      rmSync(temporary, { force: true });
      throw error;
    }
    withDescriptor(openSync(directory, "r"), fsyncSync);
  } catch (error) {
    const isLost = errorCode(error) === "ENOENT" && !existsSync(directory);
    const why = isLost ? `there is no directory ${directory}` : errorCode(error);
    throw new Error(`cannot write ${path} (${why})`);
  }
}

function withDescriptor(descriptor: number, work: (descriptor: number) => void): void {
  try {
    work(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

/** The code of a system error, such as ENOENT; else its name. Messages may hold a whole URL. */
export function errorCode(error: unknown): string {
  if (error instanceof Error) {
    return "code" in error && typeof error.code === "string" ? error.code : error.name;
  }
  return "unknown";
}

/**
 * What is at a path, or the code of why nobody can say: ENOENT, ENOTDIR, EACCES …
 * @param look statSync follows a link
 */
export function lookAt(path: string, look: (path: string) => Stats = lstatSync): Stats | string {
  try {
    return look(path);
  } catch (error) {
    return errorCode(error);
  }
}

/** Whether a code of {@link lookAt} says that there is nothing. */
export function isNothing(found: Stats | string): boolean {
  return found === "ENOENT" || found === "ENOTDIR";
}

/** Reads until the end of the file or of the buffer. @returns the number of bytes */
function readInto(buffer: Buffer, descriptor: number): number {
  let length = 0;
  for (;;) {
    const count = readSync(descriptor, buffer, length, buffer.length - length, null);
    length += count;
    if (count === 0 || length === buffer.length) {
      return length;
    }
  }
}

/** Without opening it; "absent" where it cannot be looked at. */
function identityAt(path: string): string {
  try {
    return identityOf(statSync(path, { bigint: true }));
  } catch {
    return "absent";
  }
}

/** Other content has another one: also of the same size and time of modification, by the time of its change. */
function identityOf({ dev, ino, size, mtimeNs, ctimeNs }: BigIntStats): string {
  return [dev, ino, size, mtimeNs, ctimeNs].join();
}
