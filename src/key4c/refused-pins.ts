import { PluginError } from "../failures/plugin-error.ts";
import type { Clock } from "../system/clock.ts";

/** After a refusal, the secret or the call is not tried again for this time: tokens of HSMs lock. */
export const PAUSE_MS = 30_000;
/**
 * After a refusal of a PIN that may be somebody else's, such as a firewall's page: so long until the second, third and
 * fourth time it is presented. HSMs lock after five wrong PINs in a row, some after three.
 */
const PIN_PAUSES_MS: readonly number[] = [PAUSE_MS, 5 * 60_000, 60 * 60_000];
/** Secrets are renewed for years. So many that were refused are remembered, should one come back. */
const MAX_REMEMBERED = 16;

export interface Pause {
  readonly untilMs: number;
  readonly error: PluginError;
}

export interface Pin {
  readonly digest: string;
  /** Changes whenever the PIN's file is written, with the same content too. */
  readonly revision: number | undefined;
}

interface RefusedPin extends Pause {
  readonly refusals: number;
  readonly revision: number | undefined;
}

/** PINs that were refused. Beside another user ID or API key one is another secret, and the same PIN that may lock. */
export class RefusedPins {
  readonly #clock: Clock;
  readonly #pins = new Map<string, RefusedPin>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Since its last refusal, if its file has not been written again. */
  pauseOf(pin: Pin | undefined): Pause | undefined {
    const refused = pin && this.#pins.get(pin.digest);
    return refused?.revision === pin?.revision ? refused : undefined;
  }

  accept(pin: Pin | undefined): void {
    if (pin !== undefined) {
      this.#pins.delete(pin.digest);
    }
  }

  /** @returns what its callers are told, and until when */
  refuse(pin: Pin, { message, ...about }: PluginError, isForGood: boolean): Pause {
    const before = this.pauseOf(pin) === undefined ? undefined : this.#pins.get(pin.digest);
    const refusals = (before?.refusals ?? 0) + 1;
    const pauseMs = PIN_PAUSES_MS[refusals - 1] ?? Number.POSITIVE_INFINITY;
    const until =
      pauseMs === Number.POSITIVE_INFINITY
        ? "not presented again before its file is written"
        : `presented again after ${pauseMs / 1000} s`;
    const next = isForGood ? "not presented again before it changes" : until;
    const error = new PluginError("denied", `${message}; this PIN is ${next}`, about);
    this.#pins.delete(pin.digest);
    const untilMs = this.#clock.nowMs() + pauseMs;
    const refused = { error, untilMs, refusals, revision: pin.revision };
    return remembered(this.#pins, pin.digest, () => refused);
  }
}

/** The value of a key, which is then the last to be forgotten. */
export function remembered<T>(map: Map<string, T>, key: string, make: () => T): T {
  const value = map.get(key) ?? make();
  map.delete(key);
  map.set(key, value);
  for (const oldest of [...map.keys()].slice(0, -MAX_REMEMBERED)) {
    map.delete(oldest);
  }
  return value;
}
