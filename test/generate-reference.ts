/** Writes the table of options into REFERENCE.md; `npm run generate` calls it after Buf. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { optionsTable } from "../src/commands/help.ts";

const path = join(import.meta.dir, "../REFERENCE.md");
const between = /(<!-- options -->\n)[\s\S]*(\n<!-- \/options -->)/;
writeFileSync(path, readFileSync(path, "utf8").replace(between, `$1${optionsTable()}$2`));
