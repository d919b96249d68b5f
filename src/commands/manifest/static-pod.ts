import { dirname } from "node:path";
import { required } from "../../config/config.ts";
import { isBelowTmp, keepCommand } from "../below-tmp.ts";
import {
  configFilePath,
  directoryFor,
  isInConfigFile,
  isShared,
  type Order,
  SECRET_FILES,
  serveFiles,
  serveSettings,
  settingsDigest,
  socketGroupId,
  socketPath,
} from "./settings.ts";
import { fill, quoted, quotedForContainer } from "./template.ts";
import staticPod from "./templates/static-pod.yaml.txt";

export function staticPodText(order: Order): string {
  const { podName, image, runAsUser } = order.line.config;
  const files = serveFiles(order);
  const group = socketGroupId(order);
  const configFile = configFilePath(order);
  const config = configFile === undefined ? [] : [["KMS_CONFIG", configFile] as const];
  const settings = [
    ...config,
    // An image may have an address of its own in its environment, which counts before the file.
    ...(isInConfigFile(order, "KEY4C_URL") ? [["KEY4C_URL", ""] as const] : []),
    ...serveSettings(order),
    ...(group === undefined ? [] : [["KMS_SOCKET_GROUP", String(group)] as const]),
    ...files.filter(([name]) => !isInConfigFile(order, name)),
  ];
  const socket = socketPath(order);
  const socketDirectory = dirname(socket);
  const directories = new Set(
    [...config, ...files].map(([name, path]) => directoryFor(name, path)),
  );
  directories.delete(socketDirectory); // it is mounted already
  const { persistentCache, persistentCacheKeyFile } = order.line.config;
  const cacheMounts =
    persistentCache === undefined ? [] : [{ name: "cache", path: persistentCache }];
  // Where the unit that opens the sealing key has failed, the pod starts all the same.
  const keyDirectory = persistentCacheKeyFile && dirname(persistentCacheKeyFile);
  const fileMounts = [...directories].map((path, index) => ({ name: `files-${index}`, path }));
  return fill(staticPod, {
    secretFiles:
      files
        .filter(([name]) => SECRET_FILES.includes(name))
        .map(([, path]) => path)
        .join(", ") ||
      (configFile ?? "none"),
    podName: quoted(required(podName)),
    // With other settings in the file a kubelet makes a new pod of it, which reads them.
    annotations:
      configFile === undefined
        ? []
        : ["annotations:", `  key4c-kms-plugin.io/settings: ${settingsDigest(order)}`],
    image: quoted(required(image)),
    user: String(required(runAsUser)),
    // A process without capabilities may give a file only to a group that it is in.
    groups: group === undefined ? [] : [`supplementalGroups: [${group}]`],
    env: settings.flatMap(([name, text]) => [
      `- name: ${name}`,
      `  value: ${quotedForContainer(text)}`,
    ]),
    socketDirectory,
    socketNotes: socketNotes(socket),
    cacheMounts: cacheMounts.flatMap(({ name, path }) => [
      `- name: ${name}`,
      `  mountPath: ${path}`,
    ]),
    fileMounts: fileMounts.flatMap(({ name, path }) => [
      `- name: ${name}`,
      `  mountPath: ${path}`,
      "  readOnly: true",
    ]),
    volumes: [...cacheMounts, ...fileMounts].flatMap(({ name, path }) => [
      `- name: ${name}`,
      "  hostPath:",
      `    path: ${path}`,
      `    type: Directory${[persistentCache, keyDirectory].includes(path) ? "OrCreate" : ""}`,
    ]),
  });
}

/** What is to be known of a socket in a directory of others. */
function socketNotes(socket: string): string[] {
  const directory = dirname(socket);
  if (!isShared(directory)) {
    return [];
  }
  return [
    `# All of this machine's ${directory}: whoever can write there can bind the socket first, and be given DEKs.`,
    "# Safer is a directory of its own: unix:///run/key4c-kms/kms.sock, in the EncryptionConfiguration too.",
    ...(isBelowTmp(socket)
      ? [`# systemd-tmpfiles removes old files there: ${keepCommand(socket)}`]
      : []),
  ];
}
