/**
 * Runs the suites named on the command line and ends with one plain line, `N passed, N failed, N skipped`, below
 * all that failed. A check counts as one; what needs something that this machine lacks is skipped, loudly, and
 * fails where CI=true.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { builtKes, builtKubelet, builtServers, fetchedOpenBao } from "./e2e/build.ts";
import { debianRoot } from "./hosts/root.ts";
import { missing, type NeedName } from "./needs.ts";
import { bunTests } from "./run/bun-tests.ts";
import { interop, interopLong } from "./run/interop.ts";
import { type Done, JOBS, type Job, runLanes } from "./run/pool.ts";
import {
  type Count,
  outcome,
  skipSuite,
  sum,
  tell,
  tellEnd,
  tellFailures,
  tellResult,
} from "./run/report.ts";
import { shell } from "./run/shell.ts";
import { upstream } from "./upstream/suite.ts";

// What one suite has compiled, the next one finds in Go's cache: only with the same flags.
process.env["GOFLAGS"] = `${process.env["GOFLAGS"] ?? ""} -trimpath`.trim();

const scratch = mkdtempSync(join(tmpdir(), "k4c-run-"));

const CHECKS: readonly (readonly [string, string])[] = [
  ["types", "tsc"],
  ["licences, lock file, install scripts", "bun test/build/supply-chain.ts"],
  ["lint, format, import cycles", "biome ci --error-on-warnings ."],
  ["order of folders", "bun test/build/folders.ts"],
  ["buf lint", "buf lint"],
  ["buf format", "buf format --diff --exit-code"],
  ["buf breaking", "buf breaking --against proto/baseline.json"],
  ["Korean documents", "bun test/documents/translated.ts"],
  ["generated code in sync", `buf generate -o ${scratch} && diff -r src/gen ${scratch}/src/gen`],
];

/** One after the other, and before anything else: what does not compile has nothing to test. */
async function inTurn(steps: readonly (readonly [string, string])[]): Promise<Count> {
  const counts: Count[] = [];
  for (const [name, command] of steps) {
    const { exitCode, output } = await shell(command);
    tellResult(exitCode === 0, name, output);
    for (const [warning] of output.matchAll(/^warning: .*$/gm)) {
      tell(warning);
    }
    counts.push(outcome(exitCode === 0));
  }
  return sum(counts);
}

const FIRST: Readonly<Record<string, readonly (readonly [string, string])[]>> = {
  check: CHECKS.map(([name, command]) => [`check: ${name}`, command] as const),
  build: [["build", "npm run --silent build"]],
};

/** Files of tests, or one job that skips them. */
function whole(suite: string, what: string, needs: readonly NeedName[], ...globs: string[]) {
  const absent = missing(...needs);
  const skip = async () => ({ count: skipSuite(suite, what, absent), output: "" });
  return absent.length > 0
    ? [{ name: suite, run: skip }]
    : bunTests(globs, scratch, { show: true });
}

/** What others publish is compiled while the units wait, at a low priority: minutes, but once. */
function building(name: string, needs: readonly NeedName[], build: () => Promise<unknown>): Jobs {
  const run = async () => {
    await build();
    return { count: outcome(true), output: "" };
  };
  return missing(...needs).length === 0 ? { tests: [{ name, isFirst: true, run }] } : {};
}

/** Most of their time they wait: for an outage to last, for an API server that looks once a minute, for a kubelet. */
const WAITING = /^(?:e2e\/(?:openbao|outage|rotate)\.|hosts\/kubelet)/;

/** @param lane of those that do not wait */
function withWaiting(lane: "API servers" | "containers", jobs: readonly Job[]): Jobs {
  return {
    waiting: jobs.filter(({ name }) => WAITING.test(name)),
    [lane]: jobs.filter(({ name }) => !WAITING.test(name)),
  };
}

function e2e(): Jobs {
  const jobs = whole("e2e", "no real kube-apiserver was run", E2E, "test/e2e/*.e2e.ts");
  return {
    ...withWaiting("API servers", jobs),
    ...building("e2e: servers", E2E, async () => {
      await builtServers();
      await builtKes();
      await fetchedOpenBao();
    }),
  };
}

function hosts(): Jobs {
  const globs = ["test/hosts/*.hosts.ts", ...(isAll ? ["test/hosts/*.long.ts"] : [])];
  const jobs = whole("hosts", "no systemd, no kubelet was run", HOSTS, ...globs);
  return {
    ...withWaiting("containers", jobs),
    ...building("hosts: kubelet and root directory", HOSTS, async () => {
      await debianRoot();
      await builtKubelet();
    }),
  };
}

/**
 * It prints what it met: how many faults, how often each pair of them, which cells of the table. Its time is simulated,
 * so it may have the processor whenever nobody else wants it.
 */
async function simulation(): Promise<Done> {
  const { exitCode, output } = await shell("chrt --idle 0 bun test/simulation/main.ts");
  tell(output.trimEnd());
  return { count: outcome(exitCode === 0), output };
}

const SHIP: readonly NeedName[] = [
  ...(["buildah", "podman", "runc", "catatonit", "apt-get", "dpkg-deb", "go", "openssl"] as const),
  ...(["qemu-x86_64-static", "qemu-aarch64-static", "libc6 for arm64"] as const),
];

const E2E: readonly NeedName[] = ["go", "openssl", "pip3"];
const HOSTS: readonly NeedName[] = [
  ...(["root", "systemd-nspawn", "debootstrap", "mount namespaces"] as const),
  ...(["go", "buildah", "catatonit", "apt-get", "dpkg-deb"] as const),
];

/**
 * Lanes of one row run beside each other, with so many jobs at once; rows one after the other. Beside what counts seconds
 * of the plugin's is only what nearly always waits, or takes what is left over: on two busy processors a recovery of one
 * second takes ten.
 */
const ROWS = [
  { tests: JOBS },
  { faults: 1, waiting: 3, leftovers: 1 },
  { clients: 1, containers: 1 },
  { "API servers": 2 },
] as const;

type LaneOf<Row> = Row extends unknown ? keyof Row : never; // of each row of a union
type Jobs = { readonly [Lane in LaneOf<(typeof ROWS)[number]>]?: readonly Job[] };

interface Suite {
  /** What it does, for whoever waits, and how long it takes alone on two cores. */
  readonly what: string;
  readonly jobs: () => Jobs;
}

const SUITES: Readonly<Record<string, Suite>> = {
  unit: {
    what: "units on the sources, and the compiled binary; 3 minutes",
    jobs: () => ({ tests: bunTests(["test/**/*.test.ts"], scratch) }), // those of test/binary wait longest, and sort first
  },
  interop: {
    what: "the client code of two kube-apiservers, in Go; 2 minutes",
    jobs: () => ({ tests: interop(scratch) }),
  },
  simulation: {
    what: "the real plugin through bad days in simulated time; 4 to 9 minutes",
    jobs: () => ({ leftovers: [{ name: "simulation", run: simulation }] }),
  },
  "interop-long": {
    what: "45 kinds of hostile clients, and 1.28's gRPC in what current's is tested in; 5 minutes",
    jobs: () => ({ clients: interopLong(scratch) }),
  },
  faults: {
    what: "a Key4C that goes wrong in 45 ways, and recovers; 9 minutes",
    jobs: () => ({
      faults: whole(
        "faults",
        "no fault of Key4C was played",
        ["openssl"],
        "test/faults/*.faults.ts",
      ),
    }),
  },
  e2e: {
    what: "the runbooks on a real kube-apiserver and etcd, built once; 10 minutes, and 6 the first time",
    jobs: e2e,
  },
  upstream: {
    what: "Kubernetes' own tests of its KMS client; 4 minutes, and 2 to 10 the first time",
    jobs: () => ({
      "API servers": [
        {
          name: "upstream",
          run: async () => ({ count: await upstream({ all: isAll }), output: "" }),
        },
      ],
    }),
  },
  ship: {
    what: "the image under podman, and what is released; 5 minutes",
    jobs: () => ({
      containers: whole(
        "ship",
        "no image, no release was made or run",
        SHIP,
        "test/ship/*.ship.ts",
      ),
    }),
  },
  hosts: {
    what: "a machine that systemd boots, and a kubelet; 10 minutes, and 15 more the first time",
    jobs: hosts,
  },
};

/** `-- --all`: what takes too long for every run, too. */
const ALL = "--all";
const isAll = process.argv.includes(ALL);

const names = process.argv.slice(2).filter((one) => one !== ALL);
const unknown = names.find((name) => FIRST[name] === undefined && SUITES[name] === undefined);
if (unknown !== undefined) {
  const known = [...Object.keys(FIRST), ...Object.keys(SUITES)];
  throw new Error(`no suite ${unknown}; suites are ${known.join(", ")}`);
}
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.on(signal, () => {
    tellFailures();
    process.exit(1);
  });
}
const first = await inTurn(names.flatMap((name) => FIRST[name] ?? []));
const suites = names.flatMap((name) => SUITES[name] ?? []);
for (const [name, { what }] of Object.entries(SUITES).filter(([, one]) => suites.includes(one))) {
  tell(`${name}: ${what}`);
}
const counts = [first];
const jobs: readonly Jobs[] = suites.map((suite) => suite.jobs());
for (const row of ROWS) {
  const lanes = Object.entries(row).map(([lane, width]) => ({
    width,
    jobs: jobs.flatMap((of) => of[lane as keyof Jobs] ?? []), // entries() forgets the names of the keys
  }));
  counts.push(await runLanes(lanes));
}
const total = sum(counts);
rmSync(scratch, { recursive: true, force: true });
tellEnd(total);
process.exit(total.failed === 0 && total.passed > 0 ? 0 : 1);
