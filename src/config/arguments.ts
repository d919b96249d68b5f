import { parseArgs } from "node:util";
import { COMMAND_FACTS, COMMANDS, type Command } from "./commands.ts";
import { suggestion } from "./nearest.ts";
import type { Option } from "./options.ts";

// What these say must never hold a value or an argument: it may be a secret that was meant for a flag, and is
// printed to a log then. Names of commands and of flags are said.

/** What looks like the name of a flag; `--pin 1234`, in one word, does not. */
const FLAG_NAME = /^--?[a-z][a-z-]{0,39}$/;

/** For the first word, where it is no command. */
export function unknownCommand(word: string): string {
  return unknownWord("command", word, COMMANDS);
}

/** For the word behind a command that takes one of a few; empty where it is one of them, or the list is elsewhere. */
export function unknownOperand(word: string | undefined, command: Command): string[] {
  const { operand } = COMMAND_FACTS[command];
  const names = command === "help" ? COMMANDS : Object.keys(operand?.values ?? {});
  if (word === undefined || names.length === 0 || names.some((name) => name === word)) {
    return [];
  }
  return [unknownWord((operand?.shown ?? "").replace(/[[\]]/g, ""), word, names)];
}

function unknownWord(what: string, word: string, names: readonly string[]): string {
  // Only what is nearly a name is said: anything else may be a value that lost its flag.
  const near = suggestion(word, names);
  return near === ""
    ? `unknown ${what}: one of ${names.join(", ")}`
    : `unknown ${what} ${JSON.stringify(word)}${near}`;
}

/**
 * The flags, by the name of their option, and the words between them.
 * @param argv without the command
 * @param own the options of the command
 * @param all the options of all commands
 * @param problems what is wrong is added here, one line each
 */
export function readArguments<N extends string>(
  argv: readonly string[],
  command: Command,
  own: readonly (readonly [N, Option])[],
  all: readonly (readonly [N, Option])[],
  problems: string[],
): { readonly flags: ReadonlyMap<N, string>; readonly operands: readonly string[] } {
  const options = Object.fromEntries(
    own.flatMap(([, { flag, value }]) =>
      flag === undefined ? [] : [[flag, { type: value === undefined ? "boolean" : "string" }]],
    ),
  ) as Record<string, { type: "boolean" | "string" }>; // fromEntries widens the two literals
  // Not strict: parseArgs would stop at the first problem, and we name all of them.
  const { tokens } = parseArgs({ args: [...argv], options, strict: false, tokens: true });
  const flags = new Map<N, string>();
  const operands: string[] = [];
  let unknownAt: number | undefined;
  for (const token of tokens) {
    if (token.kind === "positional") {
      if (unknownAt === undefined || token.index !== unknownAt + 1) {
        operands.push(token.value); // else the value of an unknown flag, perhaps
      }
    } else if (token.kind === "option") {
      const found = own.find(([, { flag }]) => flag === token.name);
      if (found === undefined) {
        if (token.index !== unknownAt) {
          problems.push(unknownFlag(token.rawName, command, own, all));
        } // else parseArgs takes `-pSECRET` for a flag a letter
        unknownAt = token.index;
      } else if (found[1].value !== undefined && token.value === undefined) {
        problems.push(`${token.rawName} needs a value: ${found[1].value}`);
      } else if (found[1].value === undefined && token.value !== undefined) {
        problems.push(`${token.rawName} takes no value`);
      } else {
        flags.set(found[0], token.value ?? "");
      }
    }
  }
  problems.push(...tooMany(operands, command));
  return { flags, operands };
}

function unknownFlag(
  rawName: string,
  command: Command,
  own: readonly (readonly [string, Option])[],
  all: readonly (readonly [string, Option])[],
): string {
  const name = rawName.replace(/^-+/, "");
  const others = all.flatMap(([, { flag, commands }]) => (flag === name ? commands : []));
  const flagsOf = own.flatMap(([, { flag }]) => flag ?? []);
  const hint =
    others.length === 0
      ? suggestion(name, flagsOf, "--")
      : `; it is an option of ${[...new Set(others)].join(", ")}`;
  return `unknown option${FLAG_NAME.test(rawName) ? ` ${rawName}` : ""} of ${command}${hint}`;
}

function tooMany(operands: readonly string[], command: Command): string[] {
  const { operand } = COMMAND_FACTS[command];
  const isLonger = operand?.longer !== undefined && operands[0] === operand.longer;
  const most = operand === undefined ? 0 : isLonger ? 2 : 1;
  if (operands.length <= most) {
    return [];
  }
  const misplaced = operands.find((one) => COMMANDS.some((name) => name === one));
  const takes = operand === undefined ? "no argument" : `one argument, ${operand.shown}`;
  const first =
    misplaced === undefined ? "" : `; a command stands first: key4c-kms-plugin ${misplaced}`;
  return [`${command} takes ${takes}: ${operands.length} given${first}`];
}
