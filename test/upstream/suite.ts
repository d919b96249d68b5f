/**
 * `npm run test:upstream [-- --all]`: the tests that Kubernetes writes for its own KMS client, with the
 * compiled binary in the place of their mocks. Real API servers (in the test's process), a real etcd.
 */
import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { type ErrorKind, KINDS } from "../../src/failures/kinds.ts";
import defaultProfile from "../../src/key4c/key4c.profile.json";
import { builtEtcd } from "../e2e/build.ts";
import { type Breakage, withBreakage } from "../mutants/cases.ts";
import { Copy } from "../mutants/copy.ts";
import { missing } from "../needs.ts";
import { countGoTests, type GoTestRun, goTests } from "../run/go-tests.ts";
import { type Count, outcome, skipSuite, sum, tell, tellResult } from "../run/report.ts";
import { shell } from "../run/shell.ts";
import { NEWEST, OLDER, type Suite, upstreamSuites } from "./generate.ts";

const PLUGIN =
  process.env["KEY4C_KMS_PLUGIN"] ?? join(import.meta.dir, "../../dist/key4c-kms-plugin");

/** They wait for the API server to notice, again and again: minutes each. */
const LONG: readonly string[] = [
  "TestKMSHealthz",
  "TestKMSHealthzWithReload",
  "TestKMSv2Healthz",
  "TestKMSv2ProviderKeyIDStaleness",
];
/** What upstream calls the failed state of a plugin, and how ours answers in it. */
const FAILURES = {
  disabled: { is: "key is disabled", kind: "keyUnusable" },
  away: { is: "Key4C is unreachable", kind: "unavailable" },
} as const satisfies Record<string, { is: string; kind: ErrorKind }>;
type Failure = keyof typeof FAILURES;

/** What of upstream's tests says nothing about this plugin. */
const CANNOT_RUN = [
  {
    suite: "envelope",
    test: "TestUnsupportedVersion",
    reason:
      "it wants a plugin that answers with another version than v1beta1; this one has no other",
  },
] as const;

/** A test that must fail, and one case of test/conformance/cases.json that makes it fail. */
const NEGATIVE_CONTROL = { case: 3, suite: "transformation", test: "TestKMSv2Provider" } as const;

/** The binaries end themselves, with a trace of every goroutine. */
const TIMEOUT = "30m";

export async function upstream({ all }: { readonly all: boolean }): Promise<Count> {
  const absent = missing("go");
  if (absent.length > 0) {
    return skipSuite("upstream", "Kubernetes' own tests were not run", absent);
  }
  const counts: Count[] = [];
  try {
    for await (const count of parts(all)) {
      counts.push(count);
    }
  } catch (error) {
    tellResult(false, "upstream: not all of it was run", String(error));
    counts.push(outcome(false));
  }
  return sum(counts);
}

async function* parts(all: boolean): AsyncGenerator<Count> {
  await builtEtcd(); // not within a test's time
  const newest = await upstreamSuites(NEWEST);
  listWhatCannotRun(newest);
  yield await runAll(NEWEST, newest, (test) => !LONG.includes(test), "disabled");
  yield await negativeControl(newest);
  if (!all) {
    return;
  }
  for (const failure of ["disabled", "away"] as const) {
    yield await runAll(NEWEST, newest, (test) => LONG.includes(test), failure);
  }
  for (const release of OLDER) {
    yield await runAll(release, await upstreamSuites(release), () => true, "disabled");
  }
}

function listWhatCannotRun(suites: readonly Suite[]): void {
  for (const { suite, test, reason } of CANNOT_RUN) {
    if (!suites.some(({ name, tests }) => name === suite && tests.includes(test))) {
      throw new Error(`upstream has no ${suite} ${test} any more: take it out of CANNOT_RUN`);
    }
    tell(`cannot run: upstream ${suite} ${test}: ${reason}`);
  }
}

async function runAll(
  release: string,
  suites: readonly Suite[],
  isWanted: (test: string) => boolean,
  failure: Failure,
): Promise<Count> {
  const counts: Count[] = [];
  for (const suite of suites) {
    const tests = suite.tests.filter(
      (test) =>
        isWanted(test) && !CANNOT_RUN.some((one) => one.suite === suite.name && one.test === test),
    );
    if (tests.length === 0) {
      continue;
    }
    const name = `upstream ${release} ${suite.name}`;
    tell(`${name}: a failed plugin is one whose ${FAILURES[failure].is}`);
    counts.push(
      await run({ suite, tests, failure, plugin: PLUGIN }, (events) =>
        countGoTests(name, tests.length, events),
      ),
    );
  }
  return sum(counts);
}

/** One of our mutants in the binary's place: upstream must find fault with it. */
async function negativeControl(suites: readonly Suite[]): Promise<Count> {
  const cases: { case: number; guards: string; break?: Breakage }[] = JSON.parse(
    readFileSync(join(import.meta.dir, "../conformance/cases.json"), "utf8"),
  );
  const mutant = cases.find((one) => one.case === NEGATIVE_CONTROL.case);
  const suite = suites.find(({ name }) => name === NEGATIVE_CONTROL.suite);
  if (mutant?.break === undefined || suite === undefined) {
    throw new Error(`no mutant of case ${NEGATIVE_CONTROL.case}, or no ${NEGATIVE_CONTROL.suite}`);
  }
  const { test } = NEGATIVE_CONTROL;
  using copy = new Copy();
  // Awaited: the copy is removed when this returns.
  return await withBreakage(copy, mutant.break, async () => {
    await copy.build();
    const plugin = join(copy.path, "dist/key4c-kms-plugin");
    return run({ suite, tests: [test], failure: "disabled", plugin }, async (events) => {
      let complaint: string | undefined;
      for await (const { ended, output } of goTests(events)) {
        if (ended === "fail") {
          // In upstream's own words: that the harness cannot start a plugin would be another failure.
          complaint ??= output.match(/_transformation_test\.go:\d+: (.{1,60})/)?.[1];
        }
      }
      const what = `upstream finds fault with a plugin without “${mutant.guards}”: ${complaint}`;
      tellResult(complaint !== undefined, what);
      return outcome(complaint !== undefined);
    });
  });
}

interface Run {
  readonly suite: Suite;
  readonly tests: readonly string[];
  readonly failure: Failure;
  /** The binary under test. */
  readonly plugin: string;
}

/** Keeps what plugins and emulators wrote if `judge` counts a failure. */
async function run(
  { suite, tests, failure, plugin }: Run,
  judge: (events: GoTestRun) => Promise<Count>,
): Promise<Count> {
  const scratch = mkdtempSync(join(tmpdir(), "k4c-up-"));
  symlinkSync((await builtEtcd()).etcd, join(scratch, "etcd")); // upstream looks for it on PATH
  const { output: modules } = await shell("go env GOMODCACHE");
  // Upstream wants to know the key_id of the next version before it is there: one without a key check value.
  const { kcv: _, ...result } = defaultProfile.describe.result;
  const profile = { ...defaultProfile, describe: { ...defaultProfile.describe, result } };
  writeFileSync(join(scratch, "profile.json"), JSON.stringify(profile));
  const child = Bun.spawn(
    [
      ...["go", "tool", "test2json", "-t", "-p", suite.name, suite.binary],
      ...["-test.v=test2json", `-test.timeout=${TIMEOUT}`, `-test.run=^(${tests.join("|")})$`],
    ],
    {
      cwd: suite.directory,
      env: {
        ...process.env,
        PATH: `${scratch}:${process.env["PATH"]}`,
        TMPDIR: scratch,
        KEY4C_KMS_PLUGIN: plugin,
        KEY4C_DIRECTORY: scratch,
        KEY4C_PROFILE: join(scratch, "profile.json"),
        KEY4C_FAILURE: failure,
        KEY4C_FAILED_STATUS: statusInGo(FAILURES[failure].kind),
        KEY4C_TAP: suite.name === "transformation" ? "1" : "",
        KUBE_INTEGRATION_ETCD_URL: "http://127.0.0.1:1", // not somebody else's etcd
        // With -trimpath a source file's path begins with its module: here is where modules are.
        TEST_SRCDIR: modules.trim(),
        TEST_WORKSPACE: ".",
      },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "inherit",
      detached: true, // a group of its own: a test that its timeout ends leaves its etcd running
    },
  );
  const end = () => endGroup(child.pid);
  const exit = () => process.exit(1);
  process.on("exit", end).on("SIGINT", exit).on("SIGTERM", exit);
  const count = await judge(child);
  process.off("exit", end).off("SIGINT", exit).off("SIGTERM", exit);
  end();
  if (count.failed > 0) {
    tell(`what the plugins and emulators wrote is in ${scratch}`);
  } else {
    rmSync(scratch, { recursive: true });
  }
  return count;
}

function endGroup(leader: number): void {
  try {
    process.kill(-leader, "SIGKILL");
  } catch {
    // all of it has ended
  }
}

/** As Go prints a gRPC status: `FailedPrecondition desc = …`. */
function statusInGo(kind: ErrorKind): string {
  const { code, text } = KINDS[kind];
  const name = status[code]
    .toLowerCase()
    .replace(/(?:^|_)([a-z])/g, (_, letter: string) => letter.toUpperCase());
  return `${name} desc = ${text}`;
}
