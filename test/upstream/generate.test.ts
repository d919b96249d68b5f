/** What upstream may change without our noticing. */
import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { temporaryDirectory } from "../support.ts";
import { applyEdit, testsIn } from "./generate.ts";

const EDIT = { files: ["a_test.go"], find: "mock(1)", replace: "ours(1)", since: 30 };

test("an edit is made wherever its text is, and in no release before it was there", () => {
  const directory = temporaryDirectory();
  const path = join(directory, "a_test.go");
  writeFileSync(path, "mock(1), mock(1)");
  applyEdit(EDIT, directory, "1.28.15");
  expect(readFileSync(path, "utf8")).toBe("mock(1), mock(1)");
  applyEdit(EDIT, directory, "1.30.14");
  expect(readFileSync(path, "utf8")).toBe("ours(1), ours(1)");
});

test("an edit whose text upstream has changed fails, and says where to look", () => {
  const directory = temporaryDirectory();
  writeFileSync(join(directory, "a_test.go"), "mock(2)");
  expect(() => applyEdit(EDIT, directory, "1.38.0")).toThrow(
    /^Kubernetes 1\.38\.0: .*a_test\.go no longer has\n {2}mock\(1\)\n.*test\/upstream\/edits\.ts/s,
  );
});

test("what is run is what makes a mock, by itself or through what it names", () => {
  const directory = temporaryDirectory();
  writeFileSync(
    join(directory, "a_test.go"),
    `package a

func TestItself(t *testing.T) {
	mock.NewBase64Plugin(t, "@a")
}

func TestThroughOthers(t *testing.T) {
	for _, f := range []func(){first} {
		f()
	}
}

func first() { second() }

func second() {
	mock.NewBase64Plugin(t, "@b")
}

func TestOfNothing(t *testing.T) {}

func BenchmarkIt(b *testing.B) {
	mock.NewBase64Plugin(b, "@c")
}
`,
  );
  expect(testsIn(directory)).toEqual(["TestItself", "TestThroughOthers"]);
});
