/** Runbooks: one form for all, and one click from each alert and each line of the log that needs somebody. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { KINDS } from "../../src/failures/kinds.ts";
import { LEADS_TO } from "../../src/health/words.ts";
import { ROOT } from "./blocks.ts";
import { rulesOf } from "./monitoring-tables.ts";

const FORM = [
  "What you see",
  "What still works",
  "Do now",
  "Do not",
  "How you know that it is over",
  "Why",
];
const text = (path: string) => readFileSync(join(ROOT, "docs", path), "utf8");
const INDEX = text("runbooks/README.md");
const RUNBOOKS = [...new Bun.Glob("runbooks/*.md").scanSync(join(ROOT, "docs"))]
  .filter((path) => path !== "runbooks/README.md")
  .sort();

/** What a reader compares with what is in front of them; a line of the log may be broken in two. */
function seen(path: string): string {
  const [, section = ""] = /\n## What you see\n([\s\S]*?)\n## /.exec(text(path)) ?? [];
  return section.replaceAll(/\s+/g, " ");
}

test.each(RUNBOOKS)("%s has the form of all, and is in the index", (path) => {
  const headings = [...text(path).matchAll(/^## (.*)$/gm)].map(([, heading]) => heading);
  expect(headings).toEqual(FORM);
  expect(INDEX).toContain(`](${path.replace("runbooks/", "")})`);
});

test("each alert leads to a runbook that names it, and the index has it with its severity", () => {
  const rules = rulesOf(
    readFileSync(join(ROOT, "src/commands/manifest/templates/prometheus-rules.yaml.txt"), "utf8"),
  );
  expect(rules.length).toBeGreaterThan(20);
  for (const { alert, labels, annotations } of rules) {
    const path = annotations.runbook_url.replace("{{documents}}", "");
    expect([alert, RUNBOOKS.includes(path)]).toEqual([alert, true]);
    expect([alert, seen(path)]).toEqual([
      alert,
      expect.stringMatching(new RegExp(`\\b${alert}\\b`)),
    ]);
    expect(INDEX).toContain(`| ${alert} | ${labels.severity} | `);
    expect(INDEX.split("\n").find((line) => line.startsWith(`| ${alert} `))).toContain(
      `](${path.replace("runbooks/", "")})`,
    );
  }
});

test("each text that a caller gets is in the runbook of failing calls", () => {
  const told = text("runbooks/errors.md");
  const texts = Object.entries(KINDS).filter(([kind]) => kind !== "cancelled");
  expect(texts.filter(([, facts]) => !told.includes(`\`${facts.text}\``))).toEqual([]);
});

test("each cause, each state and each error of the log is quoted by a runbook", () => {
  const causes = Object.values(KINDS).flatMap(({ headline }) => headline ?? []);
  const ends = Object.values(LEADS_TO).filter((end) => end !== "" && end !== LEADS_TO.degraded);
  const errors = [...text("REFERENCE.md").matchAll(/^\| error \| `([^`]*)` \|/gm)].map(
    ([, message = ""]) => message,
  );
  expect(errors.length).toBeGreaterThan(5);
  const all = RUNBOOKS.map(seen).join();
  const missing = [...causes, ...ends, ...errors].filter((line) => !all.includes(`\`${line}\``));
  expect(missing).toEqual([]);
});

test("a line of the log that REFERENCE.md links to a runbook is quoted there, as its alert is", () => {
  const linked = [
    ...text("REFERENCE.md").matchAll(
      /^\| \w+ \| `([^`]*)` \|.*\[the runbook\]\(([\w./-]+\.md)\)/gm,
    ),
  ];
  expect(linked.length).toBeGreaterThan(4);
  for (const [, message = "", path = ""] of linked) {
    expect([message, path, seen(path).includes(`\`${message}\``)]).toEqual([message, path, true]);
  }
});
