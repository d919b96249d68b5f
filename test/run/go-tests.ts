/** Tests of Go, counted and told as ours are. */
import { linesOf } from "./lines.ts";
import { type Count, noteSkipped, tellResult } from "./report.ts";

/** What prints the events of tests: `go tool test2json` and a test binary. */
export type GoTestRun = Bun.Subprocess<"ignore", "pipe", "inherit">;

export interface GoTest {
  /** With those that it is part of, `TestA/b`; empty for what is no test's: a crash, a build that fails. */
  readonly name: string;
  readonly ended: "pass" | "fail" | "skip";
  /** What it printed. */
  readonly output: string;
}

/** Each test when it has ended. */
export async function* goTests(run: GoTestRun): AsyncGenerator<GoTest> {
  const outputs = new Map<string, string>();
  let hasFailed = false;
  for await (const line of linesOf(run.stdout)) {
    const event = JSON.parse(line) as { Action: string; Test?: string; Output?: string };
    const { Action: action, Test: name = "" } = event;
    if (action === "output" || action === "build-output") {
      outputs.set(name, (outputs.get(name) ?? "") + (event.Output ?? ""));
    } else if (name !== "" && (action === "pass" || action === "fail" || action === "skip")) {
      hasFailed ||= action === "fail";
      yield { name, ended: action, output: outputs.get(name) ?? "" };
    }
  }
  if ((await run.exited) !== 0 && !hasFailed) {
    yield { name: "", ended: "fail", output: [...outputs.values()].join("") };
  }
}

/**
 * @param expected how many there are, without their parts: who ends early has not passed
 * @param onEnd when a whole test has ended, or a part has failed
 */
export async function countGoTests(
  suite: string,
  expected: number,
  run: GoTestRun,
  onEnd: (ok: boolean, what: string, output: string) => void = tellResult,
): Promise<Count> {
  const count = { passed: 0, failed: 0, skipped: 0 };
  let done = 0;
  for await (const { name, ended, output } of goTests(run)) {
    if (ended === "pass") {
      count.passed += 1;
    } else if (ended === "skip") {
      count.skipped += 1;
      noteSkipped(`${suite} ${name}: ${output.trim()}`);
    } else {
      count.failed += 1;
    }
    const isWhole = name !== "" && !name.includes("/");
    done += isWhole ? 1 : 0;
    if (isWhole || ended === "fail") {
      onEnd(ended !== "fail", `${suite} ${done}/${expected} ${name}`, output);
    }
  }
  if (count.failed === 0 && done !== expected) {
    onEnd(false, suite, `${done} of ${expected} tests ran`);
    count.failed += 1;
  }
  return count;
}
