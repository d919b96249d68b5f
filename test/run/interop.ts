/** The client code of two kube-apiserver releases, in Go, against the compiled binary. */
import { join } from "node:path";
import { missing } from "../needs.ts";
import { countGoTests } from "./go-tests.ts";
import { type Count, outcome, skipSuite, sum, tell, tellResult } from "./report.ts";
import { ROOT, shell } from "./shell.ts";

const RELEASES = ["release128", "current"];

export async function interop(): Promise<Count> {
  const absent = missing("go");
  if (absent.length > 0) {
    return skipSuite("interop", "the code of real kube-apiservers was not run", absent);
  }
  const { output: unformatted } = await shell(
    "gofmt -l test/interop test/bench test/e2e test/upstream",
  );
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
  return countGoTests(`interop ${release}`, names.length, child);
}
