/** A binary of ours with one place broken: whoever judges it must find fault with it. */
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface Breakage {
  /** In the sources; `find` stands in it once. */
  readonly file: string;
  readonly find: string;
  readonly replace: string;
}

const ROOT = join(import.meta.dir, "../..");
const COPIED = ["src", "test", "docs", "proto", "package.json", "tsconfig.json", "bunfig.toml"];
const DOCUMENTS = [...new Bun.Glob("*.md").scanSync(ROOT)]; // tests compare them with the source

/**
 * Breaks a copy of the project and gives it to `judge`.
 * @throws Error when it cannot be broken so
 */
export async function withBrokenSources<T>(
  { file, find, replace }: Breakage,
  judge: (copy: string) => Promise<T>,
): Promise<T> {
  const copy = mkdtempSync(join(tmpdir(), "k4c-mutant-"));
  try {
    for (const name of [...COPIED, ...DOCUMENTS]) {
      cpSync(join(ROOT, name), join(copy, name), { recursive: true });
    }
    symlinkSync(join(ROOT, "node_modules"), join(copy, "node_modules"));
    const source = readFileSync(join(copy, file), "utf8");
    const found = source.split(find).length - 1;
    if (found !== 1) {
      throw new Error(`the text to break stands ${found} times in ${file}`);
    }
    writeFileSync(
      join(copy, file),
      source.replace(find, () => replace),
    );
    return await judge(copy);
  } finally {
    rmSync(copy, { recursive: true });
  }
}

/** The same with its binary below `dist`. @throws Error also when it does not build */
export function withMutant<T>(breakage: Breakage, judge: (copy: string) => Promise<T>): Promise<T> {
  return withBrokenSources(breakage, async (copy) => {
    const build = await shell("npm run --silent build", copy);
    if (build.exitCode !== 0) {
      throw new Error(`does not build: ${build.output.slice(0, 500)}`);
    }
    return judge(copy);
  });
}

export async function shell(command: string, cwd: string, env: Record<string, string> = {}) {
  const path = `${join(ROOT, "node_modules/.bin")}:${process.env["PATH"]}`;
  const child = Bun.spawn(["sh", "-c", `${command} 2>&1`], {
    cwd,
    env: { ...process.env, ...env, PATH: path },
    stdout: "pipe",
  });
  const output = await child.stdout.text();
  return { exitCode: await child.exited, output };
}
