/** One history, played: plugins, API servers, etcd and Key4C, and the faults that befall them. */

import { status } from "@grpc/grpc-js";
import { KeyManagementService as KmsV2 } from "../../src/gen/v2/api_pb.ts";
import type { State } from "../../src/keys/key-health.ts";
import { ApiServer, decryptStored, type Etcd } from "./apiserver.ts";
import { EPOCH_MS, MINUTE, Random, SECOND, SimulatedTime } from "./clock.ts";
import type { Coverage } from "./coverage.ts";
import {
  aftermathMs,
  concerns,
  disturbedUntil,
  type Fault,
  type FaultKind,
  type History,
  KEY_IDS,
  type KmsKeyId,
  WELL_MS,
} from "./faults.ts";
import {
  ATTEMPT_MS,
  FIRST_MINUTE_MS,
  Invariants,
  NEEDED_LATER_MS,
  NEEDED_MS,
  PROBE_MS,
  type Violation,
} from "./invariants.ts";
import { SimulatedKey4C } from "./key4c.ts";
import { Machine } from "./machine.ts";
import { Plugin } from "./plugin.ts";

/** After the last fault all must be well for so long. */
const QUIET_MS = 7 * MINUTE;
/** A process that starts has what was kept: 1.5 s, and what it takes to read it. */
const TAKEN_OVER_MS = 1.6 * SECOND;
const STEADY_EVERY_MS = 10 * SECOND;
const AUDIT_EVERY_MS = 45 * SECOND;
const SNAPSHOT_EVERY_MS = 20 * MINUTE;
const SNAPSHOTS = 4;
/** What is held of a key that left the list is usable again for ten minutes, and then wiped. */
const WITHHELD_MS = 9 * MINUTE;
/** Reads that fail while somebody lists: one alone may have been before the last probe. */
const MANY_NEEDS = 3;
/** Time for the last calls to end: the budget of a call that nobody waits for any more, and a well probe. */
const LAST_CALLS_MS = 15 * SECOND;
/** While they last Key4C is not to be had. */
const AWAY: readonly FaultKind[] = ["refused", "hangs", "status503", "gatewayPage", "foreignJson"];

/** What a fault leads to if it is alone and lasts: within 1.1 × interval and what the rules add (S6). */
const VERDICT_SLACK_MS = 6 * SECOND;

export async function play(history: History, coverage: Coverage): Promise<Violation | undefined> {
  const world = new World(history, coverage);
  const reallyNow = Date.now;
  Date.now = () => EPOCH_MS + world.time.nowMs + world.time.wallOffsetMs;
  try {
    await world.run();
  } finally {
    Date.now = reallyNow;
  }
  return world.invariants.violation;
}

class World {
  readonly time = new SimulatedTime();
  readonly invariants: Invariants;
  readonly #history: History;
  readonly #coverage: Coverage;
  readonly #random: Random;
  readonly #key4c: SimulatedKey4C;
  readonly #plugins: (Plugin | undefined)[];
  /** By node and wrapped local KEK: DEKs that processes which have ended wrapped under it. */
  readonly #uses = new Map<string, number>();
  readonly #apiServers: ApiServer[] = [];
  /** By node: the secret in its file, and the key. */
  readonly #secrets: string[];
  readonly #configured: KmsKeyId[];
  readonly #down: number[];
  readonly #machines: readonly Machine[];
  #etcd: Etcd = new Map();
  readonly #snapshots: Etcd[] = [];
  #steadyAtMs = 0;
  /** How long it takes at most to notice what was lost for good. */
  #lossMs = 0;
  /** By node. */
  readonly #hiddenUntilMs: number[] = [];

  constructor(history: History, coverage: Coverage) {
    const { settings } = history;
    this.#history = history;
    this.#coverage = coverage;
    this.#random = new Random(settings.seed + 2);
    this.#key4c = new SimulatedKey4C(this.time, settings);
    this.invariants = new Invariants(
      { ...history, keptOf: (node, kmsKeyId) => this.#machines[node]?.kept(kmsKeyId) },
      this.time,
      this.#key4c,
      coverage,
    );
    const nodes = Array.from({ length: settings.nodes }, (_, node) => node);
    this.#secrets = nodes.map((node) => this.#key4c.secretOf(node));
    this.#configured = nodes.map(() => "current");
    this.#down = nodes.map(() => 0);
    this.#machines = nodes.map(() => new Machine(this.time, settings.keeps));
    this.#plugins = nodes.map((node) => this.#start(node));
    for (const node of nodes) {
      for (const [index, api] of settings.apis.entries()) {
        this.#apiServers.push(
          new ApiServer(
            api,
            {
              node,
              time: this.time,
              etcd: () => this.#etcd,
              plugin: () => this.#plugins[node],
              events: this.invariants,
            },
            settings.seed + 10 * node + index + 3,
            settings.workEveryMs,
          ),
        );
      }
    }
  }

  #start(node: number, machine = this.#machines[node] as Machine): Plugin {
    const plugin = new Plugin({
      node,
      settings: this.#history.settings,
      time: this.time,
      random: new Random(this.#history.settings.seed + 100 * node + Math.floor(this.time.nowMs)),
      key4c: this.#key4c,
      secret: () => this.#secrets[node] ?? "",
      kmsKeyId: () => this.#configured[node] ?? "",
      previousKeyIds: () => KEY_IDS.filter((id) => !this.#key4c.isUnlisted(id)),
      machine,
      events: this.invariants,
    });
    const kept = machine.keptKeks();
    plugin.start();
    this.time.after(TAKEN_OVER_MS, () => this.#expectTakenOver(plugin, kept));
    return plugin;
  }

  /** A process of this node ends: what it has wrapped under each local KEK. */
  #countUses(node: number): void {
    for (const { key } of this.#plugins[node]?.keys.members ?? []) {
      for (const { header, localKek } of key.holds) {
        const name = `${node} ${header.wrappedLocalKek}`;
        this.#uses.set(name, (this.#uses.get(name) ?? 0) + localKek.uses);
      }
    }
  }

  /** S20 */
  #expectCounted({ node, keys }: Plugin): void {
    const { current, takenOver } = keys.current.key;
    const uses = this.#uses.get(`${node} ${current?.header.wrappedLocalKek}`) ?? 0;
    if (takenOver !== undefined && current !== undefined && current.localKek.usesBefore < uses) {
      const { usesBefore } = current.localKek;
      this.invariants.fail("S20", `node ${node}: ${usesBefore} uses are counted of ${uses}`);
    }
  }

  /** S10: a process that has just started reads what was kept, whatever Key4C says. */
  #expectTakenOver(plugin: Plugin, kept: ReadonlySet<string>): void {
    if (plugin.clock.isPaused || plugin.clock.resumedAtMs >= plugin.startedAtMs) {
      return;
    }
    this.#expectCounted(plugin);
    for (const stored of this.#etcd.values()) {
      if (kept.has(stored.wrapped) && !this.invariants.isRevokedFor(plugin, stored)) {
        this.#coverage.takenOver += 1;
        this.invariants.known(plugin, stored);
        this.#openKnown(plugin, stored).catch(report);
      }
    }
  }

  async run(): Promise<void> {
    const { faults } = this.#history;
    for (const apiServer of this.#apiServers) {
      apiServer.start();
    }
    for (const fault of faults) {
      this.time.after(fault.atMs, () => this.#begin(fault));
      if (fault.durationMs > 0 && Number.isFinite(fault.durationMs)) {
        this.time.after(fault.atMs + fault.durationMs, () => this.#end(fault));
      }
    }
    this.#repeat(AUDIT_EVERY_MS, () => this.#audit());
    this.#repeat(SNAPSHOT_EVERY_MS, () => this.#takeSnapshot());
    await this.#runUntil(Math.max(this.#history.lengthMs, WELL_MS));
    await this.#runUntil(Math.max(this.time.nowMs, ...this.invariants.disturbedUntilMs) + QUIET_MS);
    await this.#expectReadable();
    await this.#expectNothingLeft();
    this.#coverage.steps += this.time.steps;
    this.#coverage.simulatedMs += this.time.nowMs;
  }

  /** Ends early at the first violation: what follows from it is no second one. */
  async #runUntil(endMs: number): Promise<void> {
    for (let atMs = this.time.nowMs; atMs < endMs && !this.invariants.violation; ) {
      atMs = Math.min(endMs, atMs + 10 * SECOND);
      await this.time.runUntil(atMs, () => this.#step());
      if (this.time.spinsAtMs !== undefined) {
        this.invariants.fail("S5", "something waits for no time, again and again");
      }
    }
  }

  #repeat(everyMs: number, task: () => void): void {
    this.time.after(everyMs, () => {
      task();
      this.#repeat(everyMs, task);
    });
  }

  #step(): void {
    this.invariants.step(this.#plugins);
    if (this.time.nowMs < this.#steadyAtMs) {
      return;
    }
    this.#steadyAtMs = this.time.nowMs + STEADY_EVERY_MS;
    for (const plugin of this.#plugins) {
      if (plugin !== undefined && this.invariants.isQuiet(plugin.node)) {
        this.#coverage.steadyChecks += 1;
        this.invariants.expectSteady(plugin, this.#configured[plugin.node] ?? "current");
      }
    }
  }

  // What befalls them

  #begin(fault: Fault): void {
    const { kind, node = 0 } = fault;
    const isForEver = !Number.isFinite(fault.durationMs);
    this.#expectVerdict(fault);
    const wanted = kind === "keyFileChanged" ? this.#keyAfter(fault) : undefined;
    this.invariants.keys.begins(fault, this.#plugins, wanted);
    for (const [index, untilMs] of this.invariants.disturbedUntilMs.entries()) {
      if (concerns(fault, index)) {
        this.#hiddenUntilMs[index] = Math.max(
          this.#hiddenUntilMs[index] ?? 0,
          disturbedUntil(fault, this.#history.settings),
        );
        this.#lossMs = Math.max(
          this.#lossMs,
          isForEver ? aftermathMs(fault, this.#history.settings) : 0,
        );
        // What is lost for good is noticed when nothing else hides it any more.
        const noticedMs = (this.#hiddenUntilMs[index] ?? 0) + this.#lossMs;
        this.invariants.disturbedUntilMs[index] = Math.max(untilMs, noticedMs);
      }
    }
    this.#key4c.begin(fault);
    switch (kind) {
      case "pluginKilled":
      case "rebooted":
        if (kind === "rebooted") {
          this.#machines[node]?.reboot();
        }
        this.#down[node] = (this.#down[node] ?? 0) + 1;
        this.#countUses(node);
        this.#plugins[node]?.clock.kill();
        this.#plugins[node] = undefined;
        return;
      case "pluginPaused":
        this.#plugins[node]?.clock.pause();
        return;
      case "keyUnlisted":
        if (fault.durationMs > WITHHELD_MS) {
          this.invariants.forget(this.#plugins, fault.kmsKeyId);
        }
        return;
      case "keyFileChanged":
        this.#changeKey(fault, this.#keyAfter(fault));
        return;
      case "wallClockJumped":
        this.time.wallOffsetMs = (fault.variety - 0.5) * 48 * 60 * MINUTE;
        return;
      case "apiServerRestarted":
        for (const one of this.#apiServers.filter(({ host }) => host.node === node)) {
          one.start();
        }
        return;
      case "etcdRestored":
        this.#etcd = new Map(this.#snapshots[Math.floor(fault.variety * this.#snapshots.length)]);
        return;
      case "objectsRewritten":
        for (const one of this.#apiServers.slice(0, this.#history.settings.apis.length)) {
          one.rewrite().catch(() => {});
        }
        return;
      default:
    }
  }

  #end(fault: Fault): void {
    const { kind, node = 0 } = fault;
    this.#key4c.end(fault);
    if (kind === "pluginKilled" || kind === "rebooted") {
      this.#down[node] = (this.#down[node] ?? 0) - 1;
      for (const one of this.#apiServers.filter(({ host }) => host.node === node)) {
        if (kind === "rebooted") {
          one.start();
        }
      }
      this.#plugins[node] = this.#down[node] === 0 ? this.#start(node) : undefined;
    } else if (kind === "pluginPaused") {
      const isStill = this.#key4c.faultOf(node, "pluginPaused") !== undefined;
      const plugin = this.#plugins[node];
      if (!isStill && plugin?.clock.isPaused) {
        plugin.clock.resume();
      }
    } else if (kind === "credentialReplacedLate") {
      this.#secrets[node] = this.#key4c.secretOf(node);
    } else if (kind === "denied" && this.#history.settings.hasPin) {
      this.#replacePins(fault);
    } else if (AWAY.includes(kind)) {
      this.#expectHealed(fault);
    }
  }

  /** The operator changes the file of one node after the other. */
  #keyAfter({ kmsKeyId }: Fault): KmsKeyId {
    const other = this.#configured[0] === "current" ? "next" : "current";
    return kmsKeyId === this.#configured[0] ? other : kmsKeyId;
  }

  #changeKey({ variety }: Fault, wanted: KmsKeyId): void {
    for (const node of this.#configured.keys()) {
      this.time.after(node * variety * SECOND, () => {
        this.#configured[node] = wanted;
      });
    }
  }

  /** A PIN that was refused is not presented for ever: the operator sets another. */
  #replacePins(fault: Fault): void {
    for (const node of this.#secrets.keys()) {
      if (concerns(fault, node)) {
        this.#key4c.replaceSecretOf(node);
        this.#secrets[node] = this.#key4c.secretOf(node);
      }
    }
  }

  #takeSnapshot(): void {
    this.#snapshots.push(new Map(this.#etcd));
    if (this.#snapshots.length > SNAPSHOTS) {
      this.#snapshots.shift();
    }
  }

  // What is asked of them

  /** S2 and S4, of a process that goes on. */
  #audit(): void {
    for (const plugin of this.#plugins) {
      if (plugin === undefined || plugin.clock.isPaused) {
        continue;
      }
      this.#pair(plugin).catch(report);
      if (plugin.inFlight.count === 0) {
        this.invariants.expectNoKeyLeft(plugin); // else one may be in the making
      }
      const known = this.invariants.knownTo(plugin);
      const oldest = known[0];
      if (oldest !== undefined) {
        for (const stored of new Set([oldest, this.#random.pick(known)])) {
          this.#openKnown(plugin, stored).catch(report);
        }
      }
      const unlisted = known.filter(({ wrapped }) =>
        this.invariants.keys.isRefusedTo(plugin, this.#key4c.token(wrapped)?.kmsKeyId),
      );
      if (unlisted.length > 0) {
        this.#openUnlisted(plugin, this.#random.pick(unlisted)).catch(report);
      }
    }
  }

  async #pair(plugin: Plugin): Promise<void> {
    const plaintext = new Uint8Array(32);
    const timed = async <T>(promise: Promise<T>) => ({
      ended: await promise,
      atMs: this.time.nowMs,
    });
    const [ofStatus, ofEncrypt] = await Promise.all([
      timed(plugin.call(KmsV2.method.status, {})),
      timed(plugin.call(KmsV2.method.encrypt, { plaintext })),
    ]);
    if (ofStatus.atMs === ofEncrypt.atMs && !plugin.clock.isDead) {
      const keyIdOf = (one: typeof ofStatus.ended | typeof ofEncrypt.ended) =>
        "ok" in one ? one.ok.keyId : undefined;
      this.invariants.pair(plugin, keyIdOf(ofStatus.ended), keyIdOf(ofEncrypt.ended));
    }
  }

  async #openKnown(plugin: Plugin, stored: Parameters<typeof decryptStored>[1]): Promise<void> {
    const { resumedAtMs } = plugin.clock;
    const outcome = await decryptStored(plugin, stored);
    if ("ok" in outcome && !stored.dek.equals(outcome.ok)) {
      this.invariants.otherBytes(plugin);
    }
    if (!plugin.clock.isPaused && plugin.clock.resumedAtMs === resumedAtMs) {
      this.invariants.openedKnown(plugin, stored, "ok" in outcome ? status.OK : outcome.code);
    }
  }

  /** S12: a key that is not configured is refused. */
  async #openUnlisted(plugin: Plugin, stored: Parameters<typeof decryptStored>[1]): Promise<void> {
    const { resumedAtMs } = plugin.clock;
    const outcome = await decryptStored(plugin, stored);
    if (!plugin.clock.isPaused && plugin.clock.resumedAtMs === resumedAtMs) {
      this.invariants.keys.openedUnlisted(plugin, "ok" in outcome ? status.OK : outcome.code);
    }
  }

  /** S6: a healed Key4C is used at once by whoever needs it. */
  #expectHealed(fault: Fault): void {
    const { nowMs } = this.time;
    for (const plugin of this.#plugins) {
      if (plugin === undefined || !concerns(fault, plugin.node)) {
        continue;
      }
      const { node } = plugin;
      const { failure, memory } = plugin.keyring.keys.current.key.health;
      const isNeeded = nowMs - (this.invariants.neededAtMs[node] ?? 0) < NEEDED_MS;
      if (failure?.kind !== "unavailable" || !isNeeded) {
        continue;
      }
      const isFresh = nowMs + ATTEMPT_MS - (memory.failingSinceMs ?? nowMs) < FIRST_MINUTE_MS;
      const hangsMs = fault.kind === "hangs" ? ATTEMPT_MS : 0;
      const boundMs = (isFresh ? NEEDED_MS : NEEDED_LATER_MS) + hangsMs + PROBE_MS;
      const others = this.#history.faults.filter(
        (one) =>
          one !== fault &&
          concerns(one, node) &&
          one.atMs <= nowMs + boundMs &&
          one.atMs + one.durationMs >= nowMs - ATTEMPT_MS - SECOND &&
          one.kind !== "apiServerRestarted",
      );
      if (others.length > 0) {
        continue;
      }
      this.#coverage.healings += 1;
      const before = memory.lastSuccessMs;
      const needsBefore = this.invariants.needs[node] ?? 0;
      this.time.after(boundMs, () => {
        const { health } = plugin.keyring.keys.current.key;
        // It may have come back as one that does not give back what it wrapped: that is another matter.
        const isAway = health.failure?.kind === "unavailable";
        const isNeededStill = (this.invariants.needs[node] ?? 0) >= needsBefore + MANY_NEEDS;
        const isSame = health.memory.lastSuccessMs === before;
        if (isAway && isSame && isNeededStill && this.#plugins[node] === plugin) {
          this.invariants.fail(
            "S6",
            `node ${node}: ${fault.kind} has ended, and somebody needs Key4C, which is not used after ${boundMs} ms`,
          );
        }
      });
    }
  }

  /** S6: what a fault leads to, if it befalls a quiet node and lasts. */
  #expectVerdict(fault: Fault): void {
    const { revocationGraceMs, outageGraceMs, tells } = this.#history.settings;
    for (const plugin of this.#plugins) {
      if (
        plugin === undefined ||
        !concerns(fault, plugin.node) ||
        !this.invariants.isQuiet(plugin.node)
      ) {
        continue;
      }
      const { node } = plugin;
      const { kmsKeyId } = plugin.keyring.snapshot ?? {};
      const isOfCurrent = fault.kmsKeyId === kmsKeyId;
      const notFoundMs = Math.max(revocationGraceMs, 10 * SECOND);
      const verdicts: {
        readonly [K in FaultKind]?: readonly [State, number];
      } = {
        // Other bytes, and not even what it has just wrapped: it is broken, and says nothing of a key.
        wrongBytes: ["degraded", 10 * SECOND],
        gatewayPage: ["degraded", 0],
        foreignJson: ["degraded", 0],
        ...(isOfCurrent && {
          disabled: ["revoked", revocationGraceMs],
          deleted: ["revoked", revocationGraceMs],
          notFound: ["mismatch", notFoundMs],
          ...(!tells.kcv && { materialReplaced: ["mismatch", 10 * SECOND] as const }),
        }),
        // Another key check value is followed soon after: S13.
        ...(fault.variety < 0.5 && { wrongAddress: ["mismatch", notFoundMs] as const }),
        ...(fault.variety >= 0.5 &&
          !tells.kcv && { wrongAddress: ["mismatch", 10 * SECOND] as const }),
        ...(outageGraceMs !== undefined && {
          refused: ["expired", outageGraceMs],
          hangs: ["expired", outageGraceMs],
          status503: ["expired", outageGraceMs],
          denied: ["expired", outageGraceMs],
          throttled: ["expired", outageGraceMs],
          ...(isOfCurrent && { keyThrottled: ["expired", outageGraceMs] as const }),
        }),
      };
      const [wanted, graceMs] = verdicts[fault.kind] ?? [];
      const boundMs = WELL_MS + (graceMs ?? 0) + VERDICT_SLACK_MS;
      if (wanted === undefined || plugin.state !== "ok" || fault.durationMs < boundMs) {
        continue;
      }
      const disturbs = this.#history.faults.some(
        (one) =>
          one !== fault &&
          concerns(one, node) &&
          one.atMs >= fault.atMs &&
          one.atMs <= fault.atMs + boundMs &&
          one.kind !== "apiServerRestarted" &&
          one.kind !== "wallClockJumped",
      );
      if (disturbs) {
        continue;
      }
      this.#coverage.verdicts += 1;
      this.time.after(boundMs, () => {
        if (plugin.state !== wanted) {
          this.invariants.fail(
            fault.kind.toLowerCase().endsWith("throttled") ? "S15" : "S6",
            `node ${node}: ${fault.kind} for ${boundMs} ms, and the state is ${plugin.state} instead of ${wanted}`,
          );
        }
      });
    }
  }

  // The end

  /** S1: a fresh plugin reads all that Key4C can give back. */
  async #expectReadable(): Promise<void> {
    if (this.invariants.violation) {
      return;
    }
    const fresh = this.#start(0, new Machine(this.time, undefined));
    const results: Promise<void>[] = [];
    for (const stored of new Set([
      ...this.#etcd.values(),
      ...this.#snapshots.flatMap((one) => [...one.values()]),
    ])) {
      if (!this.#key4c.wouldGiveBack(stored.wrapped, 0)) {
        this.#coverage.freshReadsOfLost += 1;
        continue;
      }
      results.push(
        decryptStored(fresh, stored).then((outcome) => {
          this.#coverage.freshReads += 1;
          if (!("ok" in outcome) || !stored.dek.equals(outcome.ok)) {
            const how = "ok" in outcome ? "other bytes" : status[outcome.code];
            this.invariants.fail("S1", `a fresh plugin does not read what was stored: ${how}`);
          }
        }),
      );
      if (results.length % 32 === 0) {
        await this.time.runUntil(this.time.nowMs + SECOND, () => {});
      }
    }
    await this.time.runUntil(this.time.nowMs + 5 * SECOND, () => {});
    await Promise.all(results);
    fresh.health.stop();
    fresh.clock.kill();
  }

  /** S8: without callers, and then without probes. */
  async #expectNothingLeft(): Promise<void> {
    for (const one of this.#apiServers) {
      one.stop();
    }
    const endMs = this.time.nowMs + LAST_CALLS_MS;
    await this.#runUntil(endMs);
    if (this.invariants.violation) {
      return;
    }
    // Between two probes: their own calls are not left over.
    const isProbing = () =>
      this.#plugins.some((one) => one !== undefined && one.inFlight.count > 0);
    for (let tries = 0; tries < 200 && isProbing(); tries += 1) {
      await this.time.runUntil(this.time.nowMs + 200, () => {});
    }
    for (const plugin of this.#plugins) {
      if (plugin !== undefined) {
        this.invariants.expectNothingLeft(plugin, true);
        plugin.clock.deliver(() => plugin.health.stop());
        this.invariants.expectNothingLeft(plugin, false);
      }
    }
  }
}

function report(error: unknown): void {
  queueMicrotask(() => {
    throw error;
  });
}
