/** `npm run bench`: what the compiled binary does. */
import { compile } from "../../src/build/compile.ts";
import { scriptArguments } from "../../src/build/usage.ts";
import { fleet } from "./fleet.ts";
import { rates } from "./rates.ts";
import { scale } from "./scale.ts";
import { BINARY, cleanUp } from "./servers.ts";
import { tails } from "./tails.ts";

const USAGE = `npm run bench [-- rates|scale|fleet|tails…] [-- --quick] [-- --store]: builds the binary and measures it. Figures of two runs or
two machines are not comparable; the ratios, from slices in turns, are. The machine should have nothing else to do.

  rates     start, calls a second, latencies, CPU and memory, beside an empty service and grpc-go, and the ratio to
            the stored ones (the default; 15 minutes)
  scale     the restart of an API server with up to 100,000 Secrets (about 10 minutes)
  fleet     what 3,000 plugins ask of one Key4C (about 2 minutes)
  tails     how long the one thread is held by the largest pieces of work (a minute)
  --quick   less of it (two minutes)
  --store   the ratios of rates become those that later runs are compared with (test/bench/baseline.json)
`;
const BENCHES = new Map(Object.entries({ rates, scale, fleet, tails }));
const { values, positionals } = scriptArguments(
  USAGE,
  {
    quick: { type: "boolean", default: false },
    store: { type: "boolean", default: false },
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
for (const name of named) {
  console.log(`${name}: begins; its lines come as they are measured`);
  await BENCHES.get(name)?.(values.quick, values);
}
await cleanUp();
process.exit(0);
