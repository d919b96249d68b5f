/** What kube-apiserver needs, as kubeadm, k3s and RKE2 take it. */
import { dirname } from "node:path";
import { required } from "../../config/config.ts";
import { LIVENESS_PATH } from "../../kubernetes/static-pod.ts";
import { directoryFor, endpointUrl, type Order, path, socketPath } from "./settings.ts";
import { fill, quoted } from "./template.ts";
import encryptionConfiguration from "./templates/encryption-configuration.yaml.txt";
import k3s from "./templates/k3s.yaml.txt";
import kubeApiserverPatch from "./templates/kube-apiserver-patch.yaml.txt";
import kubeadmConfig from "./templates/kubeadm-config.yaml.txt";
import rke2 from "./templates/rke2.yaml.txt";

/** kubeadm mounts this directory into the API server. */
const KUBEADM_PKI = "/etc/kubernetes/pki";

export function encryptionConfigurationText(order: Order): string {
  const { identityFirst } = order.line.config;
  const kms = providerLines(order);
  return fill(encryptionConfiguration, {
    providers: identityFirst
      ? [
          "# First: it writes, in clear, until every API server knows the provider below. Then that one comes first.",
          "- identity: {}",
          ...kms,
        ]
      : [
          ...kms,
          "# Last: what is not encrypted yet stays readable. It writes nothing.",
          "- identity: {}",
        ],
  });
}

/** The plugin's entry in the list of providers. */
export function providerLines(order: Order): string[] {
  const { config } = order.line;
  const api = required(config.api);
  return [
    "- kms:",
    `    apiVersion: ${api}`,
    "    # Part of every stored value: never change it.",
    `    name: ${quoted(required(config.providerName))}`,
    `    endpoint: ${endpointUrl(socketPath(order))}`,
    // Only KMS v1 calls the plugin for every object; v2 refuses the field.
    ...(api === "v1" ? ["    cachesize: 10000"] : []),
    "    timeout: 3s",
  ];
}

export function kubeApiserverPatchText(order: Order): string {
  const configuration = configurationPath(order, `${KUBEADM_PKI}/encryption-configuration.yaml`);
  const volumes = apiserverVolumes(order, configuration);
  return fill(kubeApiserverPatch, {
    configuration,
    livenessPath: quoted(LIVENESS_PATH),
    featureGates: featureGates(order, (text) => [`- --feature-gates=${text}`]),
    mounts: volumes.flatMap(({ name, path }) => [`- name: ${name}`, `  mountPath: ${path}`]),
    volumes: volumes.flatMap(({ name, path, type }) => [
      `- name: ${name}`,
      "  hostPath:",
      `    path: ${path}`,
      `    type: ${type}`,
    ]),
  });
}

export function kubeadmConfigText(order: Order): string {
  const configuration = configurationPath(order, `${KUBEADM_PKI}/encryption-configuration.yaml`);
  const api = required(order.line.config.kubeadmApi);
  /** v1beta3 has a map of arguments, v1beta4 a list. */
  const argument = (name: string, text: string) =>
    api === "v1beta3"
      ? [`${name}: ${quoted(text)}`]
      : [`- name: ${name}`, `  value: ${quoted(text)}`];
  return fill(kubeadmConfig, {
    api,
    arguments: [
      ...argument("encryption-provider-config", configuration),
      ...argument("encryption-provider-config-automatic-reload", "true"),
      ...featureGates(order, (text) => argument("feature-gates", text)),
    ],
    volumes: apiserverVolumes(order, configuration).flatMap(({ name, path, type }) => [
      `- name: ${name}`,
      `  hostPath: ${path}`,
      `  mountPath: ${path}`,
      `  pathType: ${type}`,
    ]),
  });
}

export function k3sText(order: Order): string {
  return fill(k3s, {
    configuration: configurationPath(order, "/etc/rancher/k3s/encryption-configuration.yaml"),
    featureGates: featureGates(order, (text) => [`- feature-gates=${text}`]),
  });
}

export function rke2Text(order: Order): string {
  const configuration = configurationPath(
    order,
    "/etc/rancher/rke2/key4c-kms/encryption-configuration.yaml",
  );
  return fill(rke2, {
    configuration,
    featureGates: featureGates(order, (text) => [`- feature-gates=${text}`]),
    mounts: apiserverVolumes(order, configuration).map(({ path }) => `- ${path}:${path}`),
  });
}

/** KMS v1 is off by default from Kubernetes 1.29 on; before 1.28 there is no such gate. */
function featureGates({ line }: Order, lines: (text: string) => string[]): string[] {
  return line.config.api === "v1"
    ? ["# Kubernetes 1.28 and newer; leave it out before.", ...lines("KMSv1=true")]
    : [];
}

/** Directories that kubeadm does not mount: that of the socket, and perhaps that of the configuration. */
function apiserverVolumes(order: Order, configuration: string) {
  const socket = {
    name: "key4c-kms",
    path: directoryFor("KMS_ENDPOINT", socketPath(order)),
    type: "DirectoryOrCreate",
  };
  if (configuration.startsWith(`${KUBEADM_PKI}/`) || dirname(configuration) === socket.path) {
    return [socket];
  }
  const directory = directoryFor("--encryption-configuration", configuration);
  return [socket, { name: "encryption-configuration", path: directory, type: "Directory" }];
}

function configurationPath({ line }: Order, fallback: string): string {
  return path("--encryption-configuration", line.config.encryptionConfiguration ?? fallback);
}
