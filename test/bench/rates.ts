/** Rates and latencies of the plugin, of the empty service and of grpc-go, in turns. */
import { type Ratios, type Rows, readBaseline, storeBaseline, toStored } from "./baseline.ts";
import { memory, start } from "./footprint.ts";
import {
  buildLoader,
  median,
  startFloor,
  startPlugin,
  startReference,
  untilOk,
} from "./servers.ts";
import { medianOf, type Slice, slices } from "./slices.ts";

/** Callers and connections. */
const WIDTHS = [
  [1, 1],
  [8, 1],
  [64, 1],
  [256, 1],
  [64, 10],
  [256, 10],
] as const;
const QUICK_WIDTHS = [
  [1, 1],
  [64, 1],
] as const;
const OPERATIONS = ["v2 status", "v2 encrypt", "v2 decrypt", "v1 encrypt", "v1 decrypt"];
const COLUMNS = [
  "operation",
  "callers/connections",
  "per second",
  "p50 µs",
  "p99 µs",
  "p99.9 µs",
  "CPU s per 100,000",
  "of the empty service",
  "its CPU",
  "of grpc-go",
  "its CPU",
  "p50 to grpc-go",
  "to stored: rate",
  "CPU",
  "errors",
];

/** @param options.store what is measured becomes what later runs are compared with */
export async function rates(quick: boolean, { store }: { readonly store: boolean }): Promise<void> {
  await start(quick);
  const rounds = quick ? 5 : 10;
  const slice = quick ? "300ms" : "700ms";
  const widths = quick ? QUICK_WIDTHS : WIDTHS;
  const loader = buildLoader();
  if (loader === undefined) {
    console.log(
      "!!! Go is not installed: the client is grpc-js, and no grpc-go server compares !!!",
    );
  }
  const floor = await startFloor();
  const targets = [startPlugin(), floor, ...(loader ? [startReference(loader)] : [])];
  for (const target of targets) {
    await untilOk(target);
  }
  const baseline = await readBaseline();
  console.log(
    `medians of ${rounds} slices of ${slice} each, in turns; CPU is that of the server; stored: ratios to the empty service, at ${baseline?.commit ?? "no commit yet"}\n`,
  );
  console.log(`| ${COLUMNS.join(" | ")} |\n|${COLUMNS.map(() => "---|").join("")}`);
  const rows: Record<string, Rows[string]> = {};
  for (const operation of OPERATIONS) {
    const [api = "", method = ""] = operation.split(" ");
    for (const [callers, connections] of widths) {
      const [ours = [], empty = [], reference] = await slices(loader, targets, {
        ...{ api, operation: method, callers, connections, rounds, slice },
      });
      const of = (name: keyof Slice) => medianOf(ours, name);
      const toEmpty = ratios(ours, empty);
      const toGo = reference && ratios(ours, reference);
      const row = `${operation} ${callers}/${connections}`;
      rows[row] = { floor: toEmpty, ...(toGo && { "grpc-go": toGo }) };
      const cells = [
        ...[of("perSecond"), of("p50Micros"), of("p99Micros"), of("p999Micros")].map(Math.round),
        (of("cpuMicros") / 10).toFixed(1),
        ...[toEmpty.rate, toEmpty.cpu, toGo?.rate, toGo?.cpu].map((one) => one?.toFixed(2) ?? ""),
        reference ? ratio(ours, reference, "p50Micros").toFixed(2) : "",
        toStored(baseline, row, "floor", toEmpty, "rate"),
        toStored(baseline, row, "floor", toEmpty, "cpu"),
        ours.reduce((sum, { errors }) => sum + errors, 0),
      ];
      console.log(`| ${operation} | ${callers}/${connections} | ${cells.join(" | ")} |`);
    }
  }
  if (store) {
    await storeBaseline(rows);
  }
  await memory(loader, quick);
}

function ratios(ours: readonly Slice[], other: readonly Slice[]): Ratios {
  return { rate: ratio(ours, other, "perSecond"), cpu: ratio(ours, other, "cpuMicros") };
}

/** The median of the ratios of slices that were run one after the other. */
function ratio(ours: readonly Slice[], other: readonly Slice[], name: keyof Slice): number {
  return median(ours.map((one, at) => one[name] / (other[at]?.[name] ?? Number.NaN)));
}
