/** What the documents say is what the product does. */
import { expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { DEBIAN_PACKAGES } from "../needs.ts";
import { startBinary, temporaryDirectory } from "../support.ts";
import { NEWEST, OLDER } from "../upstream/generate.ts";
import { anchorsOf, commandsOf, DOCUMENTS } from "./blocks.ts";
import { FIGURES } from "./figures.ts";
import { limitsTable } from "./limits-table.ts";
import { exitCodeTable, optionTables, profileTable } from "./reference-tables.ts";

const ROOT = join(import.meta.dir, "../..");
const document = (name: string) => readFileSync(join(ROOT, name), "utf8");
const REFERENCE = document("docs/REFERENCE.md");

test.each([
  ["options", optionTables()],
  ["exit-codes", exitCodeTable()],
  ["profile", profileTable()],
  ["limits", limitsTable()],
])("REFERENCE.md has the table of %s that the source makes", (name, table) => {
  expect(blockIn(REFERENCE, name)).toBe(table);
});

test.each(FIGURES)("%s: the block %s has the figures of the stored run", (path, name, text) => {
  expect(blockIn(document(path), name)).toBe(text);
});

function blockIn(text: string, name: string): string | undefined {
  return new RegExp(`<!-- ${name} -->\\n([\\s\\S]*)\\n<!-- /${name} -->`).exec(text)?.[1];
}

test.each(["README.md", "README.ko.md", "SECURITY.md"])(
  "%s: what was measured stands in a block that is made of it",
  (path) => {
    const rest = document(path).replaceAll(/<!-- ([\w-]+) -->[\s\S]*<!-- \/\1 -->/g, "");
    expect([...rest.matchAll(/.*\d ?(?:MiB|ms|µs|Encrypts|Decrypts)\b.*/g)].map(String)).toEqual(
      [],
    );
  },
);

test("the first screen is what npm start prints, which binary/demo.test.ts types", async () => {
  const [start, second = "?"] = commandsOf("README.md", "Try it");
  expect(start).toBe("npm ci && npm start\n");
  const env = { KMS_ENDPOINT: `unix://${join(temporaryDirectory(), "kms.sock")}` };
  const { scripts } = JSON.parse(document("package.json"));
  const [, flags = ""] = scripts.start.match(/dist\/key4c-kms-plugin (serve .*)$/) ?? [];
  const plugin = startBinary(flags.split(" "), env);
  await plugin.until(/emulator enable.*\n/);
  const printed = plugin.output().split("\n");
  expect(printed.filter((line) => !line.startsWith("{")).join("\n")).toContain(second);
});

test("the releases whose own tests are run are those of the compatibility table", () => {
  const named = [
    ...document("docs/upgrade.md").matchAll(/Kubernetes' own KMS tests, (\d+\.\d+\.\d+)/g),
  ];
  expect(named.map(([, release]) => release).sort()).toEqual([...OLDER, NEWEST].sort());
});

test("no page is longer than a reader reads at once; REFERENCE.md is looked up", () => {
  const words = (name: string) =>
    document(name)
      .split(/\s+/)
      .filter((word) => /\w/.test(word)).length;
  expect(words("README.md")).toBeLessThanOrEqual(900);
  const long = DOCUMENTS.filter((name) => name !== "docs/REFERENCE.md" && words(name) > 1_500);
  expect(long).toEqual([]);
});

/** Words of our own that readers had to read twice; continue, unwrap, unreachable, recover, fix, previous, again, healthy. */
const PRIVATE_WORDS =
  /\b(go(es)? on|going on|went on|g[ai]ves? back|given back|(is|be|been|was) away|heal(s|ed)?|mend(s|ed)?|former|anew|whoever|fire drill|the way back|file of settings|(is|are|looks?) (not )?well|well again|obeyed key|nodes only differ)\b/i;

test("documents, and the words of the product in them, are standard words", () => {
  const lines = DOCUMENTS.flatMap((name) =>
    document(name)
      .split("\n")
      .map((line) => `${name}: ${line}`),
  );
  expect(lines.filter((line) => PRIVATE_WORDS.test(line))).toEqual([]);
});

test("a case of the conformance list has a test, or stands in the limits", () => {
  const cases: { case: number; limit?: string; test?: object }[] = JSON.parse(
    readFileSync(join(import.meta.dir, "../conformance/cases.json"), "utf8"),
  );
  const limits = REFERENCE.slice(REFERENCE.indexOf("## Limits"));
  for (const { case: number, limit, test } of cases) {
    expect([number, test !== undefined || limits.includes(limit ?? "?")]).toEqual([number, true]);
  }
  expect([...new Set(cases.map((one) => one.case))]).toEqual(
    Array.from({ length: 50 }, (_, index) => index + 1),
  );
});

test("a link between the documents leads somewhere", () => {
  const broken: string[] = [];
  for (const name of DOCUMENTS) {
    const links = document(name).matchAll(/(?:\]\(|^\[\w+\]: )(?!https?:)([^)\n]*)/gm);
    for (const [, target = ""] of links) {
      const [file = "", place] = target.split("#");
      const linked = file === "" ? name : join(dirname(name), file);
      const isThere = () => place === undefined || anchorsOf(document(linked)).includes(place);
      if (!existsSync(join(ROOT, linked)) || !isThere()) {
        broken.push(`${name}: ${target}`);
      }
    }
  }
  expect(broken).toEqual([]);
});

test(".ci/setup installs every package that a test may miss", () => {
  const setup = document(".ci/setup");
  expect([...DEBIAN_PACKAGES].filter((name) => !setup.includes(name))).toEqual([]);
  expect(DEBIAN_PACKAGES.size).toBeGreaterThan(8);
});
