/** A copy of the project in which one place at a time is broken, and what runs there, within limits. */
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ROOT } from "../run/shell.ts";

const COPIED = ["src", "test", "docs", "proto", "package.json", "tsconfig.json", "bunfig.toml"];
const DOCUMENTS = [...new Bun.Glob("*.md").scanSync(ROOT)]; // tests compare them with the source
/** A broken loop allocates without end; no test of ours needs as much. */
const MAX_RSS_KIB = 2 * 1024 * 1024;
const LOOK_EVERY_MS = 200;

export interface Ended {
  /** undefined: it was killed at a limit. */
  readonly exitCode: number | undefined;
  /** Of both streams; its end, when it is long. */
  readonly output: string;
  readonly tookMs: number;
}

export class Copy implements Disposable {
  readonly path = mkdtempSync(join(tmpdir(), "k4c-mutant-"));

  constructor() {
    for (const name of [...COPIED, ...DOCUMENTS]) {
      cpSync(join(ROOT, name), join(this.path, name), { recursive: true });
    }
    symlinkSync(join(ROOT, "node_modules"), join(this.path, "node_modules"));
  }

  /** @param file with what it holds while `judge` runs */
  async with<T>(file: string, text: string, judge: () => Promise<T>): Promise<T> {
    const path = join(this.path, file);
    const original = readFileSync(path);
    writeFileSync(path, text);
    try {
      return await judge();
    } finally {
      writeFileSync(path, original);
    }
  }

  /** Its own binary below `dist`. @throws Error when it does not build */
  async build(): Promise<void> {
    const { exitCode, output } = await this.run(["npm", "run", "--silent", "build"], 120_000);
    if (exitCode !== 0) {
      throw new Error(`does not build: ${output.slice(0, 500)}`);
    }
  }

  /** @param cwd relative to the copy */
  async run(command: readonly string[], limitMs: number, cwd = "."): Promise<Ended> {
    const startMs = performance.now();
    const child = Bun.spawn(["sh", "-c", 'exec "$@" 2>&1', "sh", ...command], {
      cwd: join(this.path, cwd),
      env: {
        ...process.env,
        PATH: `${join(ROOT, "node_modules/.bin")}:${process.env["PATH"]}`,
        KEY4C_KMS_PLUGIN: join(this.path, "dist/key4c-kms-plugin"),
      },
      stdout: "pipe",
      detached: true, // a group of its own, so that what it started ends with it
    });
    let isKilled = false;
    const looking = setInterval(() => {
      if (performance.now() - startMs > limitMs || rssKib(child.pid) > MAX_RSS_KIB) {
        isKilled = true;
        killGroup(child.pid);
      }
    }, LOOK_EVERY_MS);
    const output = await child.stdout.text();
    const exitCode = await child.exited;
    clearInterval(looking);
    killGroup(child.pid);
    return {
      exitCode: isKilled ? undefined : exitCode,
      output: output.slice(-100_000),
      tookMs: performance.now() - startMs,
    };
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true });
  }
}

function killGroup(pid: number): void {
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // all of it has ended
  }
}

function rssKib(pid: number): number {
  try {
    return Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0);
  } catch {
    return 0; // it has ended
  }
}
