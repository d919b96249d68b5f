/** The client code of two kube-apiserver releases, in Go, against the compiled binary. */
import { mkdtempSync } from "node:fs";
import { join } from "node:path";
import { missing } from "../needs.ts";
import { countGoTests } from "./go-tests.ts";
import { cpuSecondsOf, type Done, type Job } from "./pool.ts";
import { outcome, skipSuite } from "./report.ts";
import { ROOT, shell } from "./shell.ts";

/** The program ends itself, with a trace of every goroutine. */
const TIMEOUT = "30m";

/** What the release's own code decides on; the rest is about gRPC and bytes, which every client sends alike. */
const OF_THE_RELEASE =
  /^Test(Objects|HealthChecks|Liveness|Reload|RotationUnder|EveryAuthority|PluginStartsAfter)/;
/** What `-test.short` makes shorter: fewer calls, one attack for each defence. */
const SHORTENED = /^Test(HostileNeighbours|Key4CIsRarelyCalled|HandOverFarFromKey4C)/;
const SHORT = "-test.short";

/**
 * Each test is a job of its own, after a release's tests are compiled (minutes, but once).
 *
 * @param scratch a directory
 */
export function interop(scratch: string): readonly Job[] {
  return withGo("interop", [
    compiled("release128", scratch, (test) => OF_THE_RELEASE.test(test), SHORT),
    compiled("current", scratch, () => true, SHORT),
    { name: "gofmt", run: gofmt },
  ]);
}

/** What `interop` leaves out. */
export function interopLong(scratch: string): readonly Job[] {
  return withGo("interop-long", [
    compiled("release128", scratch, (test) => !OF_THE_RELEASE.test(test)),
    compiled("current", scratch, (test) => SHORTENED.test(test)),
  ]);
}

function withGo(suite: string, jobs: readonly Job[]): readonly Job[] {
  const absent = missing("go");
  const skip = () => skipSuite(suite, "the code of real kube-apiservers was not run", absent);
  return absent.length === 0
    ? jobs
    : [{ name: suite, run: async () => ({ count: skip(), output: "" }) }];
}

async function gofmt(): Promise<Done> {
  const command = "gofmt -l test/interop test/bench test/e2e test/upstream";
  const { output } = await shell(command);
  return { count: outcome(output === ""), output };
}

/** Compiles a release's tests, and then runs those that are wanted. */
function compiled(
  release: string,
  scratch: string,
  isWanted: (test: string) => boolean,
  ...flags: string[]
): Job {
  const directory = join(ROOT, "test/interop", release);
  const program = join(mkdtempSync(join(scratch, "go-")), "tests");
  const run = async () => {
    const compiler = `go mod download && nice -n 10 go test -c -o ${program} .`; // tests want to be on time
    const command = `${compiler} && ${program} -test.list .`;
    const { exitCode, output } = await shell(command, directory);
    const tests = (output.match(/^Test\w+$/gm) ?? []).filter(isWanted);
    return {
      count: outcome(exitCode === 0 && tests.length > 0),
      output,
      next: tests.map((test) => ({
        name: [release, test, ...flags].join(" "),
        run: () => goTest(program, directory, test, flags),
      })),
    };
  };
  return { name: `${release}: Go's modules and compiler`, isFirst: true, run };
}

async function goTest(program: string, cwd: string, test: string, flags: string[]): Promise<Done> {
  const all = ["-test.v=test2json", `-test.run=^${test}$`, `-test.timeout=${TIMEOUT}`, ...flags];
  const child = Bun.spawn(["go", "tool", "test2json", "-t", program, ...all], {
    cwd,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "inherit",
  });
  let output = "";
  const count = await countGoTests(test, 1, child, (ok, what, printed) => {
    output += ok ? "" : `${what}\n${printed}`;
  });
  return { count, output, cpuSeconds: cpuSecondsOf(child) };
}
