import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import {
  decodeHead,
  decodeStored,
  encodeStored,
  MAX_CACHE_FILE_BYTES,
  type StoredKek,
  type StoredKey,
} from "../../src/cache/form.ts";
import { kekHeader } from "../../src/keys/envelope.ts";
import { keyNameHash, NO_KCV } from "../../src/keys/key-id.ts";

const HASH = keyNameHash("demo");
const BOOT = "b5d0858c-59eb-460d-bc69-4c30f217f718";
const SEALING_KEY = Buffer.alloc(32, 7);
const FORMS = [
  ["clear", undefined],
  ["sealed", SEALING_KEY],
] as const;

function kek(wrappedLocalKek: string, flags: Partial<StoredKek> = {}): StoredKek {
  const fields = { keyNameHash: HASH, keyVersion: 3, kcvHash: NO_KCV, aadSent: true };
  const header = kekHeader({ ...fields, wrappedLocalKek });
  return {
    header,
    bytes: Buffer.alloc(32, wrappedLocalKek),
    isCurrent: false,
    isCanary: false,
    ...flags,
  };
}

const STORED: StoredKey = {
  keyNameHash: HASH,
  confirmed: { wallMs: 1_900_000_000_123, bootId: BOOT, bootMs: 987_654_000 },
  keks: [kek("one", { isCurrent: true }), kek("two", { isCanary: true }), kek("three")],
  chargedBlocks: 4,
};

const decode = (bytes: Buffer, sealingKey: Uint8Array | undefined, boot = BOOT) =>
  decodeStored(bytes, HASH, sealingKey, boot);

test.each(FORMS)("%s: what was stored is read", (_, sealingKey) => {
  const kcvHash = Buffer.from("01234");
  const { header } = kek("four");
  const withKcv = { ...kek("four"), header: kekHeader({ ...header, kcvHash, aadSent: false }) };
  const stored = { ...STORED, keks: [...STORED.keks, withKcv] };
  const bytes = encodeStored(stored, sealingKey);
  expect(decode(bytes, sealingKey)).toEqual(stored);
  expect(decodeHead(bytes)).toEqual({
    keyNameHash: HASH,
    confirmed: STORED.confirmed,
    kekCount: 4,
  });
  expect(
    decode(encodeStored({ ...STORED, keks: [], chargedBlocks: 0 }, sealingKey), sealingKey).keks,
  ).toEqual([]);
});

test.each(FORMS)(
  "%s: no byte can be changed, and no part is taken for the whole",
  (_, sealingKey) => {
    const bytes = encodeStored(STORED, sealingKey);
    for (let at = 0; at < bytes.length; at++) {
      const changed = Buffer.from(bytes);
      changed[at] = (changed[at] ?? 0) ^ 1;
      expect(() => decode(changed, sealingKey)).toThrow(/^(is|has) /);
      expect(() => decode(Buffer.from(bytes.subarray(0, at)), sealingKey)).toThrow(/^is /);
    }
    expect(() => decode(Buffer.concat([bytes, Buffer.alloc(1)]), sealingKey)).toThrow("is damaged");
  },
);

test("a sealed file opens under its key alone, and shows nothing of what it keeps", () => {
  const bytes = encodeStored(STORED, SEALING_KEY);
  expect(() => decode(bytes, Buffer.alloc(32, 8))).toThrow(
    "is damaged, or sealed under another key",
  );
  expect(() => decode(bytes, undefined)).toThrow("no KMS_PERSISTENT_CACHE_KEY_FILE");
  expect(decode(bytes, SEALING_KEY, "another boot")).toEqual(STORED);
  for (const { bytes: key, header } of STORED.keks) {
    expect(bytes.includes(key)).toBe(false);
    expect(bytes.includes(header.wrappedLocalKek)).toBe(false);
  }
});

test("the same content is sealed under another salt and IV each time", () => {
  const one = encodeStored(STORED, SEALING_KEY);
  const other = encodeStored(STORED, SEALING_KEY);
  const headEnd = 9 + one.readUInt32BE(5);
  expect(one.subarray(0, headEnd)).toEqual(other.subarray(0, headEnd));
  for (let at = headEnd; at + 12 <= one.length; at += 4) {
    expect(other.includes(one.subarray(at, at + 12))).toBe(false);
  }
});

test("where there is a sealing key, what is not sealed is not believed: anybody could have written it", () => {
  expect(() => decode(encodeStored(STORED, undefined), SEALING_KEY)).toThrow("is not sealed");
});

test("what is in the clear ends with its boot, wherever it was copied", () => {
  expect(() => decode(encodeStored(STORED, undefined), undefined, "another")).toThrow(
    "earlier boot",
  );
});

test.each(FORMS)("%s: the file of one key is none of another", (_, sealingKey) => {
  const bytes = encodeStored(STORED, sealingKey);
  expect(() => decodeStored(bytes, keyNameHash("other"), sealingKey, BOOT)).toThrow("another key");
});

test("a form of a later release, and what is no file of ours, is refused", () => {
  const bytes = encodeStored(STORED, undefined);
  bytes.writeUInt8(3, 4);
  expect(() => decode(bytes, undefined)).toThrow(
    "has the form 3, which this release does not know",
  );
  expect(() => decode(randomBytes(500), undefined)).toThrow("is no file of this plugin");
  expect(() => decode(Buffer.alloc(0), undefined)).toThrow("is no file of this plugin");
});

test("what matters least is left out where there is no room", () => {
  const large = Array.from({ length: 1_100 }, (_, at) => kek(`${at}`.padEnd(16_384, "x")));
  const first = kek("first", { isCurrent: true });
  const bytes = encodeStored({ ...STORED, keks: [first, ...large] }, SEALING_KEY);
  expect(bytes.length).toBeLessThanOrEqual(MAX_CACHE_FILE_BYTES);
  const { keks } = decode(bytes, SEALING_KEY);
  expect(keks.length).toBeGreaterThan(1_000);
  expect(keks[0]).toEqual(first);
  expect(keks.at(-1)).toEqual(large[keks.length - 2]);
});

/** Written by release 0.1.0: every later one reads it, or says that it does not know the form. */
test("a file of the first release is read", () => {
  expect(decode(Buffer.from(FIRST_SEALED, "base64"), SEALING_KEY)).toEqual(STORED);
});

const FIRST_SEALED =
  "azRjYwIAAABJChAoQJbot5GpDwCGyUp2Yb3KEAMaMwj78MyGpjcSJGI1ZDA4NThjLTU5ZWItNDYwZC1iYzY5LTRjMzBmMjE3ZjcxOBjwzvnWA/dRhbozxt+VdKL8rYydSsVfahp0u3VvJbxEqq4poRtQCsJmv1ogfDP4DiAEi1AfeeUbcqP5zri/qkUyfsr6xR7bPioVuKvihwcvXvEGNoW3akGWRWal767HNMt98IlFxGzqfyU7FFz849C+DfgssKtBxeeT2hnOhXjp5t891tMCXis3TZ5iq0CO0SzMBRbEVc8yIfD48qHbBaApAW+/CanN5E5t5B2icJoL+Yut5SHmlg4ZFYV6RgKPiExBJKsqzZhVN6GTi8CZzaAG";
