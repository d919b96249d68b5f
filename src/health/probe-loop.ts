import { toPluginError } from "../failures/plugin-error.ts";
import type { Standing } from "../keys/standing.ts";
import type { Clock } from "../system/clock.ts";

/**
 * Each probe is moved by up to this part of the interval. That does not spread plugins that begin together. So the first
 * interval after a start or an outage is a random part of a whole one. A fleet that starts together then probes evenly
 * from its second probe on.
 */
const PROBE_JITTER = 0.1;

/** Probes one key again and again. Its standing decides how soon. */
export class ProbeLoop {
  readonly #standing: Standing;
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

  /** @param probe reports to the standing what it heard */
  constructor(
    standing: Standing,
    options: {
      readonly probe: () => Promise<void>;
      /** Called when something other than a probe may have changed the standing. */
      readonly heard: () => void;
      readonly intervalMs: number;
      readonly clock: Clock;
    },
  ) {
    this.#standing = standing;
    this.#probe = options.probe;
    this.#intervalMs = options.intervalMs;
    this.#clock = options.clock;
    standing.onChange = () => {
      options.heard();
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
    this.#isProbing = true;
    const wasWell = this.#standing.memory.lastSuccessMs !== undefined && !this.#standing.failure;
    await this.#probe().catch((error: unknown) => this.#standing.hear(toPluginError(error))); // a defect of ours
    this.#isProbing = false;
    this.#endedAtMs = this.#clock.nowMs();
    this.#jitter = 2 * this.#clock.random() - 1;
    this.#beginsRow = !wasWell && this.#standing.failure === undefined;
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
    const wantedMs = this.#standing.probeAfterMs(this.#intervalMs, this.#endedAtMs);
    if (this.#standing.failure?.kind === "throttled") {
      return wantedMs * (1 + PROBE_JITTER * Math.abs(this.#jitter)); // never before Key4C wants it
    }
    return this.#beginsRow && wantedMs === this.#intervalMs
      ? (wantedMs * (1 + this.#jitter)) / 2
      : wantedMs * (1 + PROBE_JITTER * this.#jitter);
  }
}
