/** The images of a node, as files for its container runtime: no registry is reached. */
import { copyFileSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { NAME } from "../../src/build/compile.ts";
import { run } from "../e2e/process.ts";
import { buildImage, directory, imageOf, settings, setUpContainers } from "../ship/podman.ts";

export const PLUGIN = "registry.local/key4c-kms-plugin:0.1.0";
export const PAUSE = "registry.local/pause:1";

/**
 * Builds them.
 * @returns a directory of archives
 */
export async function imageArchives(): Promise<string> {
  await setUpContainers();
  await buildImage(PLUGIN, "--binary", NAME);
  await buildPause();
  const archives = join(directory, "archives");
  mkdirSync(archives);
  for (const [name, tag] of Object.entries({ plugin: PLUGIN, pause: PAUSE })) {
    const archive = `docker-archive:${join(archives, name)}.tar:${tag}`;
    await run(["buildah", "push", "--quiet", tag, archive], settings);
  }
  return archives;
}

/** What holds the namespaces of a pod: catatonit can. */
async function buildPause(): Promise<void> {
  const root = join(directory, "pause");
  mkdirSync(root);
  copyFileSync(Bun.which("catatonit") ?? "", join(root, "pause"));
  await imageOf(root, PAUSE, { lines: ['ENTRYPOINT ["/pause", "-P"]'] });
}
