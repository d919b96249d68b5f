/** The printed alerts, judged by promtool: two clusters in one Prometheus, of which one is well. */
import { expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { KINDS } from "../../src/failures/kinds.ts";
import { STATES } from "../../src/keys/key-health.ts";
import { type Rule, rulesOf } from "../documents/monitoring-tables.ts";
import { testWith } from "../needs.ts";
import { NO_CONFIG_FILE } from "../no-config.ts";
import { BINARY, temporaryDirectory } from "../support.ts";

const DAY_S = 86_400;
/** As many seconds, or calls, as the time; N is the last minute of a case. */
const RISING = "0+60xN";

/** Values of promtool by the minute, or one value for all the time. */
type Values = string | number;
/** By a metric, with the labels that one instance has of it. */
type Series = Readonly<Record<string, Values>>;

/** What a plugin exports that is well. */
function well(keyId: string): Series {
  const states = STATES.map((one) => [`key4c_kms_state{state="${one}"}`, one === "ok" ? 1 : 0]);
  const kinds = Object.keys(KINDS).map((one) => [`key4c_kms_failure{kind="${one}"}`, 0]);
  return {
    ...Object.fromEntries([...states, ...kinds]),
    'key4c_kms_build_info{version="0.1.0"}': 1,
    key4c_kms_key4c_last_contact_timestamp_seconds: RISING, // a probe a minute
    [`key4c_kms_key_info{key_id="${keyId}"}`]: 1,
    'key4c_kms_key_revoked{key="k"}': 0,
    key4c_kms_key_change_failed: 0,
    key4c_kms_local_keks_orphaned: 0,
    key4c_kms_local_keks_of_current_key_refused_total: 0,
    key4c_kms_encrypts_over_limit_total: 0,
    key4c_kms_local_kek_age_seconds: DAY_S,
    key4c_kms_socket_live: 1,
    key4c_kms_log_lines_dropped_total: 0,
    key4c_kms_persistent_cache_ready: 1,
    process_start_time_seconds: 0,
    'key4c_kms_rpc_duration_seconds_count{method="Encrypt",code="OK"}': RISING,
    'key4c_kms_rpc_duration_seconds_bucket{method="Encrypt",le="1"}': RISING,
    'key4c_kms_rpc_duration_seconds_bucket{method="Encrypt",le="+Inf"}': RISING,
    'key4c_kms_certificate_expiry_timestamp_seconds{option="KEY4C_CERT_FILE"}': 60 * DAY_S,
    'key4c_kms_secret_file_modified_timestamp_seconds{option="KMS_USER_ID_FILE"}': 0,
  };
}

const JOB = "key4c-kms-plugin";

/** The series of one instance, as promtool takes them. */
function scraped(series: Series, labels: Readonly<Record<string, string>>, minutes: number) {
  return Object.entries(series).map(([metric, values]) => {
    const [, name = "", own = ""] = /^(\w+)(?:\{(.*)\})?$/.exec(metric) ?? [];
    const all = { job: JOB, ...labels };
    const pairs = Object.entries(all).map(([label, value]) => `${label}="${value}"`);
    return {
      series: `${name}{${[own, ...pairs].filter(Boolean).join()}}`,
      values: (typeof values === "number" ? `${values}+0xN` : values).replace("N", `${minutes}`),
    };
  });
}

const ended = (series: Series): Series =>
  Object.fromEntries(
    Object.entries(series).map(([metric, values]) => [
      metric,
      typeof values === "number" ? `${values}+0x5 stale` : "0+60x5 stale",
    ]),
  );

interface Case {
  readonly name: string;
  /** What the two plugins of the faulty cluster export in another way. */
  readonly faults?: readonly [Series, Series];
  readonly atMin: number;
  /** The alerts of the faulty cluster, with the number of series that fire. */
  readonly fires: Readonly<Record<string, number>>;
}

/** The same fault of one plugin of two. */
const one = (faults: Series): [Series, Series] => [faults, {}];
/** Nothing until the tenth minute, then this much a minute. */
const later = (perMinute: number) => `0+0x10 ${perMinute}+${perMinute}x100`;

const FORMER = 'key4c_kms_key_info{key_id="b"}';
const EXPIRY = 'key4c_kms_certificate_expiry_timestamp_seconds{option="KEY4C_CERT_FILE"}';

const CASES: readonly Case[] = [
  { name: "both are well, with different keys", atMin: 20, fires: {} },
  ...(["starting", "expired"] as const).map((state) => ({
    name: state,
    faults: one({ [`key4c_kms_state{state="${state}"}`]: 1 }),
    atMin: 4,
    fires: { Key4cKmsNotUsable: 1 },
  })),
  {
    name: "mismatch",
    faults: one({ 'key4c_kms_state{state="mismatch"}': 1 }),
    atMin: 1,
    fires: { Key4cKmsMismatch: 1 },
  },
  {
    name: "orphaned local KEKs",
    faults: one({ key4c_kms_local_keks_orphaned: 3 }),
    atMin: 1,
    fires: { Key4cKmsLocalKeksOrphaned: 1 },
  },
  {
    name: "local KEKs of the current key are refused",
    faults: one({ key4c_kms_local_keks_of_current_key_refused_total: later(1) }),
    atMin: 20,
    fires: { Key4cKmsOldDataRefused: 1 },
  },
  {
    name: "revoked",
    faults: [{ 'key4c_kms_key_revoked{key="k"}': 1 }, { 'key4c_kms_key_revoked{key="k"}': 1 }],
    atMin: 1,
    fires: { Key4cKmsRevoked: 2 },
  },
  {
    name: "the credential is refused",
    faults: one({ 'key4c_kms_failure{kind="denied"}': 1 }),
    atMin: 10,
    fires: { Key4cKmsCredentialRefused: 1 },
  },
  {
    name: "the probe fails",
    faults: one({ 'key4c_kms_failure{kind="unavailable"}': 1 }),
    atMin: 6,
    fires: { Key4cKmsDegraded: 1 },
  },
  {
    name: "no contact for exactly 10 minutes",
    faults: one({ key4c_kms_key4c_last_contact_timestamp_seconds: 0 }),
    atMin: 10,
    fires: {},
  },
  {
    name: "no contact for more than 10 minutes",
    faults: one({ key4c_kms_key4c_last_contact_timestamp_seconds: 0 }),
    atMin: 11,
    fires: { Key4cKmsNoContact: 1 },
  },
  {
    name: "the configured key does not become current",
    faults: one({ key4c_kms_key_change_failed: 1 }),
    atMin: 6,
    fires: { Key4cKmsKeyChangeFailed: 1 },
  },
  {
    name: "above the limit of uses",
    faults: one({ key4c_kms_encrypts_over_limit_total: later(1) }),
    atMin: 20,
    fires: { Key4cKmsOverLimit: 1 },
  },
  {
    name: "all plugins of the cluster are gone",
    faults: [ended(well("b")), ended(well("b"))],
    atMin: 20,
    fires: { Key4cKmsGone: 1, Key4cKmsInstanceGone: 2 },
  },
  {
    name: "they are still gone hours later",
    faults: [ended(well("b")), ended(well("b"))],
    atMin: 23 * 60,
    fires: { Key4cKmsGone: 1, Key4cKmsInstanceGone: 2 },
  },
  {
    name: "a cluster that was removed is forgotten",
    faults: [ended(well("b")), ended(well("b"))],
    atMin: 25 * 60,
    fires: {},
  },
  {
    name: "one plugin is gone",
    faults: one(ended(well("b"))),
    atMin: 20,
    fires: { Key4cKmsInstanceGone: 1 },
  },
  {
    name: "a plugin was upgraded",
    faults: one({
      'key4c_kms_build_info{version="0.1.0"}': "1+0x5 stale",
      'key4c_kms_build_info{version="0.2.0"}': "_x5 1+0x100",
    }),
    atMin: 20,
    fires: {},
  },
  {
    name: "the path of the socket is lost",
    faults: one({ key4c_kms_socket_live: 0 }),
    atMin: 2,
    fires: { Key4cKmsSocketLost: 1 },
  },
  {
    name: "lines of the log are dropped",
    faults: one({ key4c_kms_log_lines_dropped_total: later(1) }),
    atMin: 20,
    fires: { Key4cKmsLogLinesDropped: 1 },
  },
  {
    name: "nothing is kept for a restart",
    faults: one({ key4c_kms_persistent_cache_ready: 0 }),
    atMin: 6,
    fires: { Key4cKmsNotKept: 1 },
  },
  {
    name: "RPCs fail",
    faults: one({
      'key4c_kms_rpc_duration_seconds_count{method="Encrypt",code="UNAVAILABLE"}': "0+60x100",
    }),
    atMin: 10,
    fires: { Key4cKmsErrors: 1 },
  },
  {
    name: "RPCs are slow",
    faults: one({
      'key4c_kms_rpc_duration_seconds_bucket{method="Encrypt",le="1"}': 0,
      'key4c_kms_rpc_duration_seconds_bucket{method="Encrypt",le="2.5"}': RISING,
    }),
    atMin: 20,
    fires: { Key4cKmsSlow: 1 },
  },
  {
    name: "the local KEK is old",
    faults: one({ key4c_kms_local_kek_age_seconds: 11 * DAY_S }),
    atMin: 1,
    fires: { Key4cKmsLocalKekOld: 1 },
  },
  {
    name: "a rotation has reached one of two",
    faults: one({
      [FORMER]: "1+0x2 stale",
      'key4c_kms_key_info{key_id="b, next"}': "_x3 1+0x100",
    }),
    atMin: 20,
    fires: { Key4cKmsKeysDiffer: 1 },
  },
  {
    name: "a rotation has reached both",
    faults: [
      { [FORMER]: "1+0x2 stale", 'key4c_kms_key_info{key_id="b, next"}': "_x3 1+0x100" },
      { [FORMER]: "1+0x5 stale", 'key4c_kms_key_info{key_id="b, next"}': "_x6 1+0x100" },
    ],
    atMin: 25,
    fires: {},
  },
  {
    name: "restarts",
    faults: one({ process_start_time_seconds: "0+60x100" }),
    atMin: 20,
    fires: { Key4cKmsRestarts: 1 },
  },
  {
    name: "a certificate expires in 20 days",
    faults: one({ [EXPIRY]: 20 * DAY_S }),
    atMin: 1,
    fires: {},
  },
  {
    name: "a certificate expires in 10 days",
    faults: one({ [EXPIRY]: 10 * DAY_S }),
    atMin: 1,
    fires: { Key4cKmsCertificateExpires: 1 },
  },
  {
    name: "a certificate has expired",
    faults: one({ [EXPIRY]: -DAY_S }),
    atMin: 1,
    fires: { Key4cKmsCertificateExpires: 1, Key4cKmsCertificateAboutToExpire: 1 },
  },
  {
    name: "a secret is 100 days old",
    faults: one({
      'key4c_kms_secret_file_modified_timestamp_seconds{option="KMS_USER_ID_FILE"}': -100 * DAY_S,
    }),
    atMin: 1,
    fires: { Key4cKmsSecretOld: 1 },
  },
];

async function printed(...flags: string[]): Promise<{ text: string; rules: Rule[] }> {
  const child = Bun.spawn([BINARY, "manifest", "prometheus-rules", ...flags], {
    env: NO_CONFIG_FILE,
    stdout: "pipe",
  });
  const text = await child.stdout.text();
  return { text, rules: rulesOf(text) };
}

/** Everything that fires at a minute: nothing else may. */
function firing(atMin: number, samples: readonly { labels: string; value: number }[], by: string) {
  return {
    eval_time: `${atMin}m`,
    expr: `count by (alertname, ${by}) (ALERTS{alertstate="firing"})`,
    exp_samples: samples,
  };
}

/** @throws what promtool says */
async function judge(rules: string, tests: readonly object[], every = "1m"): Promise<void> {
  const directory = temporaryDirectory();
  writeFileSync(join(directory, "rules.yaml"), rules);
  const file = join(directory, "test.yaml");
  writeFileSync(
    file,
    JSON.stringify({ rule_files: ["rules.yaml"], evaluation_interval: every, tests }),
  );
  const child = Bun.spawn(["promtool", "test", "rules", file], { stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  expect(`${await child.exited} ${stdout}${stderr}`).toMatch(/^0 Unit Testing: .*\s*SUCCESS\s*$/);
}

/** Both clusters call their nodes the same, and a node exporter beside them restarts all the time. */
function twoClusters(label: string, [first, second]: readonly [Series, Series], minutes: number) {
  const nodes: readonly [cluster: string, instance: string, series: Series][] = [
    ["a", "cp-1", well("a")],
    ["a", "cp-2", well("a")],
    ["b", "cp-1", { ...well("b"), ...first }],
    ["b", "cp-2", { ...well("b"), ...second }],
  ];
  return [
    ...nodes.flatMap(([cluster, instance, series]) =>
      scraped(series, { [label]: cluster, instance }, minutes),
    ),
    ...scraped(
      { process_start_time_seconds: "0+60x100" },
      { [label]: "a", instance: "cp-1", job: "node-exporter" },
      minutes,
    ),
  ];
}

testWith("promtool")(
  "of two clusters only the faulty one fires, and each alert has a fault that makes it",
  async () => {
    const { text, rules } = await printed();
    const fired = new Set(CASES.flatMap(({ fires }) => Object.keys(fires)));
    expect([...fired].sort()).toEqual(rules.map(({ alert }) => alert).sort());
    const tests = (label: string, cases: readonly Case[]) =>
      cases.map(({ name, faults = [{}, {}], atMin, fires }) => ({
        name,
        interval: "1m",
        input_series: twoClusters(label, faults, atMin),
        promql_expr_test: [
          firing(
            atMin,
            Object.entries(fires).map(([alertname, value]) => ({
              labels: `{alertname="${alertname}", ${label}="b"}`,
              value,
            })),
            label,
          ),
        ],
      }));
    const isLong = ({ atMin }: Case) => atMin > 60;
    // Every minute of a day would take ten times as long.
    await judge(text, tests("cluster", CASES.filter(isLong)), "10m");
    for (const label of ["cluster", "k8s"]) {
      const short = CASES.filter((one) => !isLong(one));
      await judge((await printed("--cluster-label", label)).text, tests(label, short));
    }
  },
);

testWith("promtool")("without a label for clusters all plugins count as one", async () => {
  const { text, rules } = await printed("--runbook-url", "https://docs.example/v1/");
  const nodes = (...keys: string[]) =>
    keys.flatMap((key, index) => scraped(well(key), { instance: `cp-${index}` }, 20));
  const gone = rules.find(({ alert }) => alert === "Key4cKmsGone");
  await judge(text, [
    {
      interval: "1m",
      input_series: nodes("a", "a"),
      promql_expr_test: [firing(20, [], "severity")],
    },
    {
      interval: "1m",
      input_series: nodes("a", "b"),
      promql_expr_test: [
        firing(
          20,
          [{ labels: '{alertname="Key4cKmsKeysDiffer", severity="warning"}', value: 1 }],
          "severity",
        ),
      ],
    },
    {
      // Nothing was ever scraped.
      interval: "1m",
      input_series: [],
      alert_rule_test: [
        {
          eval_time: "10m",
          alertname: "Key4cKmsGone",
          exp_alerts: [
            {
              exp_labels: { severity: "critical" },
              exp_annotations: {
                summary: "No KMS plugin is scraped any more",
                description: gone?.annotations.description,
                runbook_url: "https://docs.example/v1/runbooks/gone.md",
              },
            },
          ],
        },
      ],
    },
    {
      interval: "1m",
      input_series: [
        ...scraped(well("a"), { cluster: "a", instance: "cp-1" }, 20),
        ...scraped(ended(well("b")), { cluster: "b", instance: "cp-1" }, 20),
      ],
      alert_rule_test: [
        {
          eval_time: "20m",
          alertname: "Key4cKmsGone",
          exp_alerts: [
            {
              exp_labels: { severity: "critical", cluster: "b" },
              exp_annotations: {
                ...gone?.annotations,
                summary: "No KMS plugin of cluster b is scraped any more",
              },
            },
          ],
        },
      ],
    },
  ]);
});

test("each alert says how bad it is, what to do and where to read on", async () => {
  const { rules } = await printed();
  for (const { alert, labels, annotations } of rules) {
    expect([alert, labels.severity]).toEqual([
      alert,
      expect.stringMatching(/^(critical|warning)$/),
    ]);
    expect([alert, annotations.description]).toEqual([alert, expect.stringMatching(/\.$/)]);
    expect([alert, annotations.runbook_url]).toEqual([
      alert,
      expect.stringMatching(/^runbooks\/[a-z-]+\.md$/),
    ]);
  }
});
