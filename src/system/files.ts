import {
  closeSync,
  existsSync,
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

/** Secrets, certificates and profiles are far smaller; a larger file is the wrong file. */
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
  #revision = 0;

  /** @throws Error with a sentence for the user, when the file cannot be used now. */
  constructor(path: string, parse: (text: string) => T, emptiness?: "mayBeEmpty") {
    this.path = path;
    this.#parse = parse;
    this.#mayBeEmpty = emptiness !== undefined;
    this.#identity = identity(path);
    this.#value = this.#read();
  }

  /** The value of the newest valid content. */
  get current(): T {
    try {
      const now = identity(this.path);
      if (now !== this.#identity) {
        this.#value = this.#read();
        this.#identity = now;
        this.#revision += 1;
      }
    } catch {
      // Keeps the value. The file is tried again at the next use.
    }
    return this.#value;
  }

  /** How often the file was written and read again, with the same content too. */
  get revision(): number {
    return this.#revision;
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

/** The bytes of a file, which may be empty. @throws Error with a sentence for the user, never with the content. */
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
 * Writes a file as a whole: to a new file beside it, which is synced and then renamed. After a crash or on a full disk
 * there is the old file or the new one, never a part. Until the rename the new file's name begins with a dot, so that a
 * kubelet that watches the directory ignores it.
 * @throws Error with a sentence for the user. Also when the path leads to something other than a regular file: the
 * rename would replace it, such as /dev/null for the whole machine
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
        writeFileSync(descriptor, text); // writeSync may write only a part
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

function identity(path: string): string {
  try {
    const { dev, ino, size, mtimeMs } = statSync(path);
    return [dev, ino, size, mtimeMs].join();
  } catch {
    return "absent";
  }
}
