/** RELEASE-NOTES.md: what changed, and how to check, install and load what is beside it. */
import { version } from "../../package.json";
import { NAME } from "./compile.ts";
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

/** Of the release's files, and where they are. */
export interface NotesInput {
  readonly changes: Changes;
  /** SHA256SUMS. */
  readonly sums: string;
  /** SHA-256 of the public key; undefined: nobody signed. */
  readonly fingerprint: string | undefined;
  readonly image: (ImageArchive & { readonly file: string }) | undefined;
}

export function releaseNotes({ changes, sums, fingerprint, image }: NotesInput): string {
  const parts = [
    `# ${NAME} ${version}`,
    ...(changes.isReleased
      ? []
      : ["**Not released**: CHANGELOG.md says so. These files are a trial."]),
    changes.text,
    "## Verify",
    ...verify(fingerprint),
    "## Install",
    "One archive for each processor and C library: glibc, or musl with libstdc++. The binary, its licences and the\ndocuments are in it; docs/install.md continues from here.",
    shell(
      `tar -xzf ${NAME}-${version}-linux-x64.tar.gz`,
      `install -m 0755 ${NAME}-${version}-linux-x64/${NAME} /usr/local/bin/${NAME}`,
    ),
    "## Image",
    ...(image === undefined ? ["**This release has no image.**"] : load(image)),
    "## Sums",
    `\`\`\`\n${sums}\`\`\``,
  ];
  return `${parts.join("\n\n")}\n`;
}

/** The command, in one line; the first half only where there is a signature. */
export function verifyCommand(isSigned: boolean): string {
  const signature =
    "openssl dgst -sha256 -verify SHA256SUMS.pub -signature SHA256SUMS.sig SHA256SUMS";
  const sums = "sha256sum --check --ignore-missing SHA256SUMS";
  return isSigned ? `${signature} && ${sums}` : sums;
}

function verify(fingerprint: string | undefined): string[] {
  return fingerprint === undefined
    ? [
        "**UNSIGNED.** Nobody signed the sums: they show a broken download, and no forgery.",
        shell(verifyCommand(false)),
      ]
    : [
        "In the directory of the files. SHA256SUMS has a sum of each file but those that end in .md, .sig and .pub.",
        shell(verifyCommand(true)),
        "It must say `Verified OK`, and `OK` for each file. SHA256SUMS.pub lies here for convenience: whoever can\nreplace the files can replace it too. Compare it with the key that you got another way. Its SHA-256 in DER is",
        `\`\`\`\n${fingerprint}\n\`\`\``,
        shell("openssl pkey -pubin -in SHA256SUMS.pub -outform DER | sha256sum"),
      ];
}

function load({ file, digest, bases }: ImageArchive & { readonly file: string }): string[] {
  return [
    `One file for amd64 and arm64. Digest of the index: \`${digest}\`.`,
    ...(bases.length > 0 ? [`Made on ${bases.map((one) => `\`${one}\``).join(" and ")}.`] : []),
    `Into a registry, both processors, with this digest; or onto a node, which then has it as \`${LOADED_AS}\`:`,
    shell(
      `skopeo copy --all --preserve-digests oci-archive:${file} docker://REGISTRY/${NAME}:${version}`,
      `ctr --namespace k8s.io images import ${file}    # containerd`,
      `podman load --input ${file}                     # Podman`,
    ),
    `The licences of what it carries: \`podman run --rm ${LOADED_AS} version --licenses\`.`,
  ];
}

const shell = (...lines: string[]) => `\`\`\`sh\n${lines.join("\n")}\n\`\`\``;
