/** Checks the API server that reads the EncryptionConfiguration, by the static pod that kubeadm writes. */
import { existsSync } from "node:fs";
import { dirname } from "node:path";
import {
  CONFIGURATION_FLAG,
  type KubeApiserver,
  LIVENESS_PATH,
  type Mount,
  RELOAD_FLAG,
  readKubeApiserver,
  toHost,
} from "../../kubernetes/static-pod.ts";
import { describeError } from "../../system/errors.ts";
import { type Check, fail, pass, skip, warn } from "./check.ts";
import { leadsTo } from "./paths.ts";

const KUBEADM_MANIFEST = "/etc/kubernetes/manifests/kube-apiserver.yaml";

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

/**
 * @param configuration the EncryptionConfiguration that the doctor was given, if any
 * @param socket path of the plugin's socket on this host
 */
export function checkKubeApiserver(
  { path, flags, mounts, server, riskyLivenessPath, configuration: host }: KubeApiserver,
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
    server.reloads === true
      ? pass(title("reload"), "on: a changed EncryptionConfiguration is read within a minute")
      : warn(
          title("reload"),
          "off: a changed EncryptionConfiguration is read at the next start only",
          `add --${RELOAD_FLAG}=true`,
        ),
    ...(riskyLivenessPath === undefined
      ? []
      : [
          warn(
            title("liveness"),
            `its probe asks ${riskyLivenessPath}: up to Kubernetes 1.28 a plugin that cannot serve makes the kubelet restart this API server, which loses the reads that it has cached`,
            `let livenessProbe and startupProbe ask ${LIVENESS_PATH}: \`manifest kube-apiserver-patch\` has it`,
          ),
        ]),
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
