import { PluginError } from "../failures/plugin-error.ts";
import type { Clock } from "../system/clock.ts";
import { PAUSE_MS, type Pause, type Pin, RefusedPins, remembered } from "./refused-pins.ts";

export interface Credentials {
  readonly userId?: string | undefined;
  readonly apiKey?: string | undefined;
  readonly pin?: string | undefined;
  /** Changes whenever the PIN's file is written, with the same content too. */
  readonly pinRevision?: number | undefined;
}

/** What a call presents to the service. */
export interface Presented {
  /** `describe`, `login` … */
  readonly operation: string;
  /** Of the key; "" for a login. */
  readonly keyId: string;
  /** A digest of those secrets that its own templates carry. Two calls with the same one present the same secret. */
  readonly secret: string;
  /** If it is among them. */
  readonly pin?: Pin | undefined;
  /** Its template has the token of a login, and no secret. The login is where secrets are refused. */
  readonly isBehindLogin: boolean;
  /** The call again, once, without what is confidential in it. */
  readonly repeat: () => Promise<unknown>;
}

/** What is known of one secret. */
interface Secret {
  isProven: boolean;
  /** Calls that were accepted and not refused since, the last one at the end. */
  readonly accepted: Map<string, () => Promise<unknown>>;
  /** The secret is refused everywhere. */
  refusal?: Pause;
  /** The place whose call was refused with it last. */
  refusedPlace?: string;
  /** Another call that wanted to present it since. The next trial is that one's: where one right is missing, the refused call would else take every turn. */
  waiting?: Waiting;
  /** Calls that are refused while the secret is accepted elsewhere. */
  readonly paused: Map<string, Pause>;
  /** The one call that decides whether the secret is good. It settles with what failed, and never rejects. */
  trial?: { readonly operation: string; readonly ended: Promise<unknown> };
}

interface Waiting extends Pick<Presented, "repeat"> {
  readonly place: string;
}

/**
 * Decides which secret may be presented, and when.
 * - A secret that has not been accepted yet, or was refused, is presented by one call at a time, at most every 30 s. The
 *   call that was refused last lets another one go first.
 * - When a call is refused whose secret was accepted before, another call that was accepted is made once more. If it is
 *   accepted again, the refusal is about the first call alone, which pauses for 30 s; if not, about the secret.
 * - A PIN that a code of the contract refuses is not presented again before it changes. One that a status or a page
 *   refuses is presented three times more at most, until its file is written again.
 */
export class RefusedSecrets {
  readonly #clock: Clock;
  readonly #secrets = new Map<string, Secret>();
  readonly #pins: RefusedPins;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#pins = new RefusedPins(clock);
  }

  /**
   * Makes the call, if its secret may be presented.
   * @param call must ask again before it retries: another call may have been refused meanwhile
   * @throws PluginError what the call throws; `denied`, with what it is about, if the secret may not be presented
   */
  async guard<T>(presented: Presented, call: (mayTryAgain: () => void) => Promise<T>): Promise<T> {
    const secret = this.#secretOf(presented);
    const place = placeOf(presented);
    const mayTry = () => {
      const pause = this.#pauseOf(presented, secret);
      if (pause !== undefined) {
        if (!secret.isProven && place !== secret.refusedPlace) {
          secret.waiting = { place, repeat: presented.repeat };
        }
        throw pause.error;
      }
    };
    for (;;) {
      mayTry();
      if (secret.trial !== undefined) {
        const { operation, ended } = secret.trial;
        const failure = await ended;
        if (isOfTheService(failure) && operation === presented.operation) {
          throw failure;
        }
        continue;
      }
      const control = secret.isProven
        ? undefined
        : (lastAccepted(secret) ?? othersTurn(secret, place));
      if (control === undefined) {
        break;
      }
      await this.#control(presented, secret, control);
    }
    const isTrial = !secret.isProven;
    const outcome = this.#learn(presented, secret, call(mayTry), isTrial);
    return isTrial ? asTrial(secret, presented.operation, outcome) : outcome;
  }

  #secretOf({ secret, isBehindLogin }: Presented): Secret {
    return remembered(this.#secrets, secret, () => ({
      isProven: isBehindLogin,
      accepted: new Map(),
      paused: new Map(),
    }));
  }

  /** Why the call may not be sent now. */
  #pauseOf(presented: Presented, secret: Secret): Pause | undefined {
    const pauses = [
      secret.refusal,
      secret.paused.get(placeOf(presented)),
      this.#pins.pauseOf(presented.pin),
    ];
    return pauses.find((one) => one !== undefined && this.#clock.nowMs() < one.untilMs);
  }

  async #learn<T>(
    presented: Presented,
    secret: Secret,
    call: Promise<T>,
    isTrial: boolean,
  ): Promise<T> {
    try {
      const result = await call;
      this.#accept(presented, secret);
      return result;
    } catch (error) {
      if (!(error instanceof PluginError && error.kind === "denied" && error.about !== "secret")) {
        throw error;
      }
      throw error.about === "call" || presented.isBehindLogin
        ? this.#pauseCall(presented, secret, error)
        : await this.#judge(presented, secret, error, isTrial);
    }
  }

  #accept(presented: Presented, secret: Secret): void {
    const place = placeOf(presented);
    this.#prove(presented, secret);
    secret.paused.delete(place);
    secret.accepted.delete(place); // to be the last one
    secret.accepted.set(place, presented.repeat);
  }

  #prove({ pin }: Presented, secret: Secret): void {
    secret.isProven = true;
    delete secret.refusal;
    this.#pins.accept(pin);
  }

  /** What a refusal is about. */
  async #judge(
    presented: Presented,
    secret: Secret,
    error: PluginError,
    isTrial: boolean,
  ): Promise<PluginError> {
    secret.accepted.delete(placeOf(presented));
    if (!isTrial) {
      await secret.trial?.ended; // of another call that was refused at the same time
    }
    const known = this.#pauseOf(presented, secret);
    if (known !== undefined) {
      return known.error;
    }
    const control = secret.isProven ? lastAccepted(secret) : undefined;
    if (control !== undefined) {
      const isAccepted = await this.#control(presented, secret, control).then(
        () => true,
        () => false,
      );
      if (isAccepted) {
        const hint = `; the same credential is accepted for ${control.place.split(" ")[0]}`;
        return this.#pauseCall(presented, secret, error, hint);
      }
      const refused = this.#pauseOf(presented, secret);
      if (refused !== undefined) {
        return refused.error;
      }
    }
    // A control that nobody answered leaves it open, so a PIN is not given up for good.
    const isForGood = control === undefined && error.isByContract;
    return this.#refuse({ ...presented, place: placeOf(presented) }, secret, error, isForGood);
  }

  #pauseCall(presented: Presented, secret: Secret, error: PluginError, hint = ""): PluginError {
    const known = this.#pauseOf(presented, secret);
    if (known !== undefined) {
      return known.error;
    }
    const about = new PluginError("denied", error.message + hint, { ...error, about: "call" });
    secret.paused.set(placeOf(presented), this.#pause(about, PAUSE_MS));
    return about;
  }

  /** Makes another call, mostly one that was accepted. @throws PluginError unless it is accepted */
  async #control(presented: Presented, secret: Secret, { place, repeat }: Waiting): Promise<void> {
    const outcome = (async () => {
      try {
        await repeat();
      } catch (error) {
        if (!(error instanceof PluginError && error.isByContract && error.kind !== "denied")) {
          secret.accepted.delete(place);
          throw error instanceof PluginError && error.kind === "denied"
            ? this.#refuse({ ...presented, place }, secret, error, error.isByContract)
            : error;
        }
        // Its key may be disabled by now. The service has said so of the key, and not of the secret.
      }
      this.#prove(presented, secret);
      secret.accepted.set(place, repeat);
    })();
    await asTrial(secret, "", outcome);
  }

  #refuse(
    { pin, place }: Pick<Presented, "pin"> & { readonly place: string },
    secret: Secret,
    error: PluginError,
    isForGood: boolean,
  ): PluginError {
    secret.isProven = false;
    secret.refusedPlace = place;
    delete secret.waiting;
    const about = new PluginError("denied", error.message, { ...error, about: "secret" });
    if (pin === undefined) {
      secret.refusal = this.#pause(about, PAUSE_MS);
      return about;
    }
    const { error: aboutPin } = this.#pins.refuse(pin, about, isForGood);
    if (isForGood) {
      secret.refusal = this.#pause(aboutPin, Number.POSITIVE_INFINITY);
    }
    return aboutPin;
  }

  #pause(error: PluginError, ms: number): Pause {
    return { error, untilMs: this.#clock.nowMs() + ms };
  }
}

function placeOf({ operation, keyId }: Presented): string {
  return `${operation} ${keyId}`;
}

function lastAccepted({ accepted }: Secret): Waiting | undefined {
  const [last] = [...accepted].slice(-1);
  return last && { place: last[0], repeat: last[1] };
}

/** The call that is to be made before the one at this place, once. */
function othersTurn(secret: Secret, place: string): Waiting | undefined {
  const { waiting, refusedPlace } = secret;
  delete secret.waiting;
  return place === refusedPlace ? waiting : undefined;
}

/** Others wait for it. */
function asTrial<T>(secret: Secret, operation: string, outcome: Promise<T>): Promise<T> {
  const trial = {
    operation,
    ended: outcome.then(
      () => undefined,
      (failure: unknown) => failure,
    ),
  };
  secret.trial = trial;
  const end = () => {
    if (secret.trial === trial) {
      delete secret.trial;
    }
  };
  trial.ended.then(end, end);
  return outcome;
}

/** Away, or too busy. The call that waited would hear the same. */
function isOfTheService(failure: unknown): boolean {
  return (
    failure instanceof PluginError &&
    !failure.isUnlisted &&
    (failure.kind === "unavailable" || failure.kind === "throttled")
  );
}
