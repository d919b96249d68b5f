/** What the documents say of states, statuses, metrics, alerts and the log is what the source has. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { KINDS } from "../../src/failures/kinds.ts";
import { STATES } from "../../src/keys/standing.ts";
import { DOCUMENTS } from "./blocks.ts";
import { MONITORING_TABLES } from "./monitoring-tables.ts";

const ROOT = join(import.meta.dir, "../..");
const text = (path: string) => readFileSync(join(ROOT, path), "utf8");
const REFERENCE = text("docs/REFERENCE.md");

function between(name: string): string | undefined {
  return REFERENCE.match(new RegExp(`<!-- ${name} -->\\n([\\s\\S]*)\\n<!-- /${name} -->`))?.[1];
}

/** The cells of the tables in a text, without their heads; a row of dashes parts head from rows. */
function tables(markdown: string): { head: string[]; rows: string[][] }[] {
  const cells = (line: string) =>
    line
      .replaceAll(/^\| *| *\|$/g, "")
      .split(/ *(?<!\\)\| */)
      .map((cell) => cell.replaceAll("\\|", "|"));
  return [...markdown.matchAll(/^(\|.*\|)\n\|[-|: ]+\|\n((?:\|.*\|\n?)*)/gm)].map(
    ([, head = "", rows = ""]) => ({
      head: cells(head),
      rows: rows.trimEnd().split("\n").map(cells),
    }),
  );
}

function section(heading: string): string {
  const start = REFERENCE.indexOf(`\n## ${heading}\n`) + 1;
  expect(start).toBeGreaterThan(0);
  return REFERENCE.slice(start).split("\n## ")[0] ?? "";
}

test.each([...MONITORING_TABLES])("the table of %s is made by the source", (name, table) => {
  expect(between(name)).toBe(table);
});

test("each table of states has all of them", () => {
  const found = tables(section("States")).filter(({ head }) => head[0] === "state");
  expect(found.length).toBeGreaterThan(0);
  for (const { rows } of found) {
    expect(rows.map(([state]) => state)).toEqual([...STATES]);
  }
});

test("the table of statuses has each kind of failure with its status", () => {
  const [table] = tables(section("Statuses"));
  const told = (table?.rows ?? []).flatMap(([code, kinds = ""]) =>
    [...kinds.matchAll(/`(\w+)`/g)].map(([, kind]) => `${kind} ${code}`),
  );
  const known = Object.entries(KINDS).map(([kind, { code }]) => `${kind} ${status[code]}`);
  expect(told.sort()).toEqual(known.sort());
});

interface Message {
  readonly level: string;
  readonly message: string;
}

/** A text of the source, at the beginning of what is left of it. */
const TEXT = /^"((?:[^"\\]|\\.)*)"/;

/** Constants with a text, by their name: a message that two places log is one. */
function constantTexts(): Map<string, string> {
  const found = new Map<string, string>();
  for (const path of new Bun.Glob("src/**/*.ts").scanSync(ROOT)) {
    for (const [, name = "", value = ""] of text(path).matchAll(
      /^(?:export )?const ([A-Z][A-Z_]+) =\s+("(?:[^"\\]|\\.)*");$/gm,
    )) {
      found.set(name, TEXT.exec(value)?.[1] ?? "");
    }
  }
  return found;
}

/**
 * The messages that the source logs, from info on, and the files with one that is no plain text. A log is called
 * `log` or `#log` everywhere; `line("warn", …)` makes one without it.
 */
function logged(): { messages: Message[]; unread: string[] } {
  const messages: Message[] = [];
  const unread: string[] = [];
  const constants = constantTexts();
  for (const path of new Bun.Glob("src/**/*.ts").scanSync(ROOT)) {
    const source = text(path);
    const calls = source.matchAll(
      /\blog(?:\.(info|warn|error)|\[([^()]*)\])\(\s*|\bline\("(info|warn|error)",\s*/g,
    );
    for (const call of calls) {
      const [whole, level, chosen, made] = call;
      const rest = source.slice(call.index + whole.length);
      const literal =
        TEXT.exec(rest)?.[1] ?? constants.get(/^([A-Z][A-Z_]+),/.exec(rest)?.[1] ?? "");
      if (literal === undefined) {
        unread.push(path);
        continue;
      }
      for (const [one] of (level ?? made ?? chosen ?? "").matchAll(/\b(info|warn|error)\b/g)) {
        messages.push({ level: one, message: literal });
      }
    }
  }
  return { messages, unread };
}

test("the table of log messages has each that the source can log, and no other", () => {
  const { messages, unread } = logged();
  // Its messages are made of the words in the two tables above.
  expect(unread).toEqual(["src/health/change-log.ts"]);
  expect(messages.length).toBeGreaterThan(25);
  const [table] = tables(between("log-messages") ?? "");
  const told = (table?.rows ?? []).map(([level, message]) => `${level} ${message}`);
  const known = messages.map(({ level, message }) => `${level} \`${message}\``);
  expect(told.sort()).toEqual([...new Set(known)].sort());
  for (const row of table?.rows ?? []) {
    expect(row).toEqual(Array.from({ length: 4 }, () => expect.stringMatching(/./)));
  }
});

test("there is one number for no contact", () => {
  const rules = text("src/commands/manifest/templates/prometheus-rules.yaml.txt");
  const dashboard = JSON.parse(text("src/commands/manifest/templates/grafana.json")) as {
    panels: {
      title: string;
      fieldConfig: { defaults: { thresholds?: { steps: { value: number | null }[] } } };
    }[];
  };
  const limit = Number(/last_contact_timestamp_seconds > (\d+)$/m.exec(rules)?.[1]);
  expect(limit).toBeGreaterThan(0);
  const documents = DOCUMENTS.map(text).join();
  const numbers = [...documents.matchAll(/last_contact_timestamp_seconds\s+>\s+(\d+)/g)];
  expect(numbers.length).toBeGreaterThan(0);
  expect([...new Set(numbers.map(([, number]) => Number(number)))]).toEqual([limit]);
  const minutes = [
    ...`${rules}${documents}`.matchAll(/(?:has succeeded for|fires after) (\d+) minutes/g),
  ];
  expect(minutes.length).toBeGreaterThan(1);
  expect([...new Set(minutes.map(([, number]) => Number(number) * 60))]).toEqual([limit]);
  const panel = dashboard.panels.find(({ title }) => title.includes("last contact"));
  expect(panel?.fieldConfig.defaults.thresholds?.steps.at(-1)?.value).toBe(limit);
});

test("doctor warns of a certificate as early as the alert, and REFERENCE.md says when", () => {
  const rules = text("src/commands/manifest/templates/prometheus-rules.yaml.txt");
  const [, alert] =
    /certificate_expiry_timestamp_seconds - time\(\) < (\d+) \* 86400$/m.exec(rules) ?? [];
  const [, doctor] =
    /^const CERTIFICATE_WARNING_DAYS = (\d+);$/m.exec(text("src/commands/doctor/way.ts")) ?? [];
  const [, told] = /before a certificate expires comes (\d+) days before/.exec(REFERENCE) ?? [];
  expect(alert).toBeDefined();
  expect([doctor, told]).toEqual([alert, alert]);
});
