/** The printed scrape configuration, in the hands of promtool and of a real Prometheus. */
import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { dirname, join } from "node:path";
import { commandsOf, filledIn, ROOT } from "../documents/blocks.ts";
import { testWith } from "../needs.ts";
import { NO_CONFIG_FILE } from "../no-config.ts";
import { freePort } from "../ports.ts";
import {
  BINARY,
  emulator,
  onTestEnd,
  startPlugin,
  startProcess,
  temporaryDirectory,
  temporaryFile,
} from "../support.ts";

async function run(...command: string[]): Promise<string> {
  const child = Bun.spawn(command, { env: NO_CONFIG_FILE, stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  expect([await child.exited, stderr]).toEqual([0, ""]);
  return stdout;
}

const [AGENT = "", ELSEWHERE = ""] = commandsOf("docs/monitor.md", "Scrape");
const [RULES = ""] = commandsOf("docs/monitor.md", "Alerts and dashboard");

/** What a block of shell prints, with the binary in its path. */
function typed(block: string): Promise<string> {
  const path = `${dirname(BINARY)}:${process.env["PATH"]}`;
  return run("env", `PATH=${path}`, "sh", "-e", "-c", block);
}

const manifest = (...args: string[]) => run(BINARY, "manifest", ...args);

interface ScrapeConfig {
  readonly static_configs?: unknown;
  readonly kubernetes_sd_configs?: unknown;
}

test("the file that the agent's pod mounts is the one that is printed", () => {
  const monitor = readFileSync(join(ROOT, "docs/monitor.md"), "utf8");
  const spec = Bun.YAML.parse(/```yaml\n([\s\S]*?)```/.exec(monitor ?? "")?.[1] ?? "") as {
    containers: [{ volumeMounts: [{ name: string; mountPath: string }] }];
    volumes: [{ name: string; hostPath: { path: string } }];
  };
  const [mount] = spec.containers[0].volumeMounts;
  const [volume] = spec.volumes;
  const [, directory] = /--output (\S+)\/[^/]+\.yaml$/m.exec(AGENT) ?? [];
  expect(directory).toBeDefined();
  expect([mount.name, mount.mountPath, volume.hostPath.path]).toEqual([
    volume.name,
    directory,
    directory,
  ] as string[]);
  expect(monitor).toContain(`scrape_config_files: [${directory}/*.yaml]`);
});

function read(text: string): ScrapeConfig {
  const { scrape_configs } = Bun.YAML.parse(text) as { scrape_configs: [ScrapeConfig] };
  return scrape_configs[0];
}

test("on loopback the target has the name of the node, and that of the cluster where it is given", async () => {
  expect(read(await manifest("scrape-config")).static_configs).toEqual([
    { targets: ["127.0.0.1:9640"], labels: { instance: hostname() } },
  ]);
  const named = ["--cluster", "prod", "--cluster-label", "k8s", "--instance", "cp-1"];
  expect(
    read(await manifest("scrape-config", "--http-address", "[::1]:99", ...named)).static_configs,
  ).toEqual([{ targets: ["[::1]:99"], labels: { instance: "cp-1", k8s: "prod" } }]);
});

interface Target {
  readonly labels: Readonly<Record<string, string>>;
}

testWith("promtool")("elsewhere the nodes of the control plane are the targets", async () => {
  const text = await typed(filledIn(ELSEWHERE, { "0.0.0.0:9640": "0.0.0.0:9999", CLUSTER: "c" }));
  expect(read(text).kubernetes_sd_configs).toEqual([
    {
      role: "node",
      selectors: [{ role: "node", label: "node-role.kubernetes.io/control-plane" }],
    },
  ]);
  // Debian's Prometheus is built without Kubernetes: two nodes, as it would find them.
  const found = 'static_configs: [{ targets: ["10.0.0.1:10250", "[fd00::1]:10250"] }]';
  const file = temporaryFile(text.replace(/kubernetes_sd_configs:(\n {6}.*)+/, found));
  await run("promtool", "check", "config", file);
  const service = ["check", "service-discovery", "--timeout", "1s", file, "key4c-kms-plugin"];
  const targets: Target[] = JSON.parse(await run("promtool", ...service));
  expect(targets.map(({ labels }) => [labels["__address__"], labels["cluster"]])).toEqual([
    ["10.0.0.1:9999", "c"],
    ["[fd00::1]:9999", "c"],
  ]);
});

/** As Prometheus' HTTP API answers; only what is looked at. */
interface Answers {
  readonly targets: { readonly activeTargets: readonly { readonly health: string }[] };
  readonly rules: {
    readonly groups: readonly {
      readonly rules: readonly { readonly name: string; readonly state: string; health: string }[];
    }[];
  };
  readonly "query?query=key4c_kms_state==1": {
    readonly result: readonly { readonly metric: Readonly<Record<string, string>> }[];
  };
}

testWith("prometheus", "promtool")(
  "a real Prometheus scrapes the plugin with it, and judges it by the printed alerts",
  async () => {
    const plugin = await startPlugin(emulator().url, { KMS_HTTP_ADDRESS: "127.0.0.1:0" });
    const address = (await plugin.until(/"url":"http:\/\/([^/"]*)\/"/))[1] ?? "";
    const directory = temporaryDirectory();
    const file = (name: string) => join(directory, name);
    await typed(
      filledIn(`${AGENT}\n${RULES}`, {
        "/etc/prometheus-scrape": directory,
        "/etc/prometheus/": `${directory}/`,
        "key4c-kms-dashboard.json": file("dashboard.json"),
        CLUSTER: "prod",
      }),
    );
    await run("promtool", "check", "config", file("key4c-kms.yaml"));
    expect(await Bun.file(file("dashboard.json")).json()).toMatchObject({
      uid: "key4c-kms-plugin",
    });
    // The address of this plugin, and sooner: Prometheus waits up to an interval for the first time.
    const scrape = filledIn(await Bun.file(file("key4c-kms.yaml")).text(), {
      "127.0.0.1:9640": address,
      "30s": "1s",
    });
    const global = "global: { evaluation_interval: 1s }\nrule_files: [key4c-kms-rules.yaml]\n";
    writeFileSync(file("p.yaml"), `${global}${scrape}`);
    const port = freePort();
    const prometheus = startProcess(
      [
        "prometheus",
        `--config.file=${file("p.yaml")}`,
        `--storage.tsdb.path=${file("data")}`,
        `--web.listen-address=127.0.0.1:${port}`,
      ],
      { PATH: process.env["PATH"] ?? "" },
    );
    onTestEnd(() => prometheus.stop());
    /** Asked until the answer is what it should be, or time is over. */
    const ask = async <P extends keyof Answers>(
      path: P,
      isRight: (answer: Answers[P]) => boolean,
    ): Promise<Answers[P]> => {
      for (const endMs = performance.now() + 60_000; ; await Bun.sleep(200)) {
        const answer = await fetch(`http://127.0.0.1:${port}/api/v1/${path}`).then(
          // It says 503 in plain text until it is ready, and before that it does not listen.
          async (response) =>
            response.ok ? ((await response.json()) as { data: Answers[P] }).data : undefined,
          () => undefined,
        );
        if (answer !== undefined && (isRight(answer) || performance.now() > endMs)) {
          return answer;
        }
        if (performance.now() > endMs) {
          throw new Error(`Prometheus does not answer:\n${prometheus.output()}`);
        }
      }
    };
    const isUp = ({ activeTargets: [target] }: Answers["targets"]) => target?.health === "up";
    expect((await ask("targets", isUp)).activeTargets).toMatchObject([
      { health: "up", labels: { job: "key4c-kms-plugin", cluster: "prod", instance: hostname() } },
    ] as object[]);
    const { result } = await ask("query?query=key4c_kms_state==1", (one) => one.result.length > 0);
    expect(
      result.map(({ metric }) => [metric["cluster"], metric["instance"], metric["state"]]),
    ).toEqual([["prod", hostname(), "ok"]]);
    const isJudged = ({ groups: [group] }: Answers["rules"]) =>
      group?.rules.every(({ health, state }) => health === "ok" && state === "inactive") === true;
    const rules = (await ask("rules", isJudged)).groups.flatMap((group) => group.rules);
    expect(rules.length).toBeGreaterThan(20);
    expect(rules.filter(({ health, state }) => health !== "ok" || state !== "inactive")).toEqual(
      [],
    );
  },
);
