/** What `install` must know of the machine it runs on. */
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { type KubeApiserver, readKubeApiserver } from "../../kubernetes/static-pod.ts";
import { textAt } from "./files.ts";

export const STATIC_PODS = "/etc/kubernetes/manifests";
export const UNITS = "/etc/systemd/system";
export const PATCH = "/etc/kubernetes/patches/kube-apiserver+strategic.yaml";
const ADMIN = "/etc/kubernetes/admin.conf";
const TIMEOUT_MS = 10_000;

/** Who starts the API server. */
export type Platform = "kubeadm" | "k3s" | "rke2" | "elsewhere";

export interface Host {
  readonly platform: Platform;
  /** By its static pod; undefined where there is none. */
  readonly apiServer: KubeApiserver | undefined;
}

/** @throws Error with a sentence for a static pod of kube-apiserver that cannot be read */
export function lookAround(): Host {
  const path = join(STATIC_PODS, "kube-apiserver.yaml");
  const apiServer = existsSync(path) ? readKubeApiserver(path) : undefined;
  const rancher = (["rke2", "k3s"] as const).find((one) => existsSync(`/etc/rancher/${one}`));
  const hasKubeadm = apiServer !== undefined || Bun.which("kubeadm") !== null;
  return { platform: rancher ?? (hasKubeadm ? "kubeadm" : "elsewhere"), apiServer };
}

/** Where the EncryptionConfiguration goes unless one is named. */
export const CONFIGURATION_OF: Readonly<Record<Platform, string>> = {
  kubeadm: "/etc/kubernetes/pki/encryption-configuration.yaml",
  k3s: "/etc/rancher/k3s/encryption-configuration.yaml",
  rke2: "/etc/rancher/rke2/key4c-kms/encryption-configuration.yaml",
  elsewhere: "/etc/kubernetes/encryption-configuration.yaml",
};

/** What k3s and RKE2 encrypt by themselves with; undefined where they do not, or are not here. */
export function ownEncryptionOf(platform: Platform): string | undefined {
  const path = `/var/lib/rancher/${platform}/server/cred/encryption-config.json`;
  return existsSync(path) ? path : undefined;
}

/** How many control planes the cluster has, as the cluster says; undefined when it does not say. */
export function controlPlanes(): number | undefined {
  if (!existsSync(ADMIN)) {
    return undefined;
  }
  const label = "node-role.kubernetes.io/control-plane";
  const found = command(`kubectl --kubeconfig ${ADMIN} get nodes -l ${label} -o name`.split(" "));
  return found.ok ? found.output.split("\n").filter(Boolean).length || undefined : undefined;
}

/** Runs a program to its end. @returns what it printed, errors too */
export function command(words: readonly string[]): {
  readonly ok: boolean;
  readonly output: string;
} {
  if (Bun.which(words[0] ?? "") === null) {
    return { ok: false, output: `${words[0]} is not here` };
  }
  const { success, stdout, stderr } = Bun.spawnSync([...words], {
    env: { ...process.env, LC_ALL: "C" },
    timeout: TIMEOUT_MS * 6,
  });
  return { ok: success, output: `${stdout}${stderr}` };
}

/** The release of systemd; undefined where it does not run this machine. */
export function systemdVersion(): number | undefined {
  const { ok, output } = command(["systemctl", "--version"]);
  return ok && existsSync("/run/systemd/system")
    ? Number(/^systemd (\d+)/.exec(output)?.[1] ?? 0)
    : undefined;
}

/** Whether a kubelet runs static pods here; before `kubeadm init` one only ends again and again. */
export function hasKubelet({ platform }: Host): boolean {
  const isConfigured = platform !== "kubeadm" || existsSync("/var/lib/kubelet/config.yaml");
  return (
    isConfigured &&
    readdirSync("/proc").some((entry) => {
      try {
        return /^\d+$/.test(entry) && readFileSync(`/proc/${entry}/comm`, "utf8") === "kubelet\n";
      } catch {
        return false; // it has just ended
      }
    })
  );
}

/** Userland's ticks a second, on every Linux that we run on: proc(5), field 22 of stat. */
const TICKS = 100;

/** When a process began, by the wall clock, in ms. */
export function startOf(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
    .replace(/^.*\) /s, "")
    .split(" ");
  const [uptime = "0"] = readFileSync("/proc/uptime", "utf8").split(" ");
  return Date.now() - (Number(uptime) - Number(fields[19]) / TICKS) * 1_000;
}

/** Whether the container runtime has an image; true where it cannot be asked. */
export function isHere(image: string): boolean {
  return Bun.which("crictl") === null || command(["crictl", "inspecti", image]).ok;
}

/** A static pod that would fight with ours: one of the same name, or Key4C's own plugin. In words; undefined: none. */
export function rivalPod(ourFile: string): string | undefined {
  const files = existsSync(STATIC_PODS) ? readdirSync(STATIC_PODS) : [];
  const rival = files
    .filter((entry) => !entry.startsWith("."))
    .map((entry) => join(STATIC_PODS, entry))
    .find((path) => {
      const text = path === ourFile || statSync(path).isDirectory() ? "" : (textAt(path) ?? "");
      return /^\s+name: "?key4c-kms-plugin"?\s*$/m.test(text) || /name: "?KMS_USER_ID\b/.test(text);
    });
  return rival === undefined
    ? undefined
    : `${rival} is a pod of Key4C's own plugin, or of this one by another file, and a kubelet runs only one of a name: see docs/VENDOR-PLUGIN.md`;
}
