import { parseArgs } from "node:util";
import { ExitError, PluginError } from "./errors.ts";
import { COMMANDS, type Command, OPTIONS, type Option } from "./options.ts";

type OptionName = keyof typeof OPTIONS;

/** The parsed values of a command's options; undefined where there is neither a value nor a default. */
export type Config = {
  readonly [N in OptionName]: ReturnType<(typeof OPTIONS)[N]["parse"]> | undefined;
};

export interface CommandLine {
  readonly command: Command;
  readonly config: Config;
}

export type Environment = Readonly<Record<string, string | undefined>>;

const OPTION_LIST: readonly (readonly [OptionName, Option])[] = Object.entries(OPTIONS) as [
  OptionName,
  Option,
][]; // OPTIONS has no other keys than OptionName

/**
 * Reads the command, its flags and the environment. A flag wins over its environment name, and an empty
 * environment value counts as unset.
 * @param argv without the names of runtime and script
 * @throws ExitError 2 with one line for each problem
 */
export function parseCommandLine(argv: readonly string[], env: Environment): CommandLine {
  if (argv.includes("--help") || argv.includes("-h") || argv[0] === "help") {
    return emptyCommandLine("help");
  }
  if (argv.includes("--version") || argv[0] === "version") {
    return emptyCommandLine("version");
  }
  const named = argv[0] !== undefined && !argv[0].startsWith("-") ? argv[0] : undefined;
  const command = COMMANDS.find((one) => one === (named ?? "serve"));
  if (command === undefined) {
    throw new ExitError(2, `unknown command "${named}"; commands are ${COMMANDS.join(", ")}`);
  }
  const own = OPTION_LIST.filter(([, option]) => option.commands.includes(command));
  const problems: string[] = [];
  const flags = readFlags(argv.slice(named === undefined ? 0 : 1), own, problems);
  const config: Partial<Record<OptionName, unknown>> = {};
  const given = new Set<OptionName>();
  for (const [name, option] of own) {
    const flag = flags.get(name);
    const variable = option.env === undefined ? undefined : env[option.env];
    const isUnset = variable === "" && option.emptyIsValue !== true;
    const text = flag ?? (isUnset ? undefined : variable) ?? option.default;
    if (text === undefined) {
      continue;
    }
    given.add(name);
    try {
      config[name] = option.parse(text);
    } catch (error) {
      problems.push(`${optionLabel(option)} ${(error as Error).message}`); // parse throws Errors
    }
  }
  problems.push(...missingOrConflicting(command, config as Config, given)); // filled just above
  if (problems.length > 0) {
    throw new ExitError(2, problems.join("\n"));
  }
  return { command, config: Object.freeze(config) as Config };
}

function emptyCommandLine(command: Command): CommandLine {
  return { command, config: {} as Config }; // no option applies
}

function readFlags(
  argv: readonly string[],
  own: readonly (readonly [OptionName, Option])[],
  problems: string[],
): Map<OptionName, string> {
  const options = Object.fromEntries(
    own.flatMap(([, { flag, value }]) =>
      flag === undefined ? [] : [[flag, { type: value === undefined ? "boolean" : "string" }]],
    ),
  ) as Record<string, { type: "boolean" | "string" }>; // fromEntries widens the two literals
  // Not strict: parseArgs would stop at the first problem, and we name all of them.
  const { tokens } = parseArgs({ args: [...argv], options, strict: false, tokens: true });
  const flags = new Map<OptionName, string>();
  for (const token of tokens) {
    if (token.kind === "positional") {
      problems.push(`unexpected argument "${token.value}"`);
    } else if (token.kind === "option") {
      const found = own.find(([, { flag }]) => flag === token.name);
      if (found === undefined) {
        problems.push(`unknown option ${token.rawName}`);
      } else if (found[1].value !== undefined && token.value === undefined) {
        problems.push(`${token.rawName} needs a value: ${found[1].value}`);
      } else if (found[1].value === undefined && token.value !== undefined) {
        problems.push(`${token.rawName} takes no value`);
      } else {
        flags.set(found[0], token.value ?? "");
      }
    }
  }
  return flags;
}

/** What no single option can see. An option that was given but is malformed counts as given. */
function missingOrConflicting(
  command: Command,
  config: Config,
  given: ReadonlySet<OptionName>,
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
  if (command === "serve" || (command === "inspect" && given.has("decrypt"))) {
    if (!given.has("emulator")) {
      const demo = command === "serve" ? "; or try --emulator" : "";
      need(["key4cUrl"], `KEY4C_URL (--key4c-url) is missing: the address of Key4C${demo}`);
      need(["kmsKeyId"], `KMS_KEY_ID (--key-id) is missing: the ID of the Key4C key${demo}`);
      need(
        ["kmsUserId", "kmsUserIdFile"],
        "KMS_USER_ID or KMS_USER_ID_FILE (--user-id-file) is missing: the ID of the Key4C token",
      );
    } else {
      for (const name of ["key4cUrl", "profile", "caFile", "certFile"] as const) {
        notBoth("emulator", name);
      }
    }
    if (given.has("emulatorData") && !given.has("emulator")) {
      problems.push("--emulator-data is of use only with --emulator");
    }
    notBoth("kmsUserId", "kmsUserIdFile");
    notBoth("kmsApiKey", "kmsApiKeyFile");
    bothOrNone("certFile", "certKeyFile");
    if (config.kmsKeyId !== undefined && config.previousKeyIds?.includes(config.kmsKeyId)) {
      problems.push("KMS_PREVIOUS_KEY_IDS (--previous-key-ids) must not name KMS_KEY_ID itself");
    }
  }
  if (command === "emulator") {
    bothOrNone("tlsCertFile", "tlsKeyFile");
  }
  return problems;
}

/** An option that has a default, or that parseCommandLine has insisted on. */
export function required<T>(value: T | undefined): T {
  if (value === undefined) {
    throw new PluginError("internal", "an option without a value reached its use");
  }
  return value;
}

/** Both names of an option: `KMS_KEY_ID (--key-id)`. */
export function optionLabel({ env, flag }: Option): string {
  if (env === undefined) {
    return `--${flag}`;
  }
  return flag === undefined ? env : `${env} (--${flag})`;
}

const COMMAND_HELP: Readonly<Record<Command, string>> = {
  serve: "serve both KMS APIs on a unix socket (the default command)",
  emulator: "run a Key4C for demos and tests on a loopback address",
  status: "ask a running plugin for its status; exit code 0 only if it is ok",
  encrypt: "wrap standard input through a running plugin",
  inspect: "tell of values of etcd on standard input under which key they are",
  decrypt: "unwrap standard input, as encrypt wrote it, through a running plugin",
  version: "print the version",
  help: "print this help",
};

/** The text of `--help`. */
export function helpText(version: string): string {
  const lines = [
    `key4c-kms-plugin ${version}: the Kubernetes KMS provider for Key4C`,
    "",
    "Usage: key4c-kms-plugin [COMMAND] [OPTION…]",
    "",
    "Commands:",
    ...COMMANDS.map((command) => `  ${command.padEnd(10)}${COMMAND_HELP[command]}`),
  ];
  for (const command of COMMANDS) {
    const own = OPTION_LIST.filter(([, option]) => option.commands.includes(command));
    if (own.length > 0) {
      lines.push("", `Options of ${command}:`);
    }
    for (const [, { env, flag, value, default: fallback, help }] of own) {
      const names = [flag && `--${flag}${value ? ` ${value}` : ""}`, env].filter(Boolean);
      lines.push(
        `  ${names.join(", ")}`,
        `      ${help}${fallback === undefined ? "" : ` (default: ${fallback})`}`,
      );
    }
  }
  return `${lines.join("\n")}\n`;
}

/** The table of options in the README, in Markdown; a test keeps the two equal. */
export function optionsTable(): string {
  const rows = OPTION_LIST.map(([, { env, flag, value, default: fallback, help, commands }]) => {
    const name = env === undefined ? "" : `\`${env}\``;
    const shown = flag === undefined ? "" : `\`--${flag}${value ? ` ${value}` : ""}\``;
    const cells = [name, shown, fallback === undefined ? "" : `\`${fallback}\``, help];
    return `| ${commands.join(", ")} | ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
  });
  return [
    "| command | environment | flag | default | meaning |",
    "|---|---|---|---|---|",
    ...rows,
  ].join("\n");
}
