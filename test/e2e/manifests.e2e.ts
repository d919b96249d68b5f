/** What `manifest` prints, as the real kubeadm and the real API server take it. */
import { expect, test } from "bun:test";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { BINARY, temporaryDirectory } from "../support.ts";
import type { ApiServer } from "./apiserver.ts";
import { Cluster, servers } from "./cluster.ts";
import { run } from "./process.ts";

const SERVE = { KEY4C_URL: "https://key4c.example", KMS_KEY_ID: "demo" };
const PODS = "/api/v1/namespaces/kube-system/pods";

interface Pod {
  readonly spec: {
    readonly volumes: readonly { readonly hostPath: { readonly path: string } }[];
    readonly containers: readonly {
      readonly command: readonly string[];
      readonly args?: readonly string[];
      readonly volumeMounts: readonly { readonly mountPath: string }[];
    }[];
  };
}

const manifest = (name: string, ...flags: string[]) =>
  run([BINARY, "manifest", name, ...flags], SERVE);

/** A dry run goes through admission and validation and stores nothing; unknown fields are refused. */
const dryRun = (api: ApiServer, pod: object) =>
  api.request("POST", `${PODS}?dryRun=All&fieldValidation=Strict`, pod);

test("the static pod, and the API server's pod that kubeadm makes of patch and configuration, pass", async () => {
  const { api } = await Cluster.start();
  // The API server makes one where it runs with a controller manager.
  await api.request("POST", "/api/v1/namespaces/kube-system/serviceaccounts", {
    metadata: { name: "default" },
  });
  for (const flags of [
    [],
    ["--http-address", ""],
    ["--run-as-user", "65532", "--key4c-ca-file", "/etc/ssl/key4c/ca.pem", "--key-id", 'odd"%:{'],
  ]) {
    await dryRun(api, Bun.YAML.parse(await manifest("static-pod", ...flags)) as Pod);
  }
  const broken = (await manifest("static-pod")).replace("hostPath:", "hostpath:");
  await expect(dryRun(api, Bun.YAML.parse(broken) as Pod)).rejects.toThrow("hostpath");

  const elsewhere = ["--encryption-configuration", "/etc/key4c/encryption.yaml", "--api", "v1"];
  for (const flags of [[], elsewhere]) {
    const patch = await manifest("kube-apiserver-patch", ...flags);
    const configuration = await manifest("kubeadm-config", ...flags);
    for (const pod of [await kubeadmPod({ patch }), await kubeadmPod({ configuration })]) {
      const { volumes, containers } = pod.spec;
      const {
        command,
        args = [],
        volumeMounts,
      } = containers[0] ?? { command: [], volumeMounts: [] };
      const file = flags[1] ?? "/etc/kubernetes/pki/encryption-configuration.yaml";
      const all = [...command, ...args];
      expect(command[0]).toBe("kube-apiserver");
      expect(all).toContain(`--encryption-provider-config=${file}`);
      expect(all).toContain("--encryption-provider-config-automatic-reload=true");
      expect(all.includes("--feature-gates=KMSv1=true")).toBe(flags.length > 0);
      for (const path of ["/run/key4c-kms", ...(flags.length > 0 ? ["/etc/key4c"] : [])]) {
        expect(volumeMounts.map(({ mountPath }) => mountPath)).toContain(path);
        expect(volumes.map(({ hostPath }) => hostPath.path)).toContain(path);
      }
      await dryRun(api, pod);
    }
  }
}, 180_000);

/** The kube-apiserver pod that kubeadm would write on a first control-plane node. */
async function kubeadmPod({
  patch,
  configuration = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n",
}: {
  patch?: string;
  configuration?: string;
}): Promise<Pod> {
  const directory = temporaryDirectory();
  const patches = join(directory, "patches");
  mkdirSync(patches);
  if (patch !== undefined) {
    writeFileSync(join(patches, "kube-apiserver+strategic.yaml"), patch);
  }
  const file = join(directory, "kubeadm.yaml");
  const version = await run([servers.kubeadm, "version", "-o", "short"]);
  const init = {
    apiVersion: "kubeadm.k8s.io/v1beta4",
    kind: "InitConfiguration",
    localAPIEndpoint: { advertiseAddress: "192.0.2.1" },
    nodeRegistration: { name: "node-1", criSocket: "unix:///run/none.sock" },
    patches: { directory: patches },
  };
  writeFileSync(
    file,
    `${configuration}kubernetesVersion: ${version.trim()}\n---\n${JSON.stringify(init)}\n`,
  );
  await run([servers.kubeadm, "config", "validate", "--config", file]);
  const made = join(directory, "made");
  mkdirSync(made);
  await run(
    [servers.kubeadm, "init", "phase", "control-plane", "apiserver", "--config", file, "--dry-run"],
    { KUBEADM_INIT_DRYRUN_DIR: made },
  );
  return Bun.YAML.parse(readFileSync(join(made, "kube-apiserver.yaml"), "utf8")) as Pod;
}
