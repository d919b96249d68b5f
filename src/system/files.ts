import { readFileSync, statSync } from "node:fs";

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
