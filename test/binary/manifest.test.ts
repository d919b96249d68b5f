/** What the compiled binary prints for an installation, in the hands of the tools that will read it. */
import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { KINDS } from "../../src/failures/kinds.ts";
import { PROFILE_SCHEMA } from "../../src/key4c/profile.ts";
import { STATES } from "../../src/keys/key-health.ts";
import { testWith } from "../needs.ts";
import { NO_CONFIG_FILE } from "../no-config.ts";
import { BINARY, emulator, startPlugin, startProcess, temporaryDirectory } from "../support.ts";

const SERVE = { KEY4C_URL: "https://key4c.example", KMS_KEY_ID: "demo" };

async function run(command: readonly string[], env: Record<string, string> = {}) {
  const child = Bun.spawn([...command], {
    env: { ...NO_CONFIG_FILE, ...env },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { stdout, stderr, exitCode: await child.exited };
}

const print = (name: string, flags: readonly string[] = [], env: Record<string, string> = SERVE) =>
  run([BINARY, "manifest", name, ...flags], env);

/** Writes both units to a directory; systemd-analyze wants to find what ExecStart names. */
async function units(...flags: string[]) {
  const directory = temporaryDirectory();
  const paths = ["service", "socket"].map((kind) => join(directory, `key4c-kms-plugin.${kind}`));
  for (const [index, kind] of ["systemd-service", "systemd-socket"].entries()) {
    const { stdout } = await print(kind, ["--binary", BINARY, ...flags]);
    writeFileSync(paths[index] ?? "", stdout);
  }
  return { paths, service: readFileSync(paths[0] ?? "", "utf8") };
}

test("without a name: the list; each name of it prints something", async () => {
  const { stdout, exitCode } = await run([BINARY, "manifest"]);
  const names = stdout
    .split("\n")
    .filter(Boolean)
    .map((line) => line.split(" ")[0] ?? "");
  expect(exitCode).toBe(0);
  expect(names).toContain("static-pod");
  expect(names).toHaveLength(14);
  for (const name of names) {
    const { stdout: text, stderr } = await print(name);
    expect({ name, stderr, placeholder: name !== "grafana" && /\{\{\w+\}\}/.test(text) }).toEqual({
      name,
      stderr: "",
      placeholder: false,
    });
    expect(text.length).toBeGreaterThan(100);
  }
});

test("wrong usage: nothing is printed, exit code 2", async () => {
  for (const [args, message] of [
    [["nonsense"], 'no manifest "nonsense"; there are static-pod'],
    [["static-pod", "twice"], "manifest takes one argument, [NAME]: 2 given"],
    [
      ["static-pod", "--endpoint", "unix:///run/a b/kms.sock"],
      "KMS_ENDPOINT must be an absolute path of",
    ],
    [["static-pod", "--user-id-file", "user-id"], "KMS_USER_ID_FILE must be an absolute path"],
    [
      ["k3s", "--encryption-configuration", "e.yaml"],
      "--encryption-configuration must be an absolute path",
    ],
    [["systemd-service", "--binary", "plugin"], "--binary must be an absolute path"],
    [["prometheus-rules", "--cluster-label", "a-b"], "--cluster-label must be the name of a label"],
    [
      ["scrape-config", "--cluster-label", "instance"],
      "--cluster-label must be another label than",
    ],
    [["prometheus-rules", "--runbook-url", "https://u:pw@h/"], "--runbook-url must be http://"],
    [["prometheus-rules", "--runbook-url", "docs"], "--runbook-url must be http:// or https://"],
    [["scrape-config", "--cluster", "$1"], "--cluster must be 1 to 128 letters"],
    [["scrape-config", "--instance", '"'], "--instance must be 1 to 128 letters"],
    [["scrape-config", "--http-address", ""], "KMS_HTTP_ADDRESS is empty"],
    [
      ["static-pod", "--probe-interval", "soon"],
      "KMS_PROBE_INTERVAL (--probe-interval) must be a duration",
    ],
  ] as const) {
    const { stdout, stderr, exitCode } = await print(args[0], args.slice(1));
    expect({ stdout, exitCode }).toEqual({ stdout: "", exitCode: 2 });
    expect(stderr).toContain(message);
  }
  const bare = await print("static-pod", [], {});
  expect([bare.exitCode, bare.stderr]).toEqual([
    2,
    "key4c-kms-plugin: KEY4C_URL is missing\nkey4c-kms-plugin: KMS_KEY_ID is missing\n",
  ]);
});

test("a secret in the environment is not printed; its file is named", async () => {
  const env = { ...SERVE, KMS_USER_ID: "the-token", KMS_API_KEY: "the-key", KMS_PIN: "the-pin" };
  for (const name of ["static-pod", "systemd-service"]) {
    const { stdout } = await print(name, [], env);
    expect(stdout).not.toContain("the-token");
    expect(stdout).not.toContain("the-key");
    expect(stdout).not.toContain("the-pin");
    expect(stdout).toContain("/etc/key4c-kms/user-id");
    expect(stdout).toContain("/etc/key4c-kms/api-key");
    expect(stdout).toContain("/etc/key4c-kms/pin");
  }
});

interface Probe {
  readonly exec: { readonly command: readonly string[] };
}

test("the static pod is asked through its socket, and by no TCP port", async () => {
  const pod = Bun.YAML.parse((await print("static-pod")).stdout) as {
    spec: { containers: Record<"startupProbe" | "livenessProbe" | "readinessProbe", Probe>[] };
  };
  const [container] = pod.spec.containers;
  const binary =
    /^ENTRYPOINT \["(.*)"\]$/m.exec(
      readFileSync(join(import.meta.dir, "../../Containerfile"), "utf8"),
    )?.[1] ?? "";
  const plugin = await startPlugin(emulator().url);
  for (const [probe, command] of [
    ["startupProbe", [binary, "status", "--live"]],
    ["livenessProbe", [binary, "status", "--live"]],
    ["readinessProbe", [binary, "status"]],
  ] as const) {
    expect([probe, container?.[probe].exec.command]).toEqual([probe, command]);
    const [, ...args] = container?.[probe].exec.command ?? [];
    const env = { KMS_ENDPOINT: `unix://${plugin.socket}` };
    expect((await run([BINARY, ...args], env)).exitCode).toBe(0);
  }
});

test("the metrics have an address in what is printed, unless it is empty", async () => {
  for (const name of ["static-pod", "systemd-service"]) {
    const text = async (flags: string[], env = {}) =>
      (await print(name, flags, { ...SERVE, ...env })).stdout;
    expect(await text([])).toMatch(/KMS_HTTP_ADDRESS\W+(value: ")?127\.0\.0\.1:9640"/);
    expect(await text([], { KMS_HTTP_ADDRESS: "[::1]:99" })).toMatch(
      /KMS_HTTP_ADDRESS.*\s*.*\[::1\]:99/,
    );
    expect(await text(["--http-address", ""])).not.toContain("KMS_HTTP_ADDRESS");
  }
});

test("the schema of profiles is that of the reader", async () => {
  const { stdout } = await print("profile-schema", [], {});
  expect(JSON.parse(stdout)).toEqual(PROFILE_SCHEMA);
});

testWith("systemd-analyze")(
  "units: systemd-analyze verify has nothing to say, exposure is at most 1.5",
  async () => {
    const odd = [
      "--key-id",
      '50%"\\x',
      "--key4c-ca-file",
      "/etc/key4c-kms/ca.pem",
      "--socket-group",
      "daemon",
    ];
    const cache = ["--persistent-cache", "/var/lib/key4c-kms-cache"];
    const sealed = [...cache, "--persistent-cache-key-file", "/run/key4c-kms-cache-key/key"];
    for (const flags of [[], odd, ["--persistent-cache", "/run/key4c-kms-cache"], sealed]) {
      const { paths, service } = await units(...flags);
      expect(await run(["systemd-analyze", "verify", ...paths])).toEqual({
        stdout: "",
        stderr: "",
        exitCode: 0,
      });
      const security = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--threshold=15",
        paths[0] ?? "",
      ];
      const { stdout, exitCode } = await run(security);
      expect([exitCode, stdout.match(/exposure level .*: (\d\.\d)/)?.[1]]).toEqual([
        0,
        expect.any(String),
      ]);
      expect(service).toMatch(/^Type=notify$/m);
    }
    // It can say something.
    const { paths, service } = await units();
    writeFileSync(paths[0] ?? "", service.replace("Restart=always", "Restart=sometimes"));
    expect((await run(["systemd-analyze", "verify", ...paths])).stderr).toContain("sometimes");
  },
);

/** The syscalls that a set such as `@system-service` stands for. */
async function syscalls(set: string): Promise<string[]> {
  const { stdout } = await run(["systemd-analyze", "syscall-filter", set]);
  const members = stdout
    .split("\n")
    .slice(1)
    .map((line) => line.trim())
    .filter((line) => line !== "" && !line.startsWith("#"));
  return (
    await Promise.all(members.map((one) => (one.startsWith("@") ? syscalls(one) : [one])))
  ).flat();
}

testWith("systemd-analyze", "strace")(
  "the unit's filter allows every system call that the plugin makes",
  async () => {
    const { service } = await units();
    const filters = [...service.matchAll(/^SystemCallFilter=(~?)(.+)$/gm)].map(
      ([, sign, sets = ""]) => ({
        forbids: sign === "~",
        sets: sets.split(" "),
      }),
    );
    expect(filters.map(({ forbids }) => forbids)).toEqual([false, true]);
    const of = async (forbids: boolean) =>
      (
        await Promise.all(
          filters
            .filter((one) => one.forbids === forbids)
            .flatMap(({ sets }) => sets.map(syscalls)),
        )
      ).flat();
    const forbidden = await of(true);
    const allowed = new Set((await of(false)).filter((one) => !forbidden.includes(one)));

    const trace = join(temporaryDirectory(), "trace");
    const socket = join(temporaryDirectory(), "kms.sock");
    const strace = startProcess(
      ["strace", "-f", "-qq", "-o", trace, BINARY, "serve", "--emulator"],
      {
        KMS_ENDPOINT: `unix://${socket}`,
        KMS_HTTP_ADDRESS: "127.0.0.1:0",
        PATH: process.env["PATH"] ?? "",
      },
    );
    expect(
      (await run([BINARY, "status", "--wait", "120s"], { KMS_ENDPOINT: `unix://${socket}` }))
        .exitCode,
    ).toBe(0);
    await run([BINARY, "doctor"], { KMS_ENDPOINT: `unix://${socket}` }); // all RPCs
    const [pid = ""] = readFileSync(
      `/proc/${strace.pid}/task/${strace.pid}/children`,
      "utf8",
    ).split(" ");
    process.kill(Number(pid), "SIGTERM");
    expect(await strace.exited).toBe(0);
    const used = new Set(
      [...readFileSync(trace, "utf8").matchAll(/^\d+ +([a-z0-9_]+)\(/gm)].map(
        ([, name]) => name ?? "",
      ),
    );
    expect(used.has("accept4")).toBe(true);
    expect([...used].filter((name) => !allowed.has(name))).toEqual([]);
  },
);

/** The metrics of ours and of the process that a text names. */
function metricsIn(text: string): string[] {
  const names = [...text.matchAll(/\b(?:key4c_kms|process)_[a-z0-9_]+/g)].map(([name]) => name);
  return [...new Set(names)];
}

/** The alerts, and the queries of the dashboard. */
async function monitoring() {
  const rules = (await print("prometheus-rules")).stdout;
  const dashboard = (await print("grafana")).stdout;
  const panels = (JSON.parse(dashboard) as { panels: { targets: { expr: string }[] }[] }).panels;
  expect(panels.length).toBeGreaterThan(8);
  return { rules, queries: panels.flatMap(({ targets }) => targets.map(({ expr }) => expr)) };
}

testWith("promtool")("promtool finds no fault with rules and queries", async () => {
  const { rules, queries } = await monitoring();
  const file = join(temporaryDirectory(), "rules.yaml");
  writeFileSync(file, rules);
  expect((await run(["promtool", "check", "rules", file])).exitCode).toBe(0);
  // The queries of the dashboard as rules, with its variables filled in: promtool parses them.
  const asRules = queries.map((expr, index) => ({
    record: `query:${index}`,
    expr: expr
      .replaceAll("$__rate_interval", "5m")
      .replaceAll("$instance", ".*")
      .replaceAll("$cluster", ".*"),
  }));
  writeFileSync(file, JSON.stringify({ groups: [{ name: "dashboard", rules: asRules }] }));
  expect((await run(["promtool", "check", "rules", file])).exitCode).toBe(0);
});

test("every query names a metric that the plugin exports", async () => {
  const { rules, queries } = await monitoring();
  const plugin = await startPlugin(emulator().url, { KMS_HTTP_ADDRESS: "127.0.0.1:0" });
  const url = (await plugin.until(/"url":"(http:[^"]*)"/))[1];
  const exported = await (await fetch(`${url}metrics`)).text();
  const types = new Map(
    [...exported.matchAll(/^# TYPE (\S+) (\S+)$/gm)].map(([, name = "", type = ""]) => [
      name,
      type,
    ]),
  );
  for (const name of metricsIn(`${rules}${queries.join("\n")}`)) {
    const family = name.replace(/_(bucket|count|sum)$/, "");
    expect([name, types.has(name) || types.get(family) === "histogram"]).toEqual([name, true]);
  }
});

test("labels in rules have values that exist", async () => {
  const rules = (await print("prometheus-rules")).stdout;
  for (const [label, values] of [
    ["state", STATES],
    ["kind", Object.keys(KINDS)],
  ] as const) {
    const named = [...rules.matchAll(new RegExp(`${label}[!=]=?~?"([^"]+)"`, "g"))].flatMap(
      ([, texts = ""]) => texts.split("|"),
    );
    expect(named.length).toBeGreaterThan(1);
    for (const one of named) {
      expect(values as readonly string[]).toContain(one);
    }
  }
});

interface Panel {
  readonly title: string;
  readonly type: string;
  readonly targets: readonly { readonly expr: string; readonly legendFormat: string }[];
  readonly options?: { readonly textMode: string };
  readonly fieldConfig: {
    readonly overrides: readonly { readonly matcher: { readonly options: string } }[];
  };
}

test("the dashboard is of the chosen clusters and instances, and shows the state by its name", async () => {
  const dashboard = JSON.parse((await print("grafana", ["--cluster-label", "k8s"])).stdout) as {
    panels: Panel[];
    templating: { list: { name: string }[] };
  };
  const { panels, templating } = dashboard;
  expect(templating.list.map(({ name }) => name)).toEqual(["datasource", "cluster", "instance"]);
  for (const { expr } of panels.flatMap(({ targets }) => targets)) {
    // What is joined on is chosen on the left.
    const chosen = expr.replace(/ and on \(k8s, job, instance\) key4c_kms_build_info$/, "");
    expect(metricsIn(chosen)).toHaveLength(1);
    expect(chosen).toMatch(/_[a-z]+\{k8s=~"\$cluster",instance=~"\$instance"\}/);
  }
  const [state] = panels;
  expect(state?.targets[0]?.legendFormat).toBe("{{k8s}} {{instance}} {{state}}");
  expect(state?.options?.textMode).toBe("name");
  // Each state has a color, found by the end of that name.
  const patterns = state?.fieldConfig.overrides.map(({ matcher }) => matcher.options) ?? [];
  expect(patterns).toHaveLength(STATES.length);
  for (const one of STATES) {
    const shown = `prod cp-1 ${one}`;
    expect(patterns.filter((text) => new RegExp(text.slice(1, -1)).test(shown))).toHaveLength(1);
  }
});
