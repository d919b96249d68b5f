import { dirname } from "node:path";
import { credentialName, required } from "../../config/config.ts";
import { CONFIG_CREDENTIAL } from "../../config/config-file.ts";
import { ExitError } from "../../system/errors.ts";
import { isBelowTmp } from "../below-tmp.ts";
import { unitLines } from "./persistent-cache.ts";
import {
  configFilePath,
  isInConfigFile,
  type Order,
  SECRET_FILES,
  serveFiles,
  serveSettings,
  socketGroup,
  socketPath,
} from "./settings.ts";
import { fill } from "./template.ts";
import systemdService from "./templates/systemd-service.txt";
import systemdSocket from "./templates/systemd-socket.txt";

/** Not secret, and they change while the plugin runs. A credential is a copy made at its start, which never changes. */
const READ_IN_PLACE = ["KMS_KEY_ID_FILE", "KMS_PREVIOUS_KEY_IDS_FILE"];

export function systemdServiceText(order: Order): string {
  sharedSocketPath(order);
  const { binary, environmentFile } = order.line.config;
  const files = serveFiles(order);
  const inPlace = files.filter(([name]) =>
    environmentFile === undefined ? READ_IN_PLACE.includes(name) : !SECRET_FILES.includes(name),
  );
  const copied = files
    .filter((file) => !inPlace.includes(file))
    .map(([name, path]) => [credentialName(name), path]);
  const configFile = configFilePath(order);
  const settings = [
    ...serveSettings(order),
    ...inPlace.filter(([name]) => !isInConfigFile(order, name)),
  ];
  if (configFile !== undefined && environmentFile === undefined) {
    copied.unshift([CONFIG_CREDENTIAL, configFile]);
  } else if (configFile !== undefined) {
    settings.unshift(["KMS_CONFIG", configFile]);
  }
  const cache = unitLines(order);
  return fill(systemdService, {
    binary: required(binary),
    cacheUnit: cache.unit,
    cacheDirectory: cache.directory,
    // The kernel's boot_id and its swaps are not of a process.
    procSubset: cache.directory.length > 0 ? "all" : "pid",
    environment: settings.map(([name, text]) => `Environment=${unitWord(name, text)}`),
    credentials:
      environmentFile === undefined
        ? [
            "# Files that only root may read: the service gets copies of them at its start. Needs systemd 247;",
            "# for older ones: manifest systemd-service --environment-file FILE.",
            ...copied.map(([name, path]) => `LoadCredential=${name}:${path}`),
            ...cache.credential,
          ]
        : environmentFileLines(environmentFile, inPlace),
  });
}

/** @throws ExitError 2 for a file that the service could not read */
function environmentFileLines(
  environmentFile: string,
  inPlace: readonly (readonly [string, string])[],
): string[] {
  if (inPlace.some(([name]) => name === "KEY4C_CERT_KEY_FILE")) {
    throw new ExitError(
      2,
      "KEY4C_CERT_KEY_FILE needs LoadCredential= of systemd 247: without it nobody but root could keep that key",
    );
  }
  return [
    "# systemd reads it as root: KMS_USER_ID=… (and KMS_API_KEY=…), chmod 0600. Other files must be readable for everybody.",
    `EnvironmentFile=${environmentFile}`,
  ];
}

/** A word of a unit file: quoted, with the escapes and the doubled percent of systemd.syntax(7). */
function unitWord(name: string, text: string): string {
  const escaped = text.replace(/[\\"]/g, (character) => `\\${character}`).replaceAll("%", "%%");
  return `"${name}=${escaped}"`;
}

/** @throws ExitError 2 for one that service and API server would not share */
function sharedSocketPath(order: Order): string {
  const path = socketPath(order);
  if (isBelowTmp(path)) {
    throw new ExitError(
      2,
      `KMS_ENDPOINT must not lie in /tmp or /var/tmp: the service has its own (PrivateTmp=) and would not see ${path}; take unix:///run/key4c-kms/kms.sock, in the EncryptionConfiguration too`,
    );
  }
  return path;
}

export function systemdSocketText(order: Order): string {
  const path = sharedSocketPath(order);
  const group = socketGroup(order);
  return fill(systemdSocket, {
    path,
    directory: dirname(path),
    mode: required(order.line.config.socketMode).toString(8).padStart(4, "0"),
    group: group === undefined ? [] : [`SocketGroup=${group}`],
  });
}
