import {
  closeSync,
  fchmodSync,
  fsyncSync,
  lstatSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";

/** No secret, certificate or profile comes near this; a larger file is the wrong file. */
const MAX_FILE_BYTES = 1024 * 1024;

/**
 * A file that may be replaced while we run (a renewed token, a rotated CA). It is read again when it
 * changes; an empty, unreadable or malformed one, which is what a half-written file looks like, keeps
 * the last good value.
 */
export class ReloadedFile<T> {
  readonly path: string;
  readonly #parse: (text: string) => T;
  readonly #mayBeEmpty: boolean;
  #value: T;
  #identity: string;

  /** @throws Error with a sentence for the user, when the file is of no use now. */
  constructor(path: string, parse: (text: string) => T, emptiness?: "mayBeEmpty") {
    this.path = path;
    this.#parse = parse;
    this.#mayBeEmpty = emptiness !== undefined;
    this.#identity = identity(path);
    this.#value = this.#read();
  }

  /** The value of the newest good content. */
  get current(): T {
    try {
      const now = identity(this.path);
      if (now !== this.#identity) {
        this.#value = this.#read();
        this.#identity = now;
      }
    } catch {
      // Keeps the value; tried again at the next use.
    }
    return this.#value;
  }

  #read(): T {
    return this.#parse(readSmallFile(this.path, this.#mayBeEmpty));
  }
}

/** The text of a file. @throws Error with a sentence for the user, never with the content. */
export function readSmallFile(path: string, mayBeEmpty = false): string {
  const text = readSmallBytes(path).toString("utf8");
  if (!mayBeEmpty && text.trim() === "") {
    throw new Error(`${path} is empty`);
  }
  return text;
}

/** The same as it is, also without a byte. */
export function readSmallBytes(path: string): Buffer {
  let size: number;
  let bytes: Buffer;
  try {
    size = statSync(path).size;
    bytes = size > MAX_FILE_BYTES ? Buffer.alloc(0) : readFileSync(path);
  } catch (error) {
    throw new Error(`cannot read ${path} (${errorCode(error)})`);
  }
  if (size > MAX_FILE_BYTES) {
    throw new Error(`${path} is larger than ${MAX_FILE_BYTES} bytes`);
  }
  return bytes;
}

/**
 * Writes a file as a whole: beside it, synced, renamed. A crash leaves the old one or the new one, and so does a full
 * disk. Until then its name begins with a dot, which a kubelet that watches the directory leaves alone.
 * @throws Error with a sentence for the user; also where the path leads to something that is no regular file, since
 * that would be replaced by one: /dev/null, for the whole machine
 */
export function replaceFile(path: string, text: string, mode: number): void {
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
        writeFileSync(descriptor, text); // writeSync may write a part
        fsyncSync(descriptor);
      });
      renameSync(temporary, path);
    } catch (error) {
      rmSync(temporary, { force: true });
      throw error;
    }
    withDescriptor(openSync(directory, "r"), fsyncSync);
  } catch (error) {
    throw new Error(`cannot write ${path} (${errorCode(error)})`);
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

function identity(path: string): string {
  try {
    const { dev, ino, size, mtimeMs } = statSync(path);
    return [dev, ino, size, mtimeMs].join();
  } catch {
    return "absent";
  }
}
