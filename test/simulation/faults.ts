/** What can go wrong, one by one, and for how long it may be seen afterwards. */

import { HOUR, MINUTE, Random, SECOND } from "./clock.ts";
import type { Keeps } from "./machine.ts";

export const KEY_IDS = ["former", "current", "next"] as const;
export type KmsKeyId = (typeof KEY_IDS)[number];

/** Of one history. */
export const MAX_NODES = 3;

/** After it has ended a failing probe comes within so long, when nobody needs it: 5 s and a tenth. */
const RESTING_MS = 5.5 * SECOND;
/** A well probe comes at least this often: KMS_PROBE_INTERVAL and a tenth. */
export const WELL_MS = 33 * SECOND;
/** The longest probe where Key4C hangs: describe twice, then one call more. */
const HUNG_MS = 8 * SECOND;
/** The longest where each call takes what is just allowed. */
const SLOW_MS = 25 * SECOND;
/** A refused secret is tried again after 30 s, by a probe that comes every 2 s. */
const DENIED_MS = 33 * SECOND;
/** The longest Retry-After that is obeyed, and a tenth. */
const THROTTLED_MS = 331 * SECOND;
/** Replaced material is noticed: 1.1 × interval, 10 s, and the probes. */
const MISMATCH_NOTICED_MS = 60 * SECOND;
/** As long as describe tells an older version, or a former key check value, a replica may lag (rules R11, R17). */
const OLDER_NOTICED_MS = 10 * MINUTE + MISMATCH_NOTICED_MS;
/** Another key check value counts after three describes over 10 s, of a probe that came every 2 s. */
const KCV_NOTICED_MS = 20 * SECOND;
/** A failing encrypt is tried every 30 s at last. */
const WRAP_PAUSE_MS = 33 * SECOND;

interface FaultFacts {
  /** `once`: it happens; `while`: it lasts; `for ever`: it may never end. */
  readonly lasts: "once" | "while" | "for ever";
  /** Whether one node alone can have it; `never`: it is of the whole. */
  readonly ofOneNode: "always" | "maybe" | "never";
  readonly aftermathMs: number;
  /** How often it is drawn. */
  readonly weight?: number;
}

export const FAULTS = {
  // Between the plugin and Key4C.
  refused: { lasts: "while", ofOneNode: "maybe", aftermathMs: RESTING_MS, weight: 2 },
  hangs: { lasts: "while", ofOneNode: "maybe", aftermathMs: RESTING_MS + HUNG_MS, weight: 2 },
  slow: { lasts: "while", ofOneNode: "maybe", aftermathMs: RESTING_MS + SLOW_MS },
  flaky: { lasts: "while", ofOneNode: "maybe", aftermathMs: RESTING_MS },
  status503: { lasts: "while", ofOneNode: "maybe", aftermathMs: RESTING_MS },
  gatewayPage: { lasts: "while", ofOneNode: "maybe", aftermathMs: RESTING_MS },
  foreignJson: { lasts: "while", ofOneNode: "maybe", aftermathMs: RESTING_MS },
  mangled: { lasts: "while", ofOneNode: "maybe", aftermathMs: RESTING_MS },
  throttled: { lasts: "while", ofOneNode: "maybe", aftermathMs: THROTTLED_MS },
  denied: { lasts: "while", ofOneNode: "maybe", aftermathMs: DENIED_MS },
  credentialReplacedLate: { lasts: "while", ofOneNode: "always", aftermathMs: DENIED_MS },
  wrongAddress: { lasts: "while", ofOneNode: "always", aftermathMs: RESTING_MS },
  staleReplica: { lasts: "while", ofOneNode: "never", aftermathMs: WELL_MS },
  // Replicas that disagree in the material, by request, by connection or by minute.
  splitMaterial: { lasts: "while", ofOneNode: "never", aftermathMs: MISMATCH_NOTICED_MS },
  // Rights and faults by operation, on one key.
  operationDenied: {
    lasts: "while",
    ofOneNode: "maybe",
    aftermathMs: DENIED_MS + WRAP_PAUSE_MS,
    weight: 3,
  },
  operationFails: { lasts: "while", ofOneNode: "maybe", aftermathMs: WRAP_PAUSE_MS, weight: 3 },
  keyThrottled: { lasts: "while", ofOneNode: "maybe", aftermathMs: THROTTLED_MS },
  kekFails: { lasts: "while", ofOneNode: "never", aftermathMs: RESTING_MS },
  // The HSM and its keys.
  rotated: { lasts: "once", ofOneNode: "never", aftermathMs: WELL_MS, weight: 3 },
  disabled: { lasts: "while", ofOneNode: "never", aftermathMs: RESTING_MS },
  deleted: { lasts: "while", ofOneNode: "never", aftermathMs: RESTING_MS },
  notFound: { lasts: "while", ofOneNode: "maybe", aftermathMs: RESTING_MS },
  wrongBytes: { lasts: "while", ofOneNode: "maybe", aftermathMs: RESTING_MS },
  materialReplaced: { lasts: "for ever", ofOneNode: "never", aftermathMs: MISMATCH_NOTICED_MS },
  // Another replica with other material takes over; connections that were kept lead to the former one.
  failover: { lasts: "for ever", ofOneNode: "never", aftermathMs: MISMATCH_NOTICED_MS },
  versionDestroyed: { lasts: "once", ofOneNode: "never", aftermathMs: WELL_MS, weight: 2 },
  versionBack: { lasts: "for ever", ofOneNode: "never", aftermathMs: OLDER_NOTICED_MS },
  absurdVersion: { lasts: "while", ofOneNode: "never", aftermathMs: RESTING_MS },
  // The plugin, its host and who calls it.
  pluginKilled: { lasts: "while", ofOneNode: "always", aftermathMs: RESTING_MS, weight: 3 },
  rebooted: { lasts: "while", ofOneNode: "always", aftermathMs: RESTING_MS, weight: 2 },
  pluginPaused: { lasts: "while", ofOneNode: "always", aftermathMs: RESTING_MS },
  keyUnlisted: { lasts: "while", ofOneNode: "never", aftermathMs: WELL_MS, weight: 2 },
  keyFileChanged: { lasts: "once", ofOneNode: "never", aftermathMs: WELL_MS, weight: 2 },
  wallClockJumped: { lasts: "once", ofOneNode: "never", aftermathMs: 0, weight: 2 },
  apiServerRestarted: { lasts: "once", ofOneNode: "always", aftermathMs: 0, weight: 3 },
  etcdRestored: { lasts: "once", ofOneNode: "never", aftermathMs: 0, weight: 2 },
  objectsRewritten: { lasts: "once", ofOneNode: "never", aftermathMs: 0, weight: 2 },
} as const satisfies Readonly<Record<string, FaultFacts>>;

export type FaultKind = keyof typeof FAULTS;
export const FAULT_KINDS = Object.keys(FAULTS) as readonly FaultKind[]; // the keys of the table above

/** One fault, whole: taken out of its history it leaves the others as they are. */
export interface Fault {
  readonly kind: FaultKind;
  readonly atMs: number;
  /** 0 for what happens once; infinite for what never ends. */
  readonly durationMs: number;
  /** undefined: all nodes. */
  readonly node: number | undefined;
  readonly kmsKeyId: KmsKeyId;
  /** 0 to 1: which of its forms, how much, how slow. */
  readonly variety: number;
}

export function endOf({ atMs, durationMs }: Fault): number {
  return atMs + durationMs;
}

/** Those that are of one key: nothing that is asked of another may be seen of them (rules R14, R15). */
const OF_ONE_KEY: readonly FaultKind[] = [
  ...(["operationDenied", "operationFails", "keyThrottled", "kekFails", "keyUnlisted"] as const),
  ...(["rotated", "disabled", "deleted", "notFound", "materialReplaced", "failover"] as const),
  ...(["splitMaterial", "versionDestroyed", "versionBack", "absurdVersion"] as const),
];

/** What a caller does, and the clock on the wall, hide nothing. */
const HARMLESS: readonly FaultKind[] = [
  "wallClockJumped",
  "apiServerRestarted",
  "etcdRestored",
  "objectsRewritten",
];

export function isHarmless(fault: Fault, kmsKeyId: string): boolean {
  return (
    HARMLESS.includes(fault.kind) ||
    (OF_ONE_KEY.includes(fault.kind) && fault.kmsKeyId !== kmsKeyId)
  );
}

/** Which operation a fault of one operation is about. */
export function operationOf({ variety }: Fault): "describe" | "encrypt" | "decrypt" {
  return variety < 0.3 ? "describe" : variety < 0.7 ? "encrypt" : "decrypt";
}

export function concerns(fault: Fault, node: number): boolean {
  return fault.node === undefined || fault.node === node;
}

/** They change the material, and with it the key check value; what comes back after them is a former one. */
const CHANGES_MATERIAL: readonly FaultKind[] = [
  ...(["wrongAddress", "staleReplica", "splitMaterial"] as const),
  ...(["materialReplaced", "failover", "versionBack"] as const),
];

export function aftermathMs({ kind }: Fault, { tells }: Settings): number {
  const { aftermathMs: ms } = FAULTS[kind];
  if (!tells.kcv) {
    return ms;
  }
  return CHANGES_MATERIAL.includes(kind)
    ? Math.max(ms, OLDER_NOTICED_MS)
    : kind === "rotated"
      ? ms + KCV_NOTICED_MS
      : ms;
}

/** While a fault lasts, and as long as it may be seen after its end or, where it has none, after its beginning. */
export function disturbedUntil(fault: Fault, settings: Settings): number {
  const { atMs, durationMs } = fault;
  // Once all is well again one more well probe has to come: for a rotation or a changed file meanwhile.
  return (
    atMs +
    (Number.isFinite(durationMs) ? durationMs : 0) +
    aftermathMs(fault, settings) +
    WELL_MS +
    2 * SECOND
  );
}

/** What names a key's material, and where. */
export interface Tells {
  readonly versionByDescribe: boolean;
  readonly versionByEncrypt: boolean;
  readonly kcv: boolean;
}
const VERSION: Tells = { versionByDescribe: true, versionByEncrypt: true, kcv: false };
const VERSION_AND_KCV: Tells = { ...VERSION, kcv: true };
const ONLY_KCV: Tells = { versionByDescribe: false, versionByEncrypt: false, kcv: true };
const VERSION_BY_ENCRYPT: Tells = { ...ONLY_KCV, versionByEncrypt: true, kcv: false };

export interface Settings {
  readonly seed: number;
  readonly nodes: number;
  readonly apis: readonly ("v1" | "v2")[];
  readonly tells: Tells;
  /** The secret is a PIN: HSMs lock. */
  readonly hasPin: boolean;
  readonly maxUses: number;
  readonly maxAgeMs: number;
  readonly cacheSize: number;
  readonly intervalMs: number;
  readonly outageGraceMs: number | undefined;
  readonly revocationGraceMs: number;
  /** KMS_PERSISTENT_CACHE; undefined: nothing is kept. */
  readonly keeps: Keeps | undefined;
  /** Between two writes, and two reads, of one API server. */
  readonly workEveryMs: number;
}

export interface History {
  readonly settings: Settings;
  readonly faults: readonly Fault[];
  /** When the last fault that has an end has ended. */
  readonly lengthMs: number;
}

const WEIGHTED: readonly FaultKind[] = FAULT_KINDS.flatMap((kind) => {
  const facts: FaultFacts = FAULTS[kind];
  return Array.from({ length: facts.weight ?? 1 }, () => kind);
});

/** Hours with a fault every few minutes, a day with fewer, or a week with one now and then. */
const PACES = [
  {
    upTo: 0.7,
    lengthMs: 2 * HOUR,
    everyMs: 40 * SECOND,
    longestMs: 8 * MINUTE,
    workEveryMs: 15 * SECOND,
  },
  {
    upTo: 0.9,
    lengthMs: 2 * HOUR,
    everyMs: 3 * MINUTE,
    longestMs: 15 * MINUTE,
    workEveryMs: 15 * SECOND,
  },
  {
    upTo: 0.98,
    lengthMs: 5 * HOUR,
    everyMs: 15 * MINUTE,
    longestMs: HOUR,
    workEveryMs: 30 * SECOND,
  },
  {
    upTo: 0.997,
    lengthMs: 24 * HOUR,
    everyMs: HOUR,
    longestMs: 8 * HOUR,
    workEveryMs: 5 * MINUTE,
  },
  {
    upTo: 1,
    lengthMs: 7 * 24 * HOUR,
    everyMs: 12 * HOUR,
    longestMs: 60 * HOUR,
    workEveryMs: 20 * MINUTE,
  },
] as const;

/** The history of a seed. */
export function historyOf(seed: number): History {
  const random = new Random(seed * 2_654_435_761 + 17);
  const drawn = random.next();
  const pace = PACES.find(({ upTo }) => drawn < upTo) ?? PACES[0];
  const nodes = random.chance(0.8) ? 2 : MAX_NODES;
  const apis = random.pick([["v2"], ["v2"], ["v1"], ["v1", "v2"]] as const);
  const keeps = random.pick([undefined, "in memory", "sealed"] as const);
  const maxUses = random.pick([2 ** 20, 2 ** 20, 2 ** 20, 10, 1]);
  const settings: Settings = {
    seed,
    nodes,
    apis,
    tells: random.pick([
      ...[VERSION, VERSION, VERSION_AND_KCV, VERSION_AND_KCV, VERSION_AND_KCV],
      ...[ONLY_KCV, ONLY_KCV, VERSION_BY_ENCRYPT],
    ]),
    hasPin: random.chance(0.2),
    maxUses,
    maxAgeMs: random.pick([7 * 24 * HOUR, 7 * 24 * HOUR, 20 * MINUTE]),
    cacheSize: random.pick([16_384, 16_384, 16_384, 3, 0]),
    intervalMs: 30 * SECOND,
    outageGraceMs: random.pick([undefined, undefined, 2 * MINUTE, HOUR]),
    revocationGraceMs: random.pick([MINUTE, MINUTE, MINUTE, 10 * SECOND, 0]),
    keeps: maxUses === 1 ? undefined : keeps, // config.ts refuses both
    workEveryMs: pace.workEveryMs,
  };
  const faults: Fault[] = [];
  const startMs = random.between(MINUTE, 5 * MINUTE);
  for (let atMs = startMs; atMs < pace.lengthMs; atMs += random.between(0, 2 * pace.everyMs)) {
    const drawn = random.next();
    if (drawn < 0.02) {
      faults.push(...replacedAndRestarted(random, atMs, settings, pace.longestMs));
    } else if (drawn < 0.05) {
      faults.push(...coldInAnOutage(random, atMs, settings));
    } else if (drawn < 0.07) {
      faults.push(...replacedInABurst(random, atMs, settings, pace.longestMs));
    } else if (drawn < 0.09) {
      faults.push(...revokedAmidReads(random, atMs, settings));
    } else {
      faults.push(faultOf(random, random.pick(WEIGHTED), atMs, settings, pace.longestMs));
    }
  }
  return { settings, faults, lengthMs: lengthOf(faults) };
}

export function lengthOf(faults: readonly Fault[]): number {
  return Math.max(
    5 * MINUTE,
    ...faults.map((one) => (Number.isFinite(one.durationMs) ? endOf(one) : one.atMs)),
  );
}

function faultOf(
  random: Random,
  kind: FaultKind,
  atMs: number,
  { nodes }: Settings,
  longestMs: number,
): Fault {
  const facts: FaultFacts = FAULTS[kind];
  const isOfOne =
    facts.ofOneNode === "always" || (facts.ofOneNode === "maybe" && random.chance(0.4));
  const isForEver = facts.lasts === "for ever" && random.chance(0.3);
  const lastsMs = random.logBetween(SECOND, longestMs);
  return {
    kind,
    atMs: Math.round(atMs),
    durationMs:
      facts.lasts === "once" ? 0 : isForEver ? Number.POSITIVE_INFINITY : Math.round(lastsMs),
    node: isOfOne ? random.int(nodes) : undefined,
    kmsKeyId: random.pick(["current", "current", "current", "next", "former"]),
    variety: random.next(),
  };
}

/** Material replaced, plugins restarted, API servers not: they write on under a lost seed, if nobody tells them. */
function replacedAndRestarted(
  random: Random,
  atMs: number,
  settings: Settings,
  longestMs: number,
): Fault[] {
  const replaced = faultOf(random, "materialReplaced", atMs, settings, longestMs);
  const restarts = Array.from({ length: settings.nodes }, (_, node) => ({
    ...faultOf(
      random,
      "pluginKilled",
      atMs + random.between(0, 90 * SECOND),
      settings,
      20 * SECOND,
    ),
    node,
  }));
  return [{ ...replaced, kmsKeyId: "current", durationMs: Number.POSITIVE_INFINITY }, ...restarts];
}

/** Restarted plugin and, while Key4C is away, API server: whoever lists needs what only Key4C can give. */
function coldInAnOutage(random: Random, atMs: number, settings: Settings): Fault[] {
  const node = random.int(settings.nodes);
  const away = random.pick([
    "refused",
    "hangs",
    "status503",
    "gatewayPage",
    "foreignJson",
  ] as const);
  const durationMs = Math.round(random.logBetween(5 * SECOND, 3 * MINUTE));
  const of = (kind: FaultKind, inMs: number) => ({
    ...faultOf(random, kind, atMs + inMs, settings, 2 * SECOND),
    node,
  });
  const isAwayFirst = random.chance(0.5);
  const listsMs = 10 * SECOND + durationMs * random.between(0.1, 0.8);
  return [
    of(random.pick(["pluginKilled", "rebooted"] as const), isAwayFirst ? 10 * SECOND : 0),
    { ...of(away, isAwayFirst ? 0 : 10 * SECOND), durationMs },
    of("apiServerRestarted", listsMs),
  ];
}

/**
 * Material replaced amid many writes: with KMS_LOCAL_KEK_MAX_USES=1 the next local KEK is a new one of the new, or of the
 * former, where a kept connection still leads to it.
 */
function replacedInABurst(
  random: Random,
  atMs: number,
  settings: Settings,
  longestMs: number,
): Fault[] {
  const of = (kind: FaultKind, inMs: number) =>
    faultOf(random, kind, atMs + inMs, settings, longestMs);
  const how = random.pick(["materialReplaced", "failover"] as const);
  const replaced = of(how, random.between(100, 2 * SECOND));
  return [
    of("objectsRewritten", 0),
    { ...replaced, kmsKeyId: "current", durationMs: Number.POSITIVE_INFINITY },
  ];
}

/** A cold plugin reads slowly while its key is revoked: an answer may come after the revocation. */
function revokedAmidReads(random: Random, atMs: number, settings: Settings): Fault[] {
  const node = random.int(settings.nodes);
  const of = (kind: FaultKind, inMs: number, durationMs: number) => ({
    ...faultOf(random, kind, atMs + inMs, settings, SECOND),
    durationMs,
  });
  return [
    { ...of("pluginKilled", 0, SECOND), node },
    { ...of("slow", 3 * SECOND, 20 * SECOND), node, variety: 1 },
    { ...of("apiServerRestarted", 4 * SECOND, 0), node },
    of("disabled", random.between(4 * SECOND, 8 * SECOND), 2 * MINUTE),
  ];
}
