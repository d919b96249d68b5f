/** From a history that breaks a rule to a short one that breaks the same. */
import { SECOND } from "./clock.ts";
import { Coverage } from "./coverage.ts";
import { type Fault, type History, lengthOf } from "./faults.ts";
import type { Violation } from "./invariants.ts";
import { play } from "./world.ts";

/** Histories that are tried; a long one takes seconds. */
const MAX_TRIES = 300;
const MAX_MS = 90_000;

export async function shrink(
  history: History,
  rule: string,
): Promise<{ readonly shortest: History; readonly violation: Violation }> {
  let tries = 0;
  const endMs = performance.now() + MAX_MS;
  let shortest = history;
  let violation = await play(history, new Coverage());
  if (violation === undefined) {
    throw new Error("the history did not repeat itself: something in it is not of its seed");
  }
  const isBroken = async (faults: readonly Fault[]): Promise<boolean> => {
    tries += 1;
    if (tries > MAX_TRIES || performance.now() > endMs) {
      return false;
    }
    const candidate = { ...history, faults, lengthMs: lengthOf(faults) };
    const found = await play(candidate, new Coverage());
    if (found?.rule !== rule) {
      return false;
    }
    violation = found;
    shortest = candidate;
    return true;
  };
  // What came after it was broken had no part in it; then halves, quarters, … and at last each alone.
  for (let size = Math.ceil(history.faults.length / 2); size >= 1; size = Math.floor(size / 2)) {
    for (let at = shortest.faults.length - size; at > -size; at -= size) {
      const { faults } = shortest;
      const from = Math.max(0, at);
      await isBroken([...faults.slice(0, from), ...faults.slice(from + size)]);
    }
  }
  for (const fault of shortest.faults) {
    for (const durationMs of [SECOND, 10 * SECOND, 60 * SECOND, fault.durationMs / 2]) {
      if (durationMs < fault.durationMs) {
        const shorter = { ...fault, durationMs: Math.round(durationMs) };
        if (await isBroken(shortest.faults.map((one) => (one === fault ? shorter : one)))) {
          break;
        }
      }
    }
  }
  return { shortest, violation };
}
