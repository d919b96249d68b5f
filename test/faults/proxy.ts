/** A proxy as companies have it: CONNECT and nothing else. Whatever the name, it leads to one port here. */
import type { Socket, TCPSocketListener } from "bun";

interface Tunnel {
  /** What has come before there is a way on. */
  readonly early: Buffer[];
  to: Socket<undefined> | undefined;
}

export class FakeProxy {
  /** What it answers to CONNECT; undefined: the tunnel. "" is no answer at all. */
  refusal: string | undefined;
  readonly #listener: TCPSocketListener<Tunnel>;
  readonly #open = new Set<Socket<Tunnel>>();

  constructor(targetPort: () => number) {
    this.#listener = Bun.listen<Tunnel>({
      hostname: "127.0.0.1",
      port: 0,
      socket: {
        open: (socket) => {
          socket.data = { early: [], to: undefined };
          this.#open.add(socket);
        },
        data: async (socket, chunk) => {
          const { data } = socket;
          if (data.to !== undefined) {
            data.to.write(chunk);
            return;
          }
          data.early.push(Buffer.from(chunk));
          if (!Buffer.concat(data.early).includes("\r\n\r\n")) {
            return;
          }
          if (this.refusal !== undefined) {
            socket.write(this.refusal);
            return;
          }
          data.to = await Bun.connect({
            hostname: "127.0.0.1",
            port: targetPort(),
            socket: {
              data: (_, answer) => void socket.write(answer),
              close: () => void socket.end(),
              error: () => void socket.end(),
            },
          });
          socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
        },
        close: (socket) => {
          this.#open.delete(socket);
          socket.data?.to?.end();
        },
        error: (socket) => void socket.end(),
      },
    });
  }

  get url(): string {
    return `http://127.0.0.1:${this.#listener.port}`;
  }

  /** Ends every tunnel. */
  cut(): void {
    for (const socket of this.#open) {
      socket.terminate();
    }
  }

  close(): void {
    this.#listener.stop(true);
  }
}
