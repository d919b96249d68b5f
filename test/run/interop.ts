/** The client code of two kube-apiserver releases, in Go, against the compiled binary. */
import { join } from "node:path";
import { missing } from "../needs.ts";
import { type Count, noteSkipped, outcome, skipSuite, sum, tell, tellResult } from "./report.ts";
import { ROOT, shell } from "./shell.ts";

const RELEASES = ["release128", "current"];

export async function interop(): Promise<Count> {
  const absent = missing("go");
  if (absent.length > 0) {
    return skipSuite("interop", "the code of real kube-apiservers was not run", absent);
  }
  const { output: unformatted } = await shell("gofmt -l test/interop test/bench test/e2e");
  tellResult(unformatted === "", "gofmt", unformatted);
  const counts = [outcome(unformatted === "")];
  for (const release of RELEASES) {
    const directory = join(ROOT, "test/interop", release);
    tell(`interop ${release}: downloading Go modules and compiling (minutes, but once)`);
    const built = await shell("go mod download && go test -count=1 -run '^$' ./...", directory);
    if (built.exitCode !== 0) {
      tellResult(false, `interop ${release}: no build`, built.output);
      counts.push(outcome(false));
      continue;
    }
    counts.push(await goTest(release, directory));
  }
  return sum(counts);
}

async function goTest(release: string, directory: string): Promise<Count> {
  const names = (await shell("go test -list . ./...", directory)).output.match(/^Test.*$/gm) ?? [];
  const child = Bun.spawn(["go", "test", "-count=1", "-timeout", "60m", "-json", "./..."], {
    cwd: directory,
    stdout: "pipe",
    stderr: "inherit",
  });
  const texts = new Map<string, string>();
  const count = { passed: 0, failed: 0, skipped: 0 };
  let done = 0;
  for await (const line of linesOf(child.stdout)) {
    const event = JSON.parse(line) as { Action: string; Test?: string; Output?: string };
    const test = event.Test ?? "";
    if (event.Action === "output" || event.Action === "build-output") {
      texts.set(test, (texts.get(test) ?? "") + (event.Output ?? ""));
      continue;
    }
    if (test === "" || !["pass", "fail", "skip"].includes(event.Action)) {
      continue;
    }
    if (event.Action === "pass") {
      count.passed += 1;
    } else if (event.Action === "skip") {
      count.skipped += 1;
      noteSkipped(`interop ${release} ${test}: ${texts.get(test)?.trim()}`);
    } else {
      count.failed += 1;
    }
    if (!test.includes("/") || event.Action === "fail") {
      done += test.includes("/") ? 0 : 1;
      const name = `interop ${release} ${done}/${names.length} ${test}`;
      tellResult(event.Action !== "fail", name, texts.get(test));
    }
  }
  if ((await child.exited) !== 0 && count.failed === 0) {
    tellResult(false, `interop ${release}`, [...texts.values()].join(""));
    count.failed += 1;
  }
  return count;
}

async function* linesOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of stream) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    yield* lines.filter((line) => line !== "");
  }
}
