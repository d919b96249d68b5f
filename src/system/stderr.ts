/**
 * Writes lines to standard error without ever blocking the work. Bun's own stream keeps everything that a slow reader
 * does not take, and tries for ever to write to a full disk. The one thread would then answer nobody.
 */
import { constants, openSync, writeSync } from "node:fs";
import { isatty } from "node:tty";
import { takesMore } from "./libc.ts";

const STDERR = 2;
/** A descriptor that poll(2) calls writable takes this much at once: PIPE_BUF of pipe(7). */
const MAX_WRITE_BYTES = 4096;
/** Kept for a reader that hangs or a disk that is full. Further lines are dropped and counted. */
export const MAX_WAITING_BYTES = 256 * 1024;
/** How often waiting lines are tried again. */
const RETRY_INTERVAL_MS = 100;
/** At its end the process waits so long for a slow reader. */
const MAX_END_MS = 500;

/** Writes what a descriptor takes at once, and keeps a bounded rest for later. */
class LineWriter {
  readonly #descriptor: number;
  readonly #waiting: Buffer[] = [];
  #waitingBytes = 0;
  #timer: Timer | undefined;
  /** Lines dropped since lines last began to wait. */
  #lost = 0;
  /** Lines dropped since the start. */
  droppedLines = 0;
  /** Makes the line that reports the number of dropped lines, once lines are taken again. */
  describeLoss: ((lines: number) => string) | undefined;

  constructor(descriptor: number) {
    this.#descriptor = descriptor;
  }

  /** @param line with its newline */
  write(line: string): void {
    const bytes = Buffer.from(line);
    if (this.#waitingBytes + bytes.length > MAX_WAITING_BYTES) {
      this.#lost += 1;
      this.droppedLines += 1;
      return;
    }
    this.#keep(bytes);
    if (this.#timer === undefined) {
      this.#flush();
    }
  }

  /** Waits for what is not written yet, but not long. */
  async end(): Promise<void> {
    const endMs = performance.now() + MAX_END_MS;
    while (this.#waiting.length > 0 && performance.now() < endMs) {
      await Bun.sleep(RETRY_INTERVAL_MS / 10);
      this.#flush();
    }
  }

  #keep(bytes: Buffer): void {
    this.#waiting.push(bytes);
    this.#waitingBytes += bytes.length;
  }

  #flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    while (this.#waiting[0] !== undefined) {
      const written = this.#writeSome(this.#waiting[0]);
      if (written === 0) {
        this.#timer = setTimeout(() => this.#flush(), RETRY_INTERVAL_MS);
        this.#timer.unref();
        return;
      }
      this.#waitingBytes -= written;
      const rest = this.#waiting[0].subarray(written);
      if (rest.length > 0) {
        this.#waiting[0] = rest;
      } else {
        this.#waiting.shift();
      }
      if (this.#waiting.length === 0 && this.#lost > 0) {
        this.#keep(Buffer.from(this.describeLoss?.(this.#lost) ?? ""));
        this.#lost = 0;
      }
    }
  }

  /** How many bytes were taken: 0 for a full disk, a closed end, or a descriptor that is not open. */
  #writeSome(bytes: Buffer): number {
    try {
      return takesMore(this.#descriptor)
        ? writeSync(this.#descriptor, bytes.subarray(0, MAX_WRITE_BYTES))
        : 0;
    } catch {
      return 0;
    }
  }
}

/**
 * A terminal may take less than poll(2) promises, and then a write blocks. So a terminal is opened a second time,
 * non-blocking. O_NONBLOCK on the descriptor itself would hold for every process that shares it.
 */
function unblocked(descriptor: number): number {
  try {
    const { O_WRONLY, O_NONBLOCK, O_NOCTTY } = constants;
    return isatty(descriptor)
      ? openSync(`/proc/self/fd/${descriptor}`, O_WRONLY | O_NONBLOCK | O_NOCTTY)
      : descriptor;
  } catch {
    return descriptor;
  }
}

export const stderr = new LineWriter(unblocked(STDERR));
