import type { ErrorKind } from "../failures/kinds.ts";
import { PluginError } from "../failures/plugin-error.ts";
import type { Clock } from "../system/clock.ts";

/** A secret that Key4C refused is tried again after this time, or when it changes: tokens of HSMs lock. */
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

/** These kinds say nothing about the service or the secret, so calls that waited for such a call continue. */
const OF_ONE_CALL: readonly ErrorKind[] = ["invalid", "keyUnusable", "keyNotFound"];

/**
 * Decides which secret may be tried, and when.
 * - A secret that was refused for a key is not tried again for that key for a while.
 * - A PIN that was refused is not tried again for any key before it changes: a few wrong PINs lock a token for good.
 * - Until a PIN is accepted, one call at a time is made with it.
 * - If a PIN works for other keys and never did for this one, the refusal is about the key and not about the PIN.
 */
export class RefusedSecrets {
  readonly #clock: Clock;
  readonly #byKey = new Map<string, Refusal>();
  #pin: Refusal | undefined;
  /** The last secret with a PIN that was accepted, and the keys for which it was. */
  #accepted: { readonly secret: string; readonly keyIds: ReadonlySet<string> } | undefined;
  #trial: { readonly secret: string; readonly ended: Promise<void> } | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /**
   * Makes the call, if its secret may be tried.
   * @param call must ask again before it retries: another call may have been refused meanwhile
   * @throws PluginError what the call throws; `denied` if the secret may not be tried
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

  /** The keys for which a secret was accepted; undefined: none yet. */
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

/** Turns a failure of the call into that of the calls that waited for it, or into nothing. */
function toThoseWhoWait(error: unknown): void {
  if (!(error instanceof PluginError && OF_ONE_CALL.includes(error.kind))) {
    throw error;
  }
}
