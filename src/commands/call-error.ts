/** What went wrong with a call to a running plugin, in words: what happened, and what to do. */
import { type ServiceError, status } from "@grpc/grpc-js";
import { type ErrorKind, KINDS } from "../failures/kinds.ts";
import { MAX_MESSAGE_BYTES } from "../socket/rpc.ts";
import { ExitError } from "../system/errors.ts";
import { printable } from "./printable.ts";
import { SEE_LOG, type Unanswered, unansweredAt } from "./unanswered.ts";

interface CallFault {
  readonly what: string;
  readonly remedies: readonly string[];
}

/** Its message has a line for {@link what}, and one for each remedy. */
export class CallError extends ExitError {
  readonly what: string;
  readonly remedy: string;
  /** undefined where somebody answered. */
  readonly unanswered: Unanswered | undefined;

  constructor(fault: CallFault | Unanswered) {
    super(1, [fault.what, ...fault.remedies].map(printable).join("\n"));
    this.name = "CallError";
    this.what = printable(fault.what);
    this.remedy = printable(fault.remedies.join("; "));
    this.unanswered = "reason" in fault ? fault : undefined;
  }
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
    return new CallError({
      what: `${method}: the plugin answers ${status[code]}: ${details}`,
      remedies: [`${KINDS[kind].remedy}; ${SEE_LOG}`],
    });
  }
  // Not a text of the plugin: it is grpc-js's own, or that of somebody else who listens there.
  switch (code) {
    case status.UNAVAILABLE:
      return new CallError(
        (await unansweredAt(socket)) ?? {
          reason: "not gRPC",
          what: `what listens at unix://${socket} ended the connection`,
          remedies: [`does it speak gRPC, and has it just been restarted? ${SEE_LOG}`],
        },
      );
    case status.DEADLINE_EXCEEDED:
      return new CallError({
        reason: "silent",
        what: `${method}: the plugin at unix://${socket} did not answer within ${timeoutMs / 1000} s`,
        remedies: [`it hangs, or systemd holds the socket for one that does not run: ${SEE_LOG}`],
      });
    case status.RESOURCE_EXHAUSTED:
      return new CallError({
        what: `${method}: the plugin takes ${MAX_MESSAGE_BYTES / 1024} KiB at most`,
        remedies: ["nothing that it wrote is so large: check the input"],
      });
    case status.UNIMPLEMENTED:
      return new CallError({
        what: `${method}: what listens at unix://${socket} is no KMS plugin, or one of another API`,
        remedies: ["check KMS_ENDPOINT (--endpoint)"],
      });
    default:
      return new CallError({
        what: `${method}: what listens at unix://${socket} answers ${status[code]}: ${details}`,
        remedies: ["is it this plugin, of this release? key4c-kms-plugin doctor says more"],
      });
  }
}
