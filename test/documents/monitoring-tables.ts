/** The tables of REFERENCE.md that say what the plugin tells of itself, made from where it is said. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { KINDS, OTHER_HEADLINES } from "../../src/failures/kinds.ts";
import { LEVELS } from "../../src/health/change-log.ts";
import { Metrics } from "../../src/health/metrics.ts";
import {
  addStateMetrics,
  key4cCallDurations,
  rpcDurations,
  type TelemetrySources,
} from "../../src/health/telemetry.ts";
import { LEADS_TO } from "../../src/health/words.ts";
import { STATES } from "../../src/keys/key-health.ts";
import { table } from "./markdown.ts";

const ROOT = join(import.meta.dir, "../..");

/** Every metric that serve registers. */
export function registeredMetrics() {
  const metrics = new Metrics();
  addStateMetrics(metrics, {} as TelemetrySources); // what is registered is not read here
  rpcDurations(metrics);
  key4cCallDurations(metrics);
  return metrics.families;
}

export function metricsTable(): string {
  const rows = registeredMetrics().map(({ name, type, labelNames, help }) => [
    `\`${name}\``,
    type,
    labelNames.map((one) => `\`${one}\``).join(", "),
    help,
  ]);
  return table(["metric", "type", "labels", "meaning"], rows);
}

export interface Rule {
  readonly alert: string;
  readonly expr: string;
  readonly for?: string;
  readonly labels: { readonly severity: string };
  readonly annotations: Readonly<Record<"summary" | "description" | "runbook_url", string>>;
}

/** The rules of a rule file. */
export function rulesOf(text: string): Rule[] {
  const { groups } = Bun.YAML.parse(text) as { groups: { rules: Rule[] }[] }; // the shape of such a file
  return groups.flatMap(({ rules }) => rules);
}

const RULES = "src/commands/manifest/templates/prometheus-rules.yaml.txt";

export function alertsTable(): string {
  const rules = rulesOf(readFileSync(join(ROOT, RULES), "utf8"));
  const rows = rules.map(({ alert, labels, for: time, annotations }) => [
    `\`${alert}\``,
    labels.severity,
    time ?? "",
    inWords(annotations.summary),
    annotations.description,
    link(annotations.runbook_url.replace("{{documents}}", "")),
  ]);
  return table(["alert", "severity", "for", "it says", "what to do", "runbook"], rows);
}

/** A template of Prometheus for a reader: `{{ $labels.instance }}` becomes INSTANCE. */
function inWords(template: string): string {
  return template
    .replaceAll(/\{\{ with .*?\{\{ end \}\}/g, "")
    .replaceAll("{{ $value }}", "N")
    .replaceAll(/\{\{ \$labels\.(\w+) \}\}/g, (_, label: string) => label.toUpperCase());
}

/** The heading of a runbook, as a link to it. */
function link(runbook: string): string {
  const [, heading = ""] =
    /^# (.*)$/m.exec(readFileSync(join(ROOT, "docs", runbook), "utf8")) ?? [];
  return `[${heading}](${runbook})`;
}

/** How the line of a change of state begins: with its cause. */
export function causesTable(): string {
  const others = OTHER_HEADLINES.map((one): [string, { headline?: string; remedy: string }] => [
    "unavailable",
    one,
  ]);
  const rows = [...Object.entries(KINDS), ...others]
    .filter(([, { headline }]) => headline !== undefined)
    .map(([kind, { headline, remedy }]) => [`\`${kind}\``, `\`${headline}\``, remedy]);
  return table(["kind", "the message begins with", "remedy"], rows);
}

/** How it ends: with what follows. */
export function stateMessagesTable(): string {
  const rows = STATES.map((state) => [
    `\`${state}\``,
    LEVELS[state],
    `\`${state === "ok" ? "Key4C is ok" : LEADS_TO[state]}\``,
  ]);
  return table(["state", "level", "the message ends with"], rows);
}

/** What `npm run generate` writes, by the name of its marker. */
export const MONITORING_TABLES: readonly (readonly [name: string, table: string])[] = [
  ["metrics", metricsTable()],
  ["alerts", alertsTable()],
  ["log-states", stateMessagesTable()],
  ["log-causes", causesTable()],
];
