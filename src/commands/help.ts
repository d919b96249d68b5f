import {
  COMMAND_FACTS,
  COMMANDS,
  type Command,
  type Exits,
  USAGE_EXIT_CODE,
} from "../config/commands.ts";
import { helpOf, OPTION_LIST, optionsOf } from "../config/config.ts";
import { GROUPS, type Group, OPTIONS, type Option } from "../config/options.ts";
import { MANIFEST_NAMES } from "./manifest/manifest.ts";
import { wrap } from "./wrap.ts";

const NAME = "key4c-kms-plugin";
/** What a first installation sets; the list of all commands shows them. */
const MOST_USED = ["key4cUrl", "kmsKeyId", "kmsUserIdFile", "kmsEndpoint"] as const;

/**
 * What `help` and `--help` print.
 * @param topic the command it is asked of; undefined: none
 */
export function helpText(version: string, topic: string | undefined): string {
  const command = COMMANDS.find((one) => one === topic);
  return command === undefined ? overview(version) : commandHelp(command);
}

function overview(version: string): string {
  const rows = (pairs: readonly (readonly [string, string])[]) => {
    const width = Math.max(...pairs.map(([name]) => name.length));
    return pairs.flatMap(([name, text]) => wrap(text, `  ${name.padEnd(width)}  `));
  };
  return lines(
    `${NAME} ${version}: the Kubernetes KMS provider for Key4C`,
    "",
    `Usage: ${NAME} [COMMAND] [OPTION…]`,
    "",
    "Commands:",
    ...rows(COMMANDS.map((command) => [command, COMMAND_FACTS[command].purpose])),
    "",
    "Environment of serve, which doctor and manifest read too (more: help serve):",
    ...rows(
      MOST_USED.map((name) => [OPTIONS[name].env ?? "", helpOf(OPTIONS[name], "serve")] as const),
    ),
    "",
    ...rows([
      ["Try it:", `${NAME} serve --emulator`],
      ["Options, exit codes:", `${NAME} help COMMAND`],
      ["Install, run:", "docs/install.md and docs/runbooks of this release"],
      ["All options, metrics:", "REFERENCE.md of this release"],
    ]),
  );
}

function commandHelp(command: Command): string {
  const { purpose, operand, redirection, reads, writes, example, note, exits } =
    COMMAND_FACTS[command];
  const words = [NAME, command, operand?.shown, "[OPTION…]", redirection];
  const own = OPTION_LIST.filter(([, option]) => option.commands.includes(command));
  const isMore = optionsOf(command).length > own.length;
  const values = Object.entries(operandsOf(command));
  const width = Math.max(...values.map(([name]) => name.length));
  return lines(
    ...wrap(`${NAME} ${command}: ${purpose}`),
    "",
    `Usage: ${words.filter((word) => word !== undefined).join(" ")}`,
    "",
    ...wrap(reads, "Reads   "),
    ...wrap(writes, "Writes  "),
    ...(note === undefined ? [] : ["", ...wrap(note)]),
    ...(values.length === 0 ? [] : ["", `${operand?.shown.replace(/[[\]]/g, "")} is one of:`]),
    ...values.flatMap(([name, about]) => wrap(about, `  ${name.padEnd(width)}  `)),
    ...groupsOf(own.map(([, option]) => option)).flatMap(([group, options]) => [
      "",
      `${GROUPS[group]}:`,
      ...options.flatMap((option) => optionLines(option, command)),
    ]),
    ...(isMore
      ? [
          "",
          ...wrap(
            `It takes every option of serve that has a name in the environment, too: ${NAME} help serve`,
          ),
        ]
      : []),
    "",
    "Example:",
    `  ${NAME} ${example}`,
    ...exits.flatMap((one) => ["", ...exitLines(one)]),
  );
}

/** What the word behind a command may be, each with its meaning; empty where it takes none, or any command. */
export function operandsOf(command: Command): Readonly<Record<string, string>> {
  return command === "manifest" ? MANIFEST_NAMES : (COMMAND_FACTS[command].operand?.values ?? {});
}

/** Options under their headings, in the order of {@link GROUPS}; no heading is empty. */
export function groupsOf(
  options: readonly Option[],
): readonly (readonly [Group, readonly Option[]])[] {
  const names = Object.keys(GROUPS) as Group[]; // GROUPS has no other keys
  return names
    .map((name) => [name, options.filter(({ group = "own" }) => group === name)] as const)
    .filter(([, members]) => members.length > 0);
}

/** `--key-id ID`; undefined where it has no flag. */
export function flagOf({ flag, value }: Option): string | undefined {
  return flag === undefined ? undefined : `--${flag}${value === undefined ? "" : ` ${value}`}`;
}

function optionLines(option: Option, command: Command): string[] {
  const names = [flagOf(option), option.env].filter((name) => name !== undefined);
  const fallback = option.default === undefined ? "" : ` (default: ${option.default})`;
  return [`  ${names.join(", ")}`, ...wrap(helpOf(option, command) + fallback, "      ")];
}

function exitLines({ with: flag, ...texts }: Exits): string[] {
  const usage = "wrong command line or configuration; nothing was done";
  const codes = flag === undefined ? { [USAGE_EXIT_CODE]: usage, ...texts } : texts;
  return [
    flag === undefined ? "Exit codes:" : `Exit codes with ${flag}:`,
    ...Object.entries(codes).flatMap(([code, text]) =>
      wrap(text.replaceAll("`", ""), `  ${code}  `),
    ),
  ];
}

function lines(...all: readonly string[]): string {
  return `${all.join("\n")}\n`;
}
