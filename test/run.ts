/**
 * Runs the suites named on the command line and ends with one plain line, `N passed, N failed`. A check
 * counts as one; a suite that needs what this machine lacks says so, and fails where CI=true.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

interface Count {
  passed: number;
  failed: number;
  skipped: number;
}

const ROOT = join(import.meta.dir, "..");
const scratch = mkdtempSync(join(tmpdir(), "k4c-run-"));

const CHECKS: readonly (readonly [string, string])[] = [
  ["types", "tsc"],
  ["licences, lock file, install scripts", "bun test/build/supply-chain.ts"],
  ["lint, format, import cycles, order of folders", "biome ci --error-on-warnings ."],
  ["buf lint", "buf lint"],
  ["buf format", "buf format --diff --exit-code"],
  ["buf breaking", "buf breaking --against proto/baseline.json"],
  ["generated code in sync", `buf generate -o ${scratch} && diff -r src/gen ${scratch}/src/gen`],
];

async function check(): Promise<Count> {
  const count = { passed: 0, failed: 0, skipped: 0 };
  for (const [name, command] of CHECKS) {
    const { exitCode, output } = await shell(command);
    console.log(`${exitCode === 0 ? "ok  " : "FAIL"} check: ${name}`);
    if (exitCode === 0) {
      count.passed += 1;
    } else {
      count.failed += 1;
      console.log(output);
    }
  }
  return count;
}

async function build(): Promise<Count> {
  const { exitCode, output } = await shell("npm run --silent build");
  console.log(`${exitCode === 0 ? "ok  " : "FAIL"} build${exitCode === 0 ? "" : `\n${output}`}`);
  return outcome(exitCode === 0);
}

/** Every *.test.ts: units on the sources, and test/binary on the compiled binary. */
function unit(): Promise<Count> {
  return bunTest(["./test"]);
}

/** The runbooks on a real kube-apiserver and a real etcd, built from Go modules. */
async function e2e(): Promise<Count> {
  if (Bun.which("go") === null) {
    return missing("e2e", "Go is not installed: no real kube-apiserver was run");
  }
  const files = [...new Bun.Glob("test/e2e/*.e2e.ts").scanSync(ROOT)].sort();
  return bunTest(files.map((file) => `./${file}`));
}

/** The compiled binary and a Key4C that goes wrong and heals; a test a cell of the table. */
function faults(): Promise<Count> {
  return bunTest(["./test/faults/campaign.faults.ts"]);
}

/** The real plugin through weeks of bad days in simulated time; prints what it met. */
async function simulation(): Promise<Count> {
  const { exitCode, output } = await shell("bun test/simulation/main.ts");
  console.log(output.trimEnd());
  return outcome(exitCode === 0);
}

const SHIP_TOOLS = [
  ...["buildah", "podman", "runc", "catatonit", "apt-get", "dpkg-deb", "go"],
  ...["qemu-x86_64-static", "qemu-aarch64-static"],
];

/** The image under podman, and what is released. */
async function ship(): Promise<Count> {
  const absent = SHIP_TOOLS.filter((tool) => Bun.which(tool) === null);
  if (absent.length > 0) {
    return missing(
      "ship",
      `${absent.join(", ")} not installed: no image, no release was made or run`,
    );
  }
  const files = [...new Bun.Glob("test/ship/*.ship.ts").scanSync(ROOT)].sort();
  return bunTest(files.map((file) => `./${file}`));
}

async function bunTest(paths: readonly string[]): Promise<Count> {
  const report = join(scratch, "junit.xml");
  rmSync(report, { force: true });
  const flags = ["--only-failures", "--reporter=junit", `--reporter-outfile=${report}`];
  const child = Bun.spawn([process.execPath, "test", ...flags, ...paths], {
    cwd: ROOT,
    stdout: "inherit",
    stderr: "inherit",
  });
  const exitCode = await child.exited;
  const root = existsSync(report)
    ? (readFileSync(report, "utf8").match(/<testsuites [^>]*>/) ?? [])
    : [];
  const number = (name: string) => Number(root[0]?.match(` ${name}="(\\d+)"`)?.[1] ?? 0);
  const failed = number("failures");
  const skipped = number("skipped");
  // A crash outside of any test shows in the exit code only.
  const crashed = exitCode !== 0 && failed === 0 ? 1 : 0;
  return { passed: number("tests") - failed - skipped, failed: failed + crashed, skipped };
}

/** The client code of two kube-apiserver releases, in Go, against the compiled binary. */
async function interop(): Promise<Count> {
  if (Bun.which("go") === null) {
    return missing("interop", "Go is not installed: the real kube-apiserver client was NOT run");
  }
  const unformatted = (await shell("gofmt -l test/interop")).output;
  console.log(`${unformatted === "" ? "ok  " : "FAIL"} gofmt\n${unformatted}`.trimEnd());
  const total = outcome(unformatted === "");
  for (const release of ["release128", "current"]) {
    const child = Bun.spawn(["go", "test", "-count=1", "-json", "./..."], {
      cwd: join(ROOT, "test/interop", release),
      stdout: "pipe",
      stderr: "inherit",
    });
    const texts = new Map<string, string>();
    let failed = 0;
    for (const line of (await child.stdout.text()).split("\n").filter(Boolean)) {
      const event = JSON.parse(line) as { Action: string; Test?: string; Output?: string };
      const test = event.Test ?? "";
      if (event.Action === "output" || event.Action === "build-output") {
        texts.set(test, (texts.get(test) ?? "") + (event.Output ?? ""));
      } else if (test !== "" && event.Action === "pass") {
        total.passed += 1;
      } else if (test !== "" && event.Action === "skip") {
        total.skipped += 1;
        console.log(`SKIPPED interop ${release} ${test}\n${texts.get(test)}`);
      } else if (test !== "" && event.Action === "fail") {
        failed += 1;
        console.log(`FAIL interop ${release} ${test}\n${texts.get(test)}`);
      }
    }
    const crashed = (await child.exited) !== 0 && failed === 0;
    if (crashed) {
      console.log(`FAIL interop ${release}\n${[...texts.values()].join("")}`);
    }
    total.failed += failed + (crashed ? 1 : 0);
    console.log(`${failed === 0 && !crashed ? "ok  " : "FAIL"} interop ${release}`);
  }
  return total;
}

/** Loud, and under CI a failure: what was not run must not look as if it had passed. */
function missing(suite: string, why: string): Count {
  const isCi = process.env["CI"] === "true";
  console.log(`\n!!! ${isCi ? "FAIL" : "SKIPPED"} ${suite}: ${why} !!!\n`);
  return isCi ? outcome(false) : { passed: 0, failed: 0, skipped: 1 };
}

function outcome(ok: boolean): Count {
  return { passed: ok ? 1 : 0, failed: ok ? 0 : 1, skipped: 0 };
}

async function shell(command: string): Promise<{ exitCode: number; output: string }> {
  const child = Bun.spawn(["sh", "-c", `${command} 2>&1`], {
    cwd: ROOT,
    env: { ...process.env, PATH: `${ROOT}/node_modules/.bin:${process.env["PATH"]}` },
    stdout: "pipe",
  });
  const output = await child.stdout.text();
  return { exitCode: await child.exited, output };
}

const SUITES: Readonly<Record<string, () => Promise<Count>>> = {
  check,
  build,
  unit,
  interop,
  simulation,
  faults,
  ship,
  e2e,
};

const total = { passed: 0, failed: 0, skipped: 0 };
for (const name of process.argv.slice(2)) {
  const suite = SUITES[name];
  if (suite === undefined) {
    throw new Error(`no suite ${name}; suites are ${Object.keys(SUITES).join(", ")}`);
  }
  const { passed, failed, skipped } = await suite();
  total.passed += passed;
  total.failed += failed;
  total.skipped += skipped;
}
rmSync(scratch, { recursive: true });
const skipped = total.skipped > 0 ? `, ${total.skipped} skipped` : "";
console.log(`${total.passed} passed, ${total.failed} failed${skipped}`);
process.exit(total.failed === 0 && total.passed > 0 ? 0 : 1);
