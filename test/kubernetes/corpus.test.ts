/**
 * The doctor's judge and kube-apiserver's, on configurations made by hand, each with one thing that matters;
 * test/interop makes thousands more and asks the real loader.
 */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { loadConfiguration } from "../../src/kubernetes/encryption/load.ts";
import { providersOf } from "../../src/kubernetes/encryption/providers.ts";

const CORPUS = join(import.meta.dir, "corpus");
/** Of `file`, with KMSv1=true, with default gates. */
const VERDICTS = readFileSync(join(CORPUS, "verdicts.tsv"), "utf8")
  .trim()
  .split("\n")
  .slice(1)
  .map((line) => line.split("\t"));

const judge = (file: string, hasKmsV1: boolean) =>
  loadConfiguration(readFileSync(join(CORPUS, file)), { reloads: true, hasKmsV1 });

test.each(VERDICTS)("%s: as kube-apiserver says", (file, withKmsV1, byDefault) => {
  for (const [hasKmsV1, verdict] of [
    [true, withKmsV1],
    [false, byDefault],
  ] as const) {
    const { faults, unclear } = judge(file ?? "", hasKmsV1);
    expect([verdict, unclear]).toEqual([faults.length > 0 ? "REFUSED" : "LOADED", []]);
    for (const { where, what, remedy } of faults) {
      expect(where).toMatch(/^line \d+(, [A-Za-z].*)?$/);
      expect(what.length * remedy.length).toBeGreaterThan(0);
    }
  }
});

test("who writes Secrets, where another group or a wildcard decides", () => {
  for (const [file, kind] of [
    ["00-base.yaml", "kms"],
    ["91-star-dot.yaml", "kms"],
    ["99-secrets-identity-then-all.yaml", "identity"],
    ["9b-secrets-twice-identity-first.yaml", "identity"],
  ] as const) {
    expect([file, providersOf(judge(file, true).groups, "secrets")[0]?.kind]).toEqual([file, kind]);
  }
});
