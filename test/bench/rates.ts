/** Rates and latencies of the plugin, of the empty service and of grpc-go, in turns. */
import { join } from "node:path";
import {
  BINARY,
  buildLoader,
  median,
  memoryMiB,
  startFloor,
  startPlugin,
  startReference,
  stop,
  untilOk,
} from "./servers.ts";

/** A slice of a target in a round, as main.go and load.ts tell it. */
interface Slice {
  readonly perSecond: number;
  readonly p50Micros: number;
  readonly p99Micros: number;
  readonly p999Micros: number;
  readonly cpuMicros: number;
  readonly errors: number;
}

const STARTS = 11;
const REST_MS = 60_000;

/** Callers and connections. */
const WIDTHS = [
  [1, 1],
  [8, 1],
  [64, 1],
  [256, 1],
  [64, 10],
  [256, 10],
] as const;
const OPERATIONS = ["v1 encrypt", "v1 decrypt", "v2 encrypt", "v2 decrypt"];

export async function rates(quick: boolean): Promise<void> {
  const rounds = quick ? 5 : 10;
  const slice = quick ? "300ms" : "700ms";
  const widths = quick ? WIDTHS.filter(([callers]) => callers === 1 || callers === 64) : WIDTHS;
  console.log(`exec to first Status ok: median ${(await readyMs()).toFixed(0)} ms of ${STARTS}`);
  console.log(`binary: ${(Bun.file(BINARY).size / 1e6).toFixed(1)} MB`);

  const plugin = startPlugin();
  await untilOk(plugin);
  await Bun.sleep(3_000);
  const idle = memoryMiB(plugin);
  const targets = [plugin, await startFloor()];
  const loader = buildLoader();
  if (loader === undefined) {
    console.log(
      "!!! Go is not installed: the client is grpc-js, and no grpc-go server compares !!!",
    );
  } else {
    targets.push(startReference(loader));
  }
  for (const target of targets) {
    await untilOk(target);
  }
  const command = loader ? [loader] : [process.execPath, join(import.meta.dir, "load.ts")];
  const addresses = targets.map(({ socket, process: { pid } }) => `${socket}@${pid}`).join();
  console.log(
    `medians of ${rounds} slices of ${slice} each, in turns; CPU is that of the server, in seconds per 100,000 calls\n`,
  );
  console.log(
    "| operation | callers/connections | per second | p50 µs | p99 µs | p99.9 µs | CPU s | of the empty service | of grpc-go | p50 to grpc-go | errors |",
  );
  console.log("|---|---|---|---|---|---|---|---|---|---|---|");
  for (const operation of [...OPERATIONS, "v2 status"]) {
    const [api = "", method = ""] = operation.split(" ");
    for (const [callers, connections] of widths) {
      const child = Bun.spawn(
        [
          ...command,
          ...["-targets", addresses, "-api", api, "-operation", method, "-rounds", `${rounds}`],
          ...["-callers", `${callers}`, "-connections", `${connections}`, "-slice", slice],
        ].map((word) => (loader ? word : word.replace(/^-(?=[a-z])/, "--"))),
      );
      const [ours = [], floor = [], reference = []] = (await child.stdout.json()) as Slice[][];
      const of = (name: keyof Slice) => median(ours.map((one) => one[name]));
      const to = (other: readonly Slice[], name: "perSecond" | "p50Micros") =>
        median(ours.map((one, at) => one[name] / (other[at]?.[name] ?? Number.NaN))).toFixed(2);
      const cells = [
        ...[of("perSecond"), of("p50Micros"), of("p99Micros"), of("p999Micros")].map(Math.round),
        (of("cpuMicros") / 10).toFixed(1),
        to(floor, "perSecond"),
        loader ? to(reference, "perSecond") : "",
        loader ? to(reference, "p50Micros") : "",
        ours.reduce((sum, { errors }) => sum + errors, 0),
      ];
      console.log(`| ${operation} | ${callers}/${connections} | ${cells.join(" | ")} |`);
    }
  }
  const loaded = memoryMiB(plugin);
  await Bun.sleep(quick ? 5_000 : REST_MS);
  const rested = memoryMiB(plugin);
  const shown = [idle, loaded, rested].map(
    ({ rss, own }) => `${rss.toFixed(0)} (${own.toFixed(0)})`,
  );
  console.log(
    `\nRSS (of which private) MiB: idle ${shown[0]}, after the load ${shown[1]}, later ${shown[2]}`,
  );
}

/** Milliseconds from exec to the first Status ok. */
async function readyMs(): Promise<number> {
  const took: number[] = [];
  for (let round = 0; round < STARTS; round++) {
    const beginMs = performance.now();
    const plugin = startPlugin();
    await untilOk(plugin);
    took.push(performance.now() - beginMs);
    await stop(plugin);
  }
  return median(took);
}
