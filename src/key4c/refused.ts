import type { Clock } from "../system/clock.ts";
import { type ErrorKind, PluginError } from "../system/errors.ts";

/** A secret that Key4C refused is not tried again before, unless it changes: tokens of HSMs lock. */
const DENIED_PAUSE_MS = 30_000;

export interface Credentials {
  readonly userId: string;
  readonly apiKey?: string | undefined;
  readonly pin?: string | undefined;
}

interface Refusal {
  readonly secret: string;
  readonly untilMs: number;
  readonly error: PluginError;
}

/** These say nothing of the service or of the secret: whoever waited for such a call makes one of his own. */
const OF_ONE_CALL: readonly ErrorKind[] = ["invalid", "keyUnusable", "keyNotFound"];

/**
 * Which secret may be tried, and when. One that was refused for a key is not tried for that key again for a while. A
 * PIN that was refused is not tried again before it changes, for no key: a few wrong ones lock a token for good. So
 * until one is accepted, one call at a time is made with it. What a PIN is refused for that works for other keys, and
 * never did for this one, is the key.
 */
export class RefusedSecrets {
  readonly #clock: Clock;
  readonly #byKey = new Map<string, Refusal>();
  #pin: Refusal | undefined;
  /** The secret with a PIN that was accepted last, and for which keys. */
  #accepted: { readonly secret: string; readonly keyIds: ReadonlySet<string> } | undefined;
  #trial: { readonly secret: string; readonly ended: Promise<void> } | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /**
   * Makes the call, if its secret may be tried.
   * @param call asks anew before it tries again: another one may have been refused meanwhile
   * @throws PluginError what it throws; `denied` if it may not
   */
  async guard<T>(
    keyId: string,
    { userId, apiKey, pin }: Credentials,
    call: (mayTryAgain: () => void) => Promise<T>,
  ): Promise<T> {
    const secret = [userId, apiKey, pin].join(" "); // none holds a space
    const hasPin = pin !== undefined;
    const isUnproven = () => hasPin && this.#acceptedFor(secret) === undefined;
    while (isUnproven() && this.#trial?.secret === secret) {
      await this.#trial.ended;
    }
    const mayTry = () => this.#mayTry(keyId, secret);
    mayTry();
    const outcome = this.#learn(keyId, secret, hasPin, call(mayTry));
    if (isUnproven()) {
      const trial = { secret, ended: outcome.then(() => {}, toThoseWhoWait) };
      const end = () => {
        this.#trial = this.#trial === trial ? undefined : this.#trial;
      };
      this.#trial = trial;
      trial.ended.then(end, end);
    }
    return outcome;
  }

  #mayTry(keyId: string, secret: string): void {
    for (const refusal of [this.#pin, this.#byKey.get(keyId)]) {
      if (refusal?.secret === secret && this.#clock.nowMs() < refusal.untilMs) {
        throw refusal.error;
      }
    }
  }

  /** undefined: for none yet. */
  #acceptedFor(secret: string): ReadonlySet<string> | undefined {
    return this.#accepted?.secret === secret ? this.#accepted.keyIds : undefined;
  }

  async #learn<T>(keyId: string, secret: string, hasPin: boolean, call: Promise<T>): Promise<T> {
    try {
      const result = await call;
      if (hasPin) {
        const earlier = this.#acceptedFor(secret) ?? [];
        this.#accepted = { secret, keyIds: new Set([...earlier, keyId]) };
      }
      return result;
    } catch (error) {
      const isKnown = error === this.#pin?.error || error === this.#byKey.get(keyId)?.error;
      if (error instanceof PluginError && error.kind === "denied" && !isKnown) {
        const untilMs = this.#clock.nowMs() + DENIED_PAUSE_MS;
        this.#byKey.set(keyId, { secret, untilMs, error });
        if (hasPin && this.#acceptedFor(secret)?.has(keyId) !== false) {
          this.#pin = { secret, untilMs: Number.POSITIVE_INFINITY, error };
        }
      }
      throw error;
    }
  }
}

/** What a failure is for those who waited for the call. */
function toThoseWhoWait(error: unknown): void {
  if (!(error instanceof PluginError && OF_ONE_CALL.includes(error.kind))) {
    throw error;
  }
}
