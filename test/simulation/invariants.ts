/** The rules of rules.ts, with the bounds that we state. */
import { status } from "@grpc/grpc-js";
import type { PluginError } from "../../src/failures/plugin-error.ts";
import type { Snapshot } from "../../src/keys/holdings.ts";
import type { Key } from "../../src/keys/key.ts";
import type { State } from "../../src/keys/key-health.ts";
import { formatKeyId, parseKeyId } from "../../src/keys/key-id.ts";
import {
  type ApiServer,
  type ApiServerEvents,
  STATUS_EVERY_MS,
  type Stored,
  WRITES_AFTER_STATUS_MS,
} from "./apiserver.ts";
import { MINUTE, SECOND, type SimulatedTime } from "./clock.ts";
import type { Coverage } from "./coverage.ts";
import { type History, type KmsKeyId, type Settings, WELL_MS } from "./faults.ts";
import { KeyRules } from "./key-rules.ts";
import type { Answered, SimulatedKey4C } from "./key4c.ts";
import type { LogLine, Plugin, PluginEvents, Rpc } from "./plugin.ts";
import type { Rule } from "./rules.ts";

/** Answers that make a revocation (rule R4), when there is a grace. */
const FINDING_ANSWERS = 3;
/** One attempt at Key4C, which may hang, and how long a probe takes that does not. */
export const ATTEMPT_MS = 2.5 * SECOND;
export const PROBE_MS = 0.3 * SECOND;
/** Somebody needs Key4C: it is asked every 0.5 s in the first minute of an outage, later every 2 s; and a tenth. */
export const NEEDED_MS = 0.55 * SECOND;
export const NEEDED_LATER_MS = 2.2 * SECOND;
export const FIRST_MINUTE_MS = MINUTE;

/** Probes that fail, until a finding rests. */
const MANY_FAILURES = 30;
/** A throttled answer: calls for the key that an operation had still to make, or an audit that is eight wide. */
const MAX_CALLS_WHILE_THROTTLED = 8;
/** A call that is slow, tried again. */
const CALL_MS = 3 * SECOND;
const MAX_RETRY_AFTER_MS = 5 * MINUTE;
const MAX_RETRY_AFTER_WITHOUT_KEK_MS = 15 * SECOND;
const FIRST_THROTTLED_PAUSE_MS = SECOND;
/**
 * In each minute, of each key: where callers fail though probes succeed, one every 250 ms less a tenth; and a key that
 * is to become current is asked for in two probes.
 */
const MAX_DESCRIBES_A_MINUTE = 300;
/** A probe every 27 s, and what lies on either end. */
const MAX_DESCRIBES_AT_REST = 5;
/** The same of a key whose canary is lost for good: twice for each probe, and about a control. */
const MAX_DESCRIBES_OF_LOST = 10;
/** Calls at rest for each probe, each new local KEK and each one that was not known. */
const MAX_CALLS_AT_REST = 24;
const CALLS_OF_A_RENEWAL = 5;

export class Violation extends Error {
  readonly rule: Rule;

  constructor(rule: Rule, message: string) {
    super(`${rule}: ${message}`);
    this.rule = rule;
  }
}

function newMinute(startMs: number) {
  return { startMs, describes: new Map<string, number>(), calls: 0, renewals: 0, asked: 0 };
}

/** What is known of one process, besides what it says itself. */
class Record {
  /** Envelopes that it has made or opened: it can open them again. */
  readonly known = new Map<string, Stored>();
  /** The current local KEKs since the last one of another key_id: the first of them is the witness. */
  run: Snapshot[] = [];
  last: Snapshot | undefined;
  readonly highestVersion = new Map<string, number>();
  /** By key: when it was told that the key is disabled or deleted, since a success. */
  readonly verdicts = new Map<string, number[]>();
  /** By key: until when it was asked not to come, and how often it came all the same. */
  readonly throttled = new Map<string, { sinceMs: number; pauseMs: number; calls: Set<string> }>();
  readonly throttledAnswers = new Map<string, number>();
  /** When a probe of any key failed last, but of one that is lost for good. */
  failedAtMs = Number.NEGATIVE_INFINITY;
  asked = 0;
  minute = newMinute(0);
}

/** What invariants need to know of a history and of its machines. */
interface Circumstances extends Pick<History, "settings" | "faults"> {
  /** What is kept of a key on a node. */
  readonly keptOf: (node: number, kmsKeyId: string) => object | undefined;
}

export class Invariants implements PluginEvents, ApiServerEvents {
  readonly #settings: Settings;
  readonly #keptOf: Circumstances["keptOf"];
  readonly #time: SimulatedTime;
  readonly #key4c: SimulatedKey4C;
  readonly #coverage: Coverage;
  readonly #records = new WeakMap<Plugin, Record>();
  /** By node: after that nothing that happened may be seen any more. */
  readonly disturbedUntilMs: number[];
  /** By node: when a read failed last because Key4C was not to be had. */
  readonly neededAtMs: number[];
  /** By node: how many did. */
  readonly needs: number[];
  violation: Violation | undefined;
  /** Those of one key among others. */
  readonly keys: KeyRules;

  constructor(
    { settings, faults, keptOf }: Circumstances,
    time: SimulatedTime,
    key4c: SimulatedKey4C,
    coverage: Coverage,
  ) {
    const fail = (rule: Rule, message: string) => this.fail(rule, message);
    this.keys = new KeyRules({ settings, faults, time, key4c, coverage, fail });
    this.#settings = settings;
    this.#keptOf = keptOf;
    this.#time = time;
    this.#key4c = key4c;
    this.#coverage = coverage;
    this.disturbedUntilMs = Array.from({ length: settings.nodes }, () => WELL_MS);
    this.needs = Array.from({ length: settings.nodes }, () => 0);
    this.neededAtMs = Array.from({ length: settings.nodes }, () => Number.NEGATIVE_INFINITY);
  }

  fail(rule: Rule, message: string): void {
    this.violation ??= new Violation(rule, `${message} (at ${this.#time.nowMs.toFixed(0)} ms)`);
  }

  #of(plugin: Plugin): Record {
    return this.#records.getOrInsertComputed(plugin, () => new Record());
  }

  isQuiet(node: number, forMs = 0): boolean {
    return this.#time.nowMs - (this.disturbedUntilMs[node] ?? 0) >= forMs;
  }

  // S1: what is acknowledged is readable

  stored({ api, host }: ApiServer, stored: Stored): void {
    const { node } = host;
    this.#coverage.writes += 1;
    if (this.#key4c.wouldGiveBack(stored.wrapped, node)) {
      return;
    }
    this.#coverage.writesUnderLost += 1;
    const boundMs = api === "v1" ? 0 : WRITES_AFTER_STATUS_MS + STATUS_EVERY_MS;
    const plugin = host.plugin();
    if (plugin === undefined || !this.isQuiet(node, boundMs)) {
      return;
    }
    const token = this.#key4c.token(stored.wrapped);
    const isHeld = this.#of(plugin).run.some(
      ({ header }) => header.wrappedLocalKek === stored.wrapped,
    );
    const isToldOfAnother = token?.material.includes("splitMaterial") === true;
    if (!isHeld && (!this.#settings.tells.kcv || isToldOfAnother)) {
      // The stated limit: a fresh process cannot know when nobody tells a key check value, or another replica's.
      this.#coverage.writesThatNobodyCouldKnow += 1;
      return;
    }
    this.fail(
      "S1",
      `node ${node} acknowledges a write that Key4C cannot give back, and nobody says so`,
    );
  }

  /** What a plugin must be once nothing disturbs it. */
  expectSteady(plugin: Plugin, configured: KmsKeyId): void {
    const { node, state, keyring } = plugin;
    const { snapshot } = keyring;
    const where = `node ${node}, quiet since ${((this.#time.nowMs - (this.disturbedUntilMs[node] ?? 0)) / 1_000).toFixed(0)} s`;
    const highest = this.#of(plugin).highestVersion.get(configured) ?? 0;
    const isBack = this.#key4c.view(configured, node).version < highest;
    if (isBack && snapshot?.kmsKeyId !== configured) {
      return; // rule R11: no older version becomes current in this process; a rotation above it or a restart heals
    }
    if (snapshot === undefined) {
      this.fail("S6", `${where}: no local KEK, state ${state}`);
      return;
    }
    if (snapshot.kmsKeyId !== configured) {
      this.fail("S6", `${where}: ${snapshot.kmsKeyId} wraps, ${configured} is configured`);
      return;
    }
    const view = this.#key4c.view(snapshot.kmsKeyId as Parameters<SimulatedKey4C["view"]>[0], node);
    const { keyVersion } = snapshot.header;
    this.keys.expectToldMaterial(plugin, snapshot, view, where);
    if (this.#settings.tells.versionByDescribe && view.version > keyVersion) {
      this.fail("S6", `${where}: version ${keyVersion} wraps, there is ${view.version}`);
      return;
    }
    const [witness = snapshot] = this.#of(plugin).run;
    // One that wrapped before another key did is still of this key_id.
    const pinned = keyring.keys.current.key.pinned.filter(
      ({ header }) => formatKeyId(header) === snapshot.keyId,
    );
    const isLost = [snapshot, witness, ...pinned].some(
      ({ header }) => !this.#key4c.wouldGiveBack(header.wrappedLocalKek, node),
    );
    if (isLost && this.#settings.tells.versionByEncrypt && view.version > keyVersion) {
      this.fail("S13", `${where}: a higher version would be published by a fresh process`);
      return;
    }
    if (isLost && state !== "mismatch") {
      this.fail("S1", `${where}: Key4C does not unwrap what it wrapped, state ${state}`);
      return;
    }
    if (isLost && plugin.errors.length === 0) {
      this.fail("S1", `${where}: nothing was said of what is lost`);
      return;
    }
    const wanted =
      this.#settings.tells.versionByDescribe && view.version < keyVersion ? "degraded" : "ok";
    if (!isLost && state !== wanted) {
      const cause = plugin.health.failure?.message ?? "";
      this.fail("S6", `${where}: state ${state} instead of ${wanted}: ${cause}`);
    }
  }

  otherBytes(plugin: Plugin): void {
    this.fail("S1", `node ${plugin.node}: Decrypt gave other bytes than were wrapped`);
  }

  // S2: local KEKs are dropped only as rule R4 says

  known(plugin: Plugin, stored: Stored): void {
    const { known } = this.#of(plugin);
    known.set(Buffer.from(stored.cipher).toString("latin1"), stored);
  }

  read(plugin: Plugin, stored: Stored, code: status, startedAtMs: number): void {
    this.keys.read(plugin, stored, code, startedAtMs);
  }

  /** What was held of a key may be wiped. */
  forget(plugins: readonly (Plugin | undefined)[], kmsKeyId: KmsKeyId): void {
    for (const { known } of plugins.flatMap((one) => (one === undefined ? [] : [this.#of(one)]))) {
      for (const [name, { wrapped }] of known) {
        if (this.#key4c.token(wrapped)?.kmsKeyId === kmsKeyId) {
          known.delete(name);
        }
      }
    }
  }

  knownTo(plugin: Plugin): readonly Stored[] {
    return [...this.#of(plugin).known.values()];
  }

  /** @param code how a Decrypt of what the process knew has ended */
  openedKnown(plugin: Plugin, stored: Stored, code: status): void {
    this.#coverage.knownReads += 1;
    if (code === status.OK || code === status.CANCELLED || plugin.clock.isDead) {
      return;
    }
    const token = this.#key4c.token(stored.wrapped);
    if (token !== undefined && this.keys.mayBeUnlisted(token.kmsKeyId)) {
      return;
    }
    const { snapshot } = plugin.keyring;
    const isPinned = snapshot?.header.wrappedLocalKek === stored.wrapped;
    if (this.#settings.cacheSize < 1_000 && !isPinned) {
      return; // it may have been forgotten for want of room
    }
    if (token === undefined || !this.#isRevoked(plugin, token.kmsKeyId)) {
      this.fail(
        "S2",
        `node ${plugin.node} has lost a local KEK of ${token?.kmsKeyId}: ${status[code]}`,
      );
    }
  }

  /** Whether a process may refuse what is stored, because its key is revoked. */
  isRevokedFor(plugin: Plugin, { wrapped }: Stored): boolean {
    const token = this.#key4c.token(wrapped);
    return token !== undefined && this.#isRevoked(plugin, token.kmsKeyId);
  }

  #isRevoked(plugin: Plugin, kmsKeyId: string): boolean {
    const { verdicts } = this.#of(plugin);
    const { revocationGraceMs } = this.#settings;
    const told = verdicts.get(kmsKeyId) ?? [];
    // A probe ends with its slowest call.
    const lastMs = Math.min(this.#time.nowMs, (told.at(-1) ?? 0) + CALL_MS);
    const lastedMs = lastMs - (told[0] ?? 0);
    return revocationGraceMs === 0
      ? told.length > 0
      : told.length >= FINDING_ANSWERS && lastedMs >= revocationGraceMs - 100; // answers travel
  }

  heard(plugin: Plugin, key: Key, before: State, heard: PluginError | undefined): void {
    this.#coverage.cell(before, heard?.kind ?? "success");
    const { kmsKeyId } = key;
    const { state } = key.health;
    this.keys.recorded(plugin, key);
    if (heard !== undefined && key.health.memory.failures < MANY_FAILURES) {
      this.#of(plugin).failedAtMs = this.#time.nowMs;
    }
    if (state === "revoked" && before !== "revoked" && !this.#isRevoked(plugin, kmsKeyId)) {
      this.fail("S2", `node ${plugin.node} revokes ${kmsKeyId}, which nobody disabled for so long`);
    }
    if (state === "revoked" && this.#keptOf(plugin.node, kmsKeyId) !== undefined) {
      this.fail("S10", `node ${plugin.node} has ${kmsKeyId} revoked, and keeps local KEKs of it`);
    }
    if (state === "revoked") {
      const { known } = this.#of(plugin);
      for (const [name, { wrapped }] of known) {
        if (this.#key4c.token(wrapped)?.kmsKeyId === kmsKeyId) {
          known.delete(name);
        }
      }
    }
    if (heard === undefined) {
      this.#of(plugin).verdicts.delete(kmsKeyId);
      this.#of(plugin).throttled.delete(kmsKeyId);
    }
    if (heard?.kind === "throttled") {
      this.#isThrottled(plugin, kmsKeyId, heard.retryAfterMs);
    } else {
      this.#of(plugin).throttledAnswers.delete(kmsKeyId);
    }
  }

  // S3, S4, S5: what callers get

  rpc(plugin: Plugin, { method, code, startedAtMs, hasLeft }: Rpc): void {
    this.#coverage.rpcs += 1;
    const { state, node } = plugin;
    const lastedMs = this.#time.nowMs - startedAtMs;
    if (code === status.INTERNAL || code === status.UNKNOWN) {
      this.fail("S3", `node ${node}: ${method} is ${status[code]}`);
    }
    if (code === status.OK || hasLeft || code === status.CANCELLED) {
      return;
    }
    const isPausedMeanwhile = plugin.clock.resumedAtMs >= startedAtMs;
    if (method !== "Decrypt" && (state === "ok" || state === "degraded") && !isPausedMeanwhile) {
      this.fail(
        "S3",
        `node ${node}: ${method} is ${status[code]} after ${lastedMs.toFixed(0)} ms in state ${state}`,
      );
    }
  }

  unanswered(plugin: Plugin, method: string, startedAtMs: number): void {
    const { isDead, isPaused, resumedAtMs } = plugin.clock;
    if (!isDead && !isPaused && resumedAtMs < startedAtMs) {
      this.fail("S5", `node ${plugin.node}: ${method} was not answered before its deadline`);
    }
  }

  /** Status and Encrypt at one moment. @param keyIds of each; undefined: it failed */
  pair(plugin: Plugin, ofStatus: string | undefined, ofEncrypt: string | undefined): void {
    this.#coverage.pairsOfCalls += 1;
    if (ofStatus !== ofEncrypt) {
      this.fail("S4", `node ${plugin.node}: Status tells ${ofStatus}, Encrypt ${ofEncrypt}`);
    }
  }

  #followSnapshot(plugin: Plugin): void {
    const record = this.#of(plugin);
    const { snapshot } = plugin.keyring;
    if (snapshot === record.last) {
      return;
    }
    if (snapshot !== undefined) {
      const { kmsKeyId, keyId, header } = snapshot;
      const highest = record.highestVersion.get(kmsKeyId) ?? 0;
      if (header.keyVersion < highest) {
        this.fail(
          "S4",
          `node ${plugin.node}: key_id goes back to ${parseKeyId(keyId)?.version} of ${kmsKeyId} after ${highest}`,
        );
      }
      record.highestVersion.set(kmsKeyId, header.keyVersion);
      record.run = record.last?.keyId === keyId ? [...record.run, snapshot] : [snapshot];
      if (plugin.keyring.keys.current.key.takenOver === undefined) {
        this.keys.published(plugin, snapshot);
      }
    } else {
      record.run = [];
    }
    record.last = snapshot;
  }

  // S6: see expectSteady, and what world.ts asks at a moment

  needed(node: number): void {
    this.neededAtMs[node] = this.#time.nowMs;
    this.needs[node] = (this.needs[node] ?? 0) + 1;
  }

  // S7: calls to Key4C

  answered(plugin: Plugin, answered: Answered): void {
    this.#coverage.key4cCalls += 1;
    this.keys.answered(plugin, answered);
    const record = this.#of(plugin);
    const { kmsKeyId, code, state } = answered;
    const nowMs = this.#time.nowMs;
    const isUnusable =
      code === "KEY_DISABLED" ||
      code === "KEY_DELETED" ||
      state === "DISABLED" ||
      state === "DELETED";
    if (isUnusable) {
      const told = record.verdicts.getOrInsertComputed(kmsKeyId, () => []);
      told.push(nowMs);
    }
    this.#countCall(plugin, record, answered);
    this.#obeysThrottling(plugin, record, answered);
  }

  #isThrottled(plugin: Plugin, kmsKeyId: string, retryAfterMs: number | undefined): void {
    const record = this.#of(plugin);
    const answers = (record.throttledAnswers.get(kmsKeyId) ?? 0) + 1;
    record.throttledAnswers.set(kmsKeyId, answers);
    const pauseMs =
      retryAfterMs ?? Math.min(30 * SECOND, FIRST_THROTTLED_PAUSE_MS * 2 ** (answers - 1));
    const sinceMs = this.#time.nowMs;
    record.throttled.set(kmsKeyId, { sinceMs, pauseMs, calls: new Set() });
  }

  #obeysThrottling(plugin: Plugin, record: Record, answered: Answered): void {
    const { keys, keyring } = plugin;
    const pause = record.throttled.get(answered.kmsKeyId);
    // Another key may wrap by now: who has nothing to continue with waits less.
    const hasKek = keyring.snapshot?.kmsKeyId === answered.kmsKeyId;
    const maxMs = hasKek ? MAX_RETRY_AFTER_MS : MAX_RETRY_AFTER_WITHOUT_KEK_MS;
    if (
      pause === undefined ||
      // The key that is to be the current one is asked for at the pace of the one that is.
      (keys.configured !== keys.current && answered.kmsKeyId === keys.configured.key.kmsKeyId) ||
      answered.startedAtMs <= pause.sinceMs ||
      answered.startedAtMs >= pause.sinceMs + Math.min(maxMs, pause.pauseMs)
    ) {
      return;
    }
    pause.calls.add(answered.requestId);
    if (pause.calls.size > MAX_CALLS_WHILE_THROTTLED) {
      const afterS = ((answered.startedAtMs - pause.sinceMs) / 1_000).toFixed(1);
      this.fail(
        "S7",
        `node ${plugin.node} is throttled, and asks again after ${afterS} s (${answered.operation})`,
      );
    }
  }

  #countCall(plugin: Plugin, record: Record, { operation, kmsKeyId }: Answered): void {
    const nowMs = this.#time.nowMs;
    const { minute } = record;
    if (nowMs - minute.startMs >= MINUTE) {
      record.minute = newMinute(nowMs);
    }
    const { minute: now } = record;
    const describes = (now.describes.get(kmsKeyId) ?? 0) + (operation === "describe" ? 1 : 0);
    now.describes.set(kmsKeyId, describes);
    now.renewals += operation === "encrypt" ? 1 : 0;
    now.calls += 1;
    const { node, keyring } = plugin;
    // A key that does not wrap has its canary asked for at every tenth probe only, and may be found lost late.
    const sinceFailureMs = nowMs - record.failedAtMs;
    const isAtRest =
      this.isQuiet(node, MINUTE) && plugin.state === "ok" && sinceFailureMs > 2 * MINUTE;
    const isLost = plugin.keys.members.some(
      ({ key }) => key.kmsKeyId === kmsKeyId && key.health.failure !== undefined,
    );
    const atRest = isLost ? MAX_DESCRIBES_OF_LOST : MAX_DESCRIBES_AT_REST;
    // Where only describe tells the material, each wrap asks it once more.
    const ofWraps = this.#settings.tells.versionByEncrypt ? 0 : now.renewals;
    if (describes - ofWraps > (isAtRest ? atRest : MAX_DESCRIBES_A_MINUTE)) {
      this.fail(
        "S7",
        `node ${node}: ${describes} describes of ${kmsKeyId} in a minute, state ${plugin.state}`,
      );
    }
    const asked = keyring.cache.misses;
    const isNew = now !== minute;
    now.asked = isNew ? record.asked : now.asked;
    record.asked = asked;
    const orphans = orphansOf(plugin);
    const allowed =
      MAX_CALLS_AT_REST + CALLS_OF_A_RENEWAL * now.renewals + (asked - now.asked) + orphans;
    if (isAtRest && now.calls > allowed) {
      this.fail(
        "S7",
        `node ${node}: ${now.calls} calls in a minute at rest, ${allowed} are explained`,
      );
    }
  }

  logged(plugin: Plugin, { level, message, fields }: LogLine): void {
    this.#coverage.logLines += level === "error" ? 1 : 0;
    if (fields["kind"] === "internal") {
      this.fail("S3", `node ${plugin.node}: ${message}: ${fields["cause"]}`);
    }
  }

  /** After each step. */
  step(plugins: readonly (Plugin | undefined)[]): void {
    for (const plugin of plugins) {
      if (plugin !== undefined) {
        this.#followSnapshot(plugin);
      }
    }
  }

  // S8: nothing is left over

  /** @param isServing whether its probes go on */
  expectNothingLeft(plugin: Plugin, isServing: boolean): void {
    const { node, keyring, keys, clock, inFlight } = plugin;
    const writes = this.#settings.keeps === undefined ? 0 : keys.members.length;
    const timers = (isServing ? keys.members.length : 0) + writes;
    if (clock.pendingTimers > timers) {
      this.fail("S8", `node ${node}: ${clock.pendingTimers} timers are left, ${timers} are wanted`);
    }
    if (inFlight.count > 0 || plugin.unanswered > 0 || keyring.unwraps.underWay > 0) {
      this.fail(
        "S8",
        `node ${node}: ${inFlight.count} requests, ${plugin.unanswered} RPCs, ${keyring.unwraps.underWay} unwraps are left`,
      );
    }
    this.expectNoKeyLeft(plugin);
  }

  expectNoKeyLeft(plugin: Plugin): void {
    const { node, everyKey, keys } = plugin;
    const every = new Set([...everyKey, ...keys.members.map(({ key }) => key)]);
    const held = [...every].reduce((sum, key) => sum + key.holds.length, 0);
    if (plugin.liveKeks > held) {
      this.fail("S8", `node ${node}: ${plugin.liveKeks} local KEKs in memory, ${held} are held`);
    }
  }
}

function orphansOf({ keys }: Plugin): number {
  return keys.members.reduce((sum, { key }) => sum + key.orphans.length, 0);
}
