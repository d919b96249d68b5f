import { expect, test } from "bun:test";
import { PluginError } from "../../src/failures/plugin-error.ts";
import { Circuits } from "../../src/keys/circuits.ts";
import { TestClock } from "../clock.ts";

const FAULT = new PluginError("unavailable", "fake");

/** How long each failure in a row keeps local KEKs from being wrapped. */
function pausesMs(failure: PluginError, count: number): number[] {
  const clock = new TestClock();
  const circuits = new Circuits(clock);
  return Array.from({ length: count }, () => {
    circuits.recordWrap(failure);
    expect(circuits.refusalToWrap).toBe(failure);
    let pauseMs = 0;
    for (; circuits.refusalToWrap !== undefined; pauseMs += 50) {
      clock.skip(50);
    }
    return pauseMs;
  });
}

test("a failing encrypt is tried ever more rarely, and a refused one more rarely still", () => {
  const ofFaults = [250, 500, 1_000, 2_000, 4_000, 5_000, 5_000];
  const ofRefusals = [5_000, 10_000, 20_000, 30_000, 30_000];
  expect(pausesMs(FAULT, 7)).toEqual(ofFaults);
  expect(pausesMs(new PluginError("throttled", "fake"), 7)).toEqual(ofFaults);
  for (const kind of ["denied", "keyUnusable", "keyNotFound"] as const) {
    expect(pausesMs(new PluginError(kind, "fake"), 5)).toEqual(ofRefusals);
  }
  expect(pausesMs(new PluginError("unavailable", "fake", { isUnlisted: true }), 5)).toEqual(
    ofRefusals,
  );
});

test("a wrap that succeeds ends the pause, and the next failure begins with the shortest one", () => {
  const clock = new TestClock();
  const circuits = new Circuits(clock);
  circuits.recordWrap(FAULT);
  circuits.recordWrap(FAULT);
  circuits.recordWrap(undefined);
  expect(circuits.refusalToWrap).toBeUndefined();
  circuits.recordWrap(FAULT);
  clock.skip(249);
  expect(circuits.refusalToWrap).toBe(FAULT);
  clock.skip(1);
  expect(circuits.refusalToWrap).toBeUndefined();
});

test("a failed unwrap refuses callers while probes find out, else all but one at a time", async () => {
  const circuits = new Circuits(new TestClock());
  const refusals = () => [circuits.refusalToUnwrap(true), circuits.refusalToUnwrap(false)];
  expect([circuits.isUnwrapOpen, ...refusals()]).toEqual([false, undefined, undefined]);
  circuits.recordUnwrap(FAULT);
  expect([circuits.isUnwrapOpen, ...refusals()]).toEqual([true, FAULT, undefined]);
  const { promise, reject } = Promise.withResolvers<void>();
  const underWay = circuits.during(() => promise);
  expect(refusals()).toEqual([FAULT, FAULT]);
  reject(FAULT);
  await expect(underWay).rejects.toBe(FAULT);
  expect(refusals()).toEqual([FAULT, undefined]);
  circuits.recordUnwrap(undefined);
  expect([circuits.isUnwrapOpen, ...refusals()]).toEqual([false, undefined, undefined]);
});

test("each operation has a circuit of its own", () => {
  const circuits = new Circuits(new TestClock());
  circuits.recordWrap(FAULT);
  expect(circuits.isUnwrapOpen).toBe(false);
  circuits.recordWrap(undefined);
  circuits.recordUnwrap(FAULT);
  expect(circuits.refusalToWrap).toBeUndefined();
});
