/**
 * `npm run test:simulation [-- --seed N | --minutes N]`: the real plugin through histories of hours to weeks, in
 * simulated time. The rules and their bounds are in invariants.ts, what can happen in faults.ts.
 */
import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { Coverage } from "./coverage.ts";
import { FAULTS, type Fault, type History, historyOf } from "./faults.ts";
import { shrink } from "./shrink.ts";
import type { Played } from "./worker.ts";

const MIN_FAULTS = 20_000;
/** There are 700 pairs of kinds. */
const MIN_OVERLAPS = 5;
/** So many times MIN_FAULTS are played until each pair and each cell is met. */
const MOST = 2;

const { values } = parseArgs({
  options: {
    seed: { type: "string" },
    minutes: { type: "string" },
    /** So many instead of MIN_FAULTS, and neither pairs nor cells are asked for; for mutants. */
    faults: { type: "string" },
    /** Whatever is found is not made shorter. */
    "as-found": { type: "boolean" },
  },
});
const coverage = new Coverage();
const startMs = performance.now();
const untilMs = values.minutes === undefined ? 0 : startMs + Number(values.minutes) * 60_000;
const wantedFaults = Number(values.faults ?? MIN_FAULTS);
const isWhole = values.seed === undefined && values.faults === undefined;

/** Enough is met when the numbers are, or the minutes that were asked for are over. */
function isEnough(): boolean {
  if (performance.now() < untilMs) {
    return false;
  }
  const isMet =
    coverage.rarePairs(MIN_OVERLAPS).length === 0 && coverage.unvisitedCells.length === 0;
  return coverage.faults >= wantedFaults * (isWhole && !isMet ? MOST : 1);
}

const firstSeed = Number(values.seed ?? 1);
let nextSeed = firstSeed;
let failed: Played | undefined;

/** One worker after its last history, until enough is met; what it finds ends all. */
async function work(): Promise<void> {
  const worker = new Worker(new URL("worker.ts", import.meta.url).href);
  try {
    while (failed === undefined && !isEnough()) {
      const played = await answerOf(worker, nextSeed++);
      coverage.add(played.coverage);
      failed ??= played.violation && played;
      if (values.seed !== undefined) {
        return;
      }
    }
  } finally {
    worker.terminate();
  }
}

function answerOf(worker: Worker, seed: number): Promise<Played> {
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }: MessageEvent<Played>) => resolve(data);
    worker.onerror = ({ message }) => reject(new Error(`seed ${seed}: ${message}`));
    worker.postMessage(seed);
  });
}

const workers = values.seed === undefined ? availableParallelism() : 1;
await Promise.all(Array.from({ length: workers }, work));
if (failed?.violation !== undefined) {
  const { seed, violation } = failed;
  console.log(`FAIL seed ${seed}: ${violation.message}`);
  if (!values["as-found"]) {
    console.log("looking for the shortest history …");
    const { shortest, violation: last } = await shrink(historyOf(seed), violation.rule);
    console.log(tell(shortest, last.message));
  }
}
console.log(coverage.text());
console.log(`${((performance.now() - startMs) / 1_000).toFixed(0)} s`);
const missed = [
  ...coverage.rarePairs(MIN_OVERLAPS),
  ...coverage.unvisitedCells,
  ...coverage.impossibleCells,
];
const isMissed = failed === undefined && isWhole && missed.length > 0;
if (isMissed) {
  console.log(`FAIL what no history meets often enough, or none can: ${missed.join(" ")}`);
}
const isOk = failed === undefined && !isMissed;
console.log(`${isOk ? coverage.histories : coverage.histories - 1} passed, ${isOk ? 0 : 1} failed`);
process.exit(isOk ? 0 : 1);

function tell({ settings, faults }: History, message: string): string {
  const line = ({ kind, atMs, durationMs, node, kmsKeyId, variety }: Fault) => {
    const until = FAULTS[kind].lasts === "once" ? "" : ` for ${(durationMs / 1_000).toFixed(1)} s`;
    const where = node === undefined ? "" : ` on node ${node}`;
    return `  at ${(atMs / 1_000).toFixed(1)} s ${kind}${until}${where} (key ${kmsKeyId}, ${variety.toFixed(2)})`;
  };
  return [
    "the shortest history:",
    `  ${JSON.stringify(settings)}`,
    ...faults.map(line),
    `  ${message}`,
  ].join("\n");
}
