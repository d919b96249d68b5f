import { createHash, randomBytes, randomUUID } from "node:crypto";
import { type ErrorKind, KINDS } from "../failures/kinds.ts";
import { PluginError } from "../failures/plugin-error.ts";
import {
  type CallOptions,
  LOCAL_KEK_BYTES,
  type WrappedKek,
  type WrappingService,
} from "../keys/wrapping.ts";
import { type Clock, sleep, systemClock } from "../system/clock.ts";
import { errorCode } from "../system/files.ts";
import type { Log } from "../system/log.ts";
import {
  type OperationName,
  readAnswer,
  readBody,
  readCiphertext,
  readKcv,
  readLocalKek,
  readVersion,
} from "./answer.ts";
import { resolvePointer } from "./json.ts";
import type { Operation, Profile } from "./profile.ts";
import { type Credentials, RefusedSecrets } from "./refused.ts";
import { type Placeholder, type PlaceholderValues, render, renderJson, uses } from "./template.ts";

/** One attempt. Below the API server's default timeout of 3 s, so that its caller may live to see a second one. */
const ATTEMPT_TIMEOUT_MS = 2_500;
/** All attempts of one call together. Longer than a caller waits, because the result goes into the cache. */
const CALL_BUDGET_MS = 10_000;
const FIRST_RETRY_DELAY_MS = 100;
/** Callers wait for 3 s. So a retry must not sleep for long after Key4C is back. */
const MAX_RETRY_DELAY_MS = 500;

export interface Key4COptions {
  /** Base address, without a slash at its end. */
  readonly url: string;
  readonly profile: Profile;
  /** Asked before every call, so that a renewed secret is used at once. */
  readonly credentials: () => Credentials;
  /** PEM texts; asked before every call. */
  readonly tls: () => {
    readonly ca?: string | undefined;
    readonly cert?: string | undefined;
    readonly key?: string | undefined;
  };
  readonly userAgent: string;
  readonly log: Log;
  /** Tests replace clock and network; doctor --profile-check watches the network. */
  readonly clock?: Clock;
  readonly fetch?: (url: string, init: BunFetchRequestInit) => Promise<Response>;
  /** Called at the end of every attempt; kind is "ok" or that of its error. */
  readonly record?: (
    labels: { readonly operation: string; readonly kind: string },
    seconds: number,
  ) => void;
}

/** What describe says about a key. */
export interface KeyDescription {
  /** undefined when the service tells none. */
  readonly version: number | undefined;
  /** Key check value, in upper case; undefined when the service tells none. */
  readonly kcv: string | undefined;
  /** In the words of the service; undefined when it tells none. */
  readonly algorithm: string | undefined;
}

/**
 * The client of Key4C: a profile over HTTPS. A call has its own time budget and does not end with its callers: it continues
 * after they have left. Every failure is a PluginError.
 */
export class Key4C implements WrappingService {
  readonly #options: Key4COptions;
  readonly #clock: Clock;
  readonly #refused: RefusedSecrets;

  constructor(options: Key4COptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#refused = new RefusedSecrets(this.#clock);
  }

  /** Whether the profile can ask for a key's version and state. */
  get canDescribe(): boolean {
    return this.#options.profile.describe !== undefined;
  }

  /** @throws PluginError `keyUnusable` when the key exists but must not be used */
  async describe(keyId: string, options: CallOptions = {}): Promise<KeyDescription> {
    const operation = this.#options.profile.describe;
    if (operation === undefined) {
      return { version: undefined, kcv: undefined, algorithm: undefined };
    }
    const { result, unusableStates } = operation;
    return this.#call("describe", operation, { keyId }, options, (answer) => {
      const state = result.state && resolvePointer(answer, result.state);
      if (unusableStates.some((one) => one === state)) {
        throw new PluginError("keyUnusable", `Key4C says that the state of the key is ${state}`, {
          isVerdict: true,
        });
      }
      const algorithm = result.algorithm && resolvePointer(answer, result.algorithm);
      return {
        version: readVersion(answer, result.version),
        kcv: readKcv(answer, result.kcv),
        algorithm: typeof algorithm === "string" ? algorithm : undefined,
      };
    });
  }

  async wrap(
    keyId: string,
    localKek: Buffer,
    aad: Buffer,
    options: CallOptions = {},
  ): Promise<WrappedKek> {
    const { profile } = this.#options;
    const operation = profile.encrypt;
    const { result } = operation;
    const payload = { keyId, plaintext: localKek, aad };
    const wrapped = () =>
      this.#call("encrypt", operation, payload, options, (answer) => ({
        ciphertext: readCiphertext(answer, result.ciphertext),
        version: readVersion(answer, result.version),
        aadSent: uses(operation.body, "aad"),
      }));
    if (result.version !== undefined || profile.describe?.result.version === undefined) {
      return wrapped();
    }
    // When only describe tells the version, the version is certain if it is the same before and after the wrap.
    const before = await this.describe(keyId, options);
    const answer = await wrapped();
    const after = await this.describe(keyId, options);
    if (before.version !== after.version) {
      throw new PluginError("unavailable", "the key was rotated while it wrapped a local KEK");
    }
    return { ...answer, version: after.version };
  }

  async unwrap(
    keyId: string,
    ciphertext: string,
    aad: Buffer | undefined,
    options: CallOptions = {},
  ): Promise<Buffer> {
    const operation = this.#options.profile.decrypt;
    if (aad !== undefined && !uses(operation.body, "aad")) {
      throw new PluginError("invalid", "wrapped with AAD, which the profile does not send");
    }
    const payload = { keyId, ciphertext, aad };
    return this.#call("decrypt", operation, payload, options, (answer) =>
      readLocalKek(answer, operation.result.plaintext),
    );
  }

  /** All attempts of a call use the credentials of its beginning. */
  #call<T>(
    name: OperationName,
    operation: Operation,
    payload: PlaceholderValues & { readonly keyId: string },
    options: CallOptions,
    read: (answer: unknown) => T,
  ): Promise<T> {
    const credentials = this.#options.credentials();
    const values = { ...payload, ...credentials };
    const presented = this.#presented(name, operation, credentials);
    const repeat = async () => {
      // What was wrapped is nobody else's to keep.
      const plaintext = payload.plaintext && randomBytes(LOCAL_KEK_BYTES);
      const again = { ...values, plaintext, requestId: randomUUID() };
      const attempt = this.#attempt(name, operation, again, ATTEMPT_TIMEOUT_MS, false);
      const result = await attempt.then(read).catch((error: unknown) => {
        throw asFailure(name, error);
      });
      if (result instanceof Buffer) {
        result.fill(0);
      }
    };
    return this.#refused.guard({ ...presented, keyId: payload.keyId, repeat }, (mayTryAgain) =>
      this.#attempts(name, operation, values, options, read, mayTryAgain),
    );
  }

  /** What an operation presents to the service: the secrets in its templates, and the client's certificate. */
  #presented(operation: string, { headers, body = null, path }: Operation, secrets: Credentials) {
    const { userId, apiKey, pin, pinRevision } = secrets;
    const carried = Object.entries({ userId, apiKey, pin }).filter(
      ([name, value]) =>
        value !== undefined && uses([path, Object.values(headers), body], name as Placeholder),
    );
    const isPinCarried = carried.some(([name]) => name === "pin");
    return {
      operation,
      secret: digest([carried, this.#options.tls().cert]),
      ...(isPinCarried && { pin: { digest: digest(pin), revision: pinRevision } }),
    };
  }

  /**
   * A call that a caller waits for is tried until `read` accepts an answer, the failure is final, or the budget is spent.
   * Calls of probes and renewals, which repeat themselves, are tried twice: an idle connection may have been closed by
   * the other end, or forgotten by a NAT. On a new connection they are tried once. When one kept connection is dead, so
   * are the others. Hence a retry uses a new one.
   */
  async #attempts<T>(
    name: OperationName,
    operation: Operation,
    payload: PlaceholderValues,
    options: CallOptions,
    read: (answer: unknown) => T,
    mayTryAgain: () => void,
  ): Promise<T> {
    const endMs = this.#clock.nowMs() + CALL_BUDGET_MS;
    const requestId = options.requestId ?? randomUUID();
    for (let attempt = 0; ; attempt++) {
      const startMs = this.#clock.nowMs();
      const end = (kind: ErrorKind | "ok") => {
        const durationMs = this.#clock.nowMs() - startMs;
        this.#options.record?.({ operation: name, kind }, durationMs / 1000);
        this.#options.log.debug("Key4C call", { operation: name, kind, requestId, durationMs });
      };
      try {
        const values = { ...payload, requestId };
        const mayReuse = attempt === 0 && options.newConnection !== true;
        const leftMs = endMs - startMs;
        const result = read(await this.#attempt(name, operation, values, leftMs, mayReuse));
        end("ok");
        return result;
      } catch (error) {
        const failure = asFailure(name, error);
        end(failure.kind);
        const delayMs =
          this.#clock.random() * Math.min(MAX_RETRY_DELAY_MS, FIRST_RETRY_DELAY_MS * 2 ** attempt);
        const mayRetry = options.isForCaller === true || (attempt === 0 && !options.newConnection);
        const isWorthIt = KINDS[failure.kind].retry && !failure.isUnlisted && mayRetry;
        if (!isWorthIt || this.#clock.nowMs() + delayMs >= endMs) {
          throw failure;
        }
        options.onFailedAttempt?.();
        await sleep(this.#clock, delayMs); // with jitter, so that a fleet does not return all at once
        mayTryAgain();
      }
    }
  }

  async #attempt(
    name: OperationName,
    operation: Operation,
    values: PlaceholderValues,
    leftMs: number,
    mayReuseConnection: boolean,
  ): Promise<unknown> {
    const { url, profile, tls, userAgent } = this.#options;
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
    const abort = new AbortController();
    const timeoutMs = Math.max(1, Math.min(ATTEMPT_TIMEOUT_MS, leftMs));
    const cancelTimeout = this.#clock.after(timeoutMs, () =>
      abort.abort(new DOMException("no answer in time", "TimeoutError")),
    );
    try {
      const response = await (this.#options.fetch ?? fetch)(url + path, {
        method: operation.method,
        headers,
        ...(body !== undefined && { body: JSON.stringify(body) }),
        signal: abort.signal,
        keepalive: mayReuseConnection,
        redirect: "manual", // a redirect would carry the credential to a host that nobody configured
        decompress: false,
        verbose: false,
        tls: { ...tls(), rejectUnauthorized: true },
      });
      return readAnswer(name, profile, response, await readBody(response));
    } finally {
      cancelTimeout();
    }
  }
}

function digest(of: unknown): string {
  return createHash("sha256").update(JSON.stringify(of)).digest("base64");
}

function asFailure(name: OperationName, error: unknown): PluginError {
  return error instanceof PluginError
    ? error
    : new PluginError("unavailable", `${name} did not reach Key4C: ${errorCode(error)}`);
}
