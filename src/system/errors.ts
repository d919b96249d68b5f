import { status } from "@grpc/grpc-js";

/**
 * Everything that can go wrong, as a closed list. A kind decides what the caller is told, whether the
 * call to Key4C is tried again, and how the event is labelled; the cause goes to the log only.
 */
export type ErrorKind =
  /** Key4C refused the connection, timed out, failed (5xx) or gave an answer that makes no sense. */
  | "unavailable"
  /** Key4C, or our own limit on calls to it, asks for fewer requests. */
  | "throttled"
  /** Key4C refused the credential. */
  | "denied"
  /** Key4C says that the key is disabled or deleted. */
  | "keyUnusable"
  /** Key4C knows no such key: of the address or the credential, mostly, and not of the key. */
  | "keyNotFound"
  /** Key4C is well, and does not give back a local KEK that it has wrapped: other key material. */
  | "mismatch"
  /** Key4C tells an older version of the key than it did, or two at once. */
  | "olderVersion"
  /** The request or the ciphertext is malformed, tampered with, or not of this key. */
  | "invalid"
  /** The plaintext is longer than a DEK may be. The caller knows its length: to say so tells nothing of keys. */
  | "tooLarge"
  /** A Decrypt of KMS v2 without a key_id, likewise. */
  | "noKeyId"
  /** The ciphertext names a Key4C key that is neither KMS_KEY_ID nor in KMS_PREVIOUS_KEY_IDS. */
  | "unknownKey"
  /** The caller's deadline is about to pass. */
  | "deadline"
  /** The caller has gone. */
  | "cancelled"
  /** A defect of ours. */
  | "internal";

interface KindFacts {
  /** gRPC status code that kube-apiserver gets. */
  readonly code: status;
  /** The whole public text. Constant, so that nothing from inside can leak through it. */
  readonly text: string;
  /** Whether the same call to Key4C may succeed when made again at once. */
  readonly retry: boolean;
}

export const KINDS: Readonly<Record<ErrorKind, KindFacts>> = {
  unavailable: { code: status.UNAVAILABLE, text: "Key4C is not available", retry: true },
  throttled: { code: status.RESOURCE_EXHAUSTED, text: "too many requests to Key4C", retry: false },
  denied: { code: status.FAILED_PRECONDITION, text: "Key4C denied access", retry: false },
  keyUnusable: {
    code: status.FAILED_PRECONDITION,
    text: "the Key4C key is disabled or deleted",
    retry: false,
  },
  keyNotFound: {
    code: status.FAILED_PRECONDITION,
    text: "Key4C knows no such key",
    retry: false,
  },
  mismatch: {
    code: status.FAILED_PRECONDITION,
    text: "Key4C does not give back what it wrapped",
    retry: false,
  },
  olderVersion: {
    code: status.UNAVAILABLE,
    text: "Key4C answers an older version of the key",
    retry: false,
  },
  invalid: { code: status.INVALID_ARGUMENT, text: "the request is not valid", retry: false },
  tooLarge: {
    code: status.INVALID_ARGUMENT,
    text: "the plaintext has more than 512 bytes",
    retry: false,
  },
  noKeyId: { code: status.INVALID_ARGUMENT, text: "the request has no key_id", retry: false },
  unknownKey: {
    code: status.NOT_FOUND,
    text: "the ciphertext belongs to a key that is not configured",
    retry: false,
  },
  deadline: {
    code: status.DEADLINE_EXCEEDED,
    text: "no result before the deadline",
    retry: false,
  },
  cancelled: { code: status.CANCELLED, text: "the call was cancelled", retry: false },
  internal: { code: status.INTERNAL, text: "internal error", retry: false },
};

interface PluginErrorOptions {
  readonly cause?: unknown;
  /** How long Key4C asked us to wait (its Retry-After), in milliseconds. */
  readonly retryAfterMs?: number;
  /** Whether Key4C itself said so of the key, by a code or a state of its contract; a status is none. */
  readonly isVerdict?: boolean;
}

/** An error with a kind. Its message is for the log and never holds key material or credentials. */
export class PluginError extends Error {
  readonly kind: ErrorKind;
  readonly retryAfterMs: number | undefined;
  readonly isVerdict: boolean;

  constructor(kind: ErrorKind, message: string, options: PluginErrorOptions = {}) {
    super(message, { cause: options.cause });
    this.name = "PluginError";
    this.kind = kind;
    this.retryAfterMs = options.retryAfterMs;
    this.isVerdict = options.isVerdict ?? false;
  }
}

/** Any thrown value as a {@link PluginError}; what is not one yet is a defect of ours. */
export function toPluginError(error: unknown): PluginError {
  return error instanceof PluginError
    ? error
    : new PluginError("internal", "unexpected error", { cause: error });
}

/** A failure that ends the process with one line and this exit code: 2 for wrong usage, else 1. */
export class ExitError extends Error {
  readonly exitCode: 1 | 2;

  constructor(exitCode: 1 | 2, message: string) {
    super(message);
    this.name = "ExitError";
    this.exitCode = exitCode;
  }
}

/** The messages of an error and of its causes, joined for one log line. */
export function describeError(error: unknown): string {
  const parts: string[] = [];
  for (let at = error; at !== undefined && at !== null && parts.length < 5; ) {
    parts.push(at instanceof Error ? at.message || at.name : String(at));
    at = at instanceof Error ? at.cause : undefined;
  }
  return parts.join(": ");
}
