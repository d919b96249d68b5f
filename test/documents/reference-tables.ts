/** The tables of REFERENCE.md that are made from the tables of commands and options, in Markdown. */
import { flagOf, groupsOf } from "../../src/commands/help.ts";
import { COMMAND_FACTS, COMMANDS, type Command } from "../../src/config/commands.ts";
import { helpOf, OPTION_LIST, optionsOf } from "../../src/config/config.ts";
import { GROUPS, type Option } from "../../src/config/options.ts";
import { MEMBERS } from "../../src/key4c/profile-members.ts";
import type { Members } from "../../src/key4c/shape.ts";
import { table } from "./markdown.ts";

/** Those of serve by group, and of every other command what serve does not have, or means otherwise. */
export function optionTables(): string {
  const blocks = ["### serve"];
  for (const [group, options] of groupsOf(ownOf("serve"))) {
    blocks.push(`**${GROUPS[group]}**`, optionTable(options, "serve"));
  }
  for (const command of COMMANDS.filter((one) => one !== "serve")) {
    const own = ownOf(command);
    const differs = (option: Option) =>
      !option.commands.includes("serve") || helpOf(option, command) !== helpOf(option, "serve");
    const isMore = optionsOf(command).length > own.length;
    const asServe = own.filter((option) => !differs(option)).map((option) => nameOf(option));
    const rest = [
      ...(asServe.length > 0 ? [`As for serve: ${asServe.join(", ")}.`] : []),
      ...(isMore ? ["Every option of serve that has a name in the environment, too."] : []),
    ];
    if (own.length > 0) {
      blocks.push(
        `### ${command}`,
        ...(rest.length > 0 ? [rest.join(" ")] : []),
        optionTable(own.filter(differs), command),
      );
    }
  }
  return `\n${blocks.join("\n\n")}\n`;
}

function ownOf(command: Command): Option[] {
  return OPTION_LIST.map(([, option]) => option).filter(({ commands }) =>
    commands.includes(command),
  );
}

function nameOf({ flag, env }: Option): string {
  return flag === undefined ? `\`${env}\`` : `\`--${flag}\``;
}

function optionTable(options: readonly Option[], command: Command): string {
  const hasEnvironment = options.some(({ env }) => env !== undefined);
  return table(
    [...(hasEnvironment ? ["environment"] : []), "flag", "default", "meaning"],
    options.map((option) => [
      ...(hasEnvironment ? [code(option.env)] : []),
      code(flagOf(option)),
      code(option.default),
      helpOf(option, command),
    ]),
  );
}

/** What they mean; 2 is shown where it is not what it is for all. */
export function exitCodeTable(): string {
  const rows = new Map<string, readonly string[]>(); // by their codes: those of many commands are the same
  for (const command of COMMANDS) {
    for (const { with: flag, ...codes } of COMMAND_FACTS[command].exits) {
      const cells = ([0, 1, 2, 3, 4] as const).map((one) => codes[one] ?? "");
      const name = flag === undefined ? command : `${command} ${flag}`;
      const [others] = rows.get(cells.join()) ?? [];
      rows.set(cells.join(), [others === undefined ? name : `${others}, ${name}`, ...cells]);
    }
  }
  return table(["command", "0", "1", "2", "3", "4"], [...rows.values()]);
}

function code(text: string | undefined): string {
  return text === undefined ? "" : `\`${text}\``;
}

export function profileTable(): string {
  return table(["member", "type", "required, or default", "meaning"], rowsOf(MEMBERS));
}

/** A row for each member and what is below it: name, type, required or default, meaning. */
function rowsOf(members: Members, before = ""): string[][] {
  return Object.entries(members).flatMap(([name, { shape, isRequired, fallback, about }]) => {
    const path = `${before}${name}`;
    const standsFor = fallback === undefined ? "" : `\`${JSON.stringify(fallback)}\``;
    return [
      [`\`${path}\``, shape.type, isRequired ? "required" : standsFor, about],
      ...rowsOf(shape.members ?? {}, `${path}.`),
    ];
  });
}
