import { dirname } from "node:path";
import { required } from "../../config/config.ts";
import {
  directoryFor,
  type Order,
  serveFiles,
  serveSettings,
  socketGroupId,
  socketPath,
} from "./settings.ts";
import { fill, quoted, quotedForContainer } from "./template.ts";
import staticPod from "./templates/static-pod.yaml.txt";

export function staticPodText(order: Order): string {
  const { config } = order.line;
  const files = serveFiles(order);
  const group = socketGroupId(order);
  const settings = [
    ...serveSettings(order),
    ...(group === undefined ? [] : [["KMS_SOCKET_GROUP", String(group)] as const]),
    ...files,
  ];
  const socketDirectory = dirname(socketPath(order));
  const directories = new Set(files.map(([name, path]) => directoryFor(name, path)));
  directories.delete(socketDirectory); // it is mounted already
  const mounts = [...directories].map((path, index) => ({ name: `files-${index}`, path }));
  return fill(staticPod, {
    userIdFile: new Map(files).get("KMS_USER_ID_FILE"),
    podName: quoted(required(config.podName)),
    image: quoted(required(config.image)),
    user: String(required(config.runAsUser)),
    // A process without capabilities may give a file only to a group that it is in.
    groups: group === undefined ? [] : [`supplementalGroups: [${group}]`],
    env: settings.flatMap(([name, text]) => [
      `- name: ${name}`,
      `  value: ${quotedForContainer(text)}`,
    ]),
    socketDirectory,
    fileMounts: mounts.flatMap(({ name, path }) => [
      `- name: ${name}`,
      `  mountPath: ${path}`,
      "  readOnly: true",
    ]),
    fileVolumes: mounts.flatMap(({ name, path }) => [
      `- name: ${name}`,
      "  hostPath:",
      `    path: ${path}`,
      "    type: Directory",
    ]),
  });
}
