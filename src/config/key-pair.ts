/** A certificate and its private key, in two files that are renewed one after the other. */
import { createPrivateKey, X509Certificate } from "node:crypto";
import { Fault, type ReloadedFile } from "../system/files.ts";

/** PEM texts. */
interface Pair {
  readonly cert: string;
  readonly key: string;
}

/** Two files that are read again. Only what fits together is used: until then the pair before stays in use. */
export class KeyPair {
  readonly fault = new Fault();
  readonly #certificate: ReloadedFile<string>;
  readonly #key: ReloadedFile<string>;
  #used: Pair;

  /** @throws Error with a sentence for the user, when they do not fit together now */
  constructor(certificate: ReloadedFile<string>, key: ReloadedFile<string>) {
    this.#certificate = certificate;
    this.#key = key;
    this.#used = { cert: certificate.current, key: key.current };
    const why = whyNot(this.#used, key.path);
    if (why !== undefined) {
      throw new Error(why);
    }
  }

  /** The newest pair that fits together. */
  get current(): Pair {
    const pair = { cert: this.#certificate.current, key: this.#key.current };
    const isNewCert = pair.cert !== this.#used.cert;
    const isNewKey = pair.key !== this.#used.key;
    if (isNewCert || isNewKey) {
      const why = whyNot(pair, this.#key.path);
      if (why === undefined) {
        this.#used = pair;
      }
      const [newer, awaited] = [this.#certificate.path, this.#key.path];
      const waiting = isNewCert ? `${newer} waits for ${awaited}` : `${awaited} waits for ${newer}`;
      this.fault.set(why && (isNewCert && isNewKey ? why : `${waiting}: ${why}`));
    } else {
      this.fault.set(undefined);
    }
    return this.#used;
  }
}

function whyNot({ cert, key }: Pair, keyPath: string): string | undefined {
  try {
    return new X509Certificate(cert).checkPrivateKey(createPrivateKey(key))
      ? undefined
      : `${keyPath} is not the key of that certificate`;
  } catch {
    return `${keyPath} cannot be read: is it encrypted?`;
  }
}
