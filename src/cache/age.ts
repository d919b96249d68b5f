/** How old a confirmation of Key4C is, for a process that did not see it: after a restart, and after a reboot. */
import { uptime } from "node:os";
import { readSmallFile } from "../system/files.ts";

/** A point in time that a later process can judge. */
export interface Moment {
  /** Since the epoch, on the wall clock. */
  readonly wallMs: number;
  /** Of the kernel: another one after each boot. */
  readonly bootId: string;
  /** Since that boot, time asleep included (CLOCK_BOOTTIME): nobody sets this clock. */
  readonly bootMs: number;
}

const BOOT_ID_FILE = "/proc/sys/kernel/random/boot_id";

/** @throws Error with a sentence for the user, where the kernel's boot_id is hidden (ProcSubset=pid of systemd) */
export function readMoment(): Moment {
  const bootId = readSmallFile(BOOT_ID_FILE).trim();
  // sysinfo(2) counts as CLOCK_BOOTTIME does, in seconds.
  return { wallMs: Date.now(), bootId, bootMs: uptime() * 1_000 };
}

export interface Age {
  /** Not below 0. */
  readonly ms: number;
  /** How far in the future the confirmation seems to be; 0: not at all. A clock was set back meanwhile. */
  readonly aheadMs: number;
  /** On the wall clock of now: when it will be too old. */
  readonly untilMs: number;
}

/**
 * Within one boot the kernel's own clock tells the age. After a reboot only the wall clock does, which may be slow: a
 * machine without a battery takes up its clock where it last stored it. So a confirmation in the future, by at most the
 * maximum age, counts as one of now.
 * @returns undefined when the confirmation is older than the maximum, or that far in the future
 */
export function ageOf(confirmed: Moment, now: Moment, maxAgeMs: number): Age | undefined {
  const ms =
    confirmed.bootId === now.bootId ? now.bootMs - confirmed.bootMs : now.wallMs - confirmed.wallMs;
  if (Math.abs(ms) > maxAgeMs) {
    return undefined;
  }
  const age = Math.max(0, ms);
  return { ms: age, aheadMs: Math.max(0, -ms), untilMs: now.wallMs + maxAgeMs - age };
}
