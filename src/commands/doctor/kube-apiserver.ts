/** Checks the API server that reads the EncryptionConfiguration, by the static pod that kubeadm writes. */
import { existsSync } from "node:fs";
import { dirname } from "node:path";
import { parse } from "yaml";
import type { Server } from "../../kubernetes/encryption/kms.ts";
import { describeError } from "../../system/errors.ts";
import { readSmallFile } from "../../system/files.ts";
import { type Check, fail, pass, skip, warn } from "./check.ts";
import { leadsTo } from "./paths.ts";

const KUBEADM_MANIFEST = "/etc/kubernetes/manifests/kube-apiserver.yaml";
const CONFIGURATION_FLAG = "encryption-provider-config";
const RELOAD_FLAG = "encryption-provider-config-automatic-reload";
/** From here on KMS v1 needs its feature gate. */
const FIRST_MINOR_WITHOUT_KMS_V1 = 29;

/** A directory or file of the host, and where the container sees it. */
interface Mount {
  readonly host: string;
  readonly container: string;
}

/** What a static pod says about its API server. */
export interface KubeApiserver {
  readonly path: string;
  readonly flags: ReadonlyMap<string, string>;
  readonly mounts: readonly Mount[];
  readonly server: Partial<Server>;
  /** The EncryptionConfiguration as this host sees it; undefined where none is named or mounted. */
  readonly configuration: string | undefined;
}

/** What was read; or a check that says why nothing was. */
export function findKubeApiserver(named: string | undefined): KubeApiserver | Check {
  const check = title("file");
  const path = named ?? KUBEADM_MANIFEST;
  if (named === undefined && !existsSync(path)) {
    return skip(check, `${path} is not there; --kube-apiserver names another static pod`);
  }
  try {
    return readKubeApiserver(path);
  } catch (error) {
    return fail(check, describeError(error), "give its static pod with --kube-apiserver");
  }
}

function title(what: string): string {
  return `kube-apiserver: ${what}`;
}

/** @throws Error with a sentence */
function readKubeApiserver(path: string): KubeApiserver {
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
    .map((container) => ({ container, words: wordsOf(container) }))
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
  return {
    path,
    flags,
    mounts,
    server: {
      reloads: isOn(flags.get(RELOAD_FLAG)),
      ...((hasGate || minor !== undefined) && { hasKmsV1: hasGate || isOld }),
    },
    configuration: configuration === undefined ? undefined : toHost(configuration, mounts),
  };
}

function wordsOf({ command, args }: Readonly<Record<string, unknown>>): string[] {
  return [...listOf(command), ...listOf(args)].map(String);
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
function toHost(path: string, mounts: readonly Mount[]): string | undefined {
  const [mount] = mounts
    .filter(({ container }) => path === container || path.startsWith(`${container}/`))
    .sort((one, other) => other.container.length - one.container.length);
  return mount && mount.host + path.slice(mount.container.length);
}

/**
 * @param configuration the EncryptionConfiguration that the doctor was given, if any
 * @param socket path of the plugin's socket on this host
 */
export function checkKubeApiserver(
  { path, flags, mounts, configuration: host }: KubeApiserver,
  configuration: string | undefined,
  socket: string | undefined,
): Check[] {
  const flag = flags.get(CONFIGURATION_FLAG);
  if (flag === undefined) {
    return [
      warn(
        title("encryption"),
        `${path} has no --${CONFIGURATION_FLAG}: everything is stored in clear`,
        "`manifest kube-apiserver-patch` prints what is missing; the plugin must run first",
      ),
    ];
  }
  return [
    checkFlag(flag, host, configuration, mounts),
    ...(socket === undefined ? [] : [checkSocketMount(socket, mounts)]),
    isOn(flags.get(RELOAD_FLAG))
      ? pass(title("reload"), "on: a changed EncryptionConfiguration is read within a minute")
      : warn(
          title("reload"),
          "off: a changed EncryptionConfiguration is read at the next start only",
          `add --${RELOAD_FLAG}=true`,
        ),
  ];
}

function checkFlag(
  flag: string,
  host: string | undefined,
  configuration: string | undefined,
  mounts: readonly Mount[],
): Check {
  const check = title("encryption");
  if (host === undefined) {
    return fail(
      check,
      `${flag} is not in a directory of this host that is mounted: kube-apiserver cannot start`,
      `mount ${dirname(flag)} as a hostPath`,
    );
  }
  if (configuration !== undefined && !leadsTo(host, configuration)) {
    return fail(
      check,
      `it reads ${host}, not ${configuration}`,
      "correct --encryption-configuration, or the API server's flag",
    );
  }
  return mounts.some(({ container }) => container === flag)
    ? warn(
        check,
        `${host} is mounted as a single file, so kube-apiserver does not see a file that replaces it`,
        `mount its directory, ${dirname(host)}`,
      )
    : pass(check, `it reads ${host}`);
}

function checkSocketMount(socket: string, mounts: readonly Mount[]): Check {
  const check = title("socket");
  const remedy = `mount ${dirname(socket)} as a hostPath, at the same path`;
  if (mounts.some(({ host }) => host === socket)) {
    return fail(
      check,
      `${socket} is mounted as a single file, so kube-apiserver does not see the socket of a restarted plugin`,
      remedy,
    );
  }
  const mount = mounts.find(({ host }) => socket.startsWith(`${host}/`));
  return mount === undefined
    ? fail(check, `the directory of ${socket} is not mounted`, remedy)
    : pass(
        check,
        `it sees the plugin's socket as ${mount.container}${socket.slice(mount.host.length)}`,
      );
}

/** Translates a path of the container to that of this host. */
export function hostPaths(found: KubeApiserver | undefined): (path: string) => string {
  return (path) => (found && toHost(path, found.mounts)) ?? path;
}

function recordOf(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>) // an object, just checked
    : {};
}

function listOf(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}
