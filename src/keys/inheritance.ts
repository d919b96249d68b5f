import type { Handover } from "./keeper.ts";
import type { Kept } from "./kek-cache.ts";

/** What an earlier process kept of a key, until the key takes it over, or is revoked. */
export class Inheritance {
  /** Resolves when it is there, or is known not to be; maybe never. */
  readonly arrived: Promise<void>;
  #handover: Handover | undefined;
  #mayBeTaken = false;

  /** @param ready called where it may be taken at its arrival; after {@link allow}, whoever allowed it looks */
  constructor(handover: Promise<Handover | undefined> | undefined, ready: () => void) {
    this.arrived = Promise.resolve(handover).then((found) => {
      this.#handover = found;
      if (this.#mayBeTaken) {
        ready();
      }
    });
  }

  /** From now on it may be taken. */
  allow(): void {
    this.#mayBeTaken = true;
  }

  /** What is there, and not taken. */
  get waiting(): Handover | undefined {
    return this.#handover;
  }

  /** @returns what is there; then nothing is left */
  take(): Handover | undefined {
    const handover = this.#handover;
    this.#handover = undefined;
    return handover;
  }
}

/** Those that matter least first. */
export function allOf(handover: Handover | undefined): readonly Kept[] {
  const { others = [], canary, current } = handover ?? {};
  return [...others.toReversed(), ...new Set([canary, current])].filter((one) => one !== undefined);
}
