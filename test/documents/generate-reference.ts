/** Writes the tables that the source makes into REFERENCE.md; `npm run generate` calls it after Buf. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { limitsTable } from "./limits-table.ts";
import { MONITORING_TABLES } from "./monitoring-tables.ts";
import { exitCodeTable, optionTables, profileTable } from "./reference-tables.ts";
import { helloOf, tlsTable } from "./tls-table.ts";

const path = join(import.meta.dir, "../../docs/REFERENCE.md");
let text = readFileSync(path, "utf8");
const hello = await helloOf((url) => fetch(url).catch(() => {})); // the server answers nobody
for (const [name, table] of [
  ["options", optionTables()],
  ["exit-codes", exitCodeTable()],
  ["profile", profileTable()],
  ["limits", limitsTable()],
  ["tls", tlsTable(hello)],
  ...MONITORING_TABLES,
] as const) {
  const between = new RegExp(`(<!-- ${name} -->\\n)[\\s\\S]*(\\n<!-- /${name} -->)`);
  text = text.replace(between, (_, before: string, after: string) => before + table + after);
}
writeFileSync(path, text);
