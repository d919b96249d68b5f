import { PluginError } from "../failures/plugin-error.ts";
import { type Clock, systemClock } from "../system/clock.ts";
import {
  afterPause,
  type Effect,
  type Limits,
  type Memory,
  NOTHING_MET,
  refusalOf,
  refusalOfCallers,
  type State,
  stateOf,
  step,
} from "./key-health.ts";
import { pausedUntilMs, probeAfterMs } from "./pace.ts";

/** The health of one key as it stands now. Its key records what probes met; everybody else reads. */
export class HealthRecord {
  readonly #limits: Limits;
  readonly #clock: Clock;
  #memory = NOTHING_MET;
  #isNeeded = false;
  /** Called when the next probe should be planned again. */
  onChange: () => void = () => {};
  /** Why the key is revoked. */
  revocation: PluginError | undefined;
  /** Why Status and Encrypt must fail, although there may be a local KEK. */
  refusal: PluginError | undefined;
  /** Whether there is a current local KEK; set by the key. */
  hasLocalKek = false;

  constructor(limits: Limits, clock: Clock = systemClock) {
    this.#limits = limits;
    this.#clock = clock;
  }

  get memory(): Memory {
    return this.#memory;
  }

  get state(): State {
    return stateOf(this.#memory, this.hasLocalKek);
  }

  /** Why the last probe failed. */
  get failure(): PluginError | undefined {
    return this.#memory.failure;
  }

  /** Whether Key4C has asked for a pause. Probes come all the same, and ask nothing. */
  get isPaused(): boolean {
    return this.#clock.nowMs() < pausedUntilMs(this.#memory, this.hasLocalKek);
  }

  /**
   * Takes over what a probe met, or a caller that was throttled; undefined for a success.
   * @returns what the key must do now
   */
  record(met: PluginError | undefined): readonly Effect[] {
    const { memory, effects } = step(this.#memory, met, this.#clock.nowMs(), this.#limits);
    this.#isNeeded = false;
    this.#take(memory);
    return effects;
  }

  /** In a pause nothing is met, and KMS_OUTAGE_GRACE may end. */
  passPause(): void {
    this.#take(afterPause(this.#memory, this.#clock.nowMs(), this.#limits));
  }

  #take(memory: Memory): void {
    this.#memory = memory;
    this.revocation = memory.finding?.state === "revoked" ? memory.finding.cause : undefined;
    this.refusal = refusalOf(memory);
  }

  /**
   * Takes up what an earlier process knew: when Key4C last answered it. An outage that lasts began then; no answer at
   * all is one.
   */
  resume(lastSuccessMsAgo: number): void {
    const { failure, outageSinceMs } = this.#memory;
    const lastSuccessMs = this.#clock.nowMs() - lastSuccessMsAgo;
    const isOutage = failure === undefined || outageSinceMs !== undefined;
    const outage = isOutage ? { outageSinceMs: lastSuccessMs } : {};
    this.#memory = { ...this.#memory, lastSuccessMs, ...outage };
    if (failure === undefined) {
      this.record(new PluginError("unavailable", "Key4C has not answered since the start"));
    } else {
      this.passPause();
    }
  }

  /** Why callers of this key are refused, whatever its circuits say. */
  get refusalOfCallers(): PluginError | undefined {
    return refusalOfCallers(this.#memory);
  }

  /** A caller failed because Key4C did not answer: the next probe comes soon. */
  wantProbe(): void {
    if (!this.#isNeeded) {
      this.#isNeeded = true;
      this.onChange();
    }
  }

  /**
   * How long after the end of the last probe the next one comes, before jitter.
   * @param isWatching whether the last describe told what must be told again soon
   */
  probeAfterMs(
    intervalMs: number,
    endedAtMs = this.#clock.nowMs(),
    isWatching: boolean = false,
  ): number {
    const { hasLocalKek } = this;
    const pace = { intervalMs, isNeeded: this.#isNeeded, hasLocalKek, isWatching };
    return probeAfterMs(this.#memory, endedAtMs, this.#limits, pace);
  }
}
