/** Files that are read again while the plugin runs, and what may stand in their place. */
import { expect, test } from "bun:test";
import { mkdirSync, renameSync, rmSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { $ } from "bun";
import { ReloadedFile, readSmallBytes } from "../../src/system/files.ts";
import { temporaryDirectory } from "../support.ts";

function watched(emptyAtStart?: string) {
  const path = join(temporaryDirectory(), "watched");
  writeFileSync(path, emptyAtStart === undefined ? "first\n" : "");
  const parse = (text: string) => {
    if (text.includes("broken")) {
      throw new Error("is broken");
    }
    return text.trim();
  };
  const file = new ReloadedFile(path, parse, emptyAtStart);
  const reports: (string | undefined)[] = [];
  file.fault.watch((text) => reports.push(text));
  return { path, file, reports };
}

const IN_ITS_PLACE: Record<string, [put: (path: string) => unknown, fault: RegExp]> = {
  "a FIFO": [(path) => $`mkfifo ${path}`.quiet(), /is not a regular file$/],
  "a device without an end": [(path) => symlinkSync("/dev/zero", path), /is not a regular file$/],
  "a directory": [(path) => mkdirSync(path), /is not a regular file$/],
  "a link that leads nowhere": [(path) => symlinkSync("/nowhere", path), /cannot read .*ENOENT/],
  nothing: [() => {}, /cannot read .*ENOENT/],
  "an empty file": [(path) => writeFileSync(path, " \n"), /is empty$/],
  "a huge file": [(path) => writeFileSync(path, "x".repeat(1024 * 1024 + 1)), /is larger than/],
  "what does not parse": [(path) => writeFileSync(path, "broken"), /^is broken$/],
};

test.each(Object.entries(IN_ITS_PLACE))(
  "%s in the place of a file keeps its last value, and is told once",
  async (_, [put, fault]) => {
    const { path, file, reports } = watched();
    rmSync(path);
    await put(path);
    const startMs = performance.now();
    for (let use = 0; use < 3; use++) {
      expect(file.current).toBe("first");
    }
    expect(performance.now() - startMs).toBeLessThan(30_000);
    expect(reports).toEqual([expect.stringMatching(fault)]);
    rmSync(path, { recursive: true, force: true });
    writeFileSync(path, "second\n");
    expect(file.current).toBe("second");
    expect(reports.slice(1)).toEqual([undefined]);
  },
);

test("the same file again, untouched, ends the fault", () => {
  const { path, file, reports } = watched();
  renameSync(path, `${path}.away`);
  expect(file.current).toBe("first");
  renameSync(`${path}.away`, path);
  expect(file.current).toBe("first");
  expect([reports.length, reports.at(-1)]).toEqual([2, undefined]);
});

test("other content of the same size and time of modification is read", () => {
  const { path, file } = watched();
  utimesSync(path, 1, 1);
  expect(file.current).toBe("first");
  writeFileSync(path, "third\n");
  utimesSync(path, 1, 1);
  expect(file.current).toBe("third");
});

test("a link is followed, also when it is exchanged as a kubelet does", () => {
  const directory = temporaryDirectory();
  for (const version of ["a", "b"]) {
    mkdirSync(join(directory, version));
    writeFileSync(join(directory, version, "file"), version);
  }
  symlinkSync("a", join(directory, "data"));
  symlinkSync("data/file", join(directory, "file"));
  const file = new ReloadedFile(join(directory, "file"), (text) => text);
  symlinkSync("b", join(directory, "next"));
  renameSync(join(directory, "next"), join(directory, "data"));
  expect(file.current).toBe("b");
});

test("empty at the start: where that has a value, it is that, and told", () => {
  const { file, path, reports } = watched("nothing");
  expect([file.current, reports]).toEqual(["nothing", [`${path} is empty`]]);
  writeFileSync(path, "something");
  writeFileSync(join(path, "..", "other"), "");
  expect(file.current).toBe("something");
  writeFileSync(path, "");
  expect(file.current).toBe("something"); // the last one, and not that of the start
  expect(() => new ReloadedFile(join(path, "..", "other"), (text) => text)).toThrow(/is empty/);
});

test("at the start none is opened that would never end", async () => {
  const path = join(temporaryDirectory(), "fifo");
  await $`mkfifo ${path}`.quiet();
  for (const one of [path, "/dev/zero"]) {
    expect(() => new ReloadedFile(one, (text) => text)).toThrow(`${one} is not a regular file`);
  }
  expect(() => readSmallBytes("/dev/zero")).toThrow(/larger than/);
});

test("what is read once may be a pipe", async () => {
  const script = `import { readSmallFile } from ${JSON.stringify(join(import.meta.dir, "../../src/system/files.ts"))};
    console.log(readSmallFile(process.argv.at(-1)))`;
  const { stdout } =
    await $`bash -c ${'"$0" -e "$1" <(echo from a pipe)'} ${process.execPath} ${script}`.quiet();
  expect(stdout.toString()).toBe("from a pipe\n\n");
});
