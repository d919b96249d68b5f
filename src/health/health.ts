import type { PluginError } from "../failures/plugin-error.ts";
import type { Key } from "../keys/key.ts";
import type { State } from "../keys/key-health.ts";
import type { Member } from "../keys/key-set.ts";
import type { Keyring } from "../keys/keyring.ts";
import { type Clock, settledWithin, systemClock } from "../system/clock.ts";
import { describeError } from "../system/errors.ts";
import type { Log } from "../system/log.ts";
import { ChangeLog } from "./change-log.ts";
import { ProbeLoop } from "./probe-loop.ts";

/** Below the 2 s that Status waits for, and the 3 s of an API server. */
const FIRST_ANSWER_MS = 1_500;

export interface HealthOptions {
  readonly keyring: Keyring;
  readonly intervalMs: number;
  readonly log: Log;
  readonly clock?: Clock;
  /** How this process comes by another credential, in words for the log. */
  readonly renewal?: string;
}

/**
 * Has each configured key probed for its own sake, tells the log what changed, and does what follows a probe. Services,
 * HTTP and metrics only read it.
 */
export class Health {
  readonly #options: HealthOptions;
  readonly #clock: Clock;
  readonly #loops = new Map<Key, ProbeLoop>();
  readonly #changes: ChangeLog;
  /** Keys that have what an earlier process kept, or need not wait for it. */
  readonly #begun = new WeakSet<Key>();
  /** What was last said of a key that does not wrap. */
  readonly #told = new Map<Key, string>();
  #hasWarnedOfRefusals = false;
  /** On the monotonic clock: the end of the last probe of the current key. */
  lastProbeMs = Number.NEGATIVE_INFINITY;

  constructor(options: HealthOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#changes = new ChangeLog(options.log, this.#clock, options.renewal);
  }

  /** The key that wraps. */
  get #key(): Key {
    return this.#options.keyring.keys.current.key;
  }

  get state(): State {
    return this.#key.health.state;
  }

  /** Why the last probe of the key that wraps failed. */
  get failure(): PluginError | undefined {
    return this.#key.health.failure;
  }

  /** What the state comes from; undefined while there is nothing to say. */
  get cause(): PluginError | undefined {
    const { finding, failure } = this.#key.health.memory;
    return finding?.cause ?? failure;
  }

  /** Why the configured key has not become current; undefined when it is, or was not tried. */
  get keyChangeFailure(): PluginError | undefined {
    const { configured, current } = this.#options.keyring.keys;
    return configured === current ? undefined : configured.key.health.failure;
  }

  /** When the state was entered, to the precision of a probe. */
  get since(): Date {
    return this.#changes.since;
  }

  /** Wall-clock time of the last successful probe. */
  get lastContact(): Date | undefined {
    const ms = this.#key.health.memory.lastSuccessMs;
    return ms === undefined ? undefined : new Date(Date.now() - (this.#clock.nowMs() - ms));
  }

  /** Probes now and from now on, until {@link stop}. */
  start(): void {
    const { keyring } = this.#options;
    keyring.firstProbe = this.#startLoop(keyring.keys.current).then(() => {
      keyring.firstProbe = undefined;
    });
  }

  stop(): void {
    for (const loop of this.#loops.values()) {
      loop.stop();
    }
    this.#options.keyring.lookThrough.stop();
  }

  /** @returns when the first probe has ended, or there is a local KEK before that */
  async #startLoop(member: Member): Promise<void> {
    const { promise: firstProbe, resolve } = Promise.withResolvers<void>();
    const loop = new ProbeLoop(member.key, {
      probe: () => this.#probe(member).finally(resolve),
      changed: () => this.#noteChange(member.key),
      intervalMs: this.#options.intervalMs,
      clock: this.#clock,
    });
    this.#loops.set(member.key, loop);
    loop.start();
    await this.#takeOver(member.key, firstProbe);
    if (member.key.current === undefined) {
      await firstProbe;
    }
  }

  /** Key4C comes first: what an earlier process kept is used where the first probe does not end well in time. */
  async #takeOver(key: Key, firstProbe: Promise<void>): Promise<void> {
    const endMs = this.#clock.nowMs() + FIRST_ANSWER_MS;
    await settledWithin(this.#clock, firstProbe, FIRST_ANSWER_MS);
    if (key.current === undefined) {
      await settledWithin(this.#clock, key.handedOver, endMs - this.#clock.nowMs());
    }
    // Where Key4C does not answer for the key that wraps, the others are not even asked for yet.
    const isAway = key === this.#key && key.health.memory.lastSuccessMs === undefined;
    const { members } = this.#options.keyring.keys;
    for (const one of isAway ? members.map((member) => member.key) : [key]) {
      one.allowTakeOver();
      this.#begun.add(one);
      this.#noteChange(one);
    }
  }

  /** Starts probes of keys that are new, and ends those of keys that are not configured any more. */
  #followKeys(): void {
    const { keyring } = this.#options;
    const { members } = keyring.keys;
    for (const [key, loop] of this.#loops) {
      if (!members.some((one) => one.key === key)) {
        loop.stop();
        this.#loops.delete(key);
        this.#told.delete(key);
      }
    }
    for (const member of members.filter(({ key }) => !this.#loops.has(key))) {
      void this.#startLoop(member);
    }
  }

  async #probe({ key, prober }: Member): Promise<void> {
    const { keyring } = this.#options;
    keyring.keys.follow();
    await prober.probe();
    const isCurrent = key === this.#key; // now: this probe may have made it so
    const isWell = key.health.failure === undefined;
    if (isCurrent) {
      this.lastProbeMs = this.#clock.nowMs();
      keyring.keys.keyAnswered(isWell);
      if (isWell) {
        keyring.keyIsWell();
      }
    }
    this.#noteChange(key);
    this.#followKeys();
    // Key4C answers: a mismatch is found by its answers too.
    if (isWell || key.health.failure?.kind === "mismatch") {
      keyring.lookThrough.resume(keyring.keys.members.map((one) => one.key));
    }
    this.#warnOfRefusals();
  }

  #noteChange(key: Key): void {
    if (key !== this.#key) {
      this.#tellOfOther(key);
    } else if (this.#begun.has(key) && (this.lastProbeMs >= 0 || key.current !== undefined)) {
      // A throttled caller changes the state too. Before the first probe there is no state to log.
      this.#changes.note(key);
    }
  }

  /** A key whose data are read, or one that is to wrap: a line for each change of what it met. */
  #tellOfOther(key: Key): void {
    const { log, keyring } = this.#options;
    const { kmsKeyId, health, hasDropped } = key;
    const { failure, memory } = health;
    const isRevoked = memory.finding?.state === "revoked";
    const now = failure === undefined ? "" : `${isRevoked ? "revoked " : ""}${failure.kind}`;
    const before = this.#told.get(key) ?? "";
    if (now === before) {
      return;
    }
    this.#told.set(key, now);
    if (failure === undefined) {
      log.info("a previous key is healthy again", { kmsKeyId });
      return;
    }
    const fields = { kmsKeyId, kind: failure.kind, cause: describeError(failure) };
    if (key === keyring.keys.configured.key) {
      log.error("the configured key does not become current: the key in use continues to wrap", {
        ...fields,
        former: this.#key.kmsKeyId,
      });
    } else if (isRevoked && !before.startsWith("revoked")) {
      if (hasDropped) {
        log.error("a previous key is revoked: its local KEKs are dropped", fields);
      } else {
        log.warn("a previous key is disabled or deleted: its data are not decrypted", fields);
      }
    } else {
      log.warn("a previous key is not healthy: its known local KEKs still decrypt", fields);
    }
  }

  #warnOfRefusals(): void {
    const { refused, givenBack } = this.#key.asked;
    if (refused > 0 && givenBack === 0 && !this.#hasWarnedOfRefusals) {
      this.#hasWarnedOfRefusals = true;
      this.#options.log.error(
        "Key4C has refused local KEKs of the current key since the start and unwrapped none",
        {
          refused,
          remedy:
            "was other key material restored behind the same key? rotate it above every version that was ever used, then inspect --verify; nothing that is written now is at risk, what was written before is",
        },
      );
    }
  }
}
