/**
 * `npm run bench [-- rates|scale|fleet] [--quick]`: what the compiled binary does. Figures of two runs or two
 * machines are not comparable; the ratios, from slices in turns, are.
 */
import { fleet } from "./fleet.ts";
import { rates } from "./rates.ts";

import { scale } from "./scale.ts";
import { cleanUp } from "./servers.ts";

const BENCHES = { rates, scale, fleet };
const words = process.argv.slice(2);
const quick = words.includes("--quick");
const named = words.filter((word) => !word.startsWith("--"));
for (const name of named.length > 0 ? named : ["rates"]) {
  const bench = Object.entries(BENCHES).find(([one]) => one === name)?.[1];
  if (bench === undefined) {
    throw new Error(`no bench ${name}; there are ${Object.keys(BENCHES).join(", ")}`);
  }
  await bench(quick);
}
await cleanUp();
process.exit(0);
