/** A client of one plugin for calls that may fail, each on the same connection, with the deadline of an API server. */
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { Client, credentials } from "@grpc/grpc-js";
import {
  DecryptRequestSchema,
  DecryptResponseSchema,
  EncryptRequestSchema,
  type EncryptResponse,
  EncryptResponseSchema,
  StatusRequestSchema,
  StatusResponseSchema,
} from "../../../src/gen/v2/api_pb.ts";

const DEADLINE_MS = 3_000; // kube-apiserver's default
const DEK = crypto.getRandomValues(new Uint8Array(32));
const UID = "7b3f1a52-5d0e-4f6b-9f3a-0c6f2f1f9a11";

export class KmsClient {
  readonly #client: Client;

  constructor(socket: string) {
    this.#client = new Client(`unix://${socket}`, credentials.createInsecure(), {
      "grpc.use_local_subchannel_pool": 1,
    });
  }

  /** @returns undefined when it fails */
  async encrypt(): Promise<EncryptResponse | undefined> {
    const request = create(EncryptRequestSchema, { plaintext: DEK, uid: UID });
    const answer = await this.#call("Encrypt", toBinary(EncryptRequestSchema, request));
    return answer && fromBinary(EncryptResponseSchema, answer);
  }

  /** @returns whether the DEK is what was encrypted */
  async decrypt({ ciphertext, keyId, annotations }: EncryptResponse): Promise<boolean> {
    const message: MessageInitShape<typeof DecryptRequestSchema> = {
      ciphertext,
      keyId,
      annotations,
    };
    const request = create(DecryptRequestSchema, { ...message, uid: UID });
    const answer = await this.#call("Decrypt", toBinary(DecryptRequestSchema, request));
    return (
      answer !== undefined &&
      DEK.every((byte, at) => byte === fromBinary(DecryptResponseSchema, answer).plaintext[at])
    );
  }

  /** @returns whether it is ok */
  async status(): Promise<boolean> {
    const answer = await this.#call(
      "Status",
      toBinary(StatusRequestSchema, create(StatusRequestSchema)),
    );
    return answer !== undefined && fromBinary(StatusResponseSchema, answer).healthz === "ok";
  }

  close(): void {
    this.#client.close();
  }

  #call(method: string, request: Uint8Array): Promise<Buffer | undefined> {
    return new Promise((resolve) =>
      this.#client.makeUnaryRequest(
        `/v2.KeyManagementService/${method}`,
        (bytes: Uint8Array) => Buffer.from(bytes),
        (bytes: Buffer) => bytes,
        request,
        { deadline: Date.now() + DEADLINE_MS },
        (_, answer) => resolve(answer),
      ),
    );
  }
}
