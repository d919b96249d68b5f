/** Scripts that complete a command line, made from the tables of commands and of options. */
import { COMMAND_FACTS, COMMANDS, type Command, USAGE_EXIT_CODE } from "../config/commands.ts";
import { helpOf, optionsOf } from "../config/config.ts";
import type { Option } from "../config/options.ts";
import { ExitError } from "../system/errors.ts";
import { operandsOf } from "./help.ts";

const PROGRAM = "key4c-kms-plugin";

/** What a command takes, as the scripts need it. */
interface Syntax {
  readonly command: Command;
  readonly flags: readonly Flag[];
  /** What may stand behind the command's name, each with its meaning. */
  readonly operands: readonly (readonly [string, string])[];
}

interface Flag {
  readonly name: string;
  readonly about: string;
  /** Of its value; undefined: it takes none. */
  readonly value: "file" | "free" | readonly string[] | undefined;
}

/** Made when it is asked for: serve starts without it. */
const syntaxOfAll = (): readonly Syntax[] =>
  COMMANDS.map((command) => ({
    command,
    flags: [
      ...optionsOf(command).flatMap(([, option]) => flagOf(option, command)),
      { name: "help", about: "what this command does", value: undefined },
    ],
    operands:
      command === "help"
        ? COMMANDS.map((one) => [one, COMMAND_FACTS[one].purpose] as const)
        : Object.entries(operandsOf(command)),
  }));

function flagOf(option: Option, command: Command): Flag[] {
  const { flag, value } = option;
  if (flag === undefined) {
    return [];
  }
  return [
    {
      name: flag,
      about: helpOf(option, command),
      value: value === undefined ? undefined : kindOf(value),
    },
  ];
}

function kindOf(value: string): Flag["value"] {
  if (value === "FILE" || value === "/PATH") {
    return "file";
  }
  return value.includes("|") ? value.split("|") : "free";
}

/** @throws ExitError 2 where no shell is named */
export function completionCommand(shell: string | undefined): string {
  switch (shell) {
    case "bash":
      return bash(syntaxOfAll());
    case "zsh":
      return zsh(syntaxOfAll());
    case "fish":
      return fish(syntaxOfAll());
    default: // the parser has refused any other
      throw new ExitError(USAGE_EXIT_CODE, "completion needs a SHELL: bash, zsh or fish");
  }
}

function bash(syntax: readonly Syntax[]): string {
  // By flag alone: one that two commands have takes the same kind of value.
  const kinds = new Map(
    syntax.flatMap(({ flags }) => flags.map(({ name, value }) => [name, value])),
  );
  const flagsOf = (kind: "file" | "free") =>
    [...kinds].flatMap(([name, value]) => (value === kind ? [`--${name}`] : [])).join(" | ");
  const enumerated = [...kinds].flatMap(([name, value]) =>
    typeof value === "object" ? [`    --${name}) words="${value.join(" ")}" ;;`] : [],
  );
  return `# Completion of ${PROGRAM} for bash, from \`${PROGRAM} completion bash\`.
_key4c_kms_plugin() {
  local word=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD - 1]} command=serve words=
  # bash takes --flag=value for three words.
  if [[ $word == "=" ]]; then
    word=
  elif [[ $before == "=" ]]; then
    before=\${COMP_WORDS[COMP_CWORD - 2]}
  fi
  if ((COMP_CWORD > 1)) && [[ \${COMP_WORDS[1]} != -* ]]; then
    command=\${COMP_WORDS[1]}
  fi
  COMPREPLY=()
  case $before in
${enumerated.join("\n")}
    ${flagsOf("file")})
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -f -- "$word")
      return
      ;;
    ${flagsOf("free")}) return ;;
    *)
      case $command in
${syntax.map(({ command, flags }) => `        ${command}) words="${flags.map(({ name }) => `--${name}`).join(" ")}" ;;`).join("\n")}
      esac
      if ((COMP_CWORD == 1)) && [[ $word != -* ]]; then
        words="${COMMANDS.join(" ")}"
      elif ((COMP_CWORD == 2)) && [[ $word != -* ]]; then
        case $command in
${syntax
  .filter(({ operands }) => operands.length > 0)
  .map(
    ({ command, operands }) =>
      `          ${command}) words="${operands.map(([name]) => name).join(" ")}" ;;`,
  )
  .join("\n")}
        esac
      fi
      ;;
  esac
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}
complete -F _key4c_kms_plugin ${PROGRAM}
`;
}

function zsh(syntax: readonly Syntax[]): string {
  const quote = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;
  const plain = (text: string) => text.replaceAll(/[[\]:\\]/g, "\\$&");
  const action = (value: Flag["value"]) => {
    if (value === undefined) {
      return "";
    }
    return typeof value === "object"
      ? `:value:(${value.join(" ")})`
      : `:value:${value === "file" ? "_files" : ""}`;
  };
  const described = (pairs: readonly (readonly [string, string])[]) =>
    pairs.map(([name, about]) => quote(`${name}:${about}`)).join(" ");
  const cases = syntax.map(({ command, flags, operands }) => {
    const specs = flags.map(({ name, about, value }) =>
      quote(`--${name}${value === undefined ? "" : "="}[${plain(about)}]${action(value)}`),
    );
    const names = operands.map(
      ([name, about]) => `${name}\\:"${plain(about).replaceAll(/["$`]/g, "\\$&")}"`,
    );
    const operand = names.length === 0 ? [] : [quote(`1:word:((${names.join(" ")}))`)];
    return `    ${command})\n      _arguments ${[...specs, ...operand].join(" \\\n        ")}\n      ;;`;
  });
  return `#compdef ${PROGRAM}
# Completion of ${PROGRAM} for zsh, from \`${PROGRAM} completion zsh\`.
_key4c_kms_plugin() {
  local -a commands=(${described(COMMANDS.map((command) => [command, COMMAND_FACTS[command].purpose]))})
  local command=serve
  if [[ $words[2] != -* ]]; then
    if ((CURRENT == 2)); then
      _describe command commands
      return
    fi
    command=$words[2]
    shift words
    ((CURRENT -= 1))
  fi
  case $command in
${cases.join("\n")}
  esac
}
if [[ $funcstack[1] == _key4c_kms_plugin || $funcstack[1] == _${PROGRAM} ]]; then
  _key4c_kms_plugin "$@"
else
  compdef _key4c_kms_plugin ${PROGRAM}
fi
`;
}

function fish(syntax: readonly Syntax[]): string {
  const quote = (text: string) => `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
  const complete = (...words: readonly string[]) => `complete -c ${PROGRAM} ${words.join(" ")}`;
  const first = "test (count (commandline -opc)) -eq 1";
  return `# Completion of ${PROGRAM} for fish, from \`${PROGRAM} completion fish\`.
function __key4c_kms_plugin_command
    set -l words (commandline -opc)
    if test (count $words) -gt 1; and not string match -q -- '-*' $words[2]
        echo $words[2]
    else
        echo serve
    end
end
${[
  complete("-f"),
  ...COMMANDS.map((command) =>
    complete("-n", quote(first), "-a", command, "-d", quote(COMMAND_FACTS[command].purpose)),
  ),
  ...syntax.flatMap(({ command, flags, operands }) => {
    const here = `test (__key4c_kms_plugin_command) = ${command}`;
    return [
      ...operands.map(([name, about]) =>
        complete(
          "-n",
          quote(`${here}; and test (count (commandline -opc)) -eq 2`),
          "-a",
          name,
          "-d",
          quote(about),
        ),
      ),
      ...flags.map(({ name, about, value }) =>
        complete("-n", quote(here), "-l", name, ...fishValue(value), "-d", quote(about)),
      ),
    ];
  }),
].join("\n")}
`;
}

function fishValue(value: Flag["value"]): string[] {
  if (value === undefined) {
    return [];
  }
  if (value === "file") {
    return ["-r", "-F"];
  }
  return value === "free" ? ["-x"] : ["-x", "-a", `'${value.join(" ")}'`];
}
