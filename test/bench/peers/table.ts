/** A run of `npm run bench -- peers` as one table: a column for each server. The documents have it too. */
import { table } from "../../documents/markdown.ts";
import {
  CALLERS,
  DISTANCES_MS,
  type Figures,
  OPERATIONS,
  type Operation,
  type Outage,
  type Rate,
  type Result,
  rowOf,
} from "./result.ts";

/** What the columns are called. */
export const TITLES: Readonly<Record<string, string>> = {
  "key4c-kms-plugin": "this plugin",
  aws: "AWS",
  azure: "Azure",
  gcp: "GCP",
  vault: "Vault",
  ovh: "OVH",
  each: "grpc-go with a call for each DEK",
  "grpc-go": "bare grpc-go",
  floor: "bare grpc-js",
};

const NONE = "–";

type Row = readonly [what: string, cell: (figures: Figures) => string];

export function resultTable(result: Result): string {
  const columns = Object.entries(result.figures);
  const head = ["", ...columns.map(([name]) => TITLES[name] ?? name)];
  const rows = rowsOf(result).map(([what, cell]) => [what, ...columns.map(([, one]) => cell(one))]);
  return table(head, rows);
}

function rowsOf({ outageSeconds, encrypts }: Result): Row[] {
  return [
    ...DISTANCES_MS.flatMap((distanceMs) =>
      CALLERS.map((callers): Row => {
        const what = `Encrypt / Decrypt / Status a second, KMS ${distanceMs} ms away, ${callerWords(callers)}`;
        return [
          what,
          (one) => perOperation(one, distanceMs, callers, (rate) => whole(rate.perSecond)),
        ];
      }),
    ),
    [
      "median ms of these, 0 ms away, 1 caller",
      (one) => perOperation(one, 0, 1, (rate) => (rate.p50Micros / 1_000).toFixed(2)),
    ],
    [
      "median ms of these, 20 ms away, 64 callers",
      (one) => perOperation(one, 20, 64, (rate) => (rate.p50Micros / 1_000).toFixed(1)),
    ],
    [
      "CPU seconds for 100,000 of these, 0 ms away, 64 callers",
      (one) => perOperation(one, 0, 64, (rate) => cpuSeconds(rate).toFixed(1)),
    ],
    [
      "calls to the KMS for one of these",
      ({ kmsCalls }) =>
        each((operation) => {
          const calls = kmsCalls[operation];
          return calls === undefined ? NONE : `${Math.round(calls * 10) / 10}`;
        }),
    ],
    [
      `RSS MiB, KMS 20 ms away: idle / right after ${whole(encrypts)} Encrypts / a minute later`,
      ({ rssMiB: { idle, loaded, later } }) => [idle, loaded, later].map(whole).join(" / "),
    ],
    [
      `ms from exec to the first ok Status, KMS ${DISTANCES_MS.join(" / ")} ms away`,
      ({ readyMs }) => DISTANCES_MS.map((ms) => shown(readyMs[ms], whole)).join(" / "),
    ],
    ...(["hang", "refuse"] as const).flatMap((mode) => outageRows(mode, outageSeconds)),
    [
      "a disabled key is obeyed after s; used again after s",
      ({ disabled }) =>
        disabled === undefined
          ? NONE
          : `${seconds(disabled.obeyedAfterMs)}; ${seconds(disabled.usedAfterMs)}`,
    ],
    [
      "10,000 Secrets of KMS v1 read after a restart of both, KMS 20 ms away: s, calls to the KMS",
      ({ secrets }) => {
        if (secrets === undefined) {
          return NONE;
        }
        const { count, seconds: took, kmsCalls } = secrets;
        const isAll = count === SECRETS;
        const isEach = kmsCalls >= count;
        const factor = SECRETS / count;
        const calls = whole(isEach ? kmsCalls * factor : kmsCalls);
        return `${(took * factor).toFixed(isEach ? 0 : 1)}, ${calls}${isAll ? "" : ` (computed from ${whole(count)})`}`;
      },
    ],
    ["binary, MB", ({ binaryMB }) => whole(binaryMB)],
  ];
}

/** What the row of Secrets is about; a quick run reads fewer. */
export const SECRETS = 10_000;

function outageRows(mode: "hang" | "refuse", outageSeconds: number): Row[] {
  const what = mode === "hang" ? "hangs" : "refuses connections";
  const row = (rest: string, cell: (outage: Outage) => string): Row => [
    `the KMS ${what} for ${outageSeconds} s: ${rest}`,
    ({ outages }) => shown(outages[mode], cell),
  ];
  return [
    row("% answered", ({ answered }) =>
      each((operation) => `${Math.floor(answered[operation] * 100)}`),
    ),
    row("restarted by its own probe", ({ isRestarted }) =>
      isRestarted === null ? "no probe" : isRestarted ? "yes" : "no",
    ),
    row("used again after s", ({ usedAfterMs }) => seconds(usedAfterMs)),
  ];
}

export function rateOf(figures: Figures, operation: Operation, ms: number, callers: number): Rate {
  const rate = figures.rates[rowOf(operation, ms, callers)];
  if (rate === undefined) {
    throw new Error(`no ${rowOf(operation, ms, callers)} in the result`);
  }
  return rate;
}

export const cpuSeconds = (rate: Rate) => rate.cpuMicros / 10; // for 100,000 calls

function perOperation(
  figures: Figures,
  ms: number,
  callers: number,
  cell: (rate: Rate) => string,
): string {
  return each((operation) => shown(figures.rates[rowOf(operation, ms, callers)], cell));
}

function each(cell: (operation: Operation) => string): string {
  const cells = OPERATIONS.map(cell);
  return cells.every((one) => one === NONE) ? NONE : cells.join(" / ");
}

function shown<T>(value: T | undefined, cell: (value: T) => string): string {
  return value === undefined ? NONE : cell(value);
}

/** `null`: not within the time that was waited. */
function seconds(ms: number | null): string {
  return ms === null ? "never" : (ms / 1_000).toFixed(ms < 1_000 ? 2 : 1);
}

export function whole(value: number): string {
  return Math.round(value).toLocaleString("en-US");
}

function callerWords(callers: number): string {
  return callers === 1 ? "1 caller" : `${callers} callers`;
}

/** Date, machine, versions: what a table must say of itself. */
export function provenance(result: Result): string {
  const { date, machine, load, isQuick, figures, absent } = result;
  const title = (name: string) => TITLES[name] ?? name;
  const versions = Object.entries(figures).map(
    ([name, { version }]) => `${title(name)} ${version}`,
  );
  const left = absent.length === 0 ? "" : ` Left out: ${absent.map(title).join(", ")}.`;
  return `${date}${isQuick ? ", with `--quick`" : ""}, ${machine}, where other work had a load average of ${load}: ${versions.join("; ")}.${left}`;
}
