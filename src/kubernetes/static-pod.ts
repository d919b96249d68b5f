/** The static pod of a kube-apiserver, as kubeadm writes it: flags, mounts, and what follows from them. */
import { parse } from "yaml";
import { readSmallFile } from "../system/files.ts";
import { isObject } from "../system/json.ts";
import type { Server } from "./encryption/kms.ts";

export const CONFIGURATION_FLAG = "encryption-provider-config";
export const RELOAD_FLAG = "encryption-provider-config-automatic-reload";
/** Without the check of KMS providers: its name with KMS v2 or with reload, and with KMS v1 alone. */
export const LIVENESS_PATH = "/livez?exclude=kms-providers&exclude=kms-provider-0";
/** From here on the check of KMS providers is not in /livez. */
const FIRST_MINOR_WITHOUT_KMS_IN_LIVEZ = 29;
/** From here on KMS v1 needs its feature gate. */
const FIRST_MINOR_WITHOUT_KMS_V1 = 29;

/** A directory or file of the host, and where the container sees it. */
export interface Mount {
  readonly host: string;
  readonly container: string;
}

export interface KubeApiserver {
  readonly path: string;
  readonly flags: ReadonlyMap<string, string>;
  readonly mounts: readonly Mount[];
  readonly server: Partial<Server>;
  /** Of its release, by its image: 37 of v1.37.2. */
  readonly minor: number | undefined;
  /** Where the kubelet asks whether to restart it, if a sick plugin would be a reason; undefined: it is none, or not known. */
  readonly riskyLivenessPath: string | undefined;
  /** The EncryptionConfiguration as this host sees it; undefined where none is named or mounted. */
  readonly configuration: string | undefined;
}

/** @throws Error with a sentence */
export function readKubeApiserver(path: string): KubeApiserver {
  const text = readSmallFile(path);
  let document: unknown;
  try {
    document = parse(text, { logLevel: "error" });
  } catch {
    throw new Error(`${path} is not YAML`);
  }
  const spec = recordOf(recordOf(document)["spec"]);
  const containers = listOf(spec["containers"]).map(recordOf);
  const found = containers
    .map((container) => {
      const { command, args } = container;
      return { container, words: [...listOf(command), ...listOf(args)].map(String) };
    })
    .find(({ words }) => words.some((word) => /(^|\/)kube-apiserver$/.test(word)));
  if (found === undefined) {
    throw new Error(`${path} has no container that runs kube-apiserver`);
  }
  const flags = flagsOf(found.words);
  const mounts = mountsOf(found.container, spec);
  const configuration = flags.get(CONFIGURATION_FLAG);
  const minor = /:v1\.(\d+)\./.exec(String(found.container["image"]))?.[1];
  const gates = (flags.get("feature-gates") ?? "").split(",").map((gate) => gate.split("="));
  const hasGate = gates.some(([name, value]) => name === "KMSv1" && isOn(value));
  const isOld = minor !== undefined && Number(minor) < FIRST_MINOR_WITHOUT_KMS_V1;
  const probe = recordOf(recordOf(found.container["livenessProbe"])["httpGet"])["path"];
  const isRisky =
    typeof probe === "string" &&
    /^\/(livez|healthz)(?!.*[?&]exclude=kms-provider)/.test(probe) &&
    Number(minor) < FIRST_MINOR_WITHOUT_KMS_IN_LIVEZ; // false where the release is not known
  return {
    path,
    flags,
    riskyLivenessPath: isRisky ? probe : undefined,
    mounts,
    minor: minor === undefined ? undefined : Number(minor),
    server: {
      reloads: isOn(flags.get(RELOAD_FLAG)),
      ...((hasGate || minor !== undefined) && { hasKmsV1: hasGate || isOld }),
    },
    configuration: configuration === undefined ? undefined : toHost(configuration, mounts),
  };
}

/** Of flags with the same name the last one counts, as in kube-apiserver. A flag without a value is a switch. */
function flagsOf(words: readonly string[]): Map<string, string> {
  const flags = new Map<string, string>();
  for (const [index, word] of words.entries()) {
    const [, name, value] = /^--([^=]+)(?:=(.*))?$/s.exec(word) ?? [];
    if (name !== undefined) {
      const next = words[index + 1];
      flags.set(name, value ?? (next === undefined || next.startsWith("--") ? "true" : next));
    }
  }
  return flags;
}

function isOn(flag: string | undefined): boolean {
  return /^(1|t|T|true|TRUE|True)$/.test(flag ?? "");
}

function mountsOf(
  container: Readonly<Record<string, unknown>>,
  spec: Readonly<Record<string, unknown>>,
): Mount[] {
  const volumes = listOf(spec["volumes"]).map(recordOf);
  return listOf(container["volumeMounts"])
    .map(recordOf)
    .flatMap(({ name, mountPath, subPath }) => {
      const volume = volumes.find((one) => one["name"] === name);
      const host = recordOf(volume?.["hostPath"])["path"];
      if (typeof host !== "string" || typeof mountPath !== "string") {
        return [];
      }
      const inside = typeof subPath === "string" ? `/${subPath}` : "";
      return [{ host: trimmed(host) + inside, container: trimmed(mountPath) }];
    });
}

function trimmed(path: string): string {
  return path.replace(/\/+$/, "");
}

/** A path of the container as the host sees it; undefined where nothing of the host is mounted. */
export function toHost(path: string, mounts: readonly Mount[]): string | undefined {
  const [mount] = mounts
    .filter(({ container }) => path === container || path.startsWith(`${container}/`))
    .sort((one, other) => other.container.length - one.container.length);
  return mount && mount.host + path.slice(mount.container.length);
}

function recordOf(value: unknown): Readonly<Record<string, unknown>> {
  return isObject(value) ? value : {};
}

function listOf(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}
