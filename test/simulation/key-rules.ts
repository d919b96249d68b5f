/** S9 and S11 to S19: rules of one key among others, and of what is asked of Key4C for it. */
import { status } from "@grpc/grpc-js";
import type { Snapshot } from "../../src/keys/holdings.ts";
import type { Key } from "../../src/keys/key.ts";
import { kcvHash } from "../../src/keys/key-id.ts";
import type { Stored } from "./apiserver.ts";
import { HOUR, MINUTE, SECOND, type SimulatedTime } from "./clock.ts";
import type { Coverage } from "./coverage.ts";
import {
  concerns,
  disturbedUntil,
  endOf,
  type Fault,
  type FaultKind,
  type History,
  isHarmless,
  type KmsKeyId,
  operationOf,
  WELL_MS,
} from "./faults.ts";
import { type Answered, kcvOf, type SimulatedKey4C, type View } from "./key4c.ts";
import { type Plugin, SOCKET_MS } from "./plugin.ts";
import type { Rule } from "./rules.ts";

/** From the wrap of a local KEK until it is current: a verify, and calls that hang, are slow or are tried again. */
const RENEWAL_MS = 20 * SECOND;
/** What a rule adds to an interval and a grace. */
const SLACK_MS = 6 * SECOND;
/** A process that has just started finds out whether its secret is accepted; where its first call is refused, in a minute. */
const STARTING_MS = 65 * SECOND;
/** A list that has changed is seen by the next probe, which may hang. */
const LIST_SEEN_MS = WELL_MS + 10 * SECOND;
/** Refusals are remembered for so long. */
const REFUSED_MS = 12 * SECOND;
/** How long a replica may lag before an object of newer material counts as damaged. */
const LAG_MS = 10 * MINUTE;
/** A refused secret is presented again after so long, and what was under way with it when it was refused. */
const SECRET_PAUSE_MS = 29.5 * SECOND;
/** A process whose probes are refused is told by its first read that its secret is good; so long after that read. */
const FIRST_READ_MS = 35 * SECOND;
/** What a refusal is about is found out by a control; calls that began meanwhile are made. */
const JUDGING_MS = 2.6 * SECOND;
/** The second, third and fourth time of a PIN. */
const MAX_PIN_REFUSALS = 4;
/**
 * In an hour, beside what callers asked for: twice for each probe, for each wrap its verify and a canary, for each
 * change of state or material all that is held once, each orphan every 5 min.
 */
const UNWRAPS_A_PROBE = 2.5;
const UNWRAPS_A_WRAP = 3;
const ATTEMPTS_OF_A_CALLER = 16;
const ORPHAN_ROUNDS = 13;
const UNWRAPS_AT_REST = 20;

const HIDES_A_CONTROL: readonly FaultKind[] = [
  ...(["refused", "hangs", "slow", "flaky", "status503", "gatewayPage", "foreignJson"] as const),
  ...(["mangled", "throttled", "wrongAddress", "operationFails", "keyThrottled"] as const),
  "pluginPaused",
];

interface Hour {
  readonly startMs: number;
  unwraps: number;
  describes: number;
  wraps: number;
  misses: number;
  /** Times that all that was held may have been asked for. */
  lookedThrough: number;
  /** Most that were held. */
  held: number;
}

function newHour(startMs: number, misses: number): Hour {
  return { startMs, unwraps: 0, describes: 0, wraps: 0, misses, lookedThrough: 1, held: 0 };
}

/** What is known of one process. */
class Seen {
  /** By key: when it was last the one that wraps. */
  readonly wrappedAtMs = new Map<string, number>();
  /** By key: since when it is revoked. */
  readonly revokedAtMs = new Map<string, number>();
  /** By key: the material that Key4C told it. */
  readonly versions = new Map<string, number>();
  readonly kcvs = new Set<string>();
  /** By secret, key and operation: when it was refused last. */
  readonly refused = new Map<string, number>();
  /** By secret: when it was refused, since it was accepted; and whether a code said so. */
  readonly refusals = new Map<string, number[]>();
  state = "";
  current: Snapshot | undefined;
  hour: Hour | undefined;
  firstRefusedReadAtMs: number | undefined;
}

interface KeyRulesOptions extends Pick<History, "settings" | "faults"> {
  readonly time: SimulatedTime;
  readonly key4c: SimulatedKey4C;
  readonly coverage: Coverage;
  readonly fail: (rule: Rule, message: string) => void;
}

export class KeyRules {
  readonly #options: KeyRulesOptions;
  readonly #seen = new WeakMap<Plugin, Seen>();

  constructor(options: KeyRulesOptions) {
    this.#options = options;
  }

  #of(plugin: Plugin): Seen {
    return this.#seen.getOrInsertComputed(plugin, () => new Seen());
  }

  get #nowMs(): number {
    return this.#options.time.nowMs;
  }

  /** Whether something else than what is ignored may be seen by a node at some time of a span. */
  #isDisturbed(
    { node }: Plugin,
    [fromMs, toMs]: readonly [number, number],
    ignore: (fault: Fault) => boolean,
  ): boolean {
    const { faults, settings } = this.#options;
    return faults.some(
      (one) =>
        concerns(one, node) &&
        one.atMs <= toMs &&
        (disturbedUntil(one, settings) >= fromMs || !Number.isFinite(one.durationMs)) &&
        !ignore(one),
    );
  }

  /** A fault is about to begin. @param wanted the key that the file names after it, if it changes the file */
  begins(fault: Fault, plugins: readonly (Plugin | undefined)[], wanted?: KmsKeyId): void {
    for (const plugin of plugins) {
      if (plugin !== undefined && concerns(fault, plugin.node)) {
        this.#expectRevocation(plugin, fault);
        if (wanted !== undefined) {
          this.#expectKeyChange(plugin, fault, wanted);
        }
      }
    }
  }

  // S9

  published(plugin: Plugin, snapshot: Snapshot): void {
    const { key4c, fail } = this.#options;
    const { node } = plugin;
    const { wrappedLocalKek } = snapshot.header;
    const isAmbiguous = key4c.faultOf(node, "splitMaterial", "staleReplica") !== undefined;
    if (isAmbiguous || key4c.changedWithin(RENEWAL_MS, node)) {
      return;
    }
    this.#options.coverage.publishedChecks += 1;
    if (!key4c.wouldGiveBack(wrappedLocalKek, node)) {
      fail("S9", `node ${node}: what becomes current is not given back on a new connection`);
    }
  }

  // S19

  #expectRevocation(plugin: Plugin, fault: Fault): void {
    const { settings, coverage, fail } = this.#options;
    const { kmsKeyId, kind, atMs } = fault;
    const boundMs = WELL_MS + settings.revocationGraceMs + SLACK_MS;
    const member = memberOf(plugin, kmsKeyId);
    const isRevocation = kind === "disabled" || kind === "deleted";
    if (!isRevocation || fault.durationMs < boundMs || member?.health.failure !== undefined) {
      return;
    }
    const ignore = (one: Fault) => one === fault || isHarmless(one, kmsKeyId);
    if (member === undefined || this.#isDisturbed(plugin, [atMs, atMs + boundMs], ignore)) {
      return;
    }
    coverage.revocations += 1;
    this.#options.time.after(boundMs, () => {
      const { finding } = member.health.memory;
      if (finding?.state !== "revoked" && !plugin.clock.isDead) {
        fail("S19", `node ${plugin.node}: ${kmsKeyId} is ${kind} since ${boundMs} ms, unnoticed`);
      }
    });
  }

  // S11, S16, S17

  read(plugin: Plugin, stored: Stored, code: status, startedAtMs: number): void {
    const { key4c, fail, coverage } = this.#options;
    const { node, clock } = plugin;
    const token = key4c.token(stored.wrapped);
    if (token === undefined || clock.isDead || clock.isPaused || clock.resumedAtMs >= startedAtMs) {
      return;
    }
    const { kmsKeyId } = token;
    if (code === status.OK) {
      const revokedAtMs = this.#of(plugin).revokedAtMs.get(kmsKeyId);
      if (revokedAtMs !== undefined && this.#nowMs - revokedAtMs > SOCKET_MS) {
        fail(
          "S16",
          `node ${node}: a local KEK of ${kmsKeyId}, which is revoked, is still unwrapped`,
        );
      }
      return;
    }
    if (code === status.CANCELLED || !key4c.wouldGiveBack(stored.wrapped, node)) {
      return;
    }
    if (code === status.INVALID_ARGUMENT) {
      this.#expectLag(plugin, token, startedAtMs);
      return;
    }
    if (this.#isFirstRefusedRead(plugin, startedAtMs)) {
      return;
    }
    const isBeside = (one: Fault) =>
      isHarmless(one, kmsKeyId) ||
      (one.kind === "pluginKilled" && startedAtMs - plugin.startedAtMs > STARTING_MS) ||
      ((one.kind === "operationDenied" || one.kind === "operationFails") &&
        operationOf(one) !== "decrypt");
    if (!this.#isDisturbed(plugin, [startedAtMs, this.#nowMs], isBeside)) {
      fail(
        "S11",
        `node ${node}: a read of ${kmsKeyId} is ${status[code]}, though Key4C would unwrap for it`,
      );
    }
    coverage.readsBeside += 1;
  }

  /**
   * Where another call lacks its right since the process started, its first read shows that the secret is good, when it
   * may be presented again.
   */
  #isFirstRefusedRead(plugin: Plugin, startedAtMs: number): boolean {
    const hasBegunWithout = this.#options.faults.some(
      (one) =>
        one.kind === "operationDenied" &&
        one.atMs <= plugin.startedAtMs + SECRET_PAUSE_MS &&
        disturbedUntil(one, this.#options.settings) >= plugin.startedAtMs,
    );
    if (!hasBegunWithout) {
      return false;
    }
    if (this.#options.settings.hasPin) {
      return true; // one that a code refuses is not presented again
    }
    const seen = this.#of(plugin);
    seen.firstRefusedReadAtMs ??= startedAtMs;
    return startedAtMs - seen.firstRefusedReadAtMs <= FIRST_READ_MS;
  }

  /** A probe of a key was recorded. */
  recorded(plugin: Plugin, { kmsKeyId, health }: Key): void {
    const { revokedAtMs } = this.#of(plugin);
    if (health.memory.finding?.state !== "revoked") {
      revokedAtMs.delete(kmsKeyId);
    } else if (!revokedAtMs.has(kmsKeyId)) {
      revokedAtMs.set(kmsKeyId, this.#nowMs);
    }
  }

  #expectLag(
    plugin: Plugin,
    { kmsKeyId, version, material }: { kmsKeyId: string; version: number; material: string },
    startedAtMs: number,
  ): void {
    const { key4c, settings, fail } = this.#options;
    const seen = this.#of(plugin);
    const isNewVersion =
      settings.tells.versionByDescribe && version > (seen.versions.get(kmsKeyId) ?? 0);
    const isNewKcv = settings.tells.kcv && !seen.kcvs.has(`${kmsKeyId} ${kcvOf(material)}`);
    const lagsSinceMs = this.#since("staleReplica", plugin.node);
    const isRecent = lagsSinceMs !== undefined && startedAtMs - lagsSinceMs < LAG_MS;
    if ((isNewVersion || isNewKcv) && isRecent && !key4c.changedWithin(REFUSED_MS, plugin.node)) {
      fail("S17", `node ${plugin.node}: an object of ${kmsKeyId}, version ${version}, is invalid`);
    }
  }

  #since(kind: FaultKind, node: number): number | undefined {
    return this.#options.key4c.faultOf(node, kind)?.atMs;
  }

  // S12

  #unlistings(kmsKeyId: string, afterMs: number): readonly Fault[] {
    return this.#options.faults.filter(
      (one) =>
        one.kind === "keyUnlisted" &&
        one.kmsKeyId === kmsKeyId &&
        one.atMs <= this.#nowMs &&
        endOf(one) + afterMs > this.#nowMs,
    );
  }

  /** Whether it is, or was so lately that what was held of it may be gone. */
  mayBeUnlisted(kmsKeyId: string): boolean {
    return this.#unlistings(kmsKeyId, LIST_SEEN_MS).length > 0;
  }

  /** Whether the process must know that the key is not configured. */
  isRefusedTo(plugin: Plugin, kmsKeyId: string | undefined): boolean {
    if (kmsKeyId === undefined) {
      return false;
    }
    const { keys } = plugin;
    const isInUse = [keys.configured, keys.current].some((one) => one.key.kmsKeyId === kmsKeyId);
    const wrappedAtMs = this.#of(plugin).wrappedAtMs.get(kmsKeyId) ?? Number.NEGATIVE_INFINITY;
    const isSeen = ({ atMs }: Fault) =>
      Math.max(atMs, plugin.startedAtMs) + LIST_SEEN_MS < this.#nowMs && wrappedAtMs < atMs;
    const unlisting = this.#unlistings(kmsKeyId, 0).find(isSeen);
    const hidden: readonly FaultKind[] = ["pluginPaused", "pluginKilled", "hangs", "slow"];
    const isHidden = (one: Fault) => !hidden.includes(one.kind);
    return (
      unlisting !== undefined &&
      !isInUse &&
      !this.#isDisturbed(plugin, [this.#nowMs - LIST_SEEN_MS, this.#nowMs], isHidden)
    );
  }

  openedUnlisted(plugin: Plugin, code: status): void {
    this.#options.coverage.unlistedReads += 1;
    if (code !== status.NOT_FOUND) {
      const how = status[code];
      this.#options.fail(
        "S12",
        `node ${plugin.node}: a key that is not configured is read: ${how}`,
      );
    }
  }

  // S13

  /** Of a quiet node. */
  expectToldMaterial(plugin: Plugin, snapshot: Snapshot, view: View, where: string): void {
    const { settings, fail, coverage } = this.#options;
    if (!settings.tells.kcv) {
      return;
    }
    coverage.materialChecks += 1;
    const told = kcvHash(snapshot.kmsKeyId, kcvOf(view.material(view.version)));
    if (Buffer.compare(told, snapshot.header.kcvHash) !== 0 && plugin.state !== "mismatch") {
      fail("S13", `${where}: another key check value is told than the one that wraps`);
    }
  }

  // S14

  #countUnwraps(plugin: Plugin, { operation }: Answered): void {
    const seen = this.#of(plugin);
    const { keyring, keys } = plugin;
    const { misses } = keyring.cache;
    const nowMs = this.#nowMs;
    if (seen.hour === undefined || nowMs - seen.hour.startMs >= HOUR) {
      seen.hour = newHour(nowMs, misses);
    }
    const { hour } = seen;
    hour.unwraps += operation === "decrypt" ? 1 : 0;
    hour.describes += operation === "describe" ? 1 : 0;
    hour.wraps += operation === "encrypt" ? 1 : 0;
    const holds = keys.members.map(({ key }) => key.holds.length);
    hour.held = Math.max(hour.held, sum(holds));
    const states = keys.members.map(
      ({ key }) => `${key.kmsKeyId} ${key.health.memory.finding?.state}`,
    );
    const state = states.join(", ");
    const { snapshot } = keyring;
    if (state !== seen.state || snapshot?.keyId !== seen.current?.keyId) {
      hour.lookedThrough += 1;
    }
    seen.state = state;
    seen.current = snapshot;
    const allowed =
      UNWRAPS_AT_REST +
      UNWRAPS_A_PROBE * hour.describes +
      UNWRAPS_A_WRAP * hour.wraps +
      ATTEMPTS_OF_A_CALLER * (misses - hour.misses) +
      2 * hour.held * hour.lookedThrough +
      ORPHAN_ROUNDS * sum(keys.members.map(({ key }) => key.orphans.length + 1));
    if (hour.unwraps > allowed) {
      this.#options.fail(
        "S14",
        `node ${plugin.node}: ${hour.unwraps} unwraps in an hour, ${allowed.toFixed(0)} are explained: ${JSON.stringify(hour)}`,
      );
    }
  }

  // S15; for the grace see world.ts

  #expectKeyChange(plugin: Plugin, fault: Fault, wanted: KmsKeyId): void {
    const { coverage, fail } = this.#options;
    const { node } = plugin;
    const former = plugin.keys.current.key.kmsKeyId;
    const boundMs = WELL_MS + SLACK_MS;
    const { atMs } = fault;
    const isOfFormer = (one: Fault) => one.kind === "keyThrottled" && one.kmsKeyId === former;
    const ignore = (one: Fault) => one === fault || isHarmless(one, wanted) || isOfFormer(one);
    const isPaused = plugin.keys.current.key.health.isPaused;
    if (
      !isPaused ||
      former === wanted ||
      this.#isDisturbed(plugin, [atMs, atMs + boundMs], ignore)
    ) {
      return;
    }
    coverage.changesInPauses += 1;
    this.#options.time.after(boundMs, () => {
      const wraps = plugin.keys.current.key.kmsKeyId;
      if (wraps !== wanted && !plugin.clock.isDead) {
        fail("S15", `node ${node}: ${wanted} is configured since ${boundMs} ms, ${wraps} wraps`);
      }
    });
  }

  // S18, and what Key4C told

  answered(plugin: Plugin, answered: Answered): void {
    const seen = this.#of(plugin);
    const { kmsKeyId, version, kcv } = answered;
    if (version !== undefined) {
      seen.versions.set(kmsKeyId, Math.max(version, seen.versions.get(kmsKeyId) ?? 0));
    }
    if (kcv !== undefined) {
      seen.kcvs.add(`${kmsKeyId} ${kcv}`);
    }
    seen.wrappedAtMs.set(plugin.keys.current.key.kmsKeyId, this.#nowMs);
    this.#countUnwraps(plugin, answered);
    this.#expectPatience(plugin, seen, answered);
  }

  #expectPatience(plugin: Plugin, seen: Seen, answered: Answered): void {
    const { fail, settings, key4c } = this.#options;
    const { secret, kmsKeyId, operation, startedAtMs, status: http } = answered;
    const { node } = plugin;
    const place = `${secret} ${kmsKeyId} ${operation}`;
    const refusedAtMs = seen.refused.get(place);
    // A control that is not answered proves nothing, and pauses nothing.
    const isOtherwiseWell =
      key4c.faultOf(node, ...HIDES_A_CONTROL) === undefined &&
      !key4c.changedWithin(SECRET_PAUSE_MS, node);
    if (refusedAtMs !== undefined && isOtherwiseWell) {
      const afterMs = startedAtMs - refusedAtMs;
      if (afterMs > JUDGING_MS && afterMs < SECRET_PAUSE_MS) {
        fail(
          "S18",
          `node ${node}: ${operation} is refused, and tried after ${afterMs.toFixed(0)} ms`,
        );
      }
    }
    const before = seen.refusals.get(secret) ?? [];
    const lastMs = before.at(-1) ?? Number.NEGATIVE_INFINITY;
    // After a refusal another call is made once, as a control.
    const isPatient = startedAtMs - lastMs < JUDGING_MS || startedAtMs - lastMs >= SECRET_PAUSE_MS;
    if (before.length > 1 && !isPatient) {
      const afterMs = (startedAtMs - lastMs).toFixed(0);
      fail(
        "S18",
        `node ${node}: a secret is refused, and tried after ${afterMs} ms (${operation})`,
      );
    }
    // What the contract says of a key or a ciphertext accepts the secret too.
    const isAccepted =
      http === 200 || (answered.code !== undefined && http !== 401 && http !== 403);
    if (isAccepted) {
      seen.refused.delete(place);
      seen.refusals.delete(secret);
    } else if (http === 401 || http === 403) {
      seen.refused.set(place, this.#nowMs);
      // Calls that were under way together are one presentation: nobody knew better.
      const isAnother = before.every((atMs) => startedAtMs > atMs);
      seen.refusals.set(secret, isAnother ? [...before, this.#nowMs] : before);
    }
    const refusals = seen.refusals.get(secret)?.length ?? 0;
    if (settings.hasPin && refusals > MAX_PIN_REFUSALS + 1) {
      fail("S18", `node ${node}: a refused PIN is presented ${refusals} times`); // with one control
    }
  }
}

function memberOf({ keys }: Plugin, kmsKeyId: string) {
  return keys.members.find(({ key }) => key.kmsKeyId === kmsKeyId)?.key;
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, one) => total + one, 0);
}
