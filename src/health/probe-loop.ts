import type { Key } from "../keys/key.ts";
import type { Clock } from "../system/clock.ts";

/**
 * Each probe is moved by up to this part of the interval. That does not spread plugins that begin together. So the first
 * interval after a start or an outage is a random part of a whole one. A fleet that starts together then probes evenly
 * from its second probe on.
 */
const PROBE_JITTER = 0.1;

/** Probes one key again and again. Its health decides how soon. */
export class ProbeLoop {
  readonly #key: Key;
  readonly #probe: () => Promise<void>;
  readonly #intervalMs: number;
  readonly #clock: Clock;
  #cancel: (() => void) | undefined;
  #isProbing = false;
  #isStopped = false;
  #endedAtMs = 0;
  /** -1 to 1, drawn once for each pause: a plan that is made again keeps it. */
  #jitter = 0;
  #beginsRow = false;

  constructor(
    key: Key,
    options: {
      /** Records what it met. It never rejects. */
      readonly probe: () => Promise<void>;
      /** Called when something other than a probe may have changed the health. */
      readonly changed: () => void;
      readonly intervalMs: number;
      readonly clock: Clock;
    },
  ) {
    this.#key = key;
    this.#probe = options.probe;
    this.#intervalMs = options.intervalMs;
    this.#clock = options.clock;
    key.health.onChange = () => {
      options.changed();
      this.#plan();
    };
  }

  /** Probes now and from now on, until {@link stop}. */
  start(): void {
    void this.#probeOnce();
  }

  stop(): void {
    this.#isStopped = true;
    this.#cancel?.();
  }

  async #probeOnce(): Promise<void> {
    const { health } = this.#key;
    this.#isProbing = true;
    const wasWell = health.memory.lastSuccessMs !== undefined && !health.failure;
    await this.#probe();
    this.#isProbing = false;
    this.#endedAtMs = this.#clock.nowMs();
    this.#jitter = 2 * this.#clock.random() - 1;
    this.#beginsRow = !wasWell && health.failure === undefined;
    this.#plan();
  }

  #plan(): void {
    if (this.#isStopped || this.#isProbing) {
      return;
    }
    this.#cancel?.();
    const inMs = this.#endedAtMs + this.#afterMs() - this.#clock.nowMs();
    this.#cancel = this.#clock.after(Math.max(0, inMs), () => void this.#probeOnce());
  }

  #afterMs(): number {
    const { health, materials } = this.#key;
    const wantedMs = health.probeAfterMs(this.#intervalMs, this.#endedAtMs, materials.isWatching);
    if (health.failure?.kind === "throttled") {
      return wantedMs * (1 + PROBE_JITTER * Math.abs(this.#jitter)); // never before Key4C wants it
    }
    return this.#beginsRow && wantedMs === this.#intervalMs
      ? (wantedMs * (1 + this.#jitter)) / 2
      : wantedMs * (1 + PROBE_JITTER * this.#jitter);
  }
}
