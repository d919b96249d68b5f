import { dirname } from "node:path";
import { IN_THE_SOCKETS_DIRECTORY, isIn } from "../cache/place.ts";
import { PluginError } from "../failures/plugin-error.ts";
import { DEFAULT_PROFILE, sends } from "../key4c/profile.ts";
import { describeError, ExitError } from "../system/errors.ts";
import { ReloadedFile } from "../system/files.ts";
import { credentialFile } from "../system/systemd.ts";
import { readArguments, unknownCommand, unknownOperand } from "./arguments.ts";
import { COMMANDS, type Command, USAGE_EXIT_CODE } from "./commands.ts";
import { type ConfigFile, type Loaded, loadConfigFile } from "./config-file.ts";
import { KeyPair } from "./key-pair.ts";
import { OPTIONS, type Option } from "./options.ts";

type OptionName = keyof typeof OPTIONS;

/** The parsed values of a command's options; undefined where there is neither a value nor a default. */
export type Config = {
  readonly [N in OptionName]: ReturnType<(typeof OPTIONS)[N]["parse"]> | undefined;
} & {
  /** certFile and certKeyFile. */
  readonly clientCertificate?: KeyPair | undefined;
  /** tlsCertFile and tlsKeyFile. */
  readonly serverCertificate?: KeyPair | undefined;
};

export interface CommandLine {
  readonly command: Command;
  readonly config: Config;
  /** The word behind `manifest`, `emulator` or `help`. */
  readonly operand: string | undefined;
  /** The word behind `manifest profile`. */
  readonly detail: string | undefined;
  /** The texts that were given, not defaults, by environment name. */
  readonly given: ReadonlyMap<string, string>;
  /** Where each of them came from, in words. */
  readonly origins: ReadonlyMap<string, string>;
  /** What was given and where, one line each; secrets only by name. */
  readonly sources: readonly string[];
  /** One line each; empty but for `doctor`, which reports them. */
  readonly problems: readonly string[];
  /** Likewise, for every command: nothing is wrong, and something may be missed. */
  readonly warnings: readonly string[];
  /** undefined: there is none. */
  readonly configFile?: ConfigFile | undefined;
}

/** The text of an option, and where it came from. */
interface Given {
  readonly text: string;
  readonly origin: string;
}

export const COMMAND_LINE = "the command line";
const ENVIRONMENT = "the environment";

export type Environment = Readonly<Record<string, string | undefined>>;

export const OPTION_LIST = Object.entries<Option>(OPTIONS) as [OptionName, Option][]; // OPTIONS has no other keys

/**
 * The options of a command. What checks or prepares a serve takes all that serve may find in its
 * environment.
 */
export function optionsOf(command: Command): readonly (readonly [OptionName, Option])[] {
  const takesThoseOfServe = ["doctor", "manifest", "install"].includes(command);
  return OPTION_LIST.filter(
    ([, { commands, env }]) =>
      commands.includes(command) ||
      (takesThoseOfServe && env !== undefined && commands.includes("serve")),
  );
}

/** What is looked up on this machine. `manifest` is for another one, and takes the text as it is. */
const LOCAL_VALUES: readonly (string | undefined)[] = ["FILE", "GROUP"];

/**
 * Reads the command, its flags, the environment and the settings file, of which the first that names an option, or
 * its file, wins. An empty environment value counts as unset.
 * @param argv without the names of runtime and script
 * @param defaultConfigFile read where it is there; undefined: none but the one that is named
 * @throws ExitError 2 with one line for each problem, and one that says where to read on
 */
export function parseCommandLine(
  argv: readonly string[],
  env: Environment,
  defaultConfigFile?: string | ConfigFile,
): CommandLine {
  const named = argv[0] !== undefined && !argv[0].startsWith("-") ? argv[0] : undefined;
  const command = COMMANDS.find((one) => one === (named ?? "serve"));
  if (command === undefined) {
    throw usageError([unknownCommand(named ?? "")], "help");
  }
  if (argv.includes("--help") || argv.includes("-h")) {
    return emptyCommandLine("help", named);
  }
  if (argv.includes("--version")) {
    return emptyCommandLine("version");
  }
  const own = optionsOf(command);
  const problems: string[] = [];
  const words = argv.slice(named === undefined ? 0 : 1);
  const { flags, operands } = readArguments(words, command, own, OPTION_LIST, problems);
  const [operand, detail] = operands;
  problems.push(...unknownOperand(operand, command));
  const { file, warnings, ...loaded } = settingsFile(
    own,
    flags.get("config"),
    env,
    defaultConfigFile,
  );
  problems.push(...loaded.problems);
  const sources: readonly (readonly [string, (name: OptionName) => string | undefined])[] = [
    [COMMAND_LINE, (name) => flags.get(name)],
    [ENVIRONMENT, (name) => env[OPTIONS[name].env ?? ""] || undefined],
    ["a credential of systemd", (name) => credentialOf(OPTIONS[name], env, command)],
    [file?.path ?? "", (name) => file?.settings.get(OPTIONS[name].env ?? "") || undefined],
  ];
  const lookUp = (name: OptionName): Given | undefined => {
    const twin = TWINS.get(name);
    for (const [origin, textOf] of sources) {
      const text = textOf(name);
      if (text !== undefined || (twin !== undefined && textOf(twin) !== undefined)) {
        return text === undefined ? undefined : { text, origin };
      }
    }
    return undefined;
  };
  const config: Partial<Record<keyof Config, unknown>> = {};
  const given = new Map<OptionName, Given>();
  for (const [name, option] of own) {
    const found = lookUp(name);
    if (found !== undefined) {
      given.set(name, found);
    }
    const value = found?.text ?? option.default;
    if (value === undefined) {
      continue;
    }
    try {
      const isElsewhere = command === "manifest" && LOCAL_VALUES.includes(option.value);
      config[name] = isElsewhere ? value : option.parse(value);
    } catch (error) {
      const isTyped = found === undefined || found.origin === COMMAND_LINE;
      const origin = isTyped ? "" : ` (from ${found.origin})`;
      problems.push(`${optionLabel(option)} ${(error as Error).message}${origin}`); // parse throws Errors
    }
  }
  for (const [name, ...files] of KEY_PAIRS) {
    config[name] = keyPair(config, files, problems);
  }
  problems.push(...missingOrConflicting(command, config as Config, given, env, file)); // filled just above
  if (problems.length > 0 && command !== "doctor") {
    throw usageError([...warnings, ...problems], command);
  }
  return {
    command,
    config: Object.freeze(config) as Config,
    operand,
    detail,
    given: byEnvironmentName(given, ({ text }) => text),
    origins: byEnvironmentName(given, ({ origin }) => origin),
    sources: own.flatMap(([name, option]) => {
      const found = given.get(name);
      return found === undefined || name === "config" ? [] : [sourceOf(option, found)];
    }),
    problems,
    warnings,
    configFile: file,
  };
}

/** Of X that of X_FILE, and the other way round. */
const TWINS: ReadonlyMap<OptionName, OptionName> = new Map(
  OPTION_LIST.flatMap(([name, { env }]) => {
    const twin = OPTION_LIST.find(([, other]) => env !== undefined && other.env === `${env}_FILE`);
    return twin === undefined ? [] : [[name, twin[0]] as const, [twin[0], name] as const];
  }),
);

/** The settings file, for a command that takes one. @param fallback its path, or itself */
function settingsFile(
  own: readonly (readonly [OptionName, Option])[],
  flag: string | undefined,
  env: Environment,
  fallback: string | ConfigFile | undefined,
): Loaded {
  if (!own.some(([name]) => name === "config")) {
    return { problems: [], warnings: [] };
  }
  return typeof fallback === "object"
    ? { file: fallback, problems: [], warnings: [] }
    : loadConfigFile(flag, env, fallback);
}

const KEY_PAIRS = [
  ["clientCertificate", "certFile", "certKeyFile"],
  ["serverCertificate", "tlsCertFile", "tlsKeyFile"],
] as const;

function keyPair(
  config: Partial<Record<OptionName, unknown>>,
  files: readonly [certificate: OptionName, key: OptionName],
  problems: string[],
): KeyPair | undefined {
  const [certificate, key] = files.map((name) => config[name]);
  if (!(certificate instanceof ReloadedFile && key instanceof ReloadedFile)) {
    return undefined;
  }
  try {
    return new KeyPair(certificate, key);
  } catch (error) {
    problems.push(`${labels(...files)} do not fit: ${describeError(error)}`);
    return undefined;
  }
}

function usageError(problems: readonly string[], command: Command): ExitError {
  const more = `see: key4c-kms-plugin help${command === "help" ? "" : ` ${command}`}`;
  return new ExitError(USAGE_EXIT_CODE, [...problems, more].join("\n"));
}

function sourceOf({ env, flag, value }: Option, { text, origin }: Given): string {
  if (origin === COMMAND_LINE) {
    return value === undefined ? `--${flag}` : `--${flag} ${text}`;
  }
  const where = origin.replace(/^the /, "");
  return flag === undefined ? `${env} (${where})` : `${env}=${text} (${where})`;
}

/** What a credential of systemd says of an option: its path is not the same at each start. */
function credentialOf({ env, value }: Option, from: Environment, command: Command) {
  return env !== undefined && value === "FILE" && command !== "manifest"
    ? credentialFile(from, credentialName(env))
    : undefined;
}

/** The credential (LoadCredential=) that stands for a file option: `KMS_USER_ID_FILE` → `kms-user-id`. */
export function credentialName(env: string): string {
  return env
    .replace(/_FILE$/, "")
    .toLowerCase()
    .replaceAll("_", "-");
}

function byEnvironmentName(
  given: ReadonlyMap<OptionName, Given>,
  told: (one: Given) => string,
): ReadonlyMap<string, string> {
  return new Map(
    [...given].flatMap(([name, one]) => {
      const { env } = OPTIONS[name];
      return env === undefined ? [] : [[env, told(one)] as const];
    }),
  );
}

function emptyCommandLine(command: Command, operand?: string): CommandLine {
  const config = {} as Config; // no option applies
  const none = { given: new Map(), origins: new Map(), sources: [], problems: [], warnings: [] };
  return { command, config, operand, detail: undefined, ...none };
}

/** A unit whose LoadCredential= did nothing. */
function hintOf(env: Environment): string {
  const isOld = env["NOTIFY_SOCKET"] !== undefined && env["CREDENTIALS_DIRECTORY"] === undefined;
  return isOld
    ? "; systemd below 247 ignores LoadCredential=: see manifest systemd-service --environment-file"
    : "";
}

/** What no single option can see. An option that was given but is malformed counts as given. */
function missingOrConflicting(
  command: Command,
  config: Config,
  given: ReadonlyMap<OptionName, Given>,
  env: Environment,
  file: ConfigFile | undefined,
): string[] {
  const problems: string[] = [];
  const need = (names: readonly OptionName[], text: string) => {
    if (names.every((name) => !given.has(name))) {
      problems.push(
        file === undefined || file.settings.size === 0 ? text : `${text} (${file.path} has none)`,
      );
    }
  };
  const notBoth = (one: OptionName, other: OptionName) => {
    if (given.has(one) && given.has(other)) {
      problems.push(`${labels(one, other)}: give one of them`);
    }
  };
  const bothOrNone = (one: OptionName, other: OptionName) => {
    if (given.has(one) !== given.has(other)) {
      problems.push(`${labels(one, other)}: give both or none`);
    }
  };
  const asksKey4C = given.has("decrypt") || given.has("verify");
  const reachesKey4C =
    ["serve", "doctor", "install"].includes(command) || (command === "inspect" && asksKey4C);
  if (reachesKey4C) {
    const profile = given.has("profile") ? config.profile : DEFAULT_PROFILE;
    if (!given.has("emulator")) {
      const demo = command === "serve" ? "; or try --emulator" : "";
      need(["key4cUrl"], `KEY4C_URL (--key4c-url) is missing: the address of Key4C${demo}`);
      need(
        ["kmsKeyId", "kmsKeyIdFile"],
        `KMS_KEY_ID (--key-id) is missing: the ID of the Key4C key${demo}`,
      );
      // install may be given it on standard input
      if (command !== "install" && profile !== undefined && sends(profile, "userId")) {
        need(
          ["kmsUserId", "kmsUserIdFile"],
          `KMS_USER_ID or KMS_USER_ID_FILE (--user-id-file) is missing: the ID of the Key4C token${hintOf(env)}`,
        );
      }
      if (profile !== undefined && sends(profile, "pin")) {
        need(
          ["kmsPin", "kmsPinFile"],
          "KMS_PIN or KMS_PIN_FILE (--pin-file) is missing: the profile (KEY4C_PROFILE) sends {pin}",
        );
      }
    } else {
      for (const name of ["key4cUrl", "profile", "caFile", "certFile"] as const) {
        notBoth("emulator", name);
      }
    }
    for (const name of ["emulatorData", "emulatorControl"] as const) {
      if (given.has(name) && !given.has("emulator")) {
        problems.push(`${optionLabel(OPTIONS[name])} is of use only with --emulator`);
      }
    }
    notBoth("kmsUserId", "kmsUserIdFile");
    notBoth("kmsApiKey", "kmsApiKeyFile");
    notBoth("kmsPin", "kmsPinFile");
    if ((given.has("kmsPin") || given.has("kmsPinFile")) && profile && !sends(profile, "pin")) {
      problems.push(
        "KMS_PIN is set, and the profile (KEY4C_PROFILE) has no {pin} that would send it",
      );
    }
  }
  if (command === "forget") {
    need(["persistentCache"], "KMS_PERSISTENT_CACHE (--persistent-cache) is missing");
  }
  if (command === "inspect") {
    notBoth("decrypt", "verify");
  }
  // A manifest must not print what serve would refuse. (A secret that it finds beside its file it leaves out.)
  if (reachesKey4C || command === "manifest") {
    notBoth("kmsKeyId", "kmsKeyIdFile");
    notBoth("previousKeyIds", "previousKeyIdsFile");
    bothOrNone("certFile", "certKeyFile");
  }
  if (command === "serve" || command === "doctor" || command === "manifest") {
    problems.push(...problemsOfPersistentCache(config));
  }
  if (command === "emulator") {
    bothOrNone("tlsCertFile", "tlsKeyFile");
  }
  return problems;
}

function problemsOfPersistentCache(config: Config): string[] {
  const { persistentCache, persistentCacheKeyFile, kmsEndpoint, localKekMaxUses } = config;
  if (persistentCache === undefined) {
    return persistentCacheKeyFile === undefined
      ? []
      : ["KMS_PERSISTENT_CACHE_KEY_FILE is of use only with KMS_PERSISTENT_CACHE"];
  }
  const problems: string[] = [];
  if (kmsEndpoint !== undefined && isIn(persistentCache, dirname(kmsEndpoint))) {
    problems.push(`KMS_PERSISTENT_CACHE ${IN_THE_SOCKETS_DIRECTORY}`);
  }
  if (persistentCacheKeyFile !== undefined && isIn(persistentCacheKeyFile, persistentCache)) {
    problems.push(
      "KMS_PERSISTENT_CACHE_KEY_FILE must not lie in KMS_PERSISTENT_CACHE: whoever copied the one would have the other",
    );
  }
  if (localKekMaxUses === 1) {
    problems.push(
      "KMS_PERSISTENT_CACHE and KMS_LOCAL_KEK_MAX_USES=1 contradict each other: the one does without Key4C, the other asks it for every DEK",
    );
  }
  return problems;
}

/** KMS_KEY_ID, from its file where that is named: asked anew, for the file may change. */
export function keyIdOf({ kmsKeyId, kmsKeyIdFile }: Config): string | undefined {
  return kmsKeyIdFile?.current ?? kmsKeyId;
}

/**
 * KMS_PREVIOUS_KEY_IDS, likewise, without the key that wraps. While a key is changed both lists name both keys, and a
 * plugin that restarts then, with its node perhaps, must start.
 */
export function previousKeyIdsOf(config: Config): readonly string[] {
  const current = keyIdOf(config);
  const all = config.previousKeyIdsFile?.current ?? config.previousKeyIds ?? [];
  return all.filter((id) => id !== current);
}

/** An option that has a default, or that parseCommandLine has insisted on. */
export function required<T>(value: T | undefined): T {
  if (value === undefined) {
    throw new PluginError("internal", "an option without a value reached its use");
  }
  return value;
}

export function helpOf({ help }: Option, command: Command): string {
  return typeof help === "string" ? help : (help[command] ?? help.serve ?? "");
}

function labels(...names: readonly OptionName[]): string {
  return names.map((name) => optionLabel(OPTIONS[name])).join(" and ");
}

/** Both names of an option: `KMS_KEY_ID (--key-id)`. */
function optionLabel({ env, flag }: Option): string {
  if (env === undefined) {
    return `--${flag}`;
  }
  return flag === undefined ? env : `${env} (--${flag})`;
}
