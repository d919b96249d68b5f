/** The image for both processors, as one file that needs no registry. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { version } from "../../package.json";
import { tar } from "./archive.ts";
import { NAME } from "./compile.ts";
import { buildCommand, type ImageOptions } from "./image.ts";
import { run } from "./run.ts";

/** What a node calls it that loads the file. Under a bare name a kubelet would look for docker.io's. */
export const LOADED_AS = `localhost/${NAME}:${version}`;

export interface ImageArchive {
  /** Of the index of both images: what a registry shows after `skopeo copy --all`. */
  readonly digest: string;
  /** `NAME@DIGEST` of each base, as far as the builder tells. */
  readonly bases: readonly string[];
}

/** OCI image-spec 1.0, as far as it is read here. */
interface Index {
  readonly manifests: readonly { readonly digest: string }[];
}
interface Manifest {
  readonly layers: readonly { readonly digest: string }[];
  readonly annotations?: Readonly<Record<string, string>>;
}

/**
 * Builds an image for each processor and writes both to an OCI archive.
 * @param options.binaries by OCI's name of the processor: the path in the context
 * @param scratch a directory that it makes
 * @throws Error with what buildah printed, or when both would stand on one base
 */
export async function imageArchive(
  file: string,
  options: Pick<ImageOptions, "base" | "key4cUrl" | "context"> & {
    readonly binaries: Readonly<Record<string, string>>;
  },
  scratch: string,
): Promise<ImageArchive> {
  if (Bun.which("buildah") === null) {
    throw new Error("buildah is not installed");
  }
  const list = `localhost/${NAME}-release-${process.pid}`;
  const tags: string[] = [];
  try {
    await run("buildah", "manifest", "create", list);
    for (const [arch, binary] of Object.entries(options.binaries)) {
      const tag = `${list}-${arch}`;
      await run("buildah", ...buildCommand({ ...options, arch, binary, tag }));
      tags.push(tag);
      await run("buildah", "manifest", "add", list, tag);
    }
    const layout = `oci:${scratch}:${LOADED_AS}`;
    await run("buildah", "manifest", "push", "--all", "--format", "oci", list, layout);
  } finally {
    // What there is of it: a list is not removed together with what it lists.
    await run("buildah", "manifest", "rm", list).catch(() => {});
    await run("buildah", "rmi", ...tags).catch(() => {});
  }
  const image = described(scratch);
  // Not by `oci-archive:`, which writes the time of its files.
  await tar(file, scratch, "oci-layout", "index.json", "blobs");
  return image;
}

/**
 * Of the first index in the directory of an OCI image layout.
 * @throws Error when two of its images have the same layers below the binary
 */
export function described(layout: string): ImageArchive {
  const read = (path: string): unknown => JSON.parse(readFileSync(join(layout, path), "utf8"));
  const blob = (digest: string) => read(join("blobs", digest.replace(":", "/")));
  const digest = (read("index.json") as Index).manifests[0]?.digest ?? ""; // written by buildah just now
  const manifests = (blob(digest) as Index).manifests.map((one) => blob(one.digest) as Manifest);
  // A builder that asks for another processor and gets an image without a choice takes it, and says nothing.
  const baseLayers = manifests.map(({ layers }) => JSON.stringify(layers.slice(0, -1)));
  if (new Set(baseLayers).size < manifests.length) {
    throw new Error("the base is of one processor only; give one that has amd64 and arm64");
  }
  const bases = manifests.flatMap(({ annotations = {} }) => {
    const base = (name: string) => annotations[`org.opencontainers.image.base.${name}`];
    return base("name") && base("digest") ? [`${base("name")}@${base("digest")}`] : [];
  });
  return { digest, bases };
}
