/**
 * `npm run test:simulation [-- --seed N | --minutes N]`: the real plugin through histories of hours to weeks, in
 * simulated time. See README.md beside this file.
 */
import { parseArgs } from "node:util";
import { Coverage } from "./coverage.ts";
import { FAULTS, type Fault, type History, historyOf } from "./faults.ts";
import { shrink } from "./shrink.ts";
import { play } from "./world.ts";

const MIN_FAULTS = 20_000;
const MIN_OVERLAPS = 10;

const { values } = parseArgs({
  options: { seed: { type: "string" }, minutes: { type: "string" }, faults: { type: "string" } },
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
  return (
    coverage.faults >= wantedFaults && (!isWhole || coverage.rarePairs(MIN_OVERLAPS).length === 0)
  );
}

let failed: History | undefined;
for (let seed = Number(values.seed ?? 1); failed === undefined; seed += 1) {
  const history = historyOf(seed);
  coverage.history(history);
  const violation = await play(history, coverage);
  if (violation !== undefined) {
    failed = history;
    console.log(`FAIL seed ${seed}: ${violation.message}\nlooking for the shortest history …`);
    const { shortest, violation: last } = await shrink(history, violation.rule);
    console.log(tell(shortest, last.message));
  }
  if (values.seed !== undefined || isEnough()) {
    break;
  }
}
console.log(coverage.text());
console.log(`${((performance.now() - startMs) / 1_000).toFixed(0)} s`);
const wrongCells = failed === undefined && isWhole ? coverage.wrongCells : [];
if (wrongCells.length > 0) {
  console.log(
    `FAIL cells of the table that no history visits, or that none can: ${wrongCells.join(" ")}`,
  );
}
const isOk = failed === undefined && wrongCells.length === 0;
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
