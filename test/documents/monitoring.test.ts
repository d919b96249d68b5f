/** What the documents say of states, statuses, metrics, alerts and the log is what the source has. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { CERTIFICATE_WARNING_DAYS } from "../../src/commands/doctor/way.ts";
import { KINDS } from "../../src/failures/kinds.ts";
import { STATES } from "../../src/keys/key-health.ts";
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
  const [table] = tables(section("gRPC status codes"));
  const told = (table?.rows ?? []).flatMap(([code, kinds = ""]) =>
    [...kinds.matchAll(/`(\w+)`/g)].map(([, kind]) => `${kind} ${code}`),
  );
  const known = Object.entries(KINDS).map(([kind, { code }]) => `${kind} ${status[code]}`);
  expect(told.sort()).toEqual(known.sort());
});

test("each row of the table of log messages says what it means and what to do", () => {
  const [table] = tables(between("log-messages") ?? "");
  expect(table?.rows.length).toBeGreaterThan(25);
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
  const [, told] = /before a certificate expires comes (\d+) days before/.exec(REFERENCE) ?? [];
  expect([alert, told].map(Number)).toEqual([CERTIFICATE_WARNING_DAYS, CERTIFICATE_WARNING_DAYS]);
});
