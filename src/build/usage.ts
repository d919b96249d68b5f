import { type ParseArgsOptionsConfig, parseArgs } from "node:util";

/**
 * The options and words of a script that npm runs. Asked for `--help` it says what it would do, and starts
 * nothing; an option that it does not know ends it with exit code 2.
 * @param usage what it does, how long it takes, and its options
 * @param allowPositionals whether it takes words. Where it does not, one is an error: npm takes the name of a flag
 *   for itself where `--` was forgotten, and leaves its value
 */
export function scriptArguments<T extends ParseArgsOptionsConfig>(
  usage: string,
  options: T,
  allowPositionals = false,
) {
  const help = { help: { type: "boolean", default: false } } as const;
  try {
    const parsed = parseArgs({ options: { ...options, ...help }, allowPositionals });
    const { help: isAsked } = parsed.values as { help?: boolean }; // ours, which the generic type hides
    if (isAsked !== true) {
      return parsed;
    }
    process.stdout.write(usage);
    process.exit(0);
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : error}\n\n${usage}`);
    process.exit(2);
  }
}
