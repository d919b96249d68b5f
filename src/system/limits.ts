/** What the machine lets this process have. */
import { readFileSync } from "node:fs";
import { ExitError } from "./errors.ts";
import type { Log } from "./log.ts";

/** The plugin itself has about 20, and a few connections must fit. */
const MIN_OPEN_FILES = 64;
/** 512 connections, 64 calls to Key4C, and its own. */
const WANTED_OPEN_FILES = 640;
/** Bun starts seven to twelve, some only when they are needed. Where one cannot start, Bun aborts. */
const MIN_THREADS = 16;

/** @throws ExitError 1 for a limit with which the plugin would abort, or let clients time out in silence */
export function checkLimits(log: Log): void {
  const limits = read("/proc/self/limits");
  const openFiles = softLimit(limits, "Max open files");
  if (openFiles < MIN_OPEN_FILES) {
    throw new ExitError(
      1,
      `this process may have ${openFiles} open files, and needs ${WANTED_OPEN_FILES}: raise RLIMIT_NOFILE (LimitNOFILE= of the unit, ulimit -n)`,
    );
  }
  if (openFiles < WANTED_OPEN_FILES) {
    const remedy = "raise RLIMIT_NOFILE (LimitNOFILE= of the unit, ulimit -n)";
    log.warn("few open files are allowed: with many clients new ones would wait", {
      allowed: openFiles,
      wanted: WANTED_OPEN_FILES,
      remedy,
    });
  }
  // The kernel does not hold root to RLIMIT_NPROC.
  const ofUser = process.getuid?.() === 0 ? Infinity : softLimit(limits, "Max processes");
  const threads = Math.min(ofUser, pidsMax());
  if (threads < MIN_THREADS) {
    throw new ExitError(
      1,
      `this process may have ${threads} threads, and needs ${MIN_THREADS}: raise pids.max of its cgroup (TasksMax= of the unit, podPidsLimit) and RLIMIT_NPROC`,
    );
  }
}

function softLimit(limits: string, name: string): number {
  const [, soft = "unlimited"] = new RegExp(`^${name} +(\\S+)`, "m").exec(limits) ?? [];
  return numberOf(soft);
}

/** Of this process's cgroup, version 2 or 1 (cgroups(7)); Infinity where none is found. */
function pidsMax(): number {
  const cgroups = read("/proc/self/cgroup");
  const [, unified = "/"] = /^0::(.*)$/m.exec(cgroups) ?? [];
  const [, pids = "/"] = /^\d+:(?:.*,)?pids(?:,.*)?:(.*)$/m.exec(cgroups) ?? [];
  return Math.min(
    ...[`/sys/fs/cgroup${unified}`, `/sys/fs/cgroup/pids${pids}`].map((path) =>
      numberOf(read(`${path}/pids.max`).trim()),
    ),
  );
}

function numberOf(text: string): number {
  return /^\d+$/.test(text) ? Number(text) : Number.POSITIVE_INFINITY; // "unlimited", "max", or not there
}

function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
