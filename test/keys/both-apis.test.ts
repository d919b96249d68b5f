/** Each check of wrap, unwrap and status holds for KMS v1 and for v2: they have one method each. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import type { ErrorKind } from "../../src/failures/kinds.ts";
import { PluginError } from "../../src/failures/plugin-error.ts";
import { annotationsOf } from "../../src/keys/annotations.ts";
import { encodeEnvelope } from "../../src/keys/envelope.ts";
import type { Wrapped } from "../../src/keys/keyring.ts";
import { kmsV1, kmsV2 } from "../../src/main.ts";
import { TestClock } from "../clock.ts";
import { kindOf } from "../support.ts";
import {
  changing,
  FakeKey4C,
  failUnwraps,
  ready,
  readyParts,
  revoke,
  type TestKeyring,
} from "./fake-key4c.ts";

const DEK = randomBytes(32);
const CALL = { hasLeft: () => false, userAgent: () => "grpc-go/1.72.1", requestId: undefined };

/** Both services over one keyring. Each method tells the kind of its failure, or `ok`. */
function services(ring: TestKeyring) {
  const [v1, v2] = [kmsV1(ring), kmsV2(ring)];
  const kind = (rpc: () => unknown) => kindOf(Promise.resolve().then(rpc));
  const cipherOf = ({ envelope }: Wrapped) => encodeEnvelope(envelope, true);
  return {
    status: () => kind(() => v2.status({ $typeName: "v2.StatusRequest" }, CALL)),
    encrypt: async (plaintext: Buffer = DEK) => [
      await kind(() =>
        v1.encrypt(
          { $typeName: "v1beta1.EncryptRequest", version: "v1beta1", plain: plaintext },
          CALL,
        ),
      ),
      await kind(() => v2.encrypt({ $typeName: "v2.EncryptRequest", uid: "", plaintext }, CALL)),
    ],
    decrypt: async (wrapped: Wrapped) => [
      await kind(() =>
        v1.decrypt(
          { $typeName: "v1beta1.DecryptRequest", version: "v1beta1", cipher: cipherOf(wrapped) },
          CALL,
        ),
      ),
      await kind(() =>
        v2.decrypt(
          {
            $typeName: "v2.DecryptRequest",
            uid: "",
            ciphertext: encodeEnvelope(wrapped.envelope, false),
            keyId: wrapped.keyId,
            annotations: annotationsOf(wrapped.envelope.header),
          },
          CALL,
        ),
      ),
    ],
  };
}

const both = (kind: ErrorKind | "ok") => [kind, kind];

test("all is well", async () => {
  const ring = await ready(new FakeKey4C());
  const { status, encrypt, decrypt } = services(ring);
  expect(await status()).toBe("ok");
  expect(await encrypt()).toEqual(both("ok"));
  expect(await decrypt(await ring.wrap(DEK))).toEqual(both("ok"));
});

test("a key that is not configured any more, although its local KEK is held", async () => {
  const { now, configured } = changing("demo", "old");
  const key4c = new FakeKey4C();
  const old = await (await ready(key4c, { kmsKeyId: "old" })).wrap(DEK);
  const { ring } = await readyParts(key4c, { configured });
  const { decrypt } = services(ring);
  expect(await decrypt(old)).toEqual(both("ok"));
  now.previous = [];
  ring.keys.follow();
  expect(await decrypt(old)).toEqual(both("unknownKey"));
});

test("a key that is revoked", async () => {
  const parts = await readyParts(new FakeKey4C(), { revocationGraceMs: 0 });
  const { status, encrypt, decrypt } = services(parts.ring);
  const wrapped = await parts.ring.wrap(DEK);
  revoke(parts, "demo");
  expect(await status()).toBe("keyUnusable");
  expect(await encrypt()).toEqual(both("keyUnusable"));
  expect(await decrypt(wrapped)).toEqual(both("keyUnusable"));
});

test("an outage longer than KMS_OUTAGE_GRACE", async () => {
  const { ring, key } = await readyParts(new FakeKey4C(), { outageGraceMs: 0 });
  const { status, encrypt, decrypt } = services(ring);
  const wrapped = await ring.wrap(DEK);
  key.record(new PluginError("unavailable", "fake"));
  expect(await status()).toBe("unavailable");
  expect(await encrypt()).toEqual(both("unavailable"));
  expect(await decrypt(wrapped)).toEqual(both("ok"));
});

test("other key material", async () => {
  const clock = new TestClock();
  const { ring, key } = await readyParts(new FakeKey4C(), { clock });
  const { status, encrypt, decrypt } = services(ring);
  const wrapped = await ring.wrap(DEK);
  for (let answers = 0; answers < 3; answers++) {
    key.record(new PluginError("mismatch", "fake"));
    clock.skip(5_000);
  }
  expect(await status()).toBe("mismatch");
  expect(await encrypt()).toEqual(both("mismatch"));
  expect(await decrypt(wrapped)).toEqual(both("ok"));
});

test("Key4C unwraps nothing: what is held is read, what is not is refused at once", async () => {
  const key4c = new FakeKey4C();
  const other = await (await ready(key4c)).wrap(DEK);
  const { ring, key } = await readyParts(key4c);
  const { status, encrypt, decrypt } = services(ring);
  failUnwraps(key, new PluginError("denied", "fake"));
  expect(await status()).toBe("ok");
  expect(await encrypt()).toEqual(both("ok"));
  expect(await decrypt(other)).toEqual(both("denied"));
});

test("a plaintext above 512 bytes", async () => {
  const { encrypt } = services(await ready(new FakeKey4C()));
  expect(await encrypt(randomBytes(512))).toEqual(both("ok"));
  expect(await encrypt(randomBytes(513))).toEqual(both("tooLarge"));
});
