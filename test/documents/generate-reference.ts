/** Writes the tables that the source and the stored benchmarks make into the documents; `npm run generate` calls it after Buf. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ROOT } from "./blocks.ts";
import { FIGURES } from "./figures.ts";
import { limitsTable } from "./limits-table.ts";
import { MONITORING_TABLES } from "./monitoring-tables.ts";
import { exitCodeTable, optionTables, profileTable } from "./reference-tables.ts";
import { helloOf, tlsTable } from "./tls-table.ts";

const hello = await helloOf((url) => fetch(url).catch(() => {})); // the server answers nobody
const reference = [
  ["options", optionTables()],
  ["exit-codes", exitCodeTable()],
  ["profile", profileTable()],
  ["limits", limitsTable()],
  ["tls", tlsTable(hello)],
  ...MONITORING_TABLES,
] as const;
const blocks = [
  ...reference.map(([name, made]) => ["docs/REFERENCE.md", name, made] as const),
  ...FIGURES,
];
for (const [path, name, made] of blocks) {
  const file = join(ROOT, path);
  const between = new RegExp(`(<!-- ${name} -->\\n)[\\s\\S]*(\\n<!-- /${name} -->)`);
  const replaced = (_: string, before: string, after: string) => before + made + after;
  writeFileSync(file, readFileSync(file, "utf8").replace(between, replaced));
}
