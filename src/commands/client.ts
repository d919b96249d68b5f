import {
  create,
  type DescMethodUnary,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { Client, credentials, type ServiceError, status } from "@grpc/grpc-js";
import { KeyManagementService as V1 } from "../gen/v1beta1/api_pb.ts";
import { callError } from "./call-error.ts";

/** What kube-apiserver waits by default. */
export const API_SERVER_TIMEOUT_MS = 3_000;
/** Half of it is a warning: a busy day brings the other half. */
export const SLOW_MS = API_SERVER_TIMEOUT_MS / 2;

/**
 * One call to a running plugin, as kube-apiserver makes it.
 * @param socket path of the plugin's socket
 * @param authority what to send as `:authority`; undefined: what grpc-js does
 * @param timeoutMs how long it may take
 * @throws CallError
 */
export async function callPlugin<
  I extends DescMethodUnary["input"],
  O extends DescMethodUnary["output"],
>(
  socket: string,
  method: { readonly input: I; readonly output: O } & DescMethodUnary,
  request: MessageInitShape<I>,
  authority?: string,
  timeoutMs = API_SERVER_TIMEOUT_MS,
): Promise<MessageShape<O>> {
  const client = new Client(`unix://${socket}`, credentials.createInsecure(), {
    "grpc.use_local_subchannel_pool": 1, // a connection of another authority is not this one's
    ...(authority !== undefined && { "grpc.default_authority": authority }),
  });
  try {
    return await new Promise<MessageShape<O>>((resolve, reject) => {
      client.makeUnaryRequest(
        `/${method.parent.typeName}/${method.name}`,
        (message: MessageShape<I>) => Buffer.from(toBinary(method.input, message)),
        (bytes: Buffer) => fromBinary(method.output, bytes),
        create(method.input, request),
        { deadline: Date.now() + timeoutMs },
        (error: ServiceError | null, response?: MessageShape<O>) => {
          if (error === null && response !== undefined) {
            resolve(response);
          } else {
            const failure = error ?? { code: status.UNKNOWN, details: "no answer" };
            callError(failure, { socket, method: method.name, timeoutMs }).then(reject, reject);
          }
        },
      );
    });
  } finally {
    client.close();
  }
}

/** The version of the plugin itself; only KMS v1 asks for it. @throws CallError */
export async function runtimeVersion(socket: string): Promise<string> {
  const request = { version: "v1beta1" };
  return (await callPlugin(socket, V1.method.version, request)).runtimeVersion;
}
