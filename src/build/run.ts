/** Runs a program to its end and returns what it wrote. @throws Error with what it printed */
export async function run(...command: readonly [string, ...string[]]): Promise<Buffer> {
  const child = Bun.spawn([...command], {
    env: process.env, // as it is now; else Bun passes what it was at the start
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([child.stdout.bytes(), child.stderr.text()]);
  if ((await child.exited) !== 0) {
    throw new Error(`${command.join(" ")} failed\n${new TextDecoder().decode(stdout)}${stderr}`);
  }
  return Buffer.from(stdout);
}
