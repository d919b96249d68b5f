/** How far two runs of the same binaries are from each other. */
import { median } from "../servers.ts";
import type { Figures, Result } from "./result.ts";

const OURS = "key4c-kms-plugin";

/** Values of one kind, in an order that both runs have. */
const KINDS: Readonly<Record<string, (figures: Figures) => readonly number[]>> = {
  rates: ({ rates }) => Object.values(rates).map(({ perSecond }) => perSecond),
  CPU: ({ rates }) => Object.values(rates).map(({ cpuMicros }) => cpuMicros),
  RSS: ({ rssMiB: { idle, loaded, later } }) => [idle, loaded, later],
  start: ({ readyMs }) => Object.values(readyMs),
};

export function spreadOf(one: Result, other: Result): NonNullable<Result["spread"]> {
  const [ours, again] = [one.figures[OURS], other.figures[OURS]];
  if (ours === undefined || again === undefined) {
    throw new Error(`no figures of ${OURS}`);
  }
  return Object.fromEntries(
    Object.entries(KINDS).map(([kind, valuesOf]) => {
      const values = valuesOf(again);
      const ratios = valuesOf(ours).map((value, at) => {
        const second = values[at] ?? Number.NaN;
        return Math.max(value / second, second / value);
      });
      return [kind, { largest: Math.max(...ratios), median: median(ratios) }];
    }),
  );
}
