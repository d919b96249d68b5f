/** The parts of a release that need no build. */
import { expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { version } from "../../package.json";
import { changesOf, releaseNotes } from "../../src/build/notes.ts";
import { described } from "../../src/build/oci.ts";
import { temporaryDirectory } from "../support.ts";

const CHANGELOG = `# Changelog

## ${version}0 (2027-01-01)

- Another.

## ${version} (2026-12-01)

- One.
- Two, with a ## in it.

## 0.0.9

- Older.
`;

test("the changes are those of this version, and a section that is missing is refused", () => {
  const text = "- One.\n- Two, with a ## in it.";
  expect(changesOf(CHANGELOG)).toEqual({ isReleased: true, text });
  const unreleased = CHANGELOG.replace("(2026-12-01)", "(not released)");
  expect(changesOf(unreleased)).toEqual({ isReleased: false, text });
  const missing = CHANGELOG.replace(`## ${version} `, "## 0.0.8 ");
  expect(() => changesOf(missing)).toThrow(`CHANGELOG.md has no section of ${version}`);
});

test("the notes say in a clear word what a release has not", () => {
  const changes = changesOf(CHANGELOG);
  const sums = "0123  file\n";
  const bare = releaseNotes({ changes, sums, fingerprint: undefined, image: undefined });
  const words = ["**UNSIGNED.**", "**This release has no image.**", "**Not released**"];
  expect(words.map((word) => bare.includes(word))).toEqual([true, true, false]);
  const image = { file: "image.oci.tar", digest: "sha256:ab", bases: ["base@sha256:cd"] };
  const unreleased = { ...changes, isReleased: false };
  const whole = releaseNotes({ changes: unreleased, sums, fingerprint: "ef01", image });
  expect(words.map((word) => whole.includes(word))).toEqual([false, false, true]);
  for (const part of [
    "sha256:ab",
    "base@sha256:cd",
    "oci-archive:image.oci.tar",
    "\nef01\n",
    sums,
  ]) {
    expect(whole).toContain(part);
  }
});

/** An image layout of two images on these base layers, whose index is the last blob. */
function layout(...bases: readonly [string, string]): string {
  const directory = temporaryDirectory();
  mkdirSync(join(directory, "blobs/sha256"), { recursive: true });
  const write = (path: string, content: object) =>
    writeFileSync(join(directory, path), JSON.stringify(content));
  for (const [index, base] of bases.entries()) {
    const layers = [{ digest: `sha256:${base}` }, { digest: `sha256:binary-${index}` }];
    const name = "org.opencontainers.image.base";
    const annotations = { [`${name}.name`]: base, [`${name}.digest`]: `sha256:${base}` };
    write(`blobs/sha256/${index}`, { layers, annotations });
  }
  write("blobs/sha256/both", { manifests: [{ digest: "sha256:0" }, { digest: "sha256:1" }] });
  write("index.json", { manifests: [{ digest: "sha256:both" }] });
  return directory;
}

test("two images on one base are refused: one of them would have the wrong C library", () => {
  expect(described(layout("one", "other"))).toEqual({
    digest: "sha256:both",
    bases: ["one@sha256:one", "other@sha256:other"],
  });
  expect(() => described(layout("one", "one"))).toThrow("the base is of one processor only");
});
