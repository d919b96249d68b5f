/** `npm run bench`: what the compiled binary does. */
import { compile } from "../../src/build/compile.ts";
import { scriptArguments } from "../../src/build/usage.ts";
import { fleet } from "./fleet.ts";
import { peers } from "./peers/peers.ts";
import { rates } from "./rates.ts";
import { scale } from "./scale.ts";
import { BINARY, cleanUp } from "./servers.ts";
import { tails } from "./tails.ts";

const USAGE = `npm run bench [-- rates|peers|scale|fleet|tails…] [-- --quick] [-- --store]: builds the binary and measures it. Figures of two runs or
two machines are not comparable; the ratios, from slices in turns, are. The machine should have nothing else to do.

  rates     start, calls a second, latencies, CPU and memory, beside an empty service and grpc-go, and the ratio to
            the stored ones (the default; 15 minutes)
  peers     the plugin beside others, each against the same fake KMS: rates, calls to the KMS, CPU, memory, start, an
            outage, a disabled key, the Secrets of a restart (10 minutes, 20 with others; --quick: 5). Needs Go and openssl. It builds
            none of them: say where each is, --aws PATH --azure PATH --gcp PATH --vault PATH --ovh PATH. Those that are
            not given are left out. Three yardsticks are always there: a grpc-go server that asks the KMS for each
            DEK and does nothing else, a bare grpc-go one, and a bare grpc-js one
  scale     the restart of an API server with up to 100,000 Secrets (about 10 minutes)
  fleet     what 3,000 plugins ask of one Key4C (about 2 minutes)
  tails     how long the one thread is held by the largest pieces of work (a minute)
  --quick   less of it (two minutes)
  --store   the ratios of rates become those that later runs are compared with (test/bench/baseline.json); the figures of
            peers and tails those that the documents have (test/bench/results; then npm run generate)
  --spread  how far this run of peers is from the stored one goes into the documents too
`;
const BENCHES = new Map(Object.entries({ rates, peers, scale, fleet, tails }));
const PATHS = {
  aws: { type: "string" },
  azure: { type: "string" },
  gcp: { type: "string" },
  vault: { type: "string" },
  ovh: { type: "string" },
} as const;
const { values, positionals } = scriptArguments(
  USAGE,
  {
    quick: { type: "boolean", default: false },
    store: { type: "boolean", default: false },
    spread: { type: "boolean", default: false },
    ...PATHS,
  },
  true,
);
const named = positionals.length > 0 ? positionals : ["rates"];
const unknown = named.filter((name) => !BENCHES.has(name));
if (unknown.length > 0) {
  console.error(`no bench ${unknown.join(", ")}\n\n${USAGE}`);
  process.exit(2);
}
console.log("building the binary");
await compile(BINARY);
try {
  for (const name of named) {
    console.log(`${name}: begins; its lines come as they are measured`);
    await BENCHES.get(name)?.(values.quick, values);
  }
} finally {
  await cleanUp();
}
process.exit(0);
