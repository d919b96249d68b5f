/** What is logged in a test stands in REFERENCE.md: whoever reads a line at night finds what to do. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { type ErrorKind, KINDS, OTHER_HEADLINES } from "../src/failures/kinds.ts";
import { LEVELS } from "../src/health/change-log.ts";
import { headline } from "../src/health/words.ts";
import { STATES } from "../src/keys/key-health.ts";

const REFERENCE = readFileSync(join(import.meta.dir, "../docs/REFERENCE.md"), "utf8");
const TABLE =
  /<!-- log-messages -->\n([\s\S]*)\n<!-- \/log-messages -->/.exec(REFERENCE)?.[1] ?? "";

/** Level and message. */
const told = new Set<string>();
for (const [, level, message] of TABLE.matchAll(/^\| (\w+) \| `(.*?)` \|/gm)) {
  told.add(`${level} ${message}`);
}
/** The lines of states are made of the words of two other tables, which the source makes. */
for (const state of STATES) {
  const kinds = (Object.keys(KINDS) as ErrorKind[]).map((kind) => ({ kind, headline: undefined }));
  const others = OTHER_HEADLINES.map((one) => ({ ...one, kind: "unavailable" }) as const);
  for (const failure of [undefined, ...kinds, ...others]) {
    told.add(`${LEVELS[state]} ${headline(state, failure)}`);
  }
}

/**
 * @param lines of JSON, among others
 * @throws Error for one from info on that the table does not have
 */
export function expectInReference(lines: string): void {
  for (const text of lines.split("\n")) {
    const { time, level, msg } = lineOf(text);
    if (time !== undefined && level !== "debug" && !told.has(`${level} ${msg}`)) {
      throw new Error(`REFERENCE.md, "Log messages", does not have: ${level} ${msg}`);
    }
  }
}

function lineOf(text: string): Readonly<Partial<Record<"time" | "level" | "msg", string>>> {
  try {
    return text.startsWith('{"time":') ? JSON.parse(text) : {};
  } catch {
    return {}; // cut short
  }
}
