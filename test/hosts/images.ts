/** The images of a node, as files for its container runtime: no registry is reached. */
import { copyFileSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { NAME } from "../../src/build/compile.ts";
import { LOADED_AS } from "../../src/build/oci.ts";
import { builtClusterTools, builtServers } from "../e2e/build.ts";
import { run } from "../e2e/process.ts";
import { BASE, buildImage, directory, imageOf, settings, setUpContainers } from "../ship/podman.ts";

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
  await archive(archives, "plugin", PLUGIN);
  await archive(archives, "pause", PAUSE);
  return archives;
}

/**
 * Adds what kubeadm runs as pods, under the names that it wants.
 * @param archives where the others are
 */
export async function addClusterImages(archives: string): Promise<void> {
  const servers = await builtServers();
  const tools = await builtClusterTools();
  const version = (await run([servers.kubeadm, "version", "-o", "short"])).trim();
  const list = [servers.kubeadm, "config", "images", "list", "--kubernetes-version", version];
  const etcd = (await run([...list] as [string])).match(/^\S*\/etcd:\S+$/m)?.[0] ?? "";
  const images: readonly (readonly [tag: string, files: Readonly<Record<string, string>>])[] = [
    [`registry.k8s.io/kube-apiserver:${version}`, { "kube-apiserver": servers.kubeApiserver }],
    [
      `registry.k8s.io/kube-controller-manager:${version}`,
      { "kube-controller-manager": tools.kubeControllerManager },
    ],
    [`registry.k8s.io/kube-scheduler:${version}`, { "kube-scheduler": tools.kubeScheduler }],
    [etcd, { etcd: servers.etcd, etcdctl: servers.etcdctl, etcdutl: servers.etcdutl }],
  ];
  for (const [index, [tag, files]] of images.entries()) {
    const root = join(directory, `server-${index}`);
    mkdirSync(join(root, "usr/local/bin"), { recursive: true });
    for (const [name, file] of Object.entries(files)) {
      copyFileSync(file, join(root, "usr/local/bin", name));
    }
    await imageOf(root, tag, { from: BASE });
    await archive(archives, `server-${index}`, tag);
  }
}

async function archive(archives: string, name: string, tag: string): Promise<void> {
  const to = `docker-archive:${join(archives, name)}.tar:${tag}`;
  await run(["buildah", "push", "--quiet", tag, to], settings);
}

/** The plugin's image as a release has it, for this processor alone: a file that needs no registry. @returns its path */
export async function releaseImage(): Promise<string> {
  const file = join(directory, "release-image.oci.tar");
  await run(["buildah", "push", "--quiet", PLUGIN, `oci-archive:${file}:${LOADED_AS}`], settings);
  return file;
}

/** What holds the namespaces of a pod: catatonit can. */
async function buildPause(): Promise<void> {
  const root = join(directory, "pause");
  mkdirSync(root);
  copyFileSync(Bun.which("catatonit") ?? "", join(root, "pause"));
  await imageOf(root, PAUSE, { lines: ['ENTRYPOINT ["/pause", "-P"]'] });
}
