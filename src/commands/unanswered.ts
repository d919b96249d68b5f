/** Why nothing answers on a plugin's socket: one judgement for the commands that call it and for the doctor. */
import { connectTo } from "../socket/unix-socket.ts";
import { lookAt } from "../system/files.ts";

export type Reason =
  | "absent"
  | "not a socket"
  | "nobody listens"
  | "forbidden"
  | "not gRPC"
  /** The connection is accepted, and no answer comes. */
  | "silent"
  | "unreachable";

export interface Unanswered {
  readonly reason: Reason;
  readonly what: string;
  readonly remedies: readonly string[];
}

const IS_IT_RUNNING =
  "is it running? systemctl status key4c-kms-plugin, or crictl ps -a --name key4c-kms-plugin";
export const SEE_LOG =
  "the plugin's log has the cause: journalctl -u key4c-kms-plugin, or crictl logs";

/** What a connect to the socket meets; undefined when somebody accepts it. @param socket its path */
export async function unansweredAt(socket: string): Promise<Unanswered | undefined> {
  const answer = await answerAt(socket);
  const nobody = `no plugin listens at unix://${socket}`;
  switch (answer) {
    case "connected":
      return undefined;
    case "ENOENT":
    case "ENOTDIR":
      return {
        reason: "absent",
        what: `${nobody}: there is no such socket`,
        remedies: [
          IS_IT_RUNNING,
          "if it runs: is its KMS_ENDPOINT the same, or was the socket removed? systemctl restart key4c-kms-plugin.socket, where systemd holds it",
        ],
      };
    case "ECONNREFUSED":
      return {
        reason: "nobody listens",
        what: `${nobody}: the socket is there, and the process that made it has ended`,
        remedies: [`${IS_IT_RUNNING}; a plugin that starts replaces it`],
      };
    case "not a socket":
      return {
        reason: answer,
        what: `unix://${socket} is not a socket`,
        remedies: [
          "check KMS_ENDPOINT (--endpoint): it names another file, and serve does not replace that",
        ],
      };
    case "EACCES":
    case "EPERM":
      return {
        reason: "forbidden",
        what: `this user may not use unix://${socket} (${answer})`,
        remedies: ["run the command as root, or as a member of KMS_SOCKET_GROUP"],
      };
    default:
      return {
        reason: "unreachable",
        what: `unix://${socket} cannot be reached (${answer})`,
        remedies: [IS_IT_RUNNING],
      };
  }
}

/** Of a connect. Bun tells no difference between a dead socket, any other file, and a directory that is a file. */
async function answerAt(socket: string): Promise<string> {
  const answer = await connectTo(socket);
  if (answer !== "ECONNREFUSED") {
    return answer;
  }
  const found = lookAt(socket);
  if (typeof found === "string") {
    return found;
  }
  return found.isSocket() ? answer : "not a socket";
}
