import { PluginError } from "../failures/plugin-error.ts";
import { DEFAULT_PROFILE, sends } from "../key4c/profile.ts";
import { ExitError } from "../system/errors.ts";
import { credentialFile } from "../system/systemd.ts";
import { readArguments, unknownCommand, unknownOperand } from "./arguments.ts";
import { COMMANDS, type Command, USAGE_EXIT_CODE } from "./commands.ts";
import { fitTogether } from "./option-types.ts";
import { OPTIONS, type Option } from "./options.ts";

type OptionName = keyof typeof OPTIONS;

/** The parsed values of a command's options; undefined where there is neither a value nor a default. */
export type Config = {
  readonly [N in OptionName]: ReturnType<(typeof OPTIONS)[N]["parse"]> | undefined;
};

export interface CommandLine {
  readonly command: Command;
  readonly config: Config;
  /** The word behind `manifest`, `emulator` or `help`. */
  readonly operand: string | undefined;
  /** The texts that were given, not defaults, by environment name. */
  readonly given: ReadonlyMap<string, string>;
  /** What was given and where, one line each; secrets only by name. */
  readonly sources: readonly string[];
  /** One line each; empty but for `doctor`, which reports them. */
  readonly problems: readonly string[];
}

export type Environment = Readonly<Record<string, string | undefined>>;

export const OPTION_LIST: readonly (readonly [OptionName, Option])[] = Object.entries(OPTIONS) as [
  OptionName,
  Option,
][]; // OPTIONS has no other keys than OptionName

/**
 * The options of a command. What checks or prepares a serve takes all that serve may find in its
 * environment.
 */
export function optionsOf(command: Command): readonly (readonly [OptionName, Option])[] {
  const takesThoseOfServe = command === "doctor" || command === "manifest";
  return OPTION_LIST.filter(
    ([, { commands, env }]) =>
      commands.includes(command) ||
      (takesThoseOfServe && env !== undefined && commands.includes("serve")),
  );
}

/** What is looked up on this machine. `manifest` is for another one, and takes the text as it is. */
const LOCAL_VALUES: readonly (string | undefined)[] = ["FILE", "GROUP"];

/**
 * Reads the command, its flags and the environment. A flag wins over its environment name, and an empty
 * environment value counts as unset.
 * @param argv without the names of runtime and script
 * @throws ExitError 2 with one line for each problem, and one that says where to read on
 */
export function parseCommandLine(argv: readonly string[], env: Environment): CommandLine {
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
  const operand = operands[0];
  problems.push(...unknownOperand(operand, command));
  const config: Partial<Record<OptionName, unknown>> = {};
  const given = new Map<OptionName, string>();
  for (const [name, option] of own) {
    const text = flags.get(name) ?? textOf(option, env, command);
    if (text !== undefined) {
      given.set(name, text);
    }
    const value = text ?? option.default;
    if (value === undefined) {
      continue;
    }
    try {
      const isElsewhere = command === "manifest" && LOCAL_VALUES.includes(option.value);
      config[name] = isElsewhere ? value : option.parse(value);
    } catch (error) {
      problems.push(`${optionLabel(option)} ${(error as Error).message}`); // parse throws Errors
    }
  }
  problems.push(...missingOrConflicting(command, config as Config, given, env)); // filled just above
  if (problems.length > 0 && command !== "doctor") {
    throw usageError(problems, command);
  }
  return {
    command,
    config: Object.freeze(config) as Config,
    operand,
    given: byEnvironmentName(given),
    sources: own.flatMap(([name, option]) => {
      const text = given.get(name);
      return text === undefined ? [] : [sourceOf(option, text, flags.has(name))];
    }),
    problems,
  };
}

function usageError(problems: readonly string[], command: Command): ExitError {
  const more = `see: key4c-kms-plugin help${command === "help" ? "" : ` ${command}`}`;
  return new ExitError(USAGE_EXIT_CODE, [...problems, more].join("\n"));
}

function sourceOf({ env, flag, value }: Option, text: string, isFlag: boolean): string {
  if (isFlag) {
    return value === undefined ? `--${flag}` : `--${flag} ${text}`;
  }
  return flag === undefined ? `${env} (environment)` : `${env}=${text} (environment)`;
}

/** What the environment, or else a credential of systemd, says of an option. */
function textOf({ env, value }: Option, from: Environment, command: Command) {
  if (env === undefined) {
    return undefined;
  }
  const variable = from[env];
  if (variable !== undefined && variable !== "") {
    return variable;
  }
  return value === "FILE" && command !== "manifest"
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

function byEnvironmentName(given: ReadonlyMap<OptionName, string>): ReadonlyMap<string, string> {
  return new Map(
    [...given].flatMap(([name, text]) => {
      const { env }: Option = OPTIONS[name];
      return env === undefined ? [] : [[env, text] as const];
    }),
  );
}

function emptyCommandLine(command: Command, operand?: string): CommandLine {
  const config = {} as Config; // no option applies
  return { command, config, operand, given: new Map(), sources: [], problems: [] };
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
  given: ReadonlyMap<OptionName, string>,
  env: Environment,
): string[] {
  const problems: string[] = [];
  const need = (names: readonly OptionName[], text: string) => {
    if (names.every((name) => !given.has(name))) {
      problems.push(text);
    }
  };
  const notBoth = (one: OptionName, other: OptionName) => {
    if (given.has(one) && given.has(other)) {
      problems.push(
        `${optionLabel(OPTIONS[one])} and ${optionLabel(OPTIONS[other])}: give one of them`,
      );
    }
  };
  const bothOrNone = (one: OptionName, other: OptionName) => {
    if (!given.has(one) !== !given.has(other)) {
      problems.push(
        `${optionLabel(OPTIONS[one])} and ${optionLabel(OPTIONS[other])}: give both or none`,
      );
    }
  };
  const mustFit = (certificate: "certFile" | "tlsCertFile", key: "certKeyFile" | "tlsKeyFile") => {
    const pair = [config[certificate], config[key]] as const;
    const fits = pair[0] && pair[1] ? fitTogether(pair[0].current, pair[1].current) : true;
    if (fits !== true) {
      const why =
        fits === false ? "is not the key of that certificate" : "cannot be read: is it encrypted?";
      problems.push(
        `${optionLabel(OPTIONS[certificate])} and ${optionLabel(OPTIONS[key])} do not fit: ${pair[1]?.path} ${why}`,
      );
    }
  };
  const asksKey4C = given.has("decrypt") || given.has("verify");
  const reachesKey4C =
    command === "serve" || command === "doctor" || (command === "inspect" && asksKey4C);
  if (reachesKey4C) {
    if (!given.has("emulator")) {
      const demo = command === "serve" ? "; or try --emulator" : "";
      need(["key4cUrl"], `KEY4C_URL (--key4c-url) is missing: the address of Key4C${demo}`);
      need(
        ["kmsKeyId", "kmsKeyIdFile"],
        `KMS_KEY_ID (--key-id) is missing: the ID of the Key4C key${demo}`,
      );
      need(
        ["kmsUserId", "kmsUserIdFile"],
        `KMS_USER_ID or KMS_USER_ID_FILE (--user-id-file) is missing: the ID of the Key4C token${hintOf(env)}`,
      );
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
    const profile = given.has("profile") ? config.profile : DEFAULT_PROFILE;
    if ((given.has("kmsPin") || given.has("kmsPinFile")) && profile && !sends(profile, "pin")) {
      problems.push(
        "KMS_PIN is set, and the profile (KEY4C_PROFILE) has no {pin} that would send it",
      );
    }
    mustFit("certFile", "certKeyFile");
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
  if (command === "emulator") {
    bothOrNone("tlsCertFile", "tlsKeyFile");
    mustFit("tlsCertFile", "tlsKeyFile");
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

/** What an option of a command does. */
export function helpOf({ help }: Option, command: Command): string {
  return typeof help === "string" ? help : (help[command] ?? help.serve ?? "");
}

/** Both names of an option: `KMS_KEY_ID (--key-id)`. */
export function optionLabel({ env, flag }: Option): string {
  if (env === undefined) {
    return `--${flag}`;
  }
  return flag === undefined ? env : `${env} (--${flag})`;
}
