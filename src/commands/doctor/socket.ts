/** The plugin's socket: who may reach it, and what answers on it. */
import { type Stats, statSync } from "node:fs";
import { dirname } from "node:path";
import type { Config } from "../../config/config.ts";
import { lookAt } from "../../system/files.ts";
import { type Unanswered, unansweredAt } from "../unanswered.ts";
import { type Check, fail, pass, skip, warn } from "./check.ts";
import { checkPlugin } from "./plugin.ts";
import { checkTmpfiles } from "./tmpfiles.ts";

/**
 * @param freshKeyId the key_id that a wrap by Key4C gives now; undefined when there was none
 * @param isNamed whether an EncryptionConfiguration has the socket
 */
export async function checkSocket(
  config: Config,
  freshKeyId: string | undefined,
  isNamed: boolean,
): Promise<Check[]> {
  const path = config.kmsEndpoint;
  if (path === undefined) {
    return ["directory", "socket"].map((check) => skip(check, "KMS_ENDPOINT is not usable"));
  }
  const answer = (await unansweredAt(path)) ?? (await checkPlugin(path, config, freshKeyId));
  const isAnswered = Array.isArray(answer);
  return [
    checkDirectory(dirname(path), config),
    checkSocketFile(path, isAnswered ? undefined : answer, isNamed, config),
    ...checkTmpfiles(path),
    ...(isAnswered ? answer : []),
  ];
}

function checkDirectory(directory: string, { socketGroup }: Config): Check {
  const check = "directory";
  const found = lookAt(directory, statSync);
  if (found === "ENOENT") {
    return pass(check, `${directory} is not there: serve makes it, with mode 0700`);
  }
  if (typeof found === "string") {
    return notAllowed(check, directory, found);
  }
  const mode = `0${(found.mode & 0o7777).toString(8)}`;
  if (!found.isDirectory()) {
    return fail(check, `${directory} is not a directory`, "remove it, or change KMS_ENDPOINT");
  }
  if ((found.mode & 0o022) !== 0) {
    return fail(
      check,
      `${directory} ${mode}: others can write to it, bind there first and be given plaintext DEKs`,
      "use a directory of its own with mode 0700, such as /run/key4c-kms",
    );
  }
  const isOpen = (found.mode & 0o001) !== 0;
  const isOpenToGroup = found.gid === socketGroup && (found.mode & 0o010) !== 0;
  return socketGroup === undefined || isOpen || isOpenToGroup
    ? pass(check, `${directory} ${mode}`)
    : fail(
        check,
        `${directory} ${mode}, group ${found.gid}: KMS_SOCKET_GROUP (${socketGroup}) cannot reach the socket in it`,
        `chgrp ${socketGroup} ${directory} && chmod 0710 ${directory}`,
      );
}

function notAllowed(check: string, path: string, code: string): Check {
  return fail(
    check,
    `${path}: this user is not allowed to look (${code}), so it is not known whether it is there`,
    "run the doctor as root, or as the plugin's user",
  );
}

const START =
  "start it: systemctl start key4c-kms-plugin.socket key4c-kms-plugin, or its static pod (`key4c-kms-plugin install` sets up either); its log says why it ended. Starting is safe: the plugin changes nothing that is stored";

/** @param unanswered undefined: a plugin answers */
function checkSocketFile(
  path: string,
  unanswered: Unanswered | undefined,
  isNamed: boolean,
  config: Config,
): Check {
  const check = "socket";
  if (unanswered?.reason === "absent") {
    const absent = `${path} is not there: no plugin runs`;
    return isNamed
      ? fail(check, `${absent}, and the EncryptionConfiguration names it`, START)
      : skip(check, `${absent} yet`);
  }
  const found = lookAt(path);
  if (typeof found === "string") {
    return notAllowed(check, path, found);
  }
  const mode = `0${(found.mode & 0o777).toString(8)}`;
  if (found.isSocket() && (found.mode & 0o002) !== 0) {
    return fail(
      check,
      `${path} ${mode}: every user of this machine can have DEKs unwrapped`,
      "set KMS_SOCKET_MODE=0600 (systemd: SocketMode=0600)",
    );
  }
  return unanswered === undefined
    ? checkGroup(check, `${path} ${mode}, uid ${found.uid}, answers`, found, config)
    : fail(
        check,
        unanswered.what,
        unanswered.reason === "nobody listens" ? START : unanswered.remedies.join("; "),
      );
}

/** KMS_SOCKET_GROUP must be able to connect, for which Linux requires write permission. */
function checkGroup(
  check: string,
  detail: string,
  { gid, mode }: Stats,
  { socketGroup, socketMode }: Config,
): Check {
  if (socketGroup !== undefined && (gid !== socketGroup || (mode & 0o020) === 0)) {
    return fail(
      check,
      `${detail}; KMS_SOCKET_GROUP (${socketGroup}) may not connect: it is of group ${gid}`,
      "set KMS_SOCKET_MODE=0660 and restart the plugin (systemd: SocketGroup= and SocketMode=, and restart the socket unit)",
    );
  }
  return socketMode === undefined || (mode & 0o777) === socketMode
    ? pass(check, detail)
    : warn(
        check,
        `${detail}; KMS_SOCKET_MODE says 0${socketMode.toString(8)}`,
        "restart the plugin with this configuration, or give the doctor the plugin's (systemd: SocketMode=)",
      );
}
