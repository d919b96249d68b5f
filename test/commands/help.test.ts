/** The texts of help, for every command. */
import { expect, test } from "bun:test";
import { helpText } from "../../src/commands/help.ts";
import { wrap } from "../../src/commands/wrap.ts";
import { COMMAND_FACTS, COMMANDS } from "../../src/config/commands.ts";
import { helpOf, OPTION_LIST, parseCommandLine } from "../../src/config/config.ts";

/** Without what wraps it. */
const unwrapped = (text: string) => text.replaceAll(/\s+/g, " ");

test("help is one screen: every command, and where to read on", () => {
  const help = helpText("1.2.3", undefined);
  expect(help).toStartWith("key4c-kms-plugin 1.2.3: ");
  for (const command of COMMANDS) {
    expect(help).toContain(`\n  ${command} `);
    expect(unwrapped(help)).toContain(COMMAND_FACTS[command].purpose);
  }
  expect(help).not.toContain("--local-kek");
  expect(help.split("\n").length).toBeLessThan(32);
});

test.each([...COMMANDS])(
  "help %s has its own options with their own texts, and no others",
  (command) => {
    const help = helpText("1.2.3", command);
    for (const [, option] of OPTION_LIST) {
      const isOwn = option.commands.includes(command);
      const names = [option.flag && `--${option.flag}`, option.env].filter(Boolean);
      if (isOwn) {
        expect(help).toMatch(new RegExp(`^  ${names[0]}[ ,\n]`, "m"));
        expect(unwrapped(help)).toContain(helpOf(option, command));
        expect(helpOf(option, command)).not.toBe("");
      }
    }
    const shown = [...help.matchAll(/^ {2}--([a-z0-9-]+)/gm)].map(([, flag]) => flag);
    const own = OPTION_LIST.flatMap(([, { flag, commands }]) =>
      flag !== undefined && commands.includes(command) ? [flag] : [],
    );
    expect(shown.sort()).toEqual(own.sort());
    expect(help).toMatch(/\nExit codes:\n {2}0 {2}[\s\S]*\n {2}2 {2}/);
  },
);

test.each(["", ...COMMANDS])("help %s is 80 columns wide, but for its example", (topic) => {
  const lines = helpText("1.2.3", topic).split("\n");
  const example = lines.indexOf("Example:") + 1;
  const wide = lines.filter((line, index) => index !== example && line.length > 80);
  expect(wide).toEqual([]);
  expect(lines[example]?.length).toBeLessThanOrEqual(100);
});

test.each([...COMMANDS])("the example of %s is a command line that works", (command) => {
  const [words = ""] = COMMAND_FACTS[command].example.split(/ [<>] /);
  const { command: parsed } = parseCommandLine(words.split(" "), {});
  expect(parsed).toBe(command);
});

test("a text by command is there for each command that has the option", () => {
  const without = OPTION_LIST.flatMap(([name, { help, commands }]) =>
    typeof help === "string"
      ? []
      : commands.filter((command) => help[command] === undefined).map((one) => `${name}: ${one}`),
  );
  expect(without).toEqual([]);
});

test("wrap keeps words whole, and the indent", () => {
  const text = "word ".repeat(40).trim();
  const lines = wrap(text, "  0  ");
  expect(lines.map((line) => line.slice(5)).join(" ")).toBe(text);
  expect(lines.every((line) => line.length <= 80)).toBe(true);
  expect(lines.slice(1).every((line) => line.startsWith("     word"))).toBe(true);
  expect(wrap("x".repeat(100), "  ")).toEqual([`  ${"x".repeat(100)}`]);
});
