import { version as VERSION } from "../../package.json";
import { parseProfile } from "../key4c/profile.ts";
import { readSmallFile } from "../system/files.ts";
import { LOG_FORMATS, LOG_LEVELS } from "../system/log.ts";
import type { Command } from "./commands.ts";
import {
  absolutePath,
  certificates,
  directoryUrl,
  duration,
  group,
  httpAddress,
  imageReference,
  integer,
  keyId,
  keyIdFile,
  keyIds,
  keyIdsFile,
  labelName,
  labelValue,
  loopbackAddress,
  NAMED_UNITS_MS,
  oneOf,
  parsePin,
  parseSecret,
  podName,
  previousKeyIds,
  privateKey,
  providerName,
  secretFile,
  serviceUrl,
  socketMode,
  unixEndpoint,
} from "./option-types.ts";
import table from "./options.json";

/** Under which headings help and REFERENCE.md show options, in this order. */
export const GROUPS = {
  own: "Options",
  key4c: "Key4C",
  key: "Key",
  socket: "Socket",
  localKek: "Local KEK",
  outage: "Probe, outage and revocation",
  cache: "Persistent cache",
  http: "HTTP",
  log: "Log",
  emulator: "Emulator",
} as const;
export type Group = keyof typeof GROUPS;

/** One row of the table: everything that is known about one option. */
export interface Option<T = unknown> {
  /** Environment name; undefined for what only makes sense as a flag. */
  readonly env?: string;
  /** Flag without its dashes; undefined for secrets, which argv would show to every user. */
  readonly flag?: string;
  readonly commands: readonly Command[];
  /** undefined: `own`. */
  readonly group?: Group;
  /** What stands for the value in help, such as `DURATION`; undefined for a switch. */
  readonly value?: string;
  /** Shown, and parsed like any input; undefined when there is none. */
  readonly default?: string;
  /** What it does; by command where that differs. */
  readonly help: string | { readonly [C in Command]?: string };
  /** @throws Error whose message completes "NAME …", never with a secret */
  readonly parse: (text: string) => T;
}

const text = (value: string) => value;
const yes = () => true;

const MAX_DURATION_MS = 365 * NAMED_UNITS_MS.d;

const FACTS = {
  ...table,
  image: { ...table.image, default: `localhost/key4c-kms-plugin:${VERSION}` },
};

/** From the text of an option to its value. */
const PARSERS = {
  config: text,
  kmsEndpoint: unixEndpoint,
  key4cUrl: serviceUrl,
  kmsKeyId: keyId,
  kmsKeyIdFile: keyIdFile,
  previousKeyIds,
  previousKeyIdsFile: keyIdsFile,
  kmsUserId: parseSecret,
  kmsUserIdFile: secretFile,
  kmsApiKey: parseSecret,
  kmsApiKeyFile: secretFile,
  kmsPin: parsePin,
  kmsPinFile: (path: string) => secretFile(path, parsePin),
  profile: (path: string) => parseProfile(readSmallFile(path)),
  caFile: certificates,
  certFile: certificates,
  certKeyFile: privateKey,
  socketMode,
  socketGroup: group,
  localKekMaxUses: integer(1, 2 ** 32),
  localKekMaxAge: duration(NAMED_UNITS_MS.m, MAX_DURATION_MS),
  localKekCacheSize: integer(0, 2 ** 20),
  probeInterval: duration(100, NAMED_UNITS_MS.h),
  outageGrace: duration(0, MAX_DURATION_MS),
  revocationGrace: duration(0, NAMED_UNITS_MS.h),
  persistentCache: absolutePath,
  // Not read here: without it the plugin must start.
  persistentCacheKeyFile: text,
  persistentCacheMaxAge: duration(NAMED_UNITS_MS.m, MAX_DURATION_MS),
  httpAddress,
  logLevel: oneOf(LOG_LEVELS),
  logFormat: oneOf(LOG_FORMATS),
  emulator: yes,
  emulatorData: text,
  emulatorControl: yes,
  listen: loopbackAddress,
  emulatorKeyIds: keyIds,
  data: text,
  tlsCertFile: certificates,
  tlsKeyFile: privateKey,
  control: yes,
  api: oneOf(["v1", "v2"]),
  etcdKey: text,
  current: text,
  stale: yes,
  json: yes,
  decrypt: yes,
  verify: yes,
  encryptionConfiguration: text,
  kubeApiserver: text,
  profileCheck: yes,
  migrated: yes,
  providerName,
  image: imageReference,
  podName,
  runAsUser: integer(0, 2 ** 31 - 1),
  binary: absolutePath,
  licences: yes,
  live: yes,
  environmentFile: absolutePath,
  kubeadmApi: oneOf(["v1beta3", "v1beta4"]),
  output: text,
  identityFirst: yes,
  as: oneOf(["static-pod", "systemd"]),
  dryRun: yes,
  controlPlanes: oneOf(["one", "several"]),
  force: yes,
  clusterLabel: labelName,
  clusterName: labelValue,
  instance: labelValue,
  runbookUrl: directoryUrl,
  wait: duration(0, NAMED_UNITS_MS.h),
};

/**
 * The options of all commands. Help, REFERENCE.md and the parser are made from this table: its words are in options.json,
 * and a test holds them to {@link Option}.
 */
export const OPTIONS = Object.fromEntries<unknown>(
  Object.entries(FACTS).map(([name, row]) => [
    name,
    { ...row, parse: PARSERS[name as keyof typeof FACTS] }, // FACTS has no other keys
  ]),
) as { readonly [N in keyof typeof FACTS]: Option<ReturnType<(typeof PARSERS)[N]>> };
