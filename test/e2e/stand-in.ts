/** A KMS v2 plugin of somebody else: its ciphertext is its own, and only it can read it. */
import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";
import { create, type DescMethodUnary, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Server, ServerCredentials } from "@grpc/grpc-js";
import {
  DecryptRequestSchema,
  DecryptResponseSchema,
  EncryptRequestSchema,
  EncryptResponseSchema,
  KeyManagementService,
  StatusResponseSchema,
} from "../../src/gen/v2/api_pb.ts";
import { onTestEnd } from "../support.ts";

const KEY_ID = "stand-in-1";

/** Serves it on a unix socket until the test ends or `stop` is called. */
export async function startStandIn(socket: string): Promise<{ stop(): void }> {
  const key = randomBytes(32);
  const answers: Record<string, (request: Buffer) => Uint8Array> = {
    status: () =>
      toBinary(
        StatusResponseSchema,
        create(StatusResponseSchema, { version: "v2", healthz: "ok", keyId: KEY_ID }),
      ),
    encrypt: (request) => {
      const { plaintext } = fromBinary(EncryptRequestSchema, request);
      const iv = randomBytes(12);
      const cipher = createCipheriv("aes-256-gcm", key, iv);
      const sealed = Buffer.concat([cipher.update(plaintext), cipher.final()]);
      const ciphertext = Buffer.concat([iv, cipher.getAuthTag(), sealed]);
      return toBinary(
        EncryptResponseSchema,
        create(EncryptResponseSchema, { ciphertext, keyId: KEY_ID }),
      );
    },
    decrypt: (request) => {
      const { ciphertext } = fromBinary(DecryptRequestSchema, request);
      const decipher = createDecipheriv("aes-256-gcm", key, ciphertext.subarray(0, 12));
      decipher.setAuthTag(ciphertext.subarray(12, 28));
      const plaintext = Buffer.concat([decipher.update(ciphertext.subarray(28)), decipher.final()]);
      return toBinary(DecryptResponseSchema, create(DecryptResponseSchema, { plaintext }));
    },
  };
  const server = new Server();
  const methods: DescMethodUnary[] = [
    KeyManagementService.method.status,
    KeyManagementService.method.encrypt,
    KeyManagementService.method.decrypt,
  ];
  server.addService(
    Object.fromEntries(
      methods.map(({ localName, name, parent }) => [
        localName,
        {
          path: `/${parent.typeName}/${name}`,
          requestStream: false,
          responseStream: false,
          requestDeserialize: (bytes: Buffer) => bytes,
          requestSerialize: (bytes: Buffer) => bytes,
          responseSerialize: (bytes: Uint8Array) => Buffer.from(bytes), // grpc-js wants no less
          responseDeserialize: (bytes: Buffer) => bytes,
        },
      ]),
    ),
    Object.fromEntries(
      methods.map(({ localName }) => [
        localName,
        (
          call: { request: Buffer },
          done: (error: Error | null, response?: Uint8Array) => void,
        ): void => {
          try {
            done(null, answers[localName]?.(call.request));
          } catch (error) {
            done(error as Error); // whatever node:crypto or protobuf threw
          }
        },
      ]),
    ),
  );
  await new Promise<void>((resolve, reject) =>
    server.bindAsync(`unix:${socket}`, ServerCredentials.createInsecure(), (error) =>
      error === null ? resolve() : reject(error),
    ),
  );
  onTestEnd(() => server.forceShutdown());
  return { stop: () => server.forceShutdown() };
}
