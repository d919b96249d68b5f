import { PluginError, toPluginError } from "../failures/plugin-error.ts";
import type { Clock } from "../system/clock.ts";
import { callerFailed, refusalOfCaller } from "./admission.ts";
import { type KekHeader, LocalKek } from "./envelope.ts";
import { type CacheSpace, kekName } from "./kek-cache.ts";
import type { Key } from "./key.ts";
import { isConclusive } from "./key-health.ts";
import { formatKeyId } from "./key-id.ts";
import { Limiter } from "./limiter.ts";
import { unwrapLocalKek } from "./local-kek.ts";
import { Refusals } from "./refusals.ts";
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
  readonly space: CacheSpace;
  readonly clock: Clock;
}

/** Asks Key4C for local KEKs that callers need and the process does not hold. Callers with the same need share one call. */
export class Unwraps {
  readonly #options: UnwrapsOptions;
  readonly #refusals: Refusals;
  readonly #underWay = new Map<string, Promise<LocalKek>>();
  /** For callers only: probes and renewals must not wait behind a flood of unwraps. */
  readonly #limiter = new Limiter(MAX_CONCURRENT_UNWRAPS, MAX_WAITING_UNWRAPS);

  constructor(options: UnwrapsOptions) {
    this.#options = options;
    this.#refusals = new Refusals(options.clock);
  }

  get underWay(): number {
    return this.#underWay.size;
  }

  /** @throws PluginError */
  async fetch(key: Key, header: KekHeader, caller: Caller): Promise<LocalKek> {
    this.#options.space.misses += 1;
    const name = `${key.kmsKeyId} ${kekName(header)}`;
    const underWay = this.#underWay.get(name);
    if (underWay !== undefined) {
      return underWay;
    }
    const refused = this.#refusals.of(name);
    if (refused !== undefined) {
      throw new PluginError(refused.kind, "Key4C has just refused this wrapped local KEK", {
        cause: refused,
      });
    }
    refuseIfFutile(key);
    const unwrapping = this.#unwrapAndKeep(key, name, header, caller);
    this.#underWay.set(name, unwrapping);
    return unwrapping;
  }

  async #unwrapAndKeep(
    key: Key,
    name: string,
    header: KekHeader,
    caller: Caller,
  ): Promise<LocalKek> {
    const { generation } = key;
    try {
      const bytes = await this.#limiter.run(async () => {
        await this.#refusals.turn();
        refuseIfFutile(key); // again: it may have become futile while this call waited for a place
        try {
          const bytes = await key.circuits.during(() => this.#unwrap(key, header, caller));
          key.circuits.recordUnwrap(undefined);
          return bytes;
        } catch (error) {
          throw this.#explain(key, name, header, toPluginError(error));
        }
      });
      if (key.generation !== generation) {
        bytes.fill(0);
        throw refusalOfCaller(key) ?? new PluginError("unavailable", "the key changed meanwhile");
      }
      return keep(key, header, bytes);
    } finally {
      this.#underWay.delete(name);
    }
  }

  #unwrap(key: Key, header: KekHeader, { requestId }: Caller): Promise<Buffer> {
    return unwrapLocalKek(this.#options.service, key.kmsKeyId, header, {
      requestId,
      isForCaller: true,
      onFailedAttempt: (failure) => {
        openCircuit(key, failure);
        key.health.wantProbe();
      },
    });
  }

  /**
   * Why an object may be honest that Key4C calls invalid; undefined when nothing speaks for it. A rotation that this
   * process has not noticed is found by a probe; one for each claim, because anybody can make claims.
   */
  #doubtOf({ circuits, materials, health }: Key, header: KekHeader): string | undefined {
    if (circuits.isUnwrapDoubtful) {
      health.wantProbe();
      return "Key4C does not unwrap what it has just wrapped";
    }
    const lagMs = materials.lagMs(header, this.#options.clock.nowMs());
    if (lagMs === undefined) {
      return undefined;
    }
    if (lagMs === 0) {
      health.wantProbe();
    }
    return "Key4C does not know the material that the object claims: a replica may lag";
  }

  /** Takes note of why an unwrap failed. @returns what its callers are told */
  #explain(key: Key, name: string, header: KekHeader, failure: PluginError): PluginError {
    if (failure.isUnlisted) {
      this.#refusals.add(name, failure); // the next reader must not wait for the same answer
      return failure;
    }
    if (failure.kind !== "invalid") {
      openCircuit(key, failure);
      callerFailed(key, failure);
      return failure;
    }
    key.circuits.recordUnwrap(undefined);
    const doubt = this.#doubtOf(key, header);
    if (doubt !== undefined) {
      const uncertain = new PluginError("unavailable", doubt, { cause: failure });
      this.#refusals.add(name, uncertain);
      return uncertain;
    }
    this.#refusals.add(name, failure);
    count(key, header, "refused");
    return failure;
  }
}

/** @throws PluginError when Key4C is not to be asked for a local KEK of this key now */
function refuseIfFutile(key: Key): void {
  const refusal = refusalOfCaller(key);
  if (refusal !== undefined) {
    throw refusal;
  }
}

/** Where probes have something unwrapped, they alone open the circuit: one caller's failure may be his object's. */
function openCircuit(key: Key, failure: PluginError): void {
  if (key.pinned.length === 0 && !isConclusive(failure)) {
    key.circuits.recordUnwrap(failure);
  }
}

function keep(key: Key, header: KekHeader, bytes: Buffer): LocalKek {
  const known = key.find(kekName(header));
  if (known?.isDropped === false && known.equals(bytes)) {
    known.isProven = true; // Key4C gave the same twice
    bytes.fill(0);
    return known;
  }
  const localKek = new LocalKek(bytes);
  key.keep({ header, localKek });
  count(key, header, "givenBack");
  return localKek;
}

function count(key: Key, header: KekHeader, outcome: keyof Key["asked"]): void {
  if (key.current?.keyId === formatKeyId(header)) {
    key.asked[outcome] += 1;
  }
}
