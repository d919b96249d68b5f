import type { KeyDescription } from "../key4c/client.ts";
import { fingerprintOf, type Snapshot } from "../keys/held.ts";
import type { KeySet } from "../keys/key-set.ts";
import type { Keyring } from "../keys/keyring.ts";
import { expectedOf } from "../keys/local-kek.ts";
import { OLDER_VERSION_MS, type Standing, type Standings, type State } from "../keys/standing.ts";
import type { CallOptions } from "../keys/wrapping.ts";
import { type Clock, systemClock } from "../system/clock.ts";
import { describeError, PluginError, toPluginError } from "../system/errors.ts";
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
 * The background probes. They alone move the {@link Standing} of a key, which keyring, services, HTTP and metrics only
 * read; what an answer leads to is decided there.
 */
export class Health {
  readonly #options: HealthOptions;
  readonly #clock: Clock;
  readonly #loops = new Map<string, ProbeLoop>();
  readonly #changes: ChangeLog;
  #olderSinceMs: number | undefined;
  #auditedAtMs = Number.NEGATIVE_INFINITY;
  #auditing: Promise<void> | undefined;
  /** Keys whose local KEKs are all to be asked for, once Key4C answers. */
  readonly #unaudited = new Set<string>();
  #hasWarnedOfRefusals = false;
  /** Why the key that is configured now does not become current. */
  keyChangeFailure: PluginError | undefined;
  /** On the monotonic clock: the end of the last probe of the current key. */
  lastProbeMs = Number.NEGATIVE_INFINITY;

  constructor(options: HealthOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#changes = new ChangeLog(options.log, this.#clock);
  }

  /** Of the key that wraps. */
  get standing(): Standing {
    return this.#options.standings.of(this.#options.keys.currentId);
  }

  get state(): State {
    return this.standing.state;
  }

  /** Since when, to the precision of a probe. */
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
        // A caller that was throttled changes the state too; before the first probe there is none to tell of.
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
      // While the current key says that Key4C is away or refuses the secret, the others would only say it again.
      await this.#probePrevious(standing);
    }
  }

  async #probeCurrent(standing: Standing): Promise<void> {
    const { keys, keyring } = this.#options;
    keys.reload();
    if (keys.configuredId === standing.kmsKeyId) {
      this.keyChangeFailure = undefined; // a change may have been taken back
    } else if (await this.#changeKey(keys.configuredId)) {
      return;
    }
    const wasMismatch = standing.memory.verdict?.state === "mismatch";
    try {
      await this.#examine(standing);
      standing.hear(undefined);
      keyring.keyIsWell();
      if (wasMismatch) {
        this.#unaudited.add(standing.kmsKeyId);
      }
    } catch (error) {
      this.#failed(standing, toPluginError(error));
    }
  }

  /** @throws PluginError what the probe met, unless Key4C is well */
  async #examine({ kmsKeyId, failure }: Standing): Promise<void> {
    const { key4c, keyring } = this.#options;
    // After a failure on a new connection: a kept one may be dead, or lead to a replica that lags.
    const describing = key4c.describe(kmsKeyId, { newConnection: failure !== undefined });
    if (keyring.snapshot === undefined && failure === undefined) {
      // Nothing speaks against the key: Key4C need not be asked for one thing after the other.
      await keyring.adopt(
        kmsKeyId,
        describing.then((told) => expectedOf(kmsKeyId, told)),
      );
      return;
    }
    const told = await describing;
    const snapshot = keyring.snapshot;
    if (snapshot === undefined) {
      await keyring.adopt(kmsKeyId, expectedOf(kmsKeyId, told)); // which Key4C gave back
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
      await this.#confirmMismatch(missing, snapshot, doubt);
    }
    if (doubt !== undefined) {
      throw doubt;
    }
  }

  /** @returns why the higher version does not become current: describe and encrypt do not tell the same */
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

  /** @throws PluginError `mismatch`, unless something else explains it */
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

  /** A previous key may be gone without any harm to the current one. */
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
        log.warn("a previous key is not well: what is known of it still decrypts", {
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

  /** What has time until a probe has ended. */
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

  /** Not awaited by a probe: many local KEKs may have to be asked for. One after the other. */
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
