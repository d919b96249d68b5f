/**
 * Runs the suites named on the command line and ends with one plain line, `N passed, N failed, N skipped`. A
 * check counts as one; what needs something that this machine lacks is skipped, loudly, and fails where CI=true.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { missing, type NeedName } from "./needs.ts";
import { bunTests } from "./run/bun-tests.ts";
import { interop } from "./run/interop.ts";
import { type Count, outcome, skipSuite, sum, tell, tellEnd, tellResult } from "./run/report.ts";
import { shell } from "./run/shell.ts";
import { upstream } from "./upstream/suite.ts";

const scratch = mkdtempSync(join(tmpdir(), "k4c-run-"));

const CHECKS: readonly (readonly [string, string])[] = [
  ["types", "tsc"],
  ["licences, lock file, install scripts", "bun test/build/supply-chain.ts"],
  ["lint, format, import cycles", "biome ci --error-on-warnings ."],
  ["order of folders", "bun test/build/folders.ts"],
  ["buf lint", "buf lint"],
  ["buf format", "buf format --diff --exit-code"],
  ["buf breaking", "buf breaking --against proto/baseline.json"],
  ["generated code in sync", `buf generate -o ${scratch} && diff -r src/gen ${scratch}/src/gen`],
];

async function check(): Promise<Count> {
  const counts: Count[] = [];
  for (const [name, command] of CHECKS) {
    const { exitCode, output } = await shell(command);
    tellResult(exitCode === 0, `check: ${name}`, output);
    counts.push(outcome(exitCode === 0));
  }
  return sum(counts);
}

async function build(): Promise<Count> {
  const { exitCode, output } = await shell("npm run --silent build");
  tellResult(exitCode === 0, "build", output);
  return outcome(exitCode === 0);
}

/** A suite that runs as a whole, or is skipped as a whole. */
async function whole(suite: string, what: string, needs: readonly NeedName[], ...globs: string[]) {
  const absent = missing(...needs);
  return absent.length > 0
    ? skipSuite(suite, what, absent)
    : bunTests(globs, scratch, { show: true });
}

/** It prints what it met: how many faults, how often each pair of them, which cells of the table. */
async function simulation(): Promise<Count> {
  const { exitCode, output } = await shell("bun test/simulation/main.ts");
  tell(output.trimEnd());
  return outcome(exitCode === 0);
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

/** Each with what it does, for whoever waits, and how long it takes on two cores. */
const SUITES: Readonly<Record<string, readonly [string, () => Promise<Count>]>> = {
  check: ["types, lint, generated code, licences; half a minute", check],
  build: ["the binary; seconds", build],
  unit: [
    "units on the sources, and the compiled binary; 6 minutes",
    () => bunTests(["test/**/*.test.ts"], scratch),
  ],
  interop: ["the client code of two kube-apiservers, in Go; 4 minutes", interop],
  simulation: ["the real plugin through bad days in simulated time; 5 minutes", simulation],
  faults: [
    "a Key4C that goes wrong in 45 ways, and heals; 9 minutes",
    () => whole("faults", "no fault of Key4C was played", ["openssl"], "test/faults/*.faults.ts"),
  ],
  ship: [
    "the image under podman, and what is released; 5 minutes",
    () => whole("ship", "no image, no release was made or run", SHIP, "test/ship/*.ship.ts"),
  ],
  e2e: [
    "the runbooks on a real kube-apiserver and etcd, built once; 9 minutes, and 6 the first time",
    () => whole("e2e", "no real kube-apiserver was run", E2E, "test/e2e/*.e2e.ts"),
  ],
  upstream: [
    "Kubernetes' own tests of its KMS client; 4 minutes, and 2 to 10 the first time",
    () => upstream({ all: isAll }),
  ],
  hosts: [
    "a machine that systemd boots, and a kubelet; 6 minutes, and 15 the first time",
    () => {
      const long = isAll ? ["test/hosts/*.long.ts"] : [];
      return whole(
        "hosts",
        "no systemd, no kubelet was run",
        HOSTS,
        "test/hosts/*.hosts.ts",
        ...long,
      );
    },
  ],
};

/** `-- --all`: what takes too long for every run, too. */
const ALL = "--all";
const isAll = process.argv.includes(ALL);

const counts: Count[] = [];
for (const name of process.argv.slice(2).filter((one) => one !== ALL)) {
  const [what, suite] = SUITES[name] ?? [];
  if (suite === undefined) {
    throw new Error(`no suite ${name}; suites are ${Object.keys(SUITES).join(", ")}`);
  }
  tell(`${name}: ${what}`);
  counts.push(await suite());
}
rmSync(scratch, { recursive: true, force: true });
const total = sum(counts);
tellEnd(total);
process.exit(total.failed === 0 && total.passed > 0 ? 0 : 1);
