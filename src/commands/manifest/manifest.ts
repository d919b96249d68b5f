/** What an installation needs, made from the options of serve. The templates are files; see ./templates. */
import type { CommandLine, Environment } from "../../config/config.ts";
import { suggestion } from "../../config/nearest.ts";
import { PROFILE_SCHEMA } from "../../key4c/profile.ts";
import { ExitError } from "../../system/errors.ts";
import { replaceFile } from "../../system/files.ts";
import { printable } from "../printable.ts";
import {
  encryptionConfigurationText,
  k3sText,
  kubeApiserverPatchText,
  kubeadmConfigText,
  rke2Text,
} from "./apiserver.ts";
import { grafanaText, prometheusRulesText, scrapeConfigText } from "./monitoring.ts";
import { persistentCacheKeyText } from "./persistent-cache.ts";
import { EXAMPLES, profileText } from "./profiles.ts";
import { type Order, refuseControlCharacters } from "./settings.ts";
import { staticPodText } from "./static-pod.ts";
import { systemdServiceText, systemdSocketText } from "./systemd.ts";
import { occupantOf, withHead } from "./written.ts";

interface Manifest {
  readonly about: string;
  readonly text: (order: Order) => string;
  /** JSON has no comments, so no head that tells what it was made from. */
  readonly isJson?: true;
  /** Of the file (default: 0644). */
  readonly mode?: number;
  /** What would be lost where the file is there already; undefined: nothing. */
  readonly wouldLose?: string;
}

/** By the name behind `manifest`. */
const MANIFESTS: Readonly<Record<string, Manifest>> = {
  "static-pod": {
    about: "the plugin as a static pod, for /etc/kubernetes/manifests",
    text: staticPodText,
    mode: 0o600,
  },
  "systemd-service": { about: "the plugin as a service of systemd", text: systemdServiceText },
  "systemd-socket": { about: "its socket, which systemd holds", text: systemdSocketText },
  "persistent-cache-key": {
    about: "the unit that opens the key which seals KMS_PERSISTENT_CACHE",
    text: persistentCacheKeyText,
  },
  "encryption-configuration": {
    about: "kube-apiserver's EncryptionConfiguration (--api v1 or v2)",
    text: encryptionConfigurationText,
    mode: 0o600,
    wouldLose: "an EncryptionConfiguration, which may be the only way to read what is stored",
  },
  "kube-apiserver-patch": {
    about: "kubeadm: a patch of the API server of a cluster that exists",
    text: kubeApiserverPatchText,
  },
  "kubeadm-config": {
    about: "kubeadm: the ClusterConfiguration of a new cluster",
    text: kubeadmConfigText,
  },
  k3s: { about: "k3s: its configuration file", text: k3sText },
  rke2: { about: "RKE2: its configuration file", text: rke2Text },
  "scrape-config": {
    about: "Prometheus: how to scrape the plugin (--cluster NAME, --http-address)",
    text: scrapeConfigText,
  },
  "prometheus-rules": {
    about: "Prometheus: alerts (--runbook-url URL)",
    text: prometheusRulesText,
  },
  profile: {
    about: `a profile (KEY4C_PROFILE): profile NAME, of ${Object.keys(EXAMPLES).join(", ")}`,
    text: ({ line: { detail } }) => profileText(detail),
    isJson: true,
  },
  "profile-schema": {
    about: "the JSON Schema of profiles (KEY4C_PROFILE), for editors",
    text: () => `${JSON.stringify(PROFILE_SCHEMA, undefined, 2)}\n`,
    isJson: true,
  },
  grafana: {
    about: "a dashboard for Grafana",
    text: grafanaText,
    isJson: true,
  },
};

export const MANIFEST_NAMES: Readonly<Record<string, string>> = Object.fromEntries(
  Object.entries(MANIFESTS).map(([name, { about }]) => [name, about]),
);

/**
 * The manifest that the command line names, or the list of all.
 * @returns what is to be printed: nothing where --output names a file
 * @throws ExitError 2 for wrong usage, 1 for a file that cannot be written
 */
export function manifestCommand(line: CommandLine, env: Environment): string {
  const { operand: name, config } = line;
  if (name === undefined) {
    return Object.entries(MANIFEST_NAMES)
      .map(([one, about]) => `${one.padEnd(26)}${about}\n`)
      .join("");
  }
  const manifest = Object.hasOwn(MANIFESTS, name) ? MANIFESTS[name] : undefined;
  if (manifest === undefined) {
    const names = Object.keys(MANIFESTS);
    const hint = suggestion(name, names);
    throw new ExitError(
      2,
      printable(`no manifest "${name}"; there are ${names.join(", ")}${hint}`),
    );
  }
  const order = { line, env };
  refuseControlCharacters(order);
  const whole = manifestText(name, order);
  if (config.output === undefined) {
    return whole;
  }
  write(config.output, whole, name, line);
  return "";
}

/** A manifest with its head. @param name one of {@link MANIFEST_NAMES} @throws ExitError 2 */
export function manifestText(name: string, order: Order): string {
  const { text, isJson } = MANIFESTS[name] ?? {};
  const bare = text?.(order) ?? "";
  return isJson ? bare : withHead(order, name, bare);
}

/** @throws ExitError 1 */
function write(path: string, text: string, name: string, { config }: CommandLine): void {
  const { mode = 0o644, wouldLose } = MANIFESTS[name] ?? {};
  const occupant = occupantOf(path, name, text);
  if (occupant === "the same") {
    return; // the same command again
  }
  const isReplaced = occupant === "nothing" || (occupant === "ours" && wouldLose === undefined);
  if (!isReplaced && config.force !== true) {
    const what = typeof occupant === "string" ? wouldLose : occupant.what;
    throw new ExitError(
      1,
      `${path} is there already: it is ${what}. Name another file and compare, or replace it with --force`,
    );
  }
  try {
    replaceFile(path, text, mode);
  } catch (error) {
    throw new ExitError(1, (error as Error).message); // replaceFile throws Errors
  }
}
