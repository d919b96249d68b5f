/** What went wrong with a call to a running plugin, in words: what happened, and what to do. */
import { lstatSync } from "node:fs";
import { type ServiceError, status } from "@grpc/grpc-js";
import { type ErrorKind, KINDS } from "../failures/kinds.ts";
import { MAX_MESSAGE_BYTES } from "../socket/rpc.ts";
import { connectTo } from "../socket/unix-socket.ts";
import { ExitError } from "../system/errors.ts";
import { printable } from "./printable.ts";

/** Its message has a line for {@link what}, and one for each remedy. */
export class CallError extends ExitError {
  readonly what: string;
  readonly remedy: string;

  constructor(what: string, ...remedies: readonly string[]) {
    super(1, [what, ...remedies].map(printable).join("\n"));
    this.name = "CallError";
    this.what = printable(what);
    this.remedy = printable(remedies.join("; "));
  }
}

const IS_IT_RUNNING =
  "is it running? systemctl status key4c-kms-plugin, or crictl ps -a --name key4c-kms-plugin";
const SEE_LOG = "the plugin's log has the cause: journalctl -u key4c-kms-plugin, or crictl logs";

/** By the answer of a connect: why nobody took the call. */
function notTaken(socket: string, answer: string): [what: string, ...remedies: string[]] {
  const nobody = `no plugin listens at unix://${socket}`;
  switch (answer) {
    case "ENOENT":
    case "ENOTDIR":
      return [
        `${nobody}: there is no such socket`,
        IS_IT_RUNNING,
        "if it runs: is its KMS_ENDPOINT the same, or was the socket removed? systemctl restart key4c-kms-plugin.socket, where systemd holds it",
      ];
    case "no socket":
      return [
        `unix://${socket} is no socket`,
        "check KMS_ENDPOINT (--endpoint): it names another file",
      ];
    case "ECONNREFUSED":
      return [
        `${nobody}: the socket is there, and the process that made it has ended`,
        IS_IT_RUNNING,
      ];
    case "EACCES":
    case "EPERM":
      return [
        `this user may not use unix://${socket} (${answer})`,
        "run the command as root, or as a member of KMS_SOCKET_GROUP",
      ];
    case "connected":
      return [
        `what listens at unix://${socket} ended the connection`,
        `does it speak gRPC, and has it just been restarted? ${SEE_LOG}`,
      ];
    default:
      return [`unix://${socket} cannot be reached (${answer})`, IS_IT_RUNNING];
  }
}

/** What a connect meets; the kernel refuses one to any other file as it refuses one to a dead socket. */
async function answerAt(socket: string): Promise<string> {
  const answer = await connectTo(socket);
  const isOther = answer === "ECONNREFUSED" && !lstatSync(socket).isSocket();
  return isOther ? "no socket" : answer;
}

/**
 * @param method name of the RPC
 * @param timeoutMs how long it was waited for
 */
export async function callError(
  { code, details }: Pick<ServiceError, "code" | "details">,
  { socket, method, timeoutMs }: { socket: string; method: string; timeoutMs: number },
): Promise<CallError> {
  const kinds = Object.keys(KINDS) as ErrorKind[]; // KINDS has no other keys
  const kind = kinds.find((one) => KINDS[one].code === code && KINDS[one].text === details);
  if (kind !== undefined) {
    const what = `${method}: the plugin answers ${status[code]}: ${details}`;
    return new CallError(what, `${KINDS[kind].remedy}; ${SEE_LOG}`);
  }
  // Not a text of the plugin: it is grpc-js's own, or that of somebody else who listens there.
  switch (code) {
    case status.UNAVAILABLE:
      return new CallError(...notTaken(socket, await answerAt(socket)));
    case status.DEADLINE_EXCEEDED:
      return new CallError(
        `${method}: the plugin at unix://${socket} did not answer within ${timeoutMs / 1000} s`,
        `it hangs, or systemd holds the socket for one that does not run: ${SEE_LOG}`,
      );
    case status.RESOURCE_EXHAUSTED:
      return new CallError(
        `${method}: the plugin takes ${MAX_MESSAGE_BYTES / 1024} KiB at most`,
        "nothing that it wrote is so large: check the input",
      );
    case status.UNIMPLEMENTED:
      return new CallError(
        `${method}: what listens at unix://${socket} is no KMS plugin, or one of another API`,
        "check KMS_ENDPOINT (--endpoint)",
      );
    default:
      return new CallError(
        `${method}: what listens at unix://${socket} answers ${status[code]}: ${details}`,
        "is it this plugin, of this release? key4c-kms-plugin doctor says more",
      );
  }
}
