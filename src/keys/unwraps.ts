import { KINDS } from "../failures/kinds.ts";
import { PluginError, toPluginError } from "../failures/plugin-error.ts";
import type { Clock } from "../system/clock.ts";
import { type KekHeader, LocalKek } from "./envelope.ts";
import type { HeldKeks } from "./held.ts";
import { cacheKey } from "./kek-cache.ts";
import { base32, formatKeyId } from "./key-id.ts";
import type { KeySet } from "./key-set.ts";
import { Limiter } from "./limiter.ts";
import { unwrapLocalKek } from "./local-kek.ts";
import { Refusals } from "./refusals.ts";
import type { Standing, Standings } from "./standing.ts";
import type { WrappingService } from "./wrapping.ts";

/** More than three restarting control planes need, and few enough for an HSM. */
export const MAX_CONCURRENT_UNWRAPS = 64;
/** How many unwraps may wait for a free place. Further ones are refused, so that a flood takes no memory. */
export const MAX_WAITING_UNWRAPS = 1_024;

/** The RPC that needs a local KEK, and whether its caller still waits. */
export interface Caller {
  readonly requestId?: string | undefined;
  readonly hasLeft?: () => boolean;
}

interface UnwrapsOptions {
  readonly service: WrappingService;
  readonly keys: KeySet;
  readonly standings: Standings;
  readonly held: HeldKeks;
  readonly clock: Clock;
}

/** Asks Key4C for local KEKs that callers need and the process does not hold. Callers with the same need share one call. */
export class Unwraps {
  readonly #options: UnwrapsOptions;
  readonly #refusals: Refusals;
  readonly #underWay = new Map<string, Promise<LocalKek>>();
  /** For callers only: probes and renewals must not wait behind a flood of unwraps. */
  readonly #limiter = new Limiter(MAX_CONCURRENT_UNWRAPS, MAX_WAITING_UNWRAPS);
  /** Of the local KEKs of the current key and version: how many Key4C gave back, and how many it refused. */
  readonly ofCurrentKey = { givenBack: 0, refused: 0 };

  constructor(options: UnwrapsOptions) {
    this.#options = options;
    this.#refusals = new Refusals(options.clock);
  }

  get underWay(): number {
    return this.#underWay.size;
  }

  async fetch(header: KekHeader, caller: Caller): Promise<LocalKek> {
    const { keys, standings, held } = this.#options;
    const key = cacheKey(header);
    held.cache.misses += 1;
    const underWay = this.#underWay.get(key);
    if (underWay !== undefined) {
      return underWay;
    }
    const kmsKeyId = keys.idOf(base32(header.keyNameHash));
    if (kmsKeyId === undefined) {
      throw new PluginError("unknownKey", "the ciphertext belongs to a key that is not configured");
    }
    if (this.#refusals.has(key)) {
      throw new PluginError("invalid", "Key4C has just refused this wrapped local KEK");
    }
    const own = standings.of(kmsKeyId);
    this.#refuseIfFutile(own);
    const unwrapping = this.#unwrapAndKeep(key, own, header, caller);
    this.#underWay.set(key, unwrapping);
    return unwrapping;
  }

  async #unwrapAndKeep(
    key: string,
    own: Standing,
    header: KekHeader,
    caller: Caller,
  ): Promise<LocalKek> {
    try {
      const bytes = await this.#limiter.run(async () => {
        await this.#refusals.turn();
        this.#refuseIfFutile(own); // again: it may have become futile while this call waited for a place
        try {
          return await unwrapLocalKek(this.#options.service, own.kmsKeyId, header, {
            requestId: caller.requestId,
            isForCaller: true,
            onFailedAttempt: () => own.need(),
          });
        } catch (error) {
          this.#heard(own, header, toPluginError(error));
          throw error;
        }
      });
      return this.#keep(own, key, header, bytes);
    } finally {
      this.#underWay.delete(key);
    }
  }

  get #current(): Standing {
    return this.#options.standings.of(this.#options.keys.currentId);
  }

  /** @throws PluginError when Key4C is not to be asked for a local KEK of this key now */
  #refuseIfFutile(own: Standing): void {
    const { revocation } = own;
    if (revocation !== undefined) {
      throw new PluginError(revocation.kind, "the key is revoked", { cause: revocation });
    }
    const ofThisKey = own.refusalOfCallers("thisKey");
    const ofAllKeys = this.#current.refusalOfCallers("anotherKey");
    const refusal = ofThisKey ?? ofAllKeys;
    if (refusal !== undefined) {
      // Each probe that must succeed first comes soon.
      if (ofThisKey !== undefined) {
        own.need();
      }
      if (ofAllKeys !== undefined) {
        this.#current.need();
      }
      throw new PluginError(refusal.kind, "Key4C is not asked: the last probe failed", {
        cause: refusal,
      });
    }
  }

  /** Takes note of why an unwrap failed. */
  #heard(own: Standing, header: KekHeader, failure: PluginError): void {
    if (failure.kind === "invalid") {
      this.#refusals.add(cacheKey(header));
      this.#count(header, "refused");
      return;
    }
    own.need(failure);
    if (own !== this.#current && KINDS[failure.kind].retry) {
      this.#current.need(); // Key4C may be away as a whole
    }
  }

  #keep(own: Standing, key: string, header: KekHeader, bytes: Buffer): LocalKek {
    const { held } = this.#options;
    const known = held.find(key);
    if (known?.isDropped === false && known.equals(bytes)) {
      known.isProven = true; // Key4C gave the same twice
      bytes.fill(0);
      return known;
    }
    const localKek = new LocalKek(bytes);
    if (own.revocation === undefined) {
      held.cache.keep(header, localKek);
    }
    this.#count(header, "givenBack");
    return localKek;
  }

  #count(header: KekHeader, outcome: "givenBack" | "refused"): void {
    if (this.#options.held.current?.keyId === formatKeyId(header)) {
      this.ofCurrentKey[outcome] += 1;
    }
  }
}
