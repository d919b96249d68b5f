import { describeError, PluginError, toPluginError } from "./errors.ts";
import type { Key4C } from "./key4c.ts";
import type { Keyring, Snapshot } from "./keyring.ts";
import type { Log } from "./observe.ts";

/** After a failure the probe comes again this soon, then in twice the time, up to the second limit. */
const FIRST_PROBE_AFTER_FAILURE_MS = 250;
const MAX_PROBE_INTERVAL_WHEN_FAILING_MS = 5_000;
/** Part of the interval by which each probe is moved, so that replicas do not ask all at once. */
const PROBE_JITTER = 0.1;

/** What the probe last saw of Key4C. Status, and later the HTTP endpoints, only read it. */
export type HealthState =
  /** No probe has ended yet. */
  | { readonly name: "starting" }
  | { readonly name: "ok" }
  | { readonly name: "failing"; readonly error: PluginError };

export interface HealthOptions {
  readonly key4c: Pick<Key4C, "describe" | "canDescribe">;
  readonly keyring: Keyring;
  readonly kmsKeyId: string;
  readonly intervalMs: number;
  readonly log: Log;
}

/**
 * The background probe: makes the first local KEK, notices a rotation by the version of the key, renews
 * in time. It alone decides what state Key4C is in.
 */
export class Health {
  readonly #options: HealthOptions;
  #state: HealthState = { name: "starting" };
  #timer: Timer | undefined;
  #failures = 0;
  #stopped = false;

  constructor(options: HealthOptions) {
    this.#options = options;
  }

  get state(): HealthState {
    return this.#state;
  }

  /**
   * What Status tells: either the key_id that the next Encrypt will use, or an error, and never a
   * sick text beside a key_id, which a v2 API server would take as leave to go on.
   */
  get usable(): Snapshot {
    const { snapshot } = this.#options.keyring;
    if (snapshot === undefined) {
      const cause = this.#state.name === "failing" ? this.#state.error : undefined;
      throw new PluginError(cause?.kind ?? "unavailable", "no local KEK yet", { cause });
    }
    return snapshot;
  }

  /** Probes now and from now on, until {@link stop}. */
  start(): void {
    void this.#probeAndSchedule();
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }

  async #probeAndSchedule(): Promise<void> {
    try {
      await this.#probe();
      this.#failures = 0;
      this.#enter({ name: "ok" });
    } catch (error) {
      this.#failures += 1;
      this.#enter({ name: "failing", error: toPluginError(error) });
    }
    if (!this.#stopped) {
      const { intervalMs } = this.#options;
      const failingMs = FIRST_PROBE_AFTER_FAILURE_MS * 2 ** (this.#failures - 1);
      const nextMs =
        this.#failures === 0
          ? intervalMs
          : Math.min(intervalMs, failingMs, MAX_PROBE_INTERVAL_WHEN_FAILING_MS);
      const jitter = 1 + PROBE_JITTER * (2 * Math.random() - 1);
      this.#timer = setTimeout(() => void this.#probeAndSchedule(), nextMs * jitter);
    }
  }

  async #probe(): Promise<void> {
    const { key4c, keyring, kmsKeyId } = this.#options;
    if (keyring.snapshot === undefined) {
      await keyring.renew();
      return;
    }
    if (!key4c.canDescribe) {
      await keyring.verifyCurrent();
    }
    const { version = 0 } = await key4c.describe(kmsKeyId);
    if (version > keyring.snapshot.header.keyVersion) {
      await keyring.renew();
    } else {
      keyring.renewIfDue();
    }
  }

  /** One line a change of state. */
  #enter(next: HealthState): void {
    const { log, keyring } = this.#options;
    const kind = (state: HealthState) => (state.name === "failing" ? state.error.kind : undefined);
    const changed = next.name !== this.#state.name || kind(next) !== kind(this.#state);
    this.#state = next;
    if (!changed) {
      return;
    }
    if (next.name === "failing") {
      log.warn("Key4C probe failed", {
        kind: next.error.kind,
        cause: describeError(next.error),
        remedy: REMEDIES[next.error.kind],
      });
    } else {
      log.info("Key4C is ok", { keyId: keyring.snapshot?.keyId });
    }
  }
}

/** What to do about a failing probe, by the kind of its error. */
const REMEDIES: { readonly [K in PluginError["kind"]]?: string } = {
  unavailable: "check KEY4C_URL, the network, the proxy and the CA",
  throttled: "ask for a higher rate, or wait",
  denied: "check KMS_USER_ID and KMS_API_KEY",
  keyUnusable: "check that KMS_KEY_ID exists and is enabled",
};
