import table from "./commands.json";

/** What every command exits with when its command line or configuration is wrong. */
export const USAGE_EXIT_CODE = 2;

/** What the exit codes of a command mean, or of a command with one of its flags. */
export interface Exits {
  /** The flag that gives them this meaning; undefined: none. */
  readonly with?: string;
  readonly 0: string;
  readonly 1: string;
  /** Where it is not what it is for every other command, see {@link USAGE_EXIT_CODE}. */
  readonly 2?: string;
  readonly 3?: string;
  readonly 4?: string;
}

/** One row of the table: everything that is known about one command but its options. */
export interface CommandFacts {
  /** One line, for the list of commands. */
  readonly purpose: string;
  /** What stands behind the name of the command, before its options. */
  readonly operand?: {
    readonly shown: string;
    /** Behind this one another may stand. */
    readonly longer?: string;
    /** What it may be, each with its meaning; undefined where the list is elsewhere. */
    readonly values?: Readonly<Record<string, string>>;
  };
  /** What stands behind its options. */
  readonly redirection?: string;
  readonly reads: string;
  readonly writes: string;
  /** Arguments and more of a line that works, behind the name of the program. */
  readonly example: string;
  /** In sentences, where the options need a word. */
  readonly note?: string;
  readonly exits: readonly Exits[];
}

export type Command = keyof typeof table;

/** The commands. Help, REFERENCE.md and the parser are made from this table, whose words are in commands.json. */
export const COMMAND_FACTS: Readonly<Record<Command, CommandFacts>> = table;

export const COMMANDS = Object.keys(table) as readonly Command[]; // table has no other keys
