import { SESSION_ENDED } from "../failures/kinds.ts";
import { PluginError, toPluginError } from "../failures/plugin-error.ts";
import type { Clock } from "../system/clock.ts";
import { describeError } from "../system/errors.ts";
import type { Log } from "../system/log.ts";

/** Of three logins at least so much lies between the first and the last: a service that refuses everything must not become a storm of them. */
const MIN_AGE_MS = 10_000;
/** The same once tokens do not live: each of our logins may end the token of another node, and the other way round. */
const MIN_AGE_WHEN_EVICTED_MS = 60_000;
/** So many tokens in a row that were refused before half of their life make an eviction. */
const EVICTIONS = 3;
/** What counts as the life of a token whose login tells none. */
const ASSUMED_LIFE_MS = 600_000;
/** A new token is fetched after this part of the life of the old one, and jitter of a tenth: a fleet starts together. */
const RENEWAL_AT = 0.8;
const RENEWAL_JITTER = 0.1;
/** A call that a new token did not help is refused for another reason. It makes no login for this time. */
const HELPLESS_MS = 600_000;

export interface Granted {
  readonly text: string;
  /** undefined: not told, or for ever. */
  readonly lifeMs: number | undefined;
}

export interface Token extends Granted {
  readonly sinceMs: number;
  /** When a new one is fetched in the background. */
  readonly renewAtMs: number;
  /** Of the secrets that it was given for. */
  readonly secret: string;
}

interface LoginOptions {
  /** One login. @throws PluginError */
  readonly login: () => Promise<Granted>;
  /** A digest of the secrets with which it would be made now. */
  readonly secret: () => string;
  readonly clock: Clock;
  readonly log: Log;
}

/**
 * The token that calls carry. One login is under way for all keys and callers. A token is renewed by the first call after
 * 80 to 90 % of its life, which does not wait for it: the old one is used until it is refused, also if the login is
 * unreachable for longer.
 */
export class Login {
  readonly #options: LoginOptions;
  #token: Token | undefined;
  #pending: Promise<Token> | undefined;
  #triedAtMs = Number.NEGATIVE_INFINITY;
  /** The login before the last one. */
  #formerlyTriedAtMs = Number.NEGATIVE_INFINITY;
  #triedSecret: string | undefined;
  #evictions = 0;
  /** The last token that was refused for its own sake. */
  #judged: Token | undefined;
  #hasWarned = false;
  /** By call: until when a new token is known not to help it. */
  readonly #helpless = new Map<string, number>();

  constructor(options: LoginOptions) {
    this.#options = options;
  }

  /** The token to try. @throws PluginError when there is none, and the login fails */
  async token(): Promise<Token> {
    const token = this.#token;
    if (token === undefined) {
      return this.#begin();
    }
    const nowMs = this.#options.clock.nowMs();
    const isChanged = token.secret !== this.#options.secret();
    const isNew = this.#triedSecret !== this.#options.secret(); // no login has been tried with it
    if (
      isNew ||
      ((isChanged || nowMs >= token.renewAtMs) && nowMs - this.#triedAtMs >= MIN_AGE_MS)
    ) {
      this.#begin().catch((error: unknown) => this.#warn(error));
    }
    return token;
  }

  /**
   * Another token, after the service has refused this one.
   * @param call such as `decrypt demo`
   * @throws PluginError `denied` when another one would not help, or the error of the login
   */
  async replace(refused: Token, call: string): Promise<Token> {
    if (this.#token !== refused && this.#token !== undefined) {
      return this.#token;
    }
    if (this.#pending !== undefined) {
      return this.#pending;
    }
    const nowMs = this.#options.clock.nowMs();
    const isEvicted = this.#evictions >= EVICTIONS;
    const isTooSoon = isEvicted
      ? nowMs - refused.sinceMs < MIN_AGE_WHEN_EVICTED_MS
      : nowMs - this.#formerlyTriedAtMs < MIN_AGE_MS;
    const isHelpless = nowMs < (this.#helpless.get(call) ?? Number.NEGATIVE_INFINITY);
    if (refused.secret !== this.#options.secret()) {
      return this.#begin();
    }
    if (isHelpless) {
      throw new PluginError("denied", "another token did not help this call", { about: "call" });
    }
    if (isTooSoon) {
      const message = isEvicted
        ? `tokens are refused before half of their life, ${this.#evictions} in a row: does another login end them?`
        : "a token is refused that is not old";
      // Another attempt within this call would meet the same token, and other calls may not.
      throw new PluginError("unavailable", message, { ...SESSION_ENDED, isUnlisted: true });
    }
    return this.#begin();
  }

  /** The new token was accepted, so the former one was refused for its own sake. */
  helped(former: Token, call: string): void {
    this.#helpless.delete(call);
    if (this.#judged === former) {
      return; // many calls may have carried it
    }
    this.#judged = former;
    const ageMs = this.#options.clock.nowMs() - former.sinceMs;
    const isEarly = ageMs < (former.lifeMs ?? ASSUMED_LIFE_MS) / 2;
    this.#evictions = isEarly ? this.#evictions + 1 : 0;
  }

  /** The new token was refused too, so it is not the token. */
  didNotHelp(call: string): void {
    this.#helpless.set(call, this.#options.clock.nowMs() + HELPLESS_MS);
  }

  #begin(): Promise<Token> {
    this.#pending ??= this.#login().finally(() => {
      this.#pending = undefined;
    });
    return this.#pending;
  }

  async #login(): Promise<Token> {
    const { clock, login } = this.#options;
    this.#formerlyTriedAtMs = this.#triedAtMs;
    this.#triedAtMs = clock.nowMs();
    const secret = this.#options.secret();
    this.#triedSecret = secret;
    const granted = await login();
    const sinceMs = clock.nowMs();
    const part = RENEWAL_AT + RENEWAL_JITTER * clock.random();
    const { lifeMs = Number.POSITIVE_INFINITY } = granted;
    const token = { ...granted, sinceMs, renewAtMs: sinceMs + lifeMs * part, secret };
    this.#token = token;
    this.#hasWarned = false;
    return token;
  }

  /** Nobody waits for a login in the background, so nobody else says it. */
  #warn(error: unknown): void {
    if (!this.#hasWarned) {
      this.#hasWarned = true;
      const { kind } = toPluginError(error);
      this.#options.log.warn("the login fails: the present token is used until it is refused", {
        kind,
        cause: describeError(error),
      });
    }
  }
}
