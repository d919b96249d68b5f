import type { Socket } from "node:net";
import { Duplex } from "node:stream";
import { AuthorityFilter } from "./authority.ts";

/** When so many bytes of answers are unsent, because the client does not read them, its requests are not read either. */
export const MAX_UNSENT_BYTES = 64 * 1024;

/**
 * A client's connection as the HTTP/2 server sees it. Requests pass through the authority filter. While too many bytes
 * of answers are unsent, no more requests are read.
 */
export class Connection extends Duplex {
  /** When something was received last, on the monotonic clock; 0: never. */
  heardAtMs = 0;
  readonly #socket: Socket;
  readonly #filter = new AuthorityFilter();
  #wanted = true;
  #gathering = false;

  constructor(socket: Socket) {
    super({ allowHalfOpen: false });
    this.#socket = socket;
    socket.on("data", (chunk: Buffer) => {
      this.heardAtMs = performance.now();
      this.#filter.transform(chunk);
      this.#gatherAnswers();
      this.#wanted = this.push(chunk);
      this.#readOrPause();
    });
    socket.on("end", () => this.push(null));
    socket.on("error", (error) => this.destroy(error));
    socket.on("close", () => this.destroy());
    this.on("error", () => {}); // a client may break off at any time
  }

  override _read(): void {
    this.#wanted = true;
    this.#readOrPause();
  }

  override _write(chunk: Buffer, _encoding: string, done: (error?: Error | null) => void): void {
    this.#socket.write(chunk, (error) => {
      done(error);
      this.#readOrPause();
    });
    this.#readOrPause();
  }

  override _writev(
    chunks: readonly { readonly chunk: Buffer }[],
    done: (error?: Error | null) => void,
  ): void {
    this._write(Buffer.concat(chunks.map(({ chunk }) => chunk)), "buffer", done);
  }

  override _final(done: () => void): void {
    this.#socket.end(done);
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#socket.destroy();
    done(error);
  }

  /**
   * Sends the immediate answers to all requests of a chunk in one system call. Without this, HTTP/2 makes two or
   * three for each. It writes the trailers of a response in the turn after its message; hence two turns.
   */
  #gatherAnswers(): void {
    if (!this.#gathering) {
      this.#gathering = true;
      this.cork();
      setImmediate(() =>
        setImmediate(() => {
          this.#gathering = false;
          this.uncork();
        }),
      );
    }
  }

  #readOrPause(): void {
    if (this.#wanted && this.writableLength <= MAX_UNSENT_BYTES) {
      this.#socket.resume();
    } else {
      this.#socket.pause();
    }
  }
}
