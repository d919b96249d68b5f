import type { ErrorKind } from "./kinds.ts";

/** The fields of a {@link PluginError} too, so that one can be made from another. */
export interface PluginErrorOptions {
  readonly cause?: unknown;
  /** How long Key4C asked us to wait (its Retry-After), in milliseconds. */
  readonly retryAfterMs?: number | undefined;
  /** Whether Key4C itself said so of the key, by a code or a state of its contract; a status is none. */
  readonly isByContract?: boolean;
  /**
   * Of a `denied` only: what was refused. `secret`: the secret, so no call of any key is sent with it for a while, or before
   * it changes. `call`: this operation on this key alone, while the same secret is accepted elsewhere. The client of Key4C
   * always says which.
   */
  readonly about?: "secret" | "call" | undefined;
  /**
   * Whether the service answered in the contract's own form with a code that the profile does not list, and a status of
   * 4xx that asks for no other try (so not 408, 425, 429). The kind is `unavailable`. It says nothing about the service's
   * health, and the same call will have the same answer.
   */
  readonly isUnlisted?: boolean;
  /** Where there is a better one than that of the kind. */
  readonly remedy?: string | undefined;
  /** Likewise: a clause about Key4C, one of a few. */
  readonly headline?: string | undefined;
}

/** An error with a kind. Its message is for the log and never holds key material or credentials. */
export class PluginError extends Error {
  readonly kind: ErrorKind;
  readonly retryAfterMs: number | undefined;
  readonly isByContract: boolean;
  readonly about: "secret" | "call" | undefined;
  readonly isUnlisted: boolean;
  /** What to do; undefined: what the kind says. */
  readonly remedy: string | undefined;
  readonly headline: string | undefined;

  constructor(kind: ErrorKind, message: string, options: PluginErrorOptions = {}) {
    super(message, { cause: options.cause });
    this.name = "PluginError";
    this.kind = kind;
    this.retryAfterMs = options.retryAfterMs;
    this.isByContract = options.isByContract ?? false;
    this.about = options.about;
    this.isUnlisted = options.isUnlisted ?? false;
    this.remedy = options.remedy;
    this.headline = options.headline;
  }
}

/** Any thrown value as a {@link PluginError}; what is not one yet is a defect of ours. */
export function toPluginError(error: unknown): PluginError {
  return error instanceof PluginError
    ? error
    : new PluginError("internal", "unexpected error", { cause: error });
}
