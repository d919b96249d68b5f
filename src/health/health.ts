import type { Key4C } from "../key4c/client.ts";
import type { Keyring, Snapshot } from "../keys/keyring.ts";
import { describeError, type ErrorKind, PluginError, toPluginError } from "../system/errors.ts";
import type { Log } from "../system/log.ts";

/** After a failure the probe comes again this soon, then in twice the time, up to the second limit. */
const FIRST_PROBE_AFTER_FAILURE_MS = 250;
const MAX_PROBE_INTERVAL_WHEN_FAILING_MS = 5_000;
/** Failures of callers make the probe come earlier, but not more often than this. */
const MIN_PROBE_INTERVAL_MS = 250;
/**
 * Part of the interval by which each probe is moved. It does not part those that begin together: therefore
 * the first interval after a start or an outage is a random part of a whole one, and so is the first until
 * the next unwrap. A fleet that starts together then asks evenly from its second probe on.
 */
const PROBE_JITTER = 0.1;
/** A describe can be well while the HSM is dead: this often the probe has the local KEK unwrapped. */
const UNWRAP_INTERVAL_MS = 5 * 60_000;
/** Key4C must refuse a key this often, over at least this time, before it counts as revoked. */
const REVOCATION_ANSWERS = 3;
const REVOCATION_MS = 60_000;

export const STATES = ["starting", "ok", "degraded", "expired", "revoked"] as const;
/**
 * - `starting`: there is no local KEK yet; Status and Encrypt fail.
 * - `ok`: the last probe succeeded.
 * - `degraded`: it failed; everything goes on with the local KEKs that are known.
 * - `expired`: it has failed for longer than KMS_OUTAGE_GRACE; Status and Encrypt fail.
 * - `revoked`: Key4C has refused the key for good; its local KEKs are dropped, every RPC on it fails.
 */
export type State = (typeof STATES)[number];

export interface HealthOptions {
  readonly key4c: Pick<Key4C, "describe" | "canDescribe">;
  readonly keyring: Keyring;
  readonly kmsKeyId: string;
  readonly previousKeyIds: readonly string[];
  readonly intervalMs: number;
  /** How long an outage may last before Status is an error; undefined: for ever. */
  readonly outageGraceMs: number | undefined;
  readonly log: Log;
  /** Monotonic clock; tests replace it. */
  readonly nowMs?: () => number;
}

/** How often, and since when, Key4C has refused one key without a success in between. */
interface Refusals {
  answers: number;
  readonly sinceMs: number;
}

/**
 * The background probe and the one state machine. Status, Encrypt, the HTTP endpoints and the metrics
 * only read it; nothing but a probe moves it.
 */
export class Health {
  readonly #options: HealthOptions;
  readonly #nowMs: () => number;
  /** Why the last probe failed; undefined while it has not, or none has ended. */
  #failure: PluginError | undefined;
  #failures = 0;
  #lastSuccessMs: number | undefined;
  #nextUnwrapMs = 0;
  /** Whether the last probe was the first success of a row. */
  #beginsRow = false;
  /** On the monotonic clock. */
  lastProbeMs = Number.NEGATIVE_INFINITY;
  /** What the last line of the log said. */
  #entered: { readonly state: State; readonly kind: ErrorKind | undefined; readonly at: Date };
  readonly #refusals = new Map<string, Refusals>();
  #probing: Promise<void> | undefined;
  #timer: Timer | undefined;
  #stopped = false;

  constructor(options: HealthOptions) {
    this.#options = options;
    this.#nowMs = options.nowMs ?? (() => performance.now());
    this.#entered = { state: "starting", kind: undefined, at: new Date() };
  }

  get state(): State {
    const { keyring, kmsKeyId, outageGraceMs } = this.#options;
    if (keyring.isRevoked(kmsKeyId)) {
      return "revoked";
    }
    if (keyring.snapshot === undefined) {
      return "starting";
    }
    if (this.#failure === undefined) {
      return "ok";
    }
    const outageMs = this.#nowMs() - (this.#lastSuccessMs ?? Number.NEGATIVE_INFINITY);
    return outageGraceMs !== undefined && outageMs >= outageGraceMs ? "expired" : "degraded";
  }

  /** Since when, to the precision of a probe. */
  get since(): Date {
    return this.#entered.at;
  }

  /** Wall-clock time of the last successful probe. */
  get lastContact(): Date | undefined {
    const ms = this.#lastSuccessMs;
    return ms === undefined ? undefined : new Date(Date.now() - (this.#nowMs() - ms));
  }

  /**
   * What Status tells: either the key_id that the next Encrypt will use, or an error, and never a
   * sick text beside a key_id, which a v2 API server would take as leave to go on.
   */
  get usable(): Snapshot {
    this.refuseIfExpired();
    const { snapshot } = this.#options.keyring;
    if (snapshot === undefined || this.state === "revoked") {
      throw this.#options.keyring.absence();
    }
    return snapshot;
  }

  /** For Encrypt. @throws PluginError when the outage has lasted longer than KMS_OUTAGE_GRACE */
  refuseIfExpired(): void {
    if (this.state === "expired") {
      throw new PluginError("unavailable", "the outage has lasted longer than KMS_OUTAGE_GRACE", {
        cause: this.#failure,
      });
    }
  }

  /** The first probe while it is under way, for an Encrypt that comes meanwhile. */
  get firstProbe(): Promise<void> | undefined {
    return this.#failures === 0 && this.#lastSuccessMs === undefined ? this.#probing : undefined;
  }

  /** Why the last probe failed. */
  get failure(): PluginError | undefined {
    return this.#failure;
  }

  /** Probes now and from now on, until {@link stop}. */
  start(): void {
    this.#schedule(0);
  }

  /** A call for somebody failed: has the probe look at once. */
  suspect(): void {
    if (this.#failure === undefined) {
      this.#schedule(Math.max(0, this.lastProbeMs + MIN_PROBE_INTERVAL_MS - this.#nowMs()));
    }
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }

  #schedule(inMs: number): void {
    if (!this.#stopped && this.#probing === undefined) {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => {
        this.#probing = this.#probeOnce().finally(() => {
          this.#probing = undefined;
          this.#schedule(this.#nextProbeInMs());
        });
      }, inMs);
    }
  }

  #nextProbeInMs(): number {
    const { intervalMs } = this.#options;
    if (this.#beginsRow) {
      return intervalMs * Math.random();
    }
    const failingMs = FIRST_PROBE_AFTER_FAILURE_MS * 2 ** (this.#failures - 1);
    const nextMs =
      this.#failures === 0
        ? intervalMs
        : Math.min(intervalMs, failingMs, MAX_PROBE_INTERVAL_WHEN_FAILING_MS);
    return nextMs * (1 + PROBE_JITTER * (2 * Math.random() - 1));
  }

  async #probeOnce(): Promise<void> {
    const { kmsKeyId, previousKeyIds } = this.#options;
    try {
      await this.#probe();
      this.#accepted(kmsKeyId);
      this.#beginsRow = this.#failure !== undefined || this.#lastSuccessMs === undefined;
      if (this.#beginsRow) {
        this.#nextUnwrapMs = this.#nowMs() + UNWRAP_INTERVAL_MS * Math.random();
      }
      this.#failure = undefined;
      this.#failures = 0;
      this.#lastSuccessMs = this.#nowMs();
    } catch (error) {
      this.#beginsRow = false;
      this.#failure = toPluginError(error);
      this.#failures += 1;
      this.#refused(kmsKeyId, this.#failure);
    }
    this.lastProbeMs = this.#nowMs();
    if (this.#failure === undefined) {
      await Promise.all(previousKeyIds.map((keyId) => this.#probePrevious(keyId)));
    }
    this.#logChange();
  }

  async #probe(): Promise<void> {
    const { key4c, keyring, kmsKeyId } = this.#options;
    const { version = 0 } = await key4c.describe(kmsKeyId);
    if (keyring.snapshot === undefined) {
      await keyring.renew(); // unwraps what it wrapped
      return;
    }
    const unwrapDue = this.#nowMs() >= this.#nextUnwrapMs;
    if (this.#failure !== undefined || unwrapDue || !key4c.canDescribe) {
      await keyring.verifyCurrent();
      this.#nextUnwrapMs = this.#nowMs() + UNWRAP_INTERVAL_MS;
    }
    if (version > keyring.snapshot.header.keyVersion) {
      await keyring.renew();
    } else {
      keyring.renewIfDue();
    }
  }

  /** A previous key may be gone without any harm to the current one. */
  async #probePrevious(keyId: string): Promise<void> {
    try {
      await this.#options.key4c.describe(keyId);
      this.#accepted(keyId);
    } catch (error) {
      this.#refused(keyId, toPluginError(error));
    }
  }

  #accepted(keyId: string): void {
    this.#refusals.delete(keyId);
    if (this.#options.keyring.restore(keyId)) {
      this.#options.log.info("the key is no longer revoked", { kmsKeyId: keyId });
    }
  }

  /** Counts what Key4C itself says of a key; a gateway's page, or no answer, says nothing. */
  #refused(keyId: string, error: PluginError): void {
    const { keyring, log } = this.#options;
    if (!error.isVerdict || keyring.isRevoked(keyId)) {
      return;
    }
    const refusals = this.#refusals.get(keyId) ?? { answers: 0, sinceMs: this.#nowMs() };
    refusals.answers += 1;
    this.#refusals.set(keyId, refusals);
    const lastedMs = this.#nowMs() - refusals.sinceMs;
    if (refusals.answers >= REVOCATION_ANSWERS && lastedMs >= REVOCATION_MS) {
      keyring.revoke(keyId, error);
      log.error("the key is revoked: its local KEKs are dropped", {
        kmsKeyId: keyId,
        kind: error.kind,
        cause: describeError(error),
        remedy: REMEDIES[error.kind],
      });
    }
  }

  /** One line a change of state. */
  #logChange(): void {
    const { state } = this;
    const kind = this.#failure?.kind;
    const same = state === this.#entered.state;
    if (same && kind === this.#entered.kind) {
      return;
    }
    this.#entered = { state, kind, at: same ? this.#entered.at : new Date() };
    const fields = {
      state,
      keyId: this.#options.keyring.snapshot?.keyId,
      ...(this.#failure && {
        kind: this.#failure.kind,
        cause: describeError(this.#failure),
        remedy: REMEDIES[this.#failure.kind],
      }),
    };
    this.#options.log[state === "ok" ? "info" : "warn"](`Key4C is ${WORDS[state]}`, fields);
  }
}

const WORDS: Readonly<Record<State, string>> = {
  starting: "not usable yet",
  ok: "ok",
  degraded: "away; known local KEKs go on",
  expired: "away for longer than KMS_OUTAGE_GRACE",
  revoked: "refusing the key",
};

/** What to do about a failing probe, by the kind of its error. */
const REMEDIES: { readonly [K in ErrorKind]?: string } = {
  unavailable: "check KEY4C_URL, the network, the proxy and the CA",
  throttled: "ask for a higher rate, or wait",
  denied: "check KMS_USER_ID and KMS_API_KEY",
  keyUnusable: "check that KMS_KEY_ID exists and is enabled",
};
