/** What a run tells: what it does, how far it is, what it did not do, and last what failed. */

export interface Count {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

const startMs = performance.now();
const isTerminal = process.stdout.isTTY;
const CLEAR_LINE = "\r\x1b[K";
/** Where nobody sees a line change, the state of the run is a line of its own, this often. */
const STATE_INTERVAL_MS = 15_000;

const skippedTests: string[] = [];
const missingTools = new Set<string>();
const failures: { readonly name: string; readonly output: string }[] = [];
let state = "";

/** A line about where the run is, with the time since its start. */
export function tell(text: string): void {
  const seconds = Math.round((performance.now() - startMs) / 1000);
  const clock = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  process.stdout.write(`${isTerminal ? CLEAR_LINE : ""}[${clock}] ${text}\n`);
  showState();
}

/** What stays on the last line of a terminal; elsewhere {@link repeatState} tells it from time to time. */
export function tellState(text: string): void {
  state = text;
  showState();
}

function showState(): void {
  if (isTerminal) {
    process.stdout.write(`${CLEAR_LINE}${state.slice(0, process.stdout.columns - 1)}`);
  }
}

/** @returns what ends it */
export function repeatState(): () => void {
  const timer = isTerminal ? undefined : setInterval(() => tell(state), STATE_INTERVAL_MS);
  return () => {
    clearInterval(timer);
    state = "";
    showState();
  };
}

/** A line about something that ended; if it failed, what it printed is shown at the end of the run. */
export function tellResult(ok: boolean, name: string, output = ""): void {
  tell(`${ok ? "ok  " : "FAIL"} ${name}`);
  if (!ok) {
    failures.push({ name, output });
  }
}

export function sum(counts: readonly Count[]): Count {
  const of = (part: keyof Count) => counts.reduce((total, one) => total + one[part], 0);
  return { passed: of("passed"), failed: of("failed"), skipped: of("skipped") };
}

export const outcome = (ok: boolean): Count => ({
  passed: ok ? 1 : 0,
  failed: ok ? 0 : 1,
  skipped: 0,
});

/** What lacks to tests, each with where it comes from. */
export function noteMissing(tools: Iterable<string>): void {
  for (const one of tools) {
    missingTools.add(one);
  }
}

export function noteSkipped(test: string): void {
  skippedTests.push(test);
}

/** Loud, and under CI a failure: what was not run must not look as if it had passed. */
export function skipSuite(suite: string, what: string, tools: readonly string[]): Count {
  noteMissing(tools);
  if (process.env["CI"] === "true") {
    tellResult(false, suite, `missing: ${tools.join(", ")}; .ci/setup installs it`);
    return outcome(false);
  }
  noteSkipped(`${suite}: ${what}`);
  tell(`SKIPPED ${suite}: ${what}`);
  return { passed: 0, failed: 0, skipped: 1 };
}

/** With all that they printed. */
export function tellFailures(): void {
  for (const { name, output } of failures) {
    console.log(`\n--- FAILED ${name}\n${output.trimEnd()}`);
  }
}

/** What was not run and what it lacked, what failed with all that it printed, then the closing line. */
export function tellEnd({ passed, failed, skipped }: Count): void {
  if (skippedTests.length > 0) {
    console.log(
      `\n!!! SKIPPED, so not tested:\n${skippedTests.map((one) => `  ${one}`).join("\n")}`,
    );
    console.log(
      `!!! because this machine lacks:\n${[...missingTools].map((one) => `  ${one}`).join("\n")}`,
    );
    console.log("!!! as root, .ci/setup installs all of it (Debian)\n");
  }
  tellFailures();
  console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
}
