import { version as VERSION } from "../package.json";
import { WRAPPED_KEK_ANNOTATION, wrappedKekOf } from "./annotations.ts";
import { decodeEnvelope, encodeEnvelope } from "./envelope.ts";
import { PluginError } from "./errors.ts";
import type { KeyManagementService as KmsV1 } from "./gen/v1beta1/api_pb.ts";
import type { KeyManagementService as KmsV2 } from "./gen/v2/api_pb.ts";
import type { Health } from "./health.ts";
import { base32, parseKeyId } from "./key-id.ts";
import type { Keyring, Wrapped } from "./keyring.ts";
import type { Handlers } from "./rpc.ts";

/** What the services ask of the health before they answer. */
type Gate = Pick<Health, "refuseIfExpired" | "usable">;

/** KMS v1: the whole envelope is the cipher. */
export function kmsV1(keyring: Keyring, health: Gate): Handlers<typeof KmsV1> {
  return {
    version: () => ({
      version: "v1beta1",
      runtimeName: "key4c-kms-plugin",
      runtimeVersion: VERSION,
    }),
    encrypt({ plain }, call) {
      health.refuseIfExpired();
      const answer = ({ envelope }: Wrapped) => ({ cipher: encodeEnvelope(envelope, true) });
      const wrapped = keyring.wrapNow(plain);
      return wrapped ? answer(wrapped) : keyring.wrap(plain, call).then(answer);
    },
    decrypt({ cipher }, call) {
      const envelope = decodeEnvelope(cipher);
      const answer = (plain: Buffer) => ({ plain });
      const plain = keyring.unwrapNow(envelope);
      return plain ? answer(plain) : keyring.unwrap(envelope, call).then(answer);
    },
  };
}

/** KMS v2: the wrapped local KEK, which may be large, travels in an annotation. */
export function kmsV2(keyring: Keyring, health: Gate): Handlers<typeof KmsV2> {
  return {
    status: (_, call) => ({
      version: statusVersion(call.userAgent),
      healthz: "ok",
      keyId: health.usable.keyId,
    }),
    encrypt({ plaintext }, call) {
      health.refuseIfExpired();
      const answer = ({ envelope, keyId }: Wrapped) => ({
        ciphertext: encodeEnvelope(envelope, false),
        keyId,
        annotations: { [WRAPPED_KEK_ANNOTATION]: Buffer.from(envelope.header.wrappedLocalKek) },
      });
      const wrapped = keyring.wrapNow(plaintext);
      return wrapped ? answer(wrapped) : keyring.wrap(plaintext, call).then(answer);
    },
    decrypt({ ciphertext, keyId, annotations }, call) {
      const named = parseKeyId(keyId);
      if (named === undefined || !keyring.knows(named.hashText)) {
        throw keyId === ""
          ? new PluginError("invalid", "key_id is missing")
          : new PluginError("unknownKey", "key_id names no configured key");
      }
      const envelope = decodeEnvelope(ciphertext, wrappedKekOf(annotations));
      const { keyNameHash, keyVersion } = envelope.header;
      if (base32(keyNameHash) !== named.hashText || keyVersion !== named.version) {
        throw new PluginError("invalid", "key_id is not that of the ciphertext");
      }
      const answer = (plaintext: Buffer) => ({ plaintext });
      const plaintext = keyring.unwrapNow(envelope);
      return plaintext ? answer(plaintext) : keyring.unwrap(envelope, call).then(answer);
    },
  };
}

/**
 * kube-apiserver 1.27 and 1.28 take nothing but `v2beta1` and are known by their grpc-go, which is older
 * than 1.57. Newer ones take either, as long as it never changes.
 */
function statusVersion(userAgent: string): "v2" | "v2beta1" {
  const minor = /grpc-go\/1\.(\d+)\./.exec(userAgent)?.[1];
  return minor !== undefined && Number(minor) < 57 ? "v2beta1" : "v2";
}
