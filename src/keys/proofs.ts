import type { Kept } from "./kek-cache.ts";

/** A key that does not wrap has its canary asked for at every tenth probe: it guards nothing that is written now. */
const PROBES_PER_CANARY = 10;

/** What the probes of a key have Key4C unwrap, and what they did not get back. */
export class Proofs {
  #probes = 0;
  /** Whether a success of the probe proves local KEKs. */
  #isProving = false;
  /** What was missed before that was a finding. */
  #missed: readonly Kept[] = [];

  /** @returns what the next probe must have unwrapped: nothing where it is not due, but for every tenth time */
  take(pinned: readonly Kept[], isDue: boolean): readonly Kept[] {
    this.#probes += 1;
    const wanted = isDue || this.#probes % PROBES_PER_CANARY === 0 ? pinned : [];
    this.#isProving = wanted.length > 0;
    return wanted;
  }

  /** This probe has made a local KEK, and proven it. */
  made(): void {
    this.#isProving = true;
  }

  /** A probe did not get these back. */
  miss(missing: readonly Kept[]): void {
    this.#missed = [...new Set([...this.#missed, ...missing])];
  }

  /**
   * A probe succeeded.
   * @returns whether it proved local KEKs, and what was missed and then replaced, so that nobody has asked for it again
   */
  succeed(pinned: readonly Kept[]): { hasProven: boolean; replaced: readonly Kept[] } {
    const replaced = this.#missed.filter((one) => !pinned.includes(one));
    this.#missed = [];
    return { hasProven: this.#isProving, replaced };
  }

  /** Nothing of what was missed is held any more. */
  forget(): void {
    this.#missed = [];
  }
}
