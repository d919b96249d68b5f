/** Programs that run to their end, and waiting for what those that stay do. */
import { NO_CONFIG_FILE } from "../no-config.ts";

/**
 * Runs a program to its end and returns its stdout.
 * @param answers exit codes that are no failure
 * @throws Error when it fails
 */
export async function run(
  command: readonly [string, ...string[]],
  env: Record<string, string> = {},
  input = "",
  cwd = "/",
  answers: readonly number[] = [0],
): Promise<string> {
  const stdin = Buffer.from(input);
  const child = Bun.spawn([...command], {
    env: { ...NO_CONFIG_FILE, ...env },
    cwd,
    stdin,
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  if (!answers.includes(await child.exited)) {
    throw new Error(`${command.join(" ")}: ${stdout}${stderr}`.slice(0, 2_000));
  }
  return stdout;
}

/**
 * Polls until `probe` returns something other than undefined or false, and returns it. A probe that throws
 * counts as not yet: most of them ask a server that is still starting. @throws Error after `withinMs`
 */
export async function eventually<T>(
  what: string,
  withinMs: number,
  probe: () => Promise<T | undefined | false> | T | undefined | false,
  evidence: () => string = () => "",
): Promise<T> {
  let last = "";
  for (const endMs = Date.now() + withinMs; Date.now() < endMs; await Bun.sleep(100)) {
    try {
      const result = await probe();
      if (result !== undefined && result !== false) {
        return result;
      }
    } catch (error) {
      last = String(error);
    }
  }
  throw new Error(`${what}: not within ${withinMs} ms; ${last}\n${evidence().slice(-4_000)}`);
}

/** One line of the run's figures. */
export function figure(text: string): void {
  console.log(`figure: ${text}`);
}

export async function seconds(work: () => Promise<unknown>): Promise<number> {
  const startMs = performance.now();
  await work();
  return Math.round((performance.now() - startMs) / 10) / 100;
}
