/**
 * The signature over SHA256SUMS: ECDSA or RSA with SHA-256, for `openssl dgst`. Any OpenSSL from 1.0 on checks it, so
 * every Debian and RHEL does as it is. `ssh-keygen -Y` came with OpenSSH 8.1, which RHEL 8 does not have; Ed25519 on
 * OpenSSL's command line came with 3.0.
 */
import { createHash, createPrivateKey, createPublicKey, type KeyObject, sign } from "node:crypto";
import { readFileSync } from "node:fs";

/** NIST SP 800-131A: less is no longer allowed. */
const MIN_RSA_BITS = 2048;

/** @throws Error unless the file holds a private key in PEM that `openssl dgst` can use */
export function signingKey(file: string): KeyObject {
  let pem: string;
  try {
    pem = readFileSync(file, "utf8");
  } catch (error) {
    // Not its name: somebody may have given the key itself.
    throw new Error(
      `the file of --sign-key cannot be read (${(error as NodeJS.ErrnoException).code})`,
    );
  }
  let key: KeyObject;
  try {
    key = createPrivateKey(pem);
  } catch {
    throw new Error(`${file} is no private key in PEM, or one with a passphrase`);
  }
  if (key.asymmetricKeyType !== "ec" && key.asymmetricKeyType !== "rsa") {
    throw new Error(`${file} is a key for ${key.asymmetricKeyType}; EC (P-256) or RSA is needed`);
  }
  const { modulusLength = 0, namedCurve } = key.asymmetricKeyDetails ?? {};
  if (modulusLength < MIN_RSA_BITS && namedCurve !== "prime256v1") {
    throw new Error(
      `${file} must be a key for EC P-256, or for RSA of ${MIN_RSA_BITS} bits or more`,
    );
  }
  return key;
}

/**
 * @returns the bytes that `openssl dgst -sha256 -sign` would write, the public key in PEM, and its fingerprint: SHA-256 of
 * its DER, in hex
 */
export function signed(text: string, key: KeyObject) {
  const publicKey = createPublicKey(key);
  const der = publicKey.export({ type: "spki", format: "der" });
  return {
    bytes: sign("sha256", Buffer.from(text), key),
    publicKey: publicKey.export({ type: "spki", format: "pem" }).toString(),
    fingerprint: createHash("sha256").update(der).digest("hex"),
  };
}
