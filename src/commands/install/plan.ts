/** What `install` would write on this node, and what keeps it from writing. */
import { existsSync, lstatSync, readFileSync, realpathSync } from "node:fs";
import { basename, join } from "node:path";
import {
  type CommandLine,
  type Environment,
  parseCommandLine,
  required,
} from "../../config/config.ts";
import { DEFAULT_CONFIG_FILE, parseConfigFile } from "../../config/config-file.ts";
import { loadConfiguration, type Provider } from "../../kubernetes/encryption/load.ts";
import { providersOf } from "../../kubernetes/encryption/providers.ts";
import { readSmallBytes } from "../../system/files.ts";
import { hostPaths } from "../doctor/kube-apiserver.ts";
import { leadsTo } from "../doctor/paths.ts";
import { providerLines } from "../manifest/apiserver.ts";
import { manifestText } from "../manifest/manifest.ts";
import type { Order } from "../manifest/settings.ts";
import { bodyOf, occupantOf } from "../manifest/written.ts";
import { type Change, DIRECTORY, type Draft, textAt } from "./files.ts";
import {
  CONFIGURATION_OF,
  type Host,
  isHere,
  ownEncryptionOf,
  PATCH,
  rivalPod,
  STATIC_PODS,
  systemdVersion,
  UNITS,
} from "./node.ts";
import { draftSettings } from "./settings.ts";

const POD_FILE = join(STATIC_PODS, "key4c-kms-plugin.yaml");
export const SERVICE_FILE = join(UNITS, "key4c-kms-plugin.service");
export const SOCKET_FILE = join(UNITS, "key4c-kms-plugin.socket");
const ENCRYPTION = "encryption-configuration";
/** Below this one a unit has no LoadCredential=. */
const MIN_SYSTEMD = 247;

export interface Plan extends Draft {
  readonly as: "static-pod" | "systemd";
  readonly image: string;
  readonly binary: string;
  /** Path of the plugin's socket. */
  readonly socket: string;
  /** Path of the EncryptionConfiguration. */
  readonly configuration: string;
  /** Whether nobody writes under the plugin yet, by an EncryptionConfiguration of ours. */
  readonly identityFirst: boolean;
}

/**
 * @param userId from standard input; undefined: it is named or there
 * @param isAlone whether the cluster has this one control plane
 */
export function planOf(
  line: CommandLine,
  env: Environment,
  host: Host,
  userId: string | undefined,
  isAlone: boolean,
): Plan {
  const draft: Draft = { changes: [], obstacles: [] };
  const as = line.config.as ?? installedAs();
  const binary = required(line.config.binary);
  const isImageTyped = line.sources.some((one) => one.startsWith("--image "));
  const image = required((isImageTyped ? undefined : installedImage()) ?? line.config.image);
  const configuration =
    host.apiServer?.configuration ??
    line.config.encryptionConfiguration ??
    CONFIGURATION_OF[host.platform];
  draftProgram(binary, draft);
  const { file } = parseConfigFile(
    DEFAULT_CONFIG_FILE,
    draftSettings(line, env, userId, draft),
    true,
  );
  const order = (name: string, ...flags: string[]): Order => ({
    line: parseCommandLine(["manifest", name, ...flags], {}, file),
    env: {},
  });
  const provider = ["--provider-name", required(line.config.providerName)];
  const encryption = order(ENCRYPTION, ...provider, ...(isAlone ? [] : ["--identity-first"]));
  const identityFirst = draftConfiguration(configuration, host, encryption, draft) && !isAlone;
  if (host.platform === "kubeadm") {
    const name = "kube-apiserver-patch";
    place(PATCH, name, order(name, "--encryption-configuration", configuration), draft);
  }
  if (as === "systemd") {
    place(SOCKET_FILE, "systemd-socket", order("systemd-socket"), draft);
    place(SERVICE_FILE, "systemd-service", order("systemd-service", "--binary", binary), draft);
  } else if (as === "static-pod") {
    place(POD_FILE, as, order(as, "--image", image), draft); // last: a kubelet starts it at once
    if (draft.changes.some(isReplacedPod) && !isHere(image)) {
      draft.obstacles.push(
        `${image} is not on this node, and a kubelet ends the old pod before it looks for the new image: crictl pull ${image}`,
      );
    }
  }
  draft.obstacles.push(...rivals(as));
  const socket = required(encryption.line.config.kmsEndpoint);
  return { ...draft, as: as ?? "static-pod", image, binary, socket, configuration, identityFirst };
}

export function isReplacedPod({ path, backup }: Change): boolean {
  return path === POD_FILE && backup !== undefined;
}

function installedAs(): Plan["as"] | undefined {
  return existsSync(POD_FILE) ? "static-pod" : existsSync(SERVICE_FILE) ? "systemd" : undefined;
}

/** That of the pod that is there: who runs `install` again need not say it again. */
function installedImage(): string | undefined {
  return /^ +image: "(\S+)"$/m.exec(textAt(POD_FILE) ?? "")?.[1];
}

/** What would fight with the plugin, or cannot run it. */
function rivals(as: Plan["as"] | undefined): string[] {
  const other = as === "systemd" ? POD_FILE : SERVICE_FILE;
  const version = as === "systemd" ? systemdVersion() : MIN_SYSTEMD;
  return [
    as === undefined && "how is the plugin to run here? --as static-pod, or --as systemd",
    existsSync(other) && `${other} runs the plugin already: two fight for one socket`,
    rivalPod(POD_FILE),
    version === undefined
      ? "systemd does not run this machine: --as static-pod"
      : version < MIN_SYSTEMD &&
        `systemd ${version} has no LoadCredential=: docs/install-special.md, systemd below 247`,
  ].filter((one) => typeof one === "string");
}

/** This program in its place, where it is not there already. */
function draftProgram(path: string, draft: Draft): void {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found !== undefined && !found.isFile()) {
    draft.obstacles.push(`${path} is no regular file: name another place with --binary`);
    return;
  }
  if (found !== undefined && realpathSync(path) === realpathSync(process.execPath)) {
    return;
  }
  const content = readFileSync(process.execPath);
  if (found?.size === content.length && readFileSync(path).equals(content)) {
    return;
  }
  const backup = found === undefined ? {} : { backup: `${path}.before-key4c` };
  draft.changes.push({ path, content, mode: 0o755, instead: "this program", ...backup });
}

/** A manifest in its place, unless what is there is somebody else's. */
function place(path: string, name: string, order: Order, draft: Draft): void {
  const content = manifestText(name, order);
  const occupant = occupantOf(path, name, content);
  if (typeof occupant === "object") {
    draft.obstacles.push(
      `${path} is ${occupant.what}: move it away and run install again, or keep it and use \`manifest\` (docs/install.md)`,
    );
    return;
  }
  if (occupant !== "nothing" && bodyOf(textAt(path) ?? "") === bodyOf(content)) {
    return; // another head changes nothing
  }
  const isPod = path === POD_FILE;
  // A kubelet reads every file of its directory that begins with no dot.
  const backup = `${isPod ? join(DIRECTORY, basename(path)) : path}.before-key4c`;
  draft.changes.push({
    path,
    content,
    mode: isPod ? 0o600 : 0o644,
    ...(occupant === "ours" && { backup }),
  });
}

/** The EncryptionConfiguration, where there is none. @returns whether it is ours, and nobody writes under the plugin */
function draftConfiguration(path: string, host: Host, order: Order, draft: Draft): boolean {
  const content = manifestText(ENCRYPTION, order);
  const own = ownEncryptionOf(host.platform);
  const there = existsSync(path) || own === undefined ? path : own;
  if (!existsSync(there)) {
    draft.changes.push({ path, content, mode: 0o600 });
    return true;
  }
  const toHost = hostPaths(host.apiServer);
  const socket = required(order.line.config.kmsEndpoint);
  const isOurs = ({ kms }: Provider) =>
    kms?.path !== undefined && leadsTo(toHost(kms.path), socket);
  const { groups } = loadConfiguration(readSmallBytes(there));
  if (!groups.some(({ providers }) => providers.some(isOurs))) {
    draft.obstacles.push(
      [
        `${there} is what this API server encrypts with, and has no provider of this plugin. It stays as it is. Add this BEHIND the providers that it has, on every node, and run install again (docs/move.md):`,
        ...providerLines(order).map((one) => `      ${one}`),
        ...(there === own
          ? [`${host.platform} writes that file itself: put both into ${path}`]
          : []),
      ].join("\n"),
    );
  }
  const [writer] = providersOf(groups, "secrets");
  const isMade = typeof occupantOf(there, ENCRYPTION, content) === "string";
  return isMade && writer?.kind === "identity";
}
