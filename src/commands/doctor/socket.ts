/** The plugin's socket: who may reach it, and what answers on it. */
import { lstatSync, type Stats, statSync } from "node:fs";
import { dirname } from "node:path";
import type { Config } from "../../config/config.ts";
import { connectTo } from "../../socket/unix-socket.ts";
import { errorCode } from "../../system/files.ts";
import { type Check, fail, pass, skip, warn } from "./check.ts";
import { checkPlugin, isSilent } from "./plugin.ts";

/** @param freshKeyId the key_id that a wrap by Key4C gives now; undefined when there was none */
export async function checkSocket(
  config: Config,
  freshKeyId: string | undefined,
): Promise<Check[]> {
  const path = config.kmsEndpoint;
  if (path === undefined) {
    return ["directory", "socket"].map((check) => skip(check, "KMS_ENDPOINT is not usable"));
  }
  const answer = await connectTo(path);
  const plugin = answer === "connected" ? await checkPlugin(path, config, freshKeyId) : [];
  return [
    checkDirectory(dirname(path), config),
    checkSocketFile(path, isSilent(plugin) ? "silent" : answer, config),
    ...plugin,
  ];
}

function checkDirectory(directory: string, { socketGroup }: Config): Check {
  const check = "directory";
  const found = whatIs(() => statSync(directory));
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

/** @param answer the result of a connect; "silent" if the connection was accepted and nothing answered */
function checkSocketFile(path: string, answer: string, config: Config): Check {
  const check = "socket";
  const found = whatIs(() => lstatSync(path));
  if (found === "ENOENT" || found === "ENOTDIR") {
    return skip(check, `${path} is not there: no plugin runs yet`);
  }
  if (typeof found === "string") {
    return notAllowed(check, path, found);
  }
  if (!found.isSocket()) {
    return fail(check, `${path} is not a socket`, "remove it, or change KMS_ENDPOINT");
  }
  const mode = `0${(found.mode & 0o777).toString(8)}`;
  if ((found.mode & 0o002) !== 0) {
    return fail(
      check,
      `${path} ${mode}: every user of this machine can have DEKs unwrapped`,
      "set KMS_SOCKET_MODE=0600 (systemd: SocketMode=0600)",
    );
  }
  switch (answer) {
    case "connected":
      return checkGroup(check, `${path} ${mode}, uid ${found.uid}, answers`, found, config);
    case "silent":
      return fail(
        check,
        `${path} ${mode} accepts connections and answers nothing: it is held, by systemd for example, for a plugin that does not run`,
        "find out why the plugin's service does not run: systemctl status, and its log",
      );
    case "ECONNREFUSED":
      return fail(
        check,
        `${path}: nobody listens; a killed process left it`,
        "start the plugin: it replaces the socket",
      );
    case "EACCES":
      return fail(check, `${path} ${mode}: this user may not connect`, "run the doctor as root");
    default:
      return fail(check, `${path}: ${answer}`, "restart the plugin");
  }
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

/** The result of lstat or stat, or the code of its error. */
function whatIs(look: () => Stats): Stats | string {
  try {
    return look();
  } catch (error) {
    return errorCode(error);
  }
}
