import {
  createCipheriv,
  createDecipheriv,
  createHash,
  randomBytes,
  timingSafeEqual,
} from "node:crypto";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { PluginError } from "../failures/plugin-error.ts";
import { EnvelopeSchema } from "../gen/key4c/envelope/v1/envelope_pb.ts";
import { oncePer } from "../system/once-per.ts";
import { bytesField, hasMoreFields, joined } from "../system/protobuf.ts";
import { KCV_HASH_BYTES, KEY_NAME_HASH_BYTES, type KeyIdentity } from "./key-id.ts";
import { LOCAL_KEK_BYTES, MAX_WRAPPED_KEK_BYTES } from "./wrapping.ts";

/** "k4c" and the number of the format. An unknown one is refused, never guessed. */
const MAGIC = Buffer.from([0x6b, 0x34, 0x63, 0x01]);

/** The only IV length that GCM uses as it is (NIST SP 800-38D §8.2). */
const IV_BYTES = 12;
/** The full tag (NIST SP 800-38D §5.2.1.2). */
const TAG_BYTES = 16;

/** A DEK has 32 bytes and a v1 health check 4; anything far above is not what this is for. */
export const MAX_PLAINTEXT_BYTES = 512;

/** Which local KEK wrapped a DEK, and how to get it back from Key4C. */
export interface KekHeader extends KeyIdentity {
  /** Whether Key4C was given associated data with the local KEK. */
  readonly aadSent: boolean;
  /** Key4C's own string. */
  readonly wrappedLocalKek: string;
  /** SHA-256 of `wrappedLocalKek`: names the local KEK in AAD and cache. */
  readonly fingerprint: Uint8Array;
}

/** A wrapped DEK in its parts. */
export interface Envelope {
  readonly header: KekHeader;
  readonly iv: Uint8Array;
  /** Encrypted DEK || tag. */
  readonly ciphertext: Uint8Array;
}

/** A header with its fingerprint. */
export function kekHeader(fields: Omit<KekHeader, "fingerprint">): KekHeader {
  return {
    ...fields,
    fingerprint: createHash("sha256").update(fields.wrappedLocalKek, "utf8").digest(),
  };
}

/**
 * A local KEK: 32 bytes in memory. It is used in one synchronous step after it is taken, and one that
 * was dropped throws instead of working on: Bun encrypts under a zeroed key without complaint.
 */
export class LocalKek {
  /** How many DEKs it has wrapped in this process. */
  uses = 0;
  /** How many it may have wrapped in earlier ones. */
  usesBefore = 0;
  /** Whether Key4C gave it back twice, or it has opened anything: until then it may be a wrong answer. */
  isProven = false;
  readonly #bytes: Buffer;
  #dropped = false;

  /** Takes ownership of `bytes`. */
  constructor(bytes: Buffer) {
    if (bytes.length !== LOCAL_KEK_BYTES) {
      throw new PluginError("internal", `"bytes" expected ${LOCAL_KEK_BYTES}, got ${bytes.length}`);
    }
    this.#bytes = bytes;
  }

  /** AES-256-GCM with a fresh random IV. */
  seal(header: KekHeader, plaintext: Uint8Array): Envelope {
    // Each by itself: a machine cloned with its memory would take the next one of a pool twice.
    const iv = randomBytes(IV_BYTES);
    const cipher = createCipheriv("aes-256-gcm", this.#live(), iv).setAAD(associatedData(header));
    this.uses += 1;
    const ciphertext = Buffer.concat([
      cipher.update(plaintext),
      cipher.final(),
      cipher.getAuthTag(),
    ]);
    return { header, iv, ciphertext };
  }

  /** The DEK, or an error that says nothing about why it does not open. */
  open({ header, iv, ciphertext }: Envelope): Buffer {
    const decipher = createDecipheriv("aes-256-gcm", this.#live(), iv, {
      authTagLength: TAG_BYTES,
    });
    const tagAt = ciphertext.length - TAG_BYTES;
    decipher.setAAD(associatedData(header)).setAuthTag(ciphertext.subarray(tagAt));
    const plaintext = decipher.update(ciphertext.subarray(0, tagAt));
    try {
      decipher.final();
    } catch {
      plaintext.fill(0);
      throw new PluginError("invalid", "the ciphertext does not authenticate");
    }
    this.isProven = true;
    return plaintext;
  }

  /** Compares in constant time. */
  equals(bytes: Uint8Array): boolean {
    return timingSafeEqual(this.#live(), bytes);
  }

  /** A copy for the persistent cache, and for nobody else; who takes it wipes it. */
  copyBytes(): Buffer {
    return Buffer.from(this.#live());
  }

  get isDropped(): boolean {
    return this.#dropped;
  }

  /** Wipes the key, as far as a garbage-collected runtime allows. */
  drop(): void {
    this.#dropped = true;
    this.#bytes.fill(0);
  }

  #live(): Buffer {
    if (this.#dropped) {
      throw new PluginError("internal", "use of a local KEK that was dropped");
    }
    return this.#bytes;
  }
}

/**
 * AAD of a DEK: `magic (4) || keyNameHash (16) || keyVersion (4, big-endian) || aadSent (1) ||
 * SHA-256(wrappedLocalKek) (32) || kcvHash (0 or 5)`, so that no part can be exchanged with another ciphertext's.
 */
const associatedData = oncePer((header: KekHeader): Buffer => {
  const { kcvHash } = header;
  const aad = Buffer.allocUnsafe(MAGIC.length + KEY_NAME_HASH_BYTES + 4 + 1 + 32 + kcvHash.length);
  let at = MAGIC.copy(aad);
  aad.set(header.keyNameHash, at);
  at = aad.writeUInt32BE(header.keyVersion, at + KEY_NAME_HASH_BYTES);
  at = aad.writeUInt8(header.aadSent ? 1 : 0, at);
  aad.set(header.fingerprint, at);
  aad.set(kcvHash, at + 32);
  return aad;
});

/** What is the same in all envelopes of a local KEK: what stands before the IV, and behind the ciphertext. */
interface Frame {
  readonly before: Buffer;
  readonly behind: Buffer;
}

const frameWithWrappedKek = oncePer((header: KekHeader) => frame(header, header.wrappedLocalKek));
const frameWithout = oncePer((header: KekHeader) => frame(header, ""));

function frame({ keyNameHash, keyVersion, kcvHash, aadSent }: KekHeader, wrapped: string): Frame {
  const before = { keyNameHash, keyVersion, aadSent, wrappedLocalKek: wrapped };
  return {
    before: joined(MAGIC, toBinary(EnvelopeSchema, create(EnvelopeSchema, before))),
    behind: joined(toBinary(EnvelopeSchema, create(EnvelopeSchema, { kcvHash }))),
  };
}

/**
 * The stored bytes: `magic || protobuf`, whose fields stand in the order of their numbers.
 * @param wrappedKekInside whether they carry the wrapped local KEK (KMS v1) or an annotation does (v2)
 */
export function encodeEnvelope(
  { header, iv, ciphertext }: Envelope,
  wrappedKekInside: boolean,
): Buffer {
  const { before, behind } = wrappedKekInside ? frameWithWrappedKek(header) : frameWithout(header);
  const { field } = EnvelopeSchema;
  return joined(
    before,
    ...bytesField(field.iv.number, iv),
    ...bytesField(field.ciphertext.number, ciphertext),
    behind,
  );
}

/**
 * The reverse of {@link encodeEnvelope}. Exactly one encoding of an envelope is accepted: protobuf
 * would also read appended, repeated and reordered fields.
 * @param wrappedLocalKek what the annotation held (KMS v2); undefined when it is inside (v1)
 * @throws PluginError `invalid`, for every input that {@link encodeEnvelope} cannot have made
 */
export function decodeEnvelope(bytes: Uint8Array, wrappedLocalKek?: string): Envelope {
  for (const header of lastRead) {
    const envelope = decodeUnder(header, bytes, wrappedLocalKek);
    if (envelope !== undefined) {
      return envelope;
    }
  }
  const envelope = decodeAny(bytes, wrappedLocalKek);
  lastRead.unshift(envelope.header);
  lastRead.length = Math.min(lastRead.length, LAST_READ);
  return envelope;
}

/** The headers of the envelopes that were read last, newest first: mostly the next one has one of them. */
const lastRead: KekHeader[] = [];
const LAST_READ = 8;

/** The one envelope with this header that is encoded to these bytes, if there is one. */
function decodeUnder(
  header: KekHeader,
  bytes: Uint8Array,
  wrappedLocalKek: string | undefined,
): Envelope | undefined {
  if (wrappedLocalKek !== undefined && wrappedLocalKek !== header.wrappedLocalKek) {
    return undefined;
  }
  const isInside = wrappedLocalKek === undefined;
  const { before, behind } = isInside ? frameWithWrappedKek(header) : frameWithout(header);
  if (bytes.length < before.length || before.compare(bytes, 0, before.length) !== 0) {
    return undefined;
  }
  const ivAt = before.length + 2;
  const end = bytes.length - behind.length;
  const restLength = end - ivAt - IV_BYTES; // of the field with the ciphertext, whose length is one byte or two
  const length = restLength - (restLength < 2 + 128 ? 2 : 3);
  if (length < TAG_BYTES || length > MAX_PLAINTEXT_BYTES + TAG_BYTES) {
    return undefined;
  }
  const iv = bytes.subarray(ivAt, ivAt + IV_BYTES);
  const envelope = { header, iv, ciphertext: bytes.subarray(end - length, end) };
  return encodeEnvelope(envelope, isInside).equals(bytes) ? envelope : undefined;
}

function decodeAny(bytes: Uint8Array, wrappedLocalKek: string | undefined): Envelope {
  const refused = (why: string) => new PluginError("invalid", `malformed ciphertext: ${why}`);
  if (Buffer.compare(bytes.subarray(0, MAGIC.length), MAGIC) !== 0) {
    throw refused("unknown format");
  }
  const body = bytes.subarray(MAGIC.length);
  if (hasMoreFields(body, EnvelopeSchema.fields.length)) {
    throw refused("more fields than it has");
  }
  let message: ReturnType<typeof fromBinary<typeof EnvelopeSchema>>;
  try {
    message = fromBinary(EnvelopeSchema, body);
  } catch {
    throw refused("not an envelope");
  }
  if (
    Buffer.compare(toBinary(EnvelopeSchema, message, { writeUnknownFields: false }), body) !== 0
  ) {
    throw refused("not in its one encoding");
  }
  const { keyNameHash, keyVersion, kcvHash, aadSent, iv, ciphertext } = message;
  if (keyNameHash.length !== KEY_NAME_HASH_BYTES) {
    throw refused("length of the key name hash");
  }
  if (kcvHash.length !== 0 && kcvHash.length !== KCV_HASH_BYTES) {
    throw refused("length of the hash of the key check value");
  }
  if (iv.length !== IV_BYTES) {
    throw refused("length of the IV");
  }
  if (ciphertext.length < TAG_BYTES || ciphertext.length > MAX_PLAINTEXT_BYTES + TAG_BYTES) {
    throw refused("length of the ciphertext");
  }
  if ((message.wrappedLocalKek === "") !== (wrappedLocalKek !== undefined)) {
    throw refused("the wrapped local KEK is not where this API keeps it");
  }
  const wrapped = wrappedLocalKek ?? message.wrappedLocalKek;
  if (wrapped === "" || Buffer.byteLength(wrapped) > MAX_WRAPPED_KEK_BYTES) {
    throw refused("length of the wrapped local KEK");
  }
  // Copies: a header may be kept for long, and would keep the whole message.
  const hashes = { keyNameHash: Buffer.from(keyNameHash), kcvHash: Buffer.from(kcvHash) };
  return {
    header: kekHeader({ ...hashes, keyVersion, aadSent, wrappedLocalKek: wrapped }),
    iv,
    ciphertext,
  };
}
