import type { ErrorKind } from "./kinds.ts";

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
