import { join } from "node:path";

export const ROOT = join(import.meta.dir, "../..");

/** Runs a line of shell, with the tools of node_modules, and gives what it printed. */
export async function shell(
  command: string,
  cwd = ROOT,
): Promise<{ exitCode: number; output: string }> {
  const child = Bun.spawn(["sh", "-c", `{ ${command}; } 2>&1`], {
    cwd,
    env: { ...process.env, PATH: `${ROOT}/node_modules/.bin:${process.env["PATH"]}` },
    stdout: "pipe",
  });
  const output = await child.stdout.text();
  return { exitCode: await child.exited, output };
}
