/**
 * An empty grpc-js service: every method of both KMS APIs answers one constant, of the length that the
 * plugin's answer has. Compiled like the plugin, it shows how much of a call is not ours.
 */
import { create, type Message, toBinary } from "@bufbuild/protobuf";
import { Server, ServerCredentials, type UntypedServiceImplementation } from "@grpc/grpc-js";
import * as v1 from "../../src/gen/v1beta1/api_pb.ts";
import * as v2 from "../../src/gen/v2/api_pb.ts";

const KEY_ID = "k4c-aaaaaaaaaaaaaaaaaaaaaaaaaa.v1";
const DEK = new Uint8Array(32);
/** What the emulated Key4C makes of a local KEK: version, IV, 32 bytes and tag, in base64. */
const WRAPPED_KEK = new Uint8Array(88);
/** Magic, key name hash, version, AAD sent, IV, DEK and tag. */
const V2_CIPHERTEXT = new Uint8Array(4 + 18 + 2 + 2 + 14 + 50);

const ANSWERS: ReadonlyMap<string, Message> = new Map<string, Message>([
  [v1.VersionResponseSchema.typeName, create(v1.VersionResponseSchema, { version: "v1beta1" })],
  [
    v1.EncryptResponseSchema.typeName,
    create(v1.EncryptResponseSchema, { cipher: new Uint8Array(V2_CIPHERTEXT.length + 90) }),
  ],
  [v1.DecryptResponseSchema.typeName, create(v1.DecryptResponseSchema, { plain: DEK })],
  [
    v2.StatusResponseSchema.typeName,
    create(v2.StatusResponseSchema, { version: "v2", healthz: "ok", keyId: KEY_ID }),
  ],
  [
    v2.EncryptResponseSchema.typeName,
    create(v2.EncryptResponseSchema, {
      ciphertext: V2_CIPHERTEXT,
      keyId: KEY_ID,
      annotations: { "wrapped-kek.key4c-kms-plugin.io": WRAPPED_KEK },
    }),
  ],
  [v2.DecryptResponseSchema.typeName, create(v2.DecryptResponseSchema, { plaintext: DEK })],
]);

const server = new Server({ "grpc.enable_channelz": 0 });
for (const service of [v1.KeyManagementService, v2.KeyManagementService]) {
  const definition: Record<string, Parameters<Server["addService"]>[0][string]> = {};
  const implementation: UntypedServiceImplementation = {};
  for (const method of service.methods) {
    const message = ANSWERS.get(method.output.typeName);
    if (message === undefined) {
      throw new Error(`no answer to ${method.name}`);
    }
    const answer = Buffer.from(toBinary(method.output, message));
    const asIs = (bytes: Buffer) => bytes;
    definition[method.name] = {
      path: `/${service.typeName}/${method.name}`,
      requestStream: false,
      responseStream: false,
      requestSerialize: asIs,
      requestDeserialize: asIs,
      responseSerialize: asIs,
      responseDeserialize: asIs,
    };
    implementation[method.name] = (_: unknown, done: (error: null, bytes: Buffer) => void) =>
      done(null, answer);
  }
  server.addService(definition, implementation);
}
server.bindAsync(`unix://${process.argv[2]}`, ServerCredentials.createInsecure(), (error) => {
  if (error !== null) {
    throw error;
  }
});
