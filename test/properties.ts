import { test } from "bun:test";
import fc from "fast-check";

/**
 * Multiplies the runs of every property, for a long search. A failure prints seed and path, which
 * `fc.assert(…, { seed, path })` plays again.
 */
const MULTIPLIER = Number(process.env["FAST_CHECK_RUNS"] ?? 1);
if (!(MULTIPLIER >= 1)) {
  throw new Error("FAST_CHECK_RUNS must be a number from 1 on");
}

/** So that a property that hangs ends; none is near it. */
const MAX_MS = 30_000;

/** A test that `predicate` holds for `runs` random inputs. */
export function holds<T>(name: string, runs: number, property: fc.IRawProperty<T>): void {
  const numRuns = Math.ceil(runs * MULTIPLIER);
  test(name, async () => fc.assert(property, { numRuns }), MAX_MS * MULTIPLIER);
}
