/** What an installation needs, made from the options of serve. The templates are files; see src/templates. */
import { dirname } from "node:path";
import { type CommandLine, credentialName, required } from "../../config/config.ts";
import { absolutePath } from "../../config/option-types.ts";
import { PROFILE_SCHEMA } from "../../key4c/profile.ts";
import { ExitError } from "../../system/errors.ts";
import encryptionConfiguration from "./templates/encryption-configuration.yaml.txt";
import grafana from "./templates/grafana.json";
import k3s from "./templates/k3s.yaml.txt";
import kubeApiserverPatch from "./templates/kube-apiserver-patch.yaml.txt";
import kubeadmConfig from "./templates/kubeadm-config.yaml.txt";
import prometheusRules from "./templates/prometheus-rules.yaml.txt";
import staticPod from "./templates/static-pod.yaml.txt";
import systemdService from "./templates/systemd-service.txt";
import systemdSocket from "./templates/systemd-socket.txt";

interface Manifest {
  readonly about: string;
  readonly text: (line: CommandLine) => string;
}

/** By the name behind `manifest`. */
const MANIFESTS: Readonly<Record<string, Manifest>> = {
  "static-pod": {
    about: "the plugin as a static pod, for /etc/kubernetes/manifests",
    text: staticPodText,
  },
  "systemd-service": { about: "the plugin as a service of systemd", text: systemdServiceText },
  "systemd-socket": { about: "its socket, which systemd holds", text: systemdSocketText },
  "encryption-configuration": {
    about: "kube-apiserver's EncryptionConfiguration (--api v1 or v2)",
    text: encryptionConfigurationText,
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
  "prometheus-rules": { about: "alerts for Prometheus", text: () => prometheusRules },
  "profile-schema": {
    about: "the JSON Schema of profiles (KEY4C_PROFILE), for editors",
    text: () => `${JSON.stringify(PROFILE_SCHEMA, undefined, 2)}\n`,
  },
  grafana: {
    about: "a dashboard for Grafana",
    text: () => `${JSON.stringify(grafana, undefined, 2)}\n`,
  },
};

/** The manifest that the command line names, or the list of all. @throws ExitError 2 */
export function manifestCommand(line: CommandLine): string {
  const { operand } = line;
  if (operand === undefined) {
    return Object.entries(MANIFESTS)
      .map(([name, { about }]) => `${name.padEnd(26)}${about}\n`)
      .join("");
  }
  const manifest = Object.hasOwn(MANIFESTS, operand) ? MANIFESTS[operand] : undefined;
  if (manifest === undefined) {
    const names = Object.keys(MANIFESTS).join(", ");
    throw new ExitError(2, `no manifest "${operand}"; there are ${names}`);
  }
  return manifest.text(line);
}

/** Where the credentials lie when no file is named. */
const SECRETS_DIRECTORY = "/etc/key4c-kms";
/** Where Prometheus finds the metrics, unless told otherwise: a flag that is empty means nowhere. */
const METRICS_ADDRESS = "127.0.0.1:9640";
/** kubeadm mounts this directory into the API server. */
const KUBEADM_PKI = "/etc/kubernetes/pki";

function staticPodText(line: CommandLine): string {
  const { config } = line;
  const files = serveFiles(line);
  const settings = [...serveSettings(line), ...files];
  const socketDirectory = dirname(required(config.kmsEndpoint));
  const directories = [...new Set(files.map(([, path]) => dirname(path)))];
  const mount = (path: string, index: number) => ({ name: `files-${index}`, path });
  return fill(staticPod, {
    userIdFile: new Map(files).get("KMS_USER_ID_FILE"),
    image: quoted(required(config.image)),
    user: String(required(config.runAsUser)),
    env: settings.flatMap(([name, text]) => [`- name: ${name}`, `  value: ${quoted(text)}`]),
    socketDirectory,
    fileMounts: directories
      .map(mount)
      .flatMap(({ name, path }) => [`- name: ${name}`, `  mountPath: ${path}`, "  readOnly: true"]),
    fileVolumes: directories
      .map(mount)
      .flatMap(({ name, path }) => [
        `- name: ${name}`,
        "  hostPath:",
        `    path: ${path}`,
        "    type: Directory",
      ]),
  });
}

function systemdServiceText(line: CommandLine): string {
  const files = serveFiles(line);
  return fill(systemdService, {
    binary: required(line.config.binary),
    environment: [...serveSettings(line), ...files.filter(isReadInPlace)].map(
      ([name, text]) => `Environment=${unitWord(name, text)}`,
    ),
    credentials: files
      .filter((file) => !isReadInPlace(file))
      .map(([name, path]) => `LoadCredential=${credentialName(name)}:${path}`),
  });
}

/** A word of a unit file: quoted, with the escapes and the doubled percent of systemd.syntax(7). */
function unitWord(name: string, text: string): string {
  const escaped = text.replace(/[\\"]/g, (character) => `\\${character}`).replaceAll("%", "%%");
  return `"${name}=${escaped}"`;
}

function systemdSocketText({ config, given }: CommandLine): string {
  const group = given.get("KMS_SOCKET_GROUP");
  return fill(systemdSocket, {
    path: required(config.kmsEndpoint),
    mode: required(config.socketMode).toString(8).padStart(4, "0"),
    group: group === undefined ? [] : [`SocketGroup=${group}`],
  });
}

function encryptionConfigurationText({ config }: CommandLine): string {
  const api = required(config.api);
  return fill(encryptionConfiguration, {
    api,
    name: required(config.providerName),
    endpoint: endpointUrl(required(config.kmsEndpoint)),
    // Only v1 asks for every object; v2 refuses the field.
    cachesize: api === "v1" ? ["cachesize: 10000"] : [],
  });
}

function kubeApiserverPatchText(line: CommandLine): string {
  const configuration = configurationPath(line, `${KUBEADM_PKI}/encryption-configuration.yaml`);
  const volumes = apiserverVolumes(line, configuration);
  return fill(kubeApiserverPatch, {
    configuration,
    featureGates: featureGates(line, (text) => [`- --feature-gates=${text}`]),
    mounts: volumes.flatMap(({ name, path }) => [`- name: ${name}`, `  mountPath: ${path}`]),
    volumes: volumes.flatMap(({ name, path, type }) => [
      `- name: ${name}`,
      "  hostPath:",
      `    path: ${path}`,
      `    type: ${type}`,
    ]),
  });
}

function kubeadmConfigText(line: CommandLine): string {
  const configuration = configurationPath(line, `${KUBEADM_PKI}/encryption-configuration.yaml`);
  return fill(kubeadmConfig, {
    configuration,
    featureGates: featureGates(line, (text) => ["- name: feature-gates", `  value: ${text}`]),
    volumes: apiserverVolumes(line, configuration).flatMap(({ name, path, type }) => [
      `- name: ${name}`,
      `  hostPath: ${path}`,
      `  mountPath: ${path}`,
      `  pathType: ${type}`,
    ]),
  });
}

function k3sText(line: CommandLine): string {
  return fill(k3s, {
    configuration: configurationPath(line, "/etc/rancher/k3s/encryption-configuration.yaml"),
    featureGates: featureGates(line, (text) => [`- feature-gates=${text}`]),
  });
}

/** KMS v1 is off by default from Kubernetes 1.29 on; before 1.28 there is no such gate. */
function featureGates({ config }: CommandLine, lines: (text: string) => string[]): string[] {
  return config.api === "v1"
    ? ["# Kubernetes 1.28 and newer; leave it out before.", ...lines("KMSv1=true")]
    : [];
}

/** What the API server needs beside what kubeadm mounts: the socket, and perhaps the configuration. */
function apiserverVolumes({ config }: CommandLine, configuration: string) {
  const socket = {
    name: "key4c-kms",
    path: dirname(required(config.kmsEndpoint)),
    type: "DirectoryOrCreate",
  };
  const own = { name: "encryption-configuration", path: dirname(configuration), type: "Directory" };
  return configuration.startsWith(`${KUBEADM_PKI}/`) ? [socket] : [socket, own];
}

function configurationPath({ config }: CommandLine, fallback: string): string {
  return path("--encryption-configuration", config.encryptionConfiguration ?? fallback);
}

/** What serve must be told and is neither a secret nor a file. */
function serveSettings({ config, given }: CommandLine): [string, string][] {
  const missing = ["KEY4C_URL", "KMS_KEY_ID"].filter(
    (name) => !given.has(name) && !given.has(`${name}_FILE`),
  );
  if (missing.length > 0) {
    throw new ExitError(2, missing.map((name) => `${name} is missing`).join("\n"));
  }
  const settings = new Map([
    ["KMS_HTTP_ADDRESS", METRICS_ADDRESS],
    ...[...given].filter(([name]) => name.startsWith("KMS_") || name === "KEY4C_URL"),
  ]);
  return [
    ["KMS_ENDPOINT", endpointUrl(required(config.kmsEndpoint))],
    ...[...settings].filter(
      ([name, text]) =>
        !["KMS_ENDPOINT", "KMS_USER_ID", "KMS_API_KEY", "KMS_PIN"].includes(name) &&
        !isFile(name) &&
        text !== "", // as good as not set
    ),
  ];
}

/** Files by the option that names them. A secret is always a file: a manifest is read by many. */
function serveFiles({ given }: CommandLine): [string, string][] {
  const files = new Map([...given].filter(([name]) => isFile(name)));
  if (!files.has("KMS_USER_ID_FILE")) {
    files.set("KMS_USER_ID_FILE", `${SECRETS_DIRECTORY}/user-id`);
  }
  for (const [name, file] of [
    ["KMS_API_KEY", "api-key"],
    ["KMS_PIN", "pin"],
  ] as const) {
    if (given.has(name) && !files.has(`${name}_FILE`)) {
      files.set(`${name}_FILE`, `${SECRETS_DIRECTORY}/${file}`);
    }
  }
  return [...files].map(([name, text]) => [name, path(name, text)]);
}

/** The names of keys are no secrets, and change while the plugin runs: a copy made at its start would not. */
function isReadInPlace([name]: readonly [string, string]): boolean {
  return name === "KMS_KEY_ID_FILE" || name === "KMS_PREVIOUS_KEY_IDS_FILE";
}

function isFile(name: string): boolean {
  return name.endsWith("_FILE") || name === "KEY4C_PROFILE";
}

function endpointUrl(socketPath: string): string {
  return `unix://${path("KMS_ENDPOINT", socketPath)}`;
}

function path(name: string, text: string): string {
  try {
    return absolutePath(text);
  } catch (error) {
    throw new ExitError(2, `${name} ${(error as Error).message}`); // absolutePath throws Errors
  }
}

/** JSON's texts are YAML's, too. */
function quoted(text: string): string {
  return JSON.stringify(text);
}

/**
 * Replaces `{{name}}`: within a line by a text; alone on a line by any number of lines, each with that
 * line's indentation. Prometheus' own braces hold other names and stay.
 */
function fill(
  template: string,
  values: Readonly<Record<string, string | readonly string[] | undefined>>,
): string {
  const lines = template
    .trimEnd()
    .split("\n")
    .flatMap((line) => {
      const [, indentation = "", name = ""] = /^( *)\{\{(\w+)\}\}$/.exec(line) ?? [];
      const value = values[name];
      return Array.isArray(value)
        ? value.map((one: string) => (one === "" ? "" : indentation + one))
        : [line.replace(/\{\{(\w+)\}\}/g, (whole, key: string) => String(values[key] ?? whole))];
    });
  return `${lines.join("\n")}\n`;
}
