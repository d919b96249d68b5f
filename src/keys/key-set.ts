import type { Clock } from "../system/clock.ts";
import { describeError } from "../system/errors.ts";
import type { Log } from "../system/log.ts";
import type { KekHeader } from "./envelope.ts";
import type { Handover } from "./keeper.ts";
import { Key, type KeyOptions } from "./key.ts";
import { base32, keyNameHash } from "./key-id.ts";
import { Prober, type ProberOptions } from "./probe.ts";

/** A key that left the configuration is wiped when Key4C has answered for so long in all. It may have been a mistake. */
export const WITHHELD_MS = 600_000;

/** What the configuration names now; both are asked at each {@link KeySet.follow}. */
export interface ConfiguredKeys {
  /** The key that is to wrap. */
  readonly kmsKeyId: () => string;
  /** Keys whose data are still decrypted. */
  readonly previousIds: () => readonly string[];
}

/** A key, and what probes it. */
export interface Member {
  readonly key: Key;
  readonly prober: Prober;
}

interface KeySetOptions {
  readonly configured: ConfiguredKeys;
  readonly key: Omit<KeyOptions, "tookOver">;
  readonly prober: ProberOptions;
  /** A key is not configured any more. */
  readonly left: (key: Key) => void;
  readonly clock: Clock;
  readonly log: Log;
}

/** A key that is not configured any more, and for how long Key4C has answered since. */
interface Withheld {
  readonly member: Member;
  answeredMs: number;
}

/** The Key4C keys: the one that wraps, and those whose data are still decrypted. A key that is in neither is refused. */
export class KeySet {
  readonly #options: KeySetOptions;
  readonly #members = new Map<string, Member>();
  readonly #withheld = new Map<string, Withheld>();
  /** By key name hash, as bytes in a text and in base32. */
  readonly #byHash = new Map<string, Key>();
  readonly #byHashText = new Map<string, Key>();
  /** Keys that wrapped in this process. Each stays until a list that named it drops it. */
  readonly #former = new Map<string, { isNamed: boolean }>();
  #configuredId: string;
  #current: Member;
  #answeredAtMs: number | undefined;

  constructor(options: KeySetOptions) {
    this.#options = options;
    this.#configuredId = options.configured.kmsKeyId();
    this.#current = this.#open(this.#configuredId);
    this.#current.key.wraps = true;
    this.follow();
  }

  /** The key that wraps. */
  get current(): Member {
    return this.#current;
  }

  /** The key that is to wrap: another one than {@link current} until Key4C has proven it. */
  get configured(): Member {
    return this.#members.get(this.#configuredId) ?? this.#current;
  }

  /** All of them, the one that wraps first. */
  get members(): readonly Member[] {
    return [this.#current, ...[...this.#members.values()].filter((one) => one !== this.#current)];
  }

  /** The key of a ciphertext; undefined when it is not configured. */
  of({ keyNameHash }: KekHeader): Key | undefined {
    return this.#byHash.get(hashName(keyNameHash));
  }

  /** @param hashText base32 of the key name hash, as it stands in a key_id */
  byHashText(hashText: string): Key | undefined {
    return this.#byHashText.get(hashText);
  }

  /** Reads the configuration again. The current key wraps until the configured one is proven. */
  follow(): void {
    const { configured } = this.#options;
    const formerId = this.#configuredId;
    this.#configuredId = configured.kmsKeyId();
    const named = new Set(configured.previousIds());
    for (const [kmsKeyId, former] of this.#former) {
      if (!named.has(kmsKeyId) && former.isNamed) {
        this.#former.delete(kmsKeyId);
      }
      former.isNamed ||= named.has(kmsKeyId);
    }
    const currentId = this.#current.key.kmsKeyId;
    const wanted = new Set([currentId, this.#configuredId, ...named, ...this.#former.keys()]);
    for (const kmsKeyId of this.#members.keys()) {
      if (!wanted.has(kmsKeyId)) {
        this.#close(kmsKeyId);
      }
    }
    for (const kmsKeyId of wanted) {
      this.#open(kmsKeyId);
    }
    if (formerId !== this.#configuredId && formerId !== currentId) {
      const given = this.#members.get(formerId); // the configuration named it for a while, and it never wrapped
      if (given !== undefined) {
        given.key.wraps = false;
      }
    }
    this.configured.key.wraps = true;
  }

  /** A key has a new current local KEK: if it is the configured one, it wraps from now on. */
  followPublished({ kmsKeyId }: Key): void {
    const former = this.#current.key;
    const next = this.#members.get(kmsKeyId);
    if (next === undefined || next.key === former || kmsKeyId !== this.#configuredId) {
      return;
    }
    this.#current = next;
    if (former.hasWrapped) {
      this.#former.set(former.kmsKeyId, { isNamed: false });
    }
    this.#former.delete(kmsKeyId);
    former.wraps = false;
    former.lookThrough();
    this.#options.log.info("another key wraps from now on", {
      kmsKeyId,
      former: former.kmsKeyId,
      remedy:
        "keep the previous one in KMS_PREVIOUS_KEY_IDS until inspect --verify shows no data of it",
    });
    this.follow();
  }

  /** Key4C has answered a probe of the current key, or has not: wipes what was withheld long enough. */
  keyAnswered(hasAnswered: boolean): void {
    const nowMs = this.#options.clock.nowMs();
    const sinceMs = this.#answeredAtMs === undefined ? 0 : nowMs - this.#answeredAtMs;
    this.#answeredAtMs = hasAnswered ? nowMs : undefined;
    for (const [kmsKeyId, withheld] of this.#withheld) {
      withheld.answeredMs += hasAnswered ? sinceMs : 0;
      if (withheld.answeredMs >= WITHHELD_MS) {
        this.#withheld.delete(kmsKeyId);
        withheld.member.key.wipe();
      }
    }
  }

  #open(kmsKeyId: string): Member {
    const known = this.#members.get(kmsKeyId);
    if (known !== undefined) {
      return known;
    }
    const opened = this.#withheld.get(kmsKeyId)?.member ?? this.#newMember(kmsKeyId);
    this.#withheld.delete(kmsKeyId);
    this.#members.set(kmsKeyId, opened);
    const hash = keyNameHash(kmsKeyId);
    this.#byHash.set(hashName(hash), opened.key);
    this.#byHashText.set(base32(hash), opened.key);
    return opened;
  }

  #newMember(kmsKeyId: string): Member {
    const tookOver = (taker: Key, handover: Handover) => this.#tookOver(taker, handover);
    const key = new Key(kmsKeyId, { ...this.#options.key, tookOver });
    return { key, prober: new Prober(key, this.#options.prober) };
  }

  #tookOver({ kmsKeyId, current, health, holds }: Key, handover: Handover): void {
    this.#options.log.warn(
      "Key4C has not confirmed it since the start: using what the previous process kept",
      {
        kmsKeyId,
        keyId: current?.keyId,
        localKeks: holds.length,
        confirmedSecondsAgo: Math.round(handover.confirmedMsAgo / 1_000),
        until: new Date(handover.untilMs).toISOString(),
        cause: describeError(health.failure),
      },
    );
  }

  #close(kmsKeyId: string): void {
    const member = this.#members.get(kmsKeyId);
    if (member === undefined) {
      return;
    }
    const hash = keyNameHash(kmsKeyId);
    this.#members.delete(kmsKeyId);
    this.#byHash.delete(hashName(hash));
    this.#byHashText.delete(base32(hash));
    this.#withheld.set(kmsKeyId, { member, answeredMs: 0 });
    member.key.close();
    this.#options.left(member.key);
    this.#options.log.info("a key is not configured any more: its data are refused", { kmsKeyId });
  }
}

function hashName(hash: Uint8Array): string {
  return Buffer.from(hash).toString("latin1");
}
