import {
  type handleUnaryCall,
  Metadata,
  Server,
  ServerInterceptingCall,
  type ServerInterceptingCallInterface,
  type ServerOptions,
  status,
} from "@grpc/grpc-js";

/** What a handler of ours uses of a call; grpc-js's own call fits it. */
export interface UnaryCall {
  readonly request: Buffer;
  readonly metadata: Pick<Metadata, "get">;
  getDeadline(): Date | number;
  once(event: "cancelled", listener: () => void): unknown;
}

export type UnaryHandler = (
  call: UnaryCall,
  answer: Parameters<handleUnaryCall<Buffer, Buffer>>[1],
) => void;

/**
 * grpc-js's server. Its way to a unary handler makes a Writable stream and an EventEmitter for each call, a tenth of
 * what a Status costs; an interceptor leads there without them. Every handler must be unary, its messages Buffers.
 */
export class UnaryServer extends Server {
  readonly #handlers: Map<string, UnaryHandler>;

  constructor(options: ServerOptions) {
    const handlers = new Map<string, UnaryHandler>();
    const interceptors = [
      ({ path }: { readonly path: string }, call: ServerInterceptingCallInterface) =>
        new DirectCall(call, handlers.get(path) as UnaryHandler), // of a path that addService was told
    ];
    super({ ...options, interceptors });
    this.#handlers = handlers;
  }

  override addService(...[service, implementation]: Parameters<Server["addService"]>): void {
    super.addService(service, implementation);
    for (const [name, { path }] of Object.entries(service)) {
      this.#handlers.set(path, implementation[name] as UnaryHandler);
    }
  }
}

/** A call, and its own listener. It takes the place of what grpc-js would let listen. */
class DirectCall extends ServerInterceptingCall implements UnaryCall {
  metadata = NO_METADATA;
  request: Buffer = NO_REQUEST;
  readonly #call: ServerInterceptingCallInterface;
  readonly #handle: UnaryHandler;
  #cancelled = () => {};

  constructor(call: ServerInterceptingCallInterface, handle: UnaryHandler) {
    super(call);
    this.#call = call;
    this.#handle = handle;
  }

  override start(): void {
    this.#call.start(this);
  }

  once(_: "cancelled", listener: () => void): void {
    this.#cancelled = listener;
  }

  onReceiveMetadata(metadata: Metadata): void {
    this.metadata = metadata;
    this.#call.startRead();
  }

  onReceiveMessage(message: Buffer): void {
    if (this.request !== NO_REQUEST) {
      this.#refuse("more than one request message");
      return;
    }
    this.request = message;
    this.#call.startRead();
  }

  onReceiveHalfClose(): void {
    if (this.request === NO_REQUEST) {
      this.#refuse("no request message");
      return;
    }
    try {
      this.#handle(this, (error, response) => this.#answer(error, response));
    } catch {
      // A defect of the handler, which has said so: the caller must not wait for its deadline.
      this.#call.sendStatus({ code: status.INTERNAL, details: "internal error", metadata: null });
    }
  }

  #answer(...[error, response]: Parameters<Parameters<UnaryHandler>[1]>): void {
    try {
      if (error !== null) {
        const { code = status.UNKNOWN, details = "" } = error;
        this.#call.sendStatus({ code, details, metadata: null });
        return;
      }
      this.#call.sendMessage(response, () =>
        this.#call.sendStatus({ code: status.OK, details: "OK", metadata: null }),
      );
    } catch (failure) {
      if (!isGone(failure)) {
        throw failure;
      }
    }
  }

  onCancel(): void {
    this.#cancelled();
  }

  #refuse(details: string): void {
    this.#call.sendStatus({ code: status.UNIMPLEMENTED, details, metadata: null });
  }
}

/** Whether the caller has gone with its stream: no defect, and nobody to tell. */
function isGone(error: unknown): boolean {
  const { code } = (error ?? {}) as { readonly code?: unknown }; // Node's errors have it
  return code === "ERR_STREAM_DESTROYED" || code === "ERR_HTTP2_INVALID_STREAM";
}

const NO_METADATA = new Metadata();
const NO_REQUEST = Buffer.alloc(0);
