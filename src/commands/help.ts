import { OPTION_LIST, optionsOf } from "../config/config.ts";
import { COMMANDS, type Command } from "../config/options.ts";

const COMMAND_HELP: Readonly<Record<Command, string>> = {
  serve: "serve both KMS APIs on a unix socket (the default command)",
  doctor: "check the configuration, Key4C, the socket and the EncryptionConfiguration",
  manifest: "print what an installation needs; without a NAME: the list",
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
    "       key4c-kms-plugin manifest [NAME] [OPTION…]",
    "",
    "Commands:",
    ...COMMANDS.map((command) => `  ${command.padEnd(10)}${COMMAND_HELP[command]}`),
  ];
  for (const command of COMMANDS) {
    const own = OPTION_LIST.filter(([, option]) => option.commands.includes(command));
    const isMore = optionsOf(command).length > own.length;
    if (own.length > 0) {
      lines.push("", `Options of ${command}${isMore ? ", beside those of serve" : ""}:`);
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

/** The table of options in REFERENCE.md, in Markdown; a test keeps the two equal. */
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
