import { createHash, randomBytes, randomUUID } from "node:crypto";
import { type ErrorKind, KINDS } from "../failures/kinds.ts";
import { PluginError, toPluginError } from "../failures/plugin-error.ts";
import { type CallOptions, LOCAL_KEK_BYTES } from "../keys/wrapping.ts";
import { type Clock, sleep, systemClock } from "../system/clock.ts";
import type { Log } from "../system/log.ts";
import { type OperationName, readAnswer, readGrant, TokenExpired } from "./answer.ts";
import { notReached } from "./connect-error.ts";
import type { Json } from "./json.ts";
import { type Granted, Login } from "./login.ts";
import { carries, type Operation, type Profile } from "./profile.ts";
import { type Credentials, type Presented, RefusedSecrets } from "./refused.ts";
import { exchange, type Way } from "./request.ts";
import type { Placeholder, PlaceholderValues } from "./template.ts";

/** One attempt. Below the API server's default timeout of 3 s, so that its caller may live to see a second one. */
export const ATTEMPT_TIMEOUT_MS = 2_500;
/** All attempts of one call together. Longer than a caller waits, because the result goes into the cache. */
export const CALL_BUDGET_MS = 10_000;
const FIRST_RETRY_DELAY_MS = 100;
/** Callers wait for 3 s. So a retry must not sleep for long after Key4C is back. */
const MAX_RETRY_DELAY_MS = 500;

export interface Key4COptions extends Way {
  readonly profile: Profile;
  /** Asked before every call, so that a renewed secret is used at once. */
  readonly credentials: () => Credentials;
  readonly log: Log;
  /** Tests replace it. */
  readonly clock?: Clock;
  /** Called at the end of every attempt; kind is "ok" or that of its error. */
  readonly record?: (
    labels: { readonly operation: string; readonly kind: string },
    seconds: number,
  ) => void;
}

/** The parsed answer of a success, and the body that was sent. */
export interface Answered {
  readonly document: unknown;
  readonly sent: Json | undefined;
}

/**
 * Makes the calls of a profile: with the token of its login, with secrets that may be presented, again where that may
 * help. A call has its own time budget and does not end with its callers: it continues after they have left. Every failure
 * is a PluginError.
 */
export class Calls {
  readonly #options: Key4COptions;
  readonly #clock: Clock;
  readonly #refused: RefusedSecrets;
  readonly #login: Login;

  constructor(options: Key4COptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#refused = new RefusedSecrets(this.#clock);
    this.#login = new Login({
      login: () => this.#grant(),
      secret: () => this.#presented("login", options.profile.login).secret,
      clock: this.#clock,
      log: options.log,
    });
  }

  /** Logs in, if the profile has a login and there is no token yet. @throws PluginError */
  async login(): Promise<void> {
    if (this.#options.profile.login !== undefined) {
      await this.#login.token();
    }
  }

  /**
   * All attempts of a call use the credentials of its beginning.
   * @param read may refuse the answer, which is then tried again
   */
  call<T>(
    name: OperationName,
    operation: Operation,
    { plaintext, ...payload }: PlaceholderValues & { readonly keyId: string },
    options: CallOptions,
    read: (answered: Answered) => T,
  ): Promise<T> {
    const values = { ...payload, ...this.#options.credentials() };
    const repeat = async () => {
      // Other bytes: nobody keeps a local KEK for this.
      const other = plaintext && randomBytes(LOCAL_KEK_BYTES);
      const again = { ...values, plaintext: other, requestId: randomUUID() };
      const result = read(await this.#attempt(name, operation, again, ATTEMPT_TIMEOUT_MS, false));
      if (result instanceof Buffer) {
        result.fill(0);
      }
    };
    const presented = { ...this.#presented(name, operation), keyId: payload.keyId, repeat };
    return this.#refused.guard(presented, (mayTryAgain) =>
      this.#attempts(name, operation, { ...values, plaintext }, options, read, mayTryAgain),
    );
  }

  /** What a request presents to the service: the secrets in its templates, and the client's certificate. */
  #presented(
    operation: string,
    request: Operation | undefined,
  ): Omit<Presented, "keyId" | "repeat"> {
    const { userId, apiKey, pin, pinRevision } = this.#options.credentials();
    const carried = Object.entries({ userId, apiKey, pin }).filter(
      ([name, value]) => value !== undefined && request && carries(request, name as Placeholder),
    );
    const isPinCarried = carried.some(([name]) => name === "pin");
    const isBehindLogin =
      carried.length === 0 && request !== undefined && carries(request, "token");
    const { login } = this.#options.profile;
    const loginSecret = isBehindLogin // a changed one ends the pauses of its calls
      ? this.#presented("login", login).secret
      : undefined;
    return {
      operation,
      // Apart from the login's, which runs within a call and would wait for that call's trial.
      secret: digest([operation === "login", carried, this.#options.tls().cert, loginSecret]),
      ...(isPinCarried && { pin: { digest: digest(pin), revision: pinRevision } }),
      isBehindLogin,
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
    values: PlaceholderValues,
    options: CallOptions,
    read: (answered: Answered) => T,
    mayTryAgain: () => void,
  ): Promise<T> {
    const endMs = this.#clock.nowMs() + CALL_BUDGET_MS;
    const requestId = options.requestId ?? randomUUID();
    for (let attempt = 0; ; attempt++) {
      const startMs = this.#clock.nowMs();
      try {
        return await this.#recorded(name, requestId, async () => {
          const mayReuse = attempt === 0 && options.newConnection !== true;
          const all = { ...values, requestId };
          return read(await this.#attempt(name, operation, all, endMs - startMs, mayReuse));
        });
      } catch (error) {
        const failure = toPluginError(error);
        const delayMs =
          this.#clock.random() * Math.min(MAX_RETRY_DELAY_MS, FIRST_RETRY_DELAY_MS * 2 ** attempt);
        const mayRetry = options.isForCaller === true || (attempt === 0 && !options.newConnection);
        const isWorthIt = KINDS[failure.kind].retry && !failure.isUnlisted && mayRetry;
        if (!isWorthIt || this.#clock.nowMs() + delayMs >= endMs) {
          throw failure;
        }
        options.onFailedAttempt?.(failure);
        await sleep(this.#clock, delayMs); // with jitter, so that a fleet does not return all at once
        mayTryAgain();
      }
    }
  }

  /** One attempt: one request, or three where its token is refused. @throws PluginError */
  async #attempt(
    name: OperationName,
    operation: Operation,
    values: PlaceholderValues,
    leftMs: number,
    mayReuse: boolean,
  ): Promise<Answered> {
    const endMs = this.#clock.nowMs() + leftMs;
    const request = (token: string | undefined, isFirst = true) =>
      this.#request(name, operation, { ...values, token }, endMs, isFirst && mayReuse);
    if (!carries(operation, "token")) {
      return request(undefined);
    }
    const call = `${name} ${values.keyId}`;
    const token = await this.#login.token();
    try {
      return await request(token.text);
    } catch (error) {
      if (!(error instanceof TokenExpired)) {
        throw error;
      }
    }
    const next = await this.#login.replace(token, call);
    try {
      const answered = await request(next.text, false);
      this.#login.helped(token, call);
      return answered;
    } catch (error) {
      if (!(error instanceof TokenExpired)) {
        throw error;
      }
      this.#login.didNotHelp(call);
      throw new PluginError("denied", `${error.message}, with a new token too`, { about: "call" });
    }
  }

  async #grant(): Promise<Granted> {
    const { login } = this.#options.profile;
    if (login === undefined) {
      throw new PluginError("internal", "a token is wanted, and the profile has no login");
    }
    const { result } = login;
    const requestId = randomUUID();
    const grant = () =>
      this.#recorded("login", requestId, async () => {
        const values = { ...this.#options.credentials(), requestId };
        const endMs = this.#clock.nowMs() + ATTEMPT_TIMEOUT_MS;
        return readGrant(
          (await this.#request("login", login, values, endMs, false)).document,
          result,
        );
      });
    const presented = { ...this.#presented("login", login), keyId: "", repeat: grant };
    return this.#refused.guard(presented, grant);
  }

  /** @throws PluginError, and TokenExpired where the request had a token */
  async #request(
    name: OperationName | "login",
    request: Operation,
    values: PlaceholderValues,
    endMs: number,
    mayReuse: boolean,
  ): Promise<Answered> {
    const timeoutMs = Math.min(ATTEMPT_TIMEOUT_MS, endMs - this.#clock.nowMs());
    try {
      const how = { clock: this.#clock, timeoutMs, mayReuse };
      const { response, text, sent } = await exchange(this.#options, request, values, how);
      return { document: readAnswer(name, this.#options.profile, response, text), sent };
    } catch (error) {
      throw error instanceof PluginError || error instanceof TokenExpired
        ? error
        : notReached(name, error, this.#options.tls().cert);
    }
  }

  /** For metrics and log. */
  async #recorded<T>(operation: string, requestId: string, work: () => Promise<T>): Promise<T> {
    const startMs = this.#clock.nowMs();
    const end = (kind: ErrorKind | "ok") => {
      const durationMs = this.#clock.nowMs() - startMs;
      this.#options.record?.({ operation, kind }, durationMs / 1000);
      this.#options.log.debug("Key4C call", { operation, kind, requestId, durationMs });
    };
    try {
      const result = await work();
      end("ok");
      return result;
    } catch (error) {
      end(toPluginError(error).kind);
      throw error;
    }
  }
}

function digest(of: unknown): string {
  return createHash("sha256").update(JSON.stringify(of)).digest("base64");
}
