/** The files in the plugin's own directory, one for each Key4C key. One process at a time has them. */
import { constants, fsyncSync, readdirSync, renameSync, rmSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { join } from "node:path";
import { errorCode } from "../system/files.ts";
import { lock } from "../system/libc.ts";
import { MAX_CACHE_FILE_BYTES } from "./form.ts";

const { O_RDONLY, O_WRONLY, O_CREAT, O_TRUNC, O_NOFOLLOW, O_NONBLOCK } = constants;
/** Before the name of a file that is being written. */
const UNFINISHED = ".";

/**
 * What a disk may take long for is done beside the thread that answers RPCs. What decides which content counts is done in
 * that thread, at once.
 */
export class Store {
  readonly directory: string;
  /** Of the directory; it has the lock. */
  readonly #handle: FileHandle;

  private constructor(directory: string, handle: FileHandle) {
    this.directory = directory;
    this.#handle = handle;
  }

  /** @returns undefined while another process has it */
  static async open(directory: string): Promise<Store | undefined> {
    const handle = await open(directory, O_RDONLY);
    if (!lock(handle.fd)) {
      await handle.close();
      return undefined;
    }
    for (const name of readdirSync(directory).filter((one) => one.startsWith(UNFINISHED))) {
      rmSync(join(directory, name), { force: true });
    }
    return new Store(directory, handle);
  }

  close(): Promise<void> {
    return this.#handle.close();
  }

  /** See {@link readStored}. */
  read(name: string): Promise<Buffer | undefined> {
    return readStored(join(this.directory, name));
  }

  /**
   * Writes a file beside the former one, and then puts it in its place: after a crash there is one of the two, whole. One
   * write of a name at a time.
   * @param isWanted asked last: the file may have been removed meanwhile
   * @throws Error with a sentence for the user; the former file stays
   */
  async write(name: string, bytes: Buffer, isWanted: () => boolean): Promise<void> {
    const path = join(this.directory, name);
    const unfinished = join(this.directory, UNFINISHED + name);
    try {
      const file = await open(unfinished, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0o600);
      await file
        .writeFile(bytes)
        .then(() => file.sync())
        .finally(() => file.close());
      if (isWanted()) {
        renameSync(unfinished, path);
        await this.#handle.sync();
      }
    } catch (error) {
      throw new Error(`cannot write ${path} (${errorCode(error)})`);
    } finally {
      rmSync(unfinished, { force: true });
    }
  }

  /** Removes a file before it returns. @throws Error with a sentence for the user */
  remove(name: string): void {
    removeFile(join(this.directory, name));
    fsyncSync(this.#handle.fd);
  }
}

/** The names of the files of keys. */
export function namesIn(directory: string): readonly string[] {
  return readdirSync(directory).filter((name) => !name.startsWith(UNFINISHED));
}

/** A file of a key; undefined when there is none. @throws Error that completes "FILE …" */
export async function readStored(path: string): Promise<Buffer | undefined> {
  try {
    const file = await open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
    try {
      const found = await file.stat();
      return found.isFile() && found.size <= MAX_CACHE_FILE_BYTES
        ? await file.readFile()
        : Buffer.alloc(0);
    } finally {
      await file.close();
    }
  } catch (error) {
    const code = errorCode(error);
    if (code === "ENOENT") {
      return undefined;
    }
    throw new Error(code === "ELOOP" ? "is a link" : `cannot be read (${code})`);
  }
}

/** Removes all files, unfinished ones too, whoever has the directory. @throws Error with a sentence for the user */
export function removeAll(directory: string): number {
  const names = readdirSync(directory);
  for (const name of names) {
    removeFile(join(directory, name));
  }
  return names.length;
}

function removeFile(path: string): void {
  try {
    rmSync(path, { force: true });
  } catch (error) {
    throw new Error(`cannot remove ${path} (${errorCode(error)})`);
  }
}
