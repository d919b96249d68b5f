import { PluginError, toPluginError } from "../failures/plugin-error.ts";
import type { KeyDescription } from "../key4c/client.ts";
import { fingerprintOf, type Snapshot } from "../keys/held.ts";
import type { KeySet } from "../keys/key-set.ts";
import type { Keyring } from "../keys/keyring.ts";
import { expectedOf } from "../keys/local-kek.ts";
import { OLDER_VERSION_MS, type Standing, type Standings, type State } from "../keys/standing.ts";
import type { CallOptions } from "../keys/wrapping.ts";
import { type Clock, systemClock } from "../system/clock.ts";
import { describeError } from "../system/errors.ts";
import type { Log } from "../system/log.ts";
import { ChangeLog } from "./change-log.ts";
import { ProbeLoop } from "./probe-loop.ts";

/** Orphaned local KEKs are asked for again this often: key material may have been restored. */
const ORPHAN_INTERVAL_MS = 5 * 60_000;

export interface HealthOptions {
  readonly key4c: {
    describe(kmsKeyId: string, options?: CallOptions): Promise<KeyDescription>;
  };
  readonly keyring: Keyring;
  readonly keys: KeySet;
  readonly standings: Standings;
  readonly intervalMs: number;
  readonly log: Log;
  readonly clock?: Clock;
}

/**
 * The background probes. They report what they hear to the {@link Standing} of a key, which decides what it leads to.
 * Keyring, services, HTTP and metrics only read it.
 */
export class Health {
  readonly #options: HealthOptions;
  readonly #clock: Clock;
  readonly #loops = new Map<string, ProbeLoop>();
  readonly #changes: ChangeLog;
  #olderSinceMs: number | undefined;
  /** What the last probes missed, before it was a verdict. */
  #missing: readonly Snapshot[] = [];
  #auditedAtMs = Number.NEGATIVE_INFINITY;
  #auditing: Promise<void> | undefined;
  /** Keys of which Key4C must be asked for every local KEK that is held, once it answers. */
  readonly #unaudited = new Set<string>();
  #hasWarnedOfRefusals = false;
  /** Why the configured key has not become current; undefined when it is, or was not tried. */
  keyChangeFailure: PluginError | undefined;
  /** On the monotonic clock: the end of the last probe of the current key. */
  lastProbeMs = Number.NEGATIVE_INFINITY;

  constructor(options: HealthOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#changes = new ChangeLog(options.log, this.#clock);
  }

  /** Of the current key. */
  get standing(): Standing {
    return this.#options.standings.of(this.#options.keys.currentId);
  }

  get state(): State {
    return this.standing.state;
  }

  /** When the state was entered, to the precision of a probe. */
  get since(): Date {
    return this.#changes.since;
  }

  /** Wall-clock time of the last successful probe. */
  get lastContact(): Date | undefined {
    const ms = this.standing.memory.lastSuccessMs;
    return ms === undefined ? undefined : new Date(Date.now() - (this.#clock.nowMs() - ms));
  }

  /** Probes now and from now on, until {@link stop}. */
  start(): void {
    const { standing } = this;
    const { promise, resolve } = Promise.withResolvers<void>();
    standing.firstProbe = promise.then(() => {
      standing.firstProbe = undefined;
    });
    this.#firstProbeEnded = resolve;
    this.#startLoop(standing);
  }

  #firstProbeEnded: () => void = () => {};

  stop(): void {
    for (const loop of this.#loops.values()) {
      loop.stop();
    }
  }

  #startLoop(standing: Standing): void {
    const loop = new ProbeLoop(standing, {
      probe: () => this.#probe(standing),
      heard: () => {
        // A throttled caller changes the state too. Before the first probe there is no state to log.
        if (standing === this.standing && this.lastProbeMs >= 0) {
          this.#changes.note(standing, this.#options.keyring.snapshot?.keyId);
        }
      },
      intervalMs: this.#options.intervalMs,
      clock: this.#clock,
    });
    this.#loops.set(standing.kmsKeyId, loop);
    loop.start();
  }

  /** Starts probes of keys that are new, and ends those of keys that are not configured any more. */
  #followKeys(): void {
    const { keys, standings } = this.#options;
    const wanted = [keys.currentId, ...keys.previousIds];
    for (const kmsKeyId of wanted.filter((id) => !this.#loops.has(id))) {
      this.#startLoop(standings.of(kmsKeyId));
    }
    for (const [kmsKeyId, loop] of this.#loops) {
      if (!wanted.includes(kmsKeyId)) {
        loop.stop();
        this.#loops.delete(kmsKeyId);
      }
    }
  }

  async #probe(standing: Standing): Promise<void> {
    const { keys } = this.#options;
    if (standing.kmsKeyId === keys.currentId) {
      await this.#probeCurrent(standing);
      this.lastProbeMs = this.#clock.nowMs();
      this.#firstProbeEnded();
      this.#changes.note(this.standing, this.#options.keyring.snapshot?.keyId);
      this.#lookAfter();
    } else if (this.standing.refusalOfCallers("anotherKey") === undefined) {
      // When the probe of the current key says that Key4C is away or refuses the secret, the others need not ask.
      await this.#probePrevious(standing);
    }
  }

  async #probeCurrent(standing: Standing): Promise<void> {
    const { keys, keyring } = this.#options;
    keys.reload();
    if (keys.configuredId === standing.kmsKeyId) {
      this.keyChangeFailure = undefined; // somebody may have set the former key again
    } else if (await this.#changeKey(keys.configuredId)) {
      return;
    }
    const wasMismatch = standing.memory.verdict?.state === "mismatch";
    try {
      await this.#examine(standing);
      standing.hear(undefined);
      keyring.keyIsWell();
      // What was missed may have been replaced before that was a verdict: then nobody has asked for it again.
      const isReplaced = this.#missing.some((one) => !keyring.isPinned(one));
      this.#missing = [];
      if (wasMismatch || isReplaced) {
        this.#unaudited.add(standing.kmsKeyId);
      }
    } catch (error) {
      this.#failed(standing, toPluginError(error));
    }
  }

  /** One probe of the current key. @throws PluginError unless Key4C and the key are well */
  async #examine({ kmsKeyId, failure }: Standing): Promise<void> {
    const { key4c, keyring } = this.#options;
    // After a failure on a new connection: a kept one may be dead, or lead to a replica that lags.
    const told = await key4c.describe(kmsKeyId, { newConnection: failure !== undefined });
    const snapshot = keyring.snapshot;
    if (snapshot === undefined) {
      await keyring.adopt(kmsKeyId, expectedOf(kmsKeyId, told)); // Key4C has given it back, so all is well
      return;
    }
    // The version first: after a rotation the former one may be gone, and with it the current local KEK.
    const before = snapshot.header.keyVersion;
    const { version = before } = told;
    let doubt: PluginError | undefined;
    if (version > before) {
      doubt = await this.#rotate(kmsKeyId, told);
      if (doubt === undefined) {
        return;
      }
    } else if (version < before) {
      doubt = new PluginError(
        "olderVersion",
        `Key4C tells version ${version} of the key, after ${before}`,
      );
    }
    this.#olderSinceMs = version < before ? (this.#olderSinceMs ?? this.#clock.nowMs()) : undefined;
    const missing = await keyring.missingKeks();
    if (missing.length > 0) {
      this.#missing = [...new Set([...this.#missing, ...missing])];
      await this.#confirmMismatch(missing, snapshot, doubt);
    }
    if (doubt !== undefined) {
      throw doubt;
    }
  }

  /** @returns undefined when the higher version is current; else why not: describe and encrypt tell different versions */
  async #rotate(kmsKeyId: string, told: KeyDescription): Promise<PluginError | undefined> {
    try {
      await this.#options.keyring.adopt(kmsKeyId, expectedOf(kmsKeyId, told));
    } catch (error) {
      const failure = toPluginError(error);
      if (failure.kind === "olderVersion") {
        return failure;
      }
      throw failure;
    }
    this.#olderSinceMs = undefined;
    this.#unaudited.add(kmsKeyId); // a former version may be gone
    return undefined;
  }

  /** @throws PluginError `mismatch`, or the kind of what explains it */
  async #confirmMismatch(
    missing: readonly Snapshot[],
    snapshot: Snapshot,
    older: PluginError | undefined,
  ): Promise<never> {
    const olderMs = this.#clock.nowMs() - (this.#olderSinceMs ?? Number.NEGATIVE_INFINITY);
    if (older !== undefined && olderMs < OLDER_VERSION_MS) {
      throw older;
    }
    await this.#options.keyring.tryAnother(snapshot);
    const fingerprints = missing.map(fingerprintOf).join(", ");
    throw new PluginError(
      "mismatch",
      `Key4C gives back what it has just wrapped, and not the local KEK ${fingerprints}`,
    );
  }

  /** @returns whether the configured key is current now */
  async #changeKey(kmsKeyId: string): Promise<boolean> {
    const { key4c, keyring, keys, standings, log } = this.#options;
    const former = keys.currentId;
    try {
      const told = await key4c.describe(kmsKeyId);
      await keyring.adopt(kmsKeyId, expectedOf(kmsKeyId, told));
    } catch (error) {
      const failure = toPluginError(error);
      const cause = describeError(failure);
      if (cause !== describeError(this.keyChangeFailure)) {
        log.error("the configured key does not become current: the former one goes on", {
          kmsKeyId,
          former,
          kind: failure.kind,
          cause,
        });
      }
      this.keyChangeFailure = failure;
      return false;
    }
    this.keyChangeFailure = undefined;
    this.#olderSinceMs = undefined;
    log.info("another key wraps from now on", {
      kmsKeyId,
      former,
      remedy:
        "keep the former one in KMS_PREVIOUS_KEY_IDS until inspect --verify shows no data of it",
    });
    standings.of(kmsKeyId).hear(undefined);
    this.#unaudited.add(former);
    return true;
  }

  #failed(standing: Standing, failure: PluginError): void {
    const before = standing.memory.verdict?.state;
    standing.hear(failure);
    const after = standing.memory.verdict?.state;
    if (after === before) {
      return;
    }
    if (after === "revoked") {
      this.#options.keyring.revoke(standing.kmsKeyId);
    } else {
      this.#unaudited.add(standing.kmsKeyId);
    }
  }

  /** Probes a previous key. If it is gone, the current one is not affected. */
  async #probePrevious(standing: Standing): Promise<void> {
    const { key4c, log } = this.#options;
    const { kmsKeyId } = standing;
    const wasRevoked = standing.revocation !== undefined;
    try {
      await key4c.describe(kmsKeyId);
      standing.hear(undefined);
      if (wasRevoked) {
        log.info("a previous key is no longer revoked", { kmsKeyId });
      }
    } catch (error) {
      const failure = toPluginError(error);
      const { kind } = failure;
      if (standing.failure?.kind !== kind) {
        const cause = describeError(failure);
        log.warn("a previous key is not well: its known local KEKs still decrypt", {
          kmsKeyId,
          kind,
          cause,
        });
      }
      this.#failed(standing, failure);
      if (!wasRevoked && standing.revocation !== undefined) {
        const cause = describeError(failure);
        log.error("a previous key is revoked: its local KEKs are dropped", {
          kmsKeyId,
          kind,
          cause,
        });
      }
    }
  }

  /** Work that is done after a probe. */
  #lookAfter(): void {
    const { keyring, keys, log } = this.#options;
    this.#followKeys();
    const { failure } = this.standing;
    if (failure === undefined || failure.kind === "mismatch") {
      for (const kmsKeyId of this.#unaudited) {
        this.#unaudited.delete(kmsKeyId);
        this.#audit(kmsKeyId, "all");
      }
    }
    if (
      keyring.cache.orphans > 0 &&
      this.#clock.nowMs() - this.#auditedAtMs >= ORPHAN_INTERVAL_MS
    ) {
      for (const kmsKeyId of [keys.currentId, ...keys.previousIds]) {
        this.#audit(kmsKeyId, "orphaned");
      }
    }
    const { refused, givenBack } = keyring.unwraps.ofCurrentKey;
    if (refused > 0 && givenBack === 0 && !this.#hasWarnedOfRefusals) {
      this.#hasWarnedOfRefusals = true;
      log.error(
        "Key4C has refused local KEKs of the current key since the start and given back none",
        {
          refused,
          remedy:
            "was other key material restored behind the same key? rotate it above every version that was ever used, then inspect --verify; nothing that is written now is at risk, what was written before is",
        },
      );
    }
  }

  /** No probe waits for it, because thousands of local KEKs may be held. Audits run one after the other. */
  #audit(kmsKeyId: string, which: "orphaned" | "all"): void {
    const { keyring, log } = this.#options;
    this.#auditedAtMs = this.#clock.nowMs();
    const auditing = (this.#auditing ?? Promise.resolve())
      .then(() => keyring.audit(kmsKeyId, which))
      .then(({ found, isComplete }) => {
        if (!isComplete && which === "all") {
          this.#unaudited.add(kmsKeyId);
        }
        if (found > 0) {
          log.error(
            "local KEKs are orphaned: Key4C does not give them back, this process can still read",
            {
              kmsKeyId,
              found,
              orphans: keyring.cache.orphans,
              remedy:
                "rewrite all objects now, prove it with inspect --verify; do not restart the plugin before",
            },
          );
        }
      })
      .finally(() => {
        if (this.#auditing === auditing) {
          this.#auditing = undefined;
        }
      });
    this.#auditing = auditing;
  }
}
