/** RELEASE-NOTES.md: what changed, and how to check, install and load what is beside it. */
import { version } from "../../package.json";
import { fill } from "../commands/manifest/template.ts";
import notes from "./notes.md.txt";
import ofImage from "./notes-image.md.txt";
import signed from "./notes-signed.md.txt";
import { type ImageArchive, LOADED_AS } from "./oci.ts";

export interface Changes {
  /** Whether the heading says so. */
  readonly isReleased: boolean;
  readonly text: string;
}

/** @throws Error when the changelog has no section of this version */
export function changesOf(changelog: string): Changes {
  const sections = changelog.split(/^## /m).slice(1);
  const found = sections.find((one) => one.split(/\s/, 1)[0] === version);
  if (found === undefined) {
    throw new Error(`CHANGELOG.md has no section of ${version}`);
  }
  const [heading = "", ...lines] = found.split("\n");
  return { isReleased: !heading.includes("not released"), text: lines.join("\n").trim() };
}

export interface NotesInput {
  readonly changes: Changes;
  /** SHA256SUMS. */
  readonly sums: string;
  /** SHA-256 of the public key; undefined: nobody signed. */
  readonly fingerprint: string | undefined;
  readonly image: (ImageArchive & { readonly file: string }) | undefined;
}

export function releaseNotes({ changes, sums, fingerprint, image }: NotesInput): string {
  const trial = "**Not released**: CHANGELOG.md says so. These files are a trial.";
  return fill(notes, {
    version,
    changes: [...(changes.isReleased ? [] : [trial, ""]), changes.text],
    verify: [
      fingerprint === undefined
        ? `${UNSIGNED}\n\n\`\`\`sh\n${verifyCommand(false)}\n\`\`\``
        : fill(signed, { command: verifyCommand(true), fingerprint }).trimEnd(),
    ],
    image: [
      image === undefined
        ? "**This release has no image.**"
        : fill(ofImage, {
            ...image,
            version,
            loadedAs: LOADED_AS,
            bases: image.bases.length > 0 ? [`Made on ${quoted(image.bases)}.`, ""] : [],
          }).trimEnd(),
    ],
    sums: sums.trimEnd(),
  });
}

const UNSIGNED =
  "**UNSIGNED.** Nobody signed the sums: they show a broken download, and no forgery.";
const quoted = (names: readonly string[]) => names.map((one) => `\`${one}\``).join(" and ");

/** The command, in one line; the first half only where there is a signature. */
export function verifyCommand(isSigned: boolean): string {
  const signature =
    "openssl dgst -sha256 -verify SHA256SUMS.pub -signature SHA256SUMS.sig SHA256SUMS";
  const sums = "sha256sum --check --ignore-missing SHA256SUMS";
  return isSigned ? `${signature} && ${sums}` : sums;
}
