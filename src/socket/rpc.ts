import type {
  DescMessage,
  DescMethodUnary,
  DescService,
  Message,
  MessageInitShape,
  MessageShape,
} from "@bufbuild/protobuf";
import { fromBinary } from "@bufbuild/protobuf";
import type { GenService } from "@bufbuild/protobuf/codegenv2";
import { type Server, status, type UntypedServiceImplementation } from "@grpc/grpc-js";
import { KINDS } from "../failures/kinds.ts";
import { PluginError, toPluginError } from "../failures/plugin-error.ts";
import { type Clock, systemClock } from "../system/clock.ts";
import { describeError } from "../system/errors.ts";
import type { Log } from "../system/log.ts";
import { hasMoreFields } from "../system/protobuf.ts";
import { encoderOf } from "./encoder.ts";
import type { UnaryCall, UnaryHandler } from "./unary-server.ts";

/** A v1 cipher of 65,535 bytes and its frame must fit, with room; nothing honest is larger. */
export const MAX_MESSAGE_BYTES = 128 * 1024;
/**
 * Calls at once on one connection. An API server has a few, and queues what is above; a client that ends no
 * call holds them all, with headers of up to 16 KiB each.
 */
export const MAX_CONCURRENT_STREAMS = 128;
/** An honest request has a handful; 128 KiB of small ones would take a hundred times as long to decode. */
export const MAX_FIELDS = 32;
/** An answer leaves this long before the caller's deadline, so that it arrives. */
const ANSWER_BEFORE_DEADLINE_MS = 100;
/** How long a caller without a deadline waits; the API server's own default is 3 s. */
const DEFAULT_WAIT_MS = 2_500;
/** A failing API server repeats itself; one line a kind in this time says enough. */
const FAILURE_LOG_INTERVAL_MS = 10_000;

/** What a handler may know of its call. */
export interface Call {
  /** Whether the deadline is near or the caller has left: what it asked for is no longer wanted. */
  readonly hasLeft: () => boolean;
  readonly userAgent: () => string;
  /** The request's uid (v2), when it is fit for logs and headers. */
  readonly requestId: string | undefined;
}

/** The unary methods of a generated service, as functions from request to response. */
export type Handlers<S extends DescService> =
  S extends GenService<infer Methods>
    ? {
        [M in keyof Methods]: Methods[M] extends {
          readonly input: infer I extends DescMethodUnary["input"];
          readonly output: infer O extends DescMethodUnary["output"];
        }
          ? (
              request: MessageShape<I>,
              call: Call,
            ) => MessageInitShape<O> | Promise<MessageInitShape<O>>
          : never;
      }
    : never;

export interface RpcLabels {
  readonly api: string;
  readonly method: string;
  readonly code: string;
}

export interface ServiceOptions {
  /** Label of the service in metrics. */
  readonly api: "v1" | "v2";
  readonly log: Log;
  /** Told of every RPC at its end. */
  readonly record?: (labels: RpcLabels, seconds: number) => void;
  readonly clock?: Clock;
}

type AnyHandler = (
  request: Message,
  call: Call,
) => Record<string, unknown> | Promise<Record<string, unknown>>;

/**
 * Adds a generated service to a grpc-js server. Owns what grpc-js leaves open: a rejected promise would
 * never be answered, a response must be a Buffer, and every error becomes a status with a constant text.
 */
export function addService<S extends DescService>(
  server: Pick<Server, "addService">,
  service: S,
  handlers: Handlers<S>,
  { api, log, record, clock = systemClock }: ServiceOptions,
): void {
  const logFailure = failureLog(log, clock);
  const implementation: UntypedServiceImplementation = {};
  const definition: Record<string, Parameters<Server["addService"]>[0][string]> = {};
  for (const method of service.methods) {
    // The keys of Handlers<S> are the local names of S's methods, each with its own message types.
    const handle = (handlers as Record<string, AnyHandler>)[method.localName];
    if (handle === undefined) {
      throw new PluginError("internal", `${service.typeName} has no handler for ${method.name}`);
    }
    const path = `/${service.typeName}/${method.name}`;
    const parts = partsOf(method.input);
    const encode = encoderOf(method.output);
    const labels: Partial<Record<status, RpcLabels>> = {};
    const labelsOf = (code: status) => {
      labels[code] ??= { api, method: method.name, code: status[code] };
      return labels[code];
    };
    definition[method.name] = {
      path,
      requestStream: false,
      responseStream: false,
      requestSerialize: asIs,
      requestDeserialize: asIs,
      responseSerialize: asIs,
      responseDeserialize: asIs,
    };
    const handleUnary: UnaryHandler = (grpcCall, answer) => {
      const startMs = clock.nowMs();
      let requestId: string | undefined;
      let isGone = false;
      const finish = (code: status) => {
        const durationMs = clock.nowMs() - startMs;
        record?.(labelsOf(code), durationMs / 1000);
        log.debug("RPC", { method: path, uid: requestId, code: status[code], durationMs });
      };
      const succeed = (response: Record<string, unknown>) => {
        answer(null, encode(response));
        finish(status.OK);
      };
      const fail = (error: unknown) => {
        const failure = toPluginError(error);
        const { code, text } = KINDS[failure.kind];
        answer({ code, details: text });
        logFailure(path, requestId, failure);
        finish(code);
      };
      try {
        const request = decode(method, grpcCall.request, parts);
        requestId = "uid" in request ? cleanId(request.uid) : undefined;
        const userAgent = () => String(grpcCall.metadata.get("user-agent")[0] ?? "");
        const hasLeft = () => isGone;
        const response = handle(request, { hasLeft, userAgent, requestId });
        if (response instanceof Promise) {
          const leave = () => {
            isGone = true;
          };
          whileWanted(response, grpcCall, clock, leave).then(succeed).catch(fail);
        } else {
          succeed(response);
        }
      } catch (error) {
        fail(error);
      }
    };
    implementation[method.name] = handleUnary;
  }
  server.addService(definition, implementation);
}

/**
 * What a handler makes, unless its caller's patience ends before. Only for calls that wait: most are answered at once, and
 * a promise and a timer are dear beside them.
 */
function whileWanted<T>(
  response: Promise<T>,
  grpcCall: UnaryCall,
  clock: Clock,
  onLeave: () => void,
): Promise<T> {
  const { promise: left, reject } = Promise.withResolvers<never>();
  let answered = false;
  const leave = (kind: "deadline" | "cancelled", message: string) => {
    onLeave();
    if (!answered) {
      reject(new PluginError(kind, message)); // an end after the answer concerns nobody
    }
  };
  const leftMs = Number(grpcCall.getDeadline()) - Date.now(); // grpc-js counts by the wall clock
  const waitMs = Number.isFinite(leftMs) ? leftMs - ANSWER_BEFORE_DEADLINE_MS : DEFAULT_WAIT_MS;
  const cancel = clock.after(Math.max(0, waitMs), () => leave("deadline", "the deadline is near"));
  // grpc-js tells of every call's end in this way, an answered one's too: an error with its stack for each
  // would be the dearest thing on the path.
  grpcCall.once("cancelled", () => leave("cancelled", "the caller has gone"));
  return Promise.race([response, left]).finally(() => {
    answered = true;
    cancel();
  });
}

/** The numbers of the fields that are messages, such as the entries of annotations. */
function partsOf({ fields }: DescMessage): ReadonlySet<number> {
  const parts = fields.filter(({ fieldKind }) => fieldKind === "map" || fieldKind === "message");
  return new Set(parts.map(({ number }) => number));
}

function decode(method: DescService["methods"][number], bytes: Buffer, parts: ReadonlySet<number>) {
  try {
    if (hasMoreFields(bytes, MAX_FIELDS, parts)) {
      throw new RangeError(`more than ${MAX_FIELDS} fields`);
    }
    return fromBinary(method.input, bytes);
  } catch (cause) {
    throw new PluginError("invalid", "malformed request", { cause });
  }
}

/** A uid that may go into a log line and a header; kube-apiserver sends a UUID. */
function cleanId(uid: unknown): string | undefined {
  return typeof uid === "string" && /^[0-9A-Za-z-]{1,64}$/.test(uid) ? uid : undefined;
}

/** Logs failures: each defect of ours, and of every other kind one line in a while with a count. */
function failureLog(log: Log, clock: Clock) {
  const seen = new Map<string, { atMs: number; suppressed: number }>();
  return (method: string, uid: string | undefined, failure: PluginError) => {
    const fields = { method, uid, kind: failure.kind, cause: describeError(failure) };
    if (failure.kind === "internal") {
      log.error("RPC failed unexpectedly", fields);
      return;
    }
    const nowMs = clock.nowMs();
    const last = seen.get(failure.kind);
    if (last !== undefined && nowMs - last.atMs < FAILURE_LOG_INTERVAL_MS) {
      last.suppressed += 1;
      return;
    }
    log.warn("RPC failed", { ...fields, suppressedSinceLast: last?.suppressed ?? 0 });
    seen.set(failure.kind, { atMs: nowMs, suppressed: 0 });
  };
}

function asIs(bytes: Buffer): Buffer {
  return bytes;
}
