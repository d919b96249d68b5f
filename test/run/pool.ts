/** Jobs beside each other: most tests wait most of their time. */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { CACHE } from "../cache.ts";
import { type Count, repeatState, sum, tellResult, tellState } from "./report.ts";

export interface Job {
  readonly name: string;
  /** Others can only begin after it, so it begins before all of its lane. */
  readonly isFirst?: boolean;
  run(): Promise<Done>;
}

export interface Done {
  readonly count: Count;
  /** What is shown if it failed. */
  readonly output: string;
  /** What its processes used of a processor: the rest of its time it waited. */
  readonly cpuSeconds?: number;
  /** What can begin now. */
  readonly next?: readonly Job[];
}

/** Jobs that must not disturb those of other lanes, and at most `width` of which run at once. */
export interface Lane {
  readonly width: number;
  readonly jobs: readonly Job[];
}

/** JOBS=N: so many files of tests at once. A quarter of a processor each, measured. */
export const JOBS = Number(process.env["JOBS"] ?? Math.max(4, 3 * availableParallelism()));

/** Those of one lane begin with the one that took longest the last time; one that is new comes first. */
export async function runLanes(lanes: readonly Lane[]): Promise<Count> {
  const seconds = new Seconds();
  const counts: Count[] = [];
  const running = new Map<Job, number>();
  let [done, total] = [0, 0];
  const tellRunning = () => {
    const now = performance.now();
    const names = [...running].map(
      ([{ name }, startMs]) => `${name} ${((now - startMs) / 1000).toFixed(0)} s`,
    );
    tellState(`${done} of ${total} done; now: ${names.join(", ")}`);
  };

  async function runJob(job: Job): Promise<readonly Job[]> {
    const startMs = performance.now();
    running.set(job, startMs);
    tellRunning();
    const { count, output, cpuSeconds, next } = await job
      .run()
      .catch((error: unknown): Done => ({ count: FAILED, output: String(error) }));
    running.delete(job);
    done += 1;
    const tookSeconds = (performance.now() - startMs) / 1000;
    seconds.set(job.name, tookSeconds);
    counts.push(count);
    const { passed, failed, skipped } = count;
    const parts = [
      `${passed} passed`,
      ...(failed > 0 ? [`${failed} failed`] : []),
      ...(skipped > 0 ? [`${skipped} skipped`] : []),
      `${tookSeconds.toFixed(1)} s`,
      ...(cpuSeconds === undefined ? [] : [`${cpuSeconds.toFixed(1)} s of a processor`]),
    ];
    tellResult(failed === 0, `${done}/${total} ${job.name}: ${parts.join(", ")}`, output);
    return next ?? [];
  }

  const weight = ({ name, isFirst }: Job) =>
    isFirst === true ? Number.POSITIVE_INFINITY : seconds.of(name);

  async function runLane({ width, jobs }: Lane): Promise<void> {
    const queue: Job[] = [];
    const add = (more: readonly Job[]) => {
      total += more.length;
      queue.push(...more);
      queue.sort((a, b) => weight(b) - weight(a) || 0); // two that are first: NaN
    };
    add(jobs);
    const busy = new Set<Promise<void>>();
    while (queue.length > 0 || busy.size > 0) {
      const job = busy.size < width ? queue.shift() : undefined;
      if (job === undefined) {
        await Promise.race(busy);
        continue;
      }
      const ended: Promise<void> = runJob(job).then((next) => {
        add(next);
        busy.delete(ended);
      });
      busy.add(ended);
    }
  }

  const tick = setInterval(tellRunning, 1_000);
  const endState = repeatState();
  await Promise.all(lanes.map(runLane));
  clearInterval(tick);
  endState();
  seconds.keep();
  return sum(counts);
}

/** Of a process that has ended, with those that it waited for. */
export function cpuSecondsOf(child: Bun.Subprocess<"ignore" | "pipe" | undefined>): number {
  return Number(child.resourceUsage()?.cpuTime.total ?? 0) / 1e6;
}

const FAILED: Count = { passed: 0, failed: 1, skipped: 0 };

/** How long each job took the last time on this machine; one that is new may take the longest. */
class Seconds {
  readonly #file = join(CACHE, "test-seconds.json");
  readonly #now = new Map<string, number>();
  readonly #before = this.#read();

  of(job: string): number {
    return this.#before[job] ?? Number.MAX_VALUE;
  }

  set(job: string, seconds: number): void {
    this.#now.set(job, seconds);
  }

  keep(): void {
    const scratch = `${this.#file}.${process.pid}`;
    mkdirSync(CACHE, { recursive: true });
    const all = { ...this.#read(), ...Object.fromEntries(this.#now) };
    writeFileSync(scratch, JSON.stringify(all, undefined, 1));
    renameSync(scratch, this.#file);
  }

  #read(): Record<string, number> {
    try {
      return JSON.parse(readFileSync(this.#file, "utf8"));
    } catch {
      return {}; // nothing was recorded yet
    }
  }
}
