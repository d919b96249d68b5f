import { randomUUID } from "node:crypto";
import type { WrappedKek, WrappingService } from "../keys/wrapping.ts";
import { type ErrorKind, KINDS, PluginError } from "../system/errors.ts";
import { errorCode } from "../system/files.ts";
import type { Log } from "../system/log.ts";
import {
  type OperationName,
  readAnswer,
  readBody,
  readCiphertext,
  readLocalKek,
  readVersion,
} from "./answer.ts";
import {
  type Operation,
  type PlaceholderValues,
  type Profile,
  render,
  renderJson,
  resolvePointer,
  uses,
} from "./profile.ts";

/** One attempt. Below the API server's default timeout of 3 s, so that a caller may see a second one. */
const ATTEMPT_TIMEOUT_MS = 2_500;
/** All attempts of one call together. Longer than any caller waits: the result fills the cache. */
const CALL_BUDGET_MS = 10_000;
const FIRST_RETRY_DELAY_MS = 100;
const MAX_RETRY_DELAY_MS = 2_000;

export interface Key4COptions {
  /** Base address, without a slash at its end. */
  readonly url: string;
  readonly profile: Profile;
  /** Asked before every call, so that a renewed secret is used at once. */
  readonly credentials: () => { readonly userId: string; readonly apiKey?: string | undefined };
  /** PEM texts; asked before every call. */
  readonly tls: () => {
    readonly ca?: string | undefined;
    readonly cert?: string | undefined;
    readonly key?: string | undefined;
  };
  readonly userAgent: string;
  readonly log: Log;
  /** Told of every attempt at its end; kind is "ok" or that of its error. */
  readonly record?: (
    labels: { readonly operation: string; readonly kind: string },
    seconds: number,
  ) => void;
}

/** What Key4C says of a key. */
export interface KeyDescription {
  /** undefined when the service tells none. */
  readonly version: number | undefined;
  /** As the service calls it; undefined when it tells none. */
  readonly algorithm: string | undefined;
}

/**
 * The client of Key4C: a profile over HTTPS. A call belongs to nobody: it has its own time budget and
 * goes on when those who wait for it have left. Every failure is a PluginError.
 */
export class Key4C implements WrappingService {
  readonly #options: Key4COptions;

  constructor(options: Key4COptions) {
    this.#options = options;
  }

  /** Whether the profile can ask for a key's version and state. */
  get canDescribe(): boolean {
    return this.#options.profile.describe !== undefined;
  }

  /** @throws PluginError `keyUnusable` when the key exists but must not be used */
  async describe(keyId: string): Promise<KeyDescription> {
    const operation = this.#options.profile.describe;
    if (operation === undefined) {
      return { version: undefined, algorithm: undefined };
    }
    const { result, unusableStates } = operation;
    return this.#call("describe", operation, { keyId }, (answer) => {
      const state = result.state && resolvePointer(answer, result.state);
      if (unusableStates.some((one) => one === state)) {
        throw new PluginError("keyUnusable", `Key4C says that the key is ${state}`, {
          isVerdict: true,
        });
      }
      const algorithm = result.algorithm && resolvePointer(answer, result.algorithm);
      return {
        version: readVersion(answer, result.version),
        algorithm: typeof algorithm === "string" ? algorithm : undefined,
      };
    });
  }

  async wrap(keyId: string, localKek: Buffer, aad: Buffer): Promise<WrappedKek> {
    const { profile } = this.#options;
    const operation = profile.encrypt;
    const { result } = operation;
    const payload = {
      keyId,
      plaintext: localKek.toString("base64"),
      aad: aad.toString("base64"),
    };
    const wrapped = () =>
      this.#call("encrypt", operation, payload, (answer) => ({
        ciphertext: readCiphertext(answer, result.ciphertext),
        version: readVersion(answer, result.version),
        aadSent: uses(operation.body, "aad"),
      }));
    if (result.version !== undefined || profile.describe?.result.version === undefined) {
      return wrapped();
    }
    // Where only describe tells the version, it is known if it was the same before and after.
    const before = await this.describe(keyId);
    const answer = await wrapped();
    const after = await this.describe(keyId);
    if (before.version !== after.version) {
      throw new PluginError("unavailable", "the key was rotated while it wrapped a local KEK");
    }
    return { ...answer, version: after.version };
  }

  async unwrap(
    keyId: string,
    ciphertext: string,
    aad: Buffer | undefined,
    requestId?: string,
  ): Promise<Buffer> {
    const operation = this.#options.profile.decrypt;
    if (aad !== undefined && !uses(operation.body, "aad")) {
      throw new PluginError("invalid", "wrapped with AAD, which the profile does not send");
    }
    const payload = { keyId, ciphertext, aad: aad?.toString("base64"), requestId };
    return this.#call("decrypt", operation, payload, (answer) =>
      readLocalKek(answer, operation.result.plaintext),
    );
  }

  /**
   * A decrypt is tried until `read` accepts an answer, the failure is final or the budget is spent:
   * callers wait for it. The others are made by the probe and by renewals, which come again themselves;
   * they are tried twice, because an idle connection may have been closed at the other end, or forgotten
   * by what lies between. Where one kept connection is dead the others are: the retries make a new one.
   */
  async #call<T>(
    name: OperationName,
    operation: Operation,
    payload: PlaceholderValues,
    read: (answer: unknown) => T,
  ): Promise<T> {
    const endMs = performance.now() + CALL_BUDGET_MS;
    const requestId = payload.requestId ?? randomUUID();
    for (let attempt = 0; ; attempt++) {
      const startMs = performance.now();
      const end = (kind: ErrorKind | "ok") => {
        const durationMs = performance.now() - startMs;
        this.#options.record?.({ operation: name, kind }, durationMs / 1000);
        this.#options.log.debug("Key4C call", { operation: name, kind, requestId, durationMs });
      };
      try {
        const values = { ...payload, requestId };
        const isFirst = attempt === 0;
        const leftMs = endMs - startMs;
        const result = read(await this.#attempt(name, operation, values, leftMs, isFirst));
        end("ok");
        return result;
      } catch (error) {
        const failure = asFailure(name, error);
        end(failure.kind);
        // A Retry-After of nothing, or of a clock that is behind, is no leave to ask without a pause.
        const delayMs = Math.max(failure.retryAfterMs ?? 0, retryDelayMs(attempt));
        const retry = KINDS[failure.kind].retry && (name === "decrypt" || attempt === 0);
        if (!retry || performance.now() + delayMs >= endMs) {
          throw failure;
        }
        await Bun.sleep(delayMs);
      }
    }
  }

  async #attempt(
    name: OperationName,
    operation: Operation,
    payload: PlaceholderValues,
    leftMs: number,
    mayReuseConnection: boolean,
  ): Promise<unknown> {
    const { url, profile, credentials, tls, userAgent } = this.#options;
    const values = { ...payload, ...credentials() };
    const headers = new Headers({
      Accept: "application/json",
      "Accept-Encoding": "identity",
      "User-Agent": userAgent,
    });
    for (const [header, template] of Object.entries(operation.headers)) {
      const value = render(template, values);
      if (value !== undefined) {
        headers.set(header, value);
      }
    }
    const body = operation.body === undefined ? undefined : renderJson(operation.body, values);
    if (body !== undefined) {
      headers.set("Content-Type", "application/json");
    }
    const path = render(operation.path, values, encodeURIComponent) ?? "";
    const response = await fetch(url + path, {
      method: operation.method,
      headers,
      ...(body !== undefined && { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(Math.max(1, Math.min(ATTEMPT_TIMEOUT_MS, leftMs))),
      keepalive: mayReuseConnection,
      redirect: "manual", // a redirect would carry the credential to where nobody configured it
      decompress: false,
      verbose: false,
      tls: { ...tls(), rejectUnauthorized: true },
    });
    return readAnswer(name, profile, response, await readBody(response));
  }
}

function asFailure(name: OperationName, error: unknown): PluginError {
  return error instanceof PluginError
    ? error
    : new PluginError("unavailable", `${name} did not reach Key4C: ${errorCode(error)}`);
}

/** Full jitter: a fleet that lost Key4C together does not come back together. */
function retryDelayMs(attempt: number): number {
  return Math.random() * Math.min(MAX_RETRY_DELAY_MS, FIRST_RETRY_DELAY_MS * 2 ** attempt);
}
