/** A real MinIO KES. It knows its clients by their certificates, and its keys have no versions. */
import { createHash, X509Certificate } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { freePort } from "../ports.ts";
import { allowFile, secret } from "../secrets.ts";
import { type Running, startProcess, temporaryDirectory } from "../support.ts";
import { builtKes } from "./build.ts";
import { makePki, type Pki } from "./pki.ts";
import { eventually } from "./process.ts";

/** Here, not in a test: a first build takes longer than any test may. */
const KES = await builtKes();

export class Kes {
  readonly url: string;
  readonly #pki: Pki;
  readonly #command: [string, ...string[]];
  readonly #keyDirectory: string;
  #process: Running | undefined;

  private constructor(pki: Pki) {
    const address = `127.0.0.1:${freePort()}`;
    const directory = temporaryDirectory();
    this.url = `https://${address}`;
    this.#pki = pki;
    this.#keyDirectory = join(directory, "keys");
    mkdirSync(this.#keyDirectory);
    const config = join(directory, "config.json"); // YAML reads it
    writeFileSync(
      config,
      JSON.stringify({
        address,
        admin: { identity: "disabled" },
        tls: { key: pki.serverKey, cert: pki.serverCert },
        policy: {
          all: {
            allow: ["/v1/status", "/v1/key/*/*"],
            identities: [identityOf(pki.client.cert)],
          },
        },
        keystore: { fs: { path: this.#keyDirectory } },
      }),
    );
    this.#command = [KES, "server", "--config", config];
  }

  /** With one key in it. */
  static async start(keyId: string): Promise<Kes> {
    const pki = await makePki(temporaryDirectory());
    const kes = new Kes(pki);
    await kes.restart();
    await kes.createKey(keyId);
    return kes;
  }

  /** What the plugin needs to be let in. */
  get env(): Record<string, string> {
    return {
      KEY4C_CA_FILE: this.#pki.ca,
      KEY4C_CERT_FILE: this.#pki.clientCertFile,
      KEY4C_CERT_KEY_FILE: this.#pki.clientKeyFile,
    };
  }

  /** The same for a client whom its policy does not name. */
  get strangerEnv(): Record<string, string> {
    return {
      KEY4C_CA_FILE: this.#pki.ca,
      KEY4C_CERT_FILE: this.#pki.strangerCertFile,
      KEY4C_CERT_KEY_FILE: this.#pki.strangerKeyFile,
    };
  }

  async createKey(keyId: string): Promise<void> {
    await this.#call("POST", `key/create/${keyId}`);
    const path = join(this.#keyDirectory, keyId);
    allowFile(path); // its keystore holds keys in the clear
    const { bytes } = JSON.parse(readFileSync(path, "utf8")) as { bytes: string };
    secret("KEK", Buffer.from(bytes, "base64"));
  }

  /** For good. */
  async deleteKey(keyId: string): Promise<void> {
    await this.#call("DELETE", `key/delete/${keyId}`);
  }

  /** Ends the process; its keys stay on disk. */
  async stop(signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
    await this.#process?.stop(signal);
  }

  /** After a stop, on the same address. */
  async restart(): Promise<void> {
    // It verifies its clients by the system's CAs only; the `ca` of its configuration is not for them.
    const running = startProcess(this.#command, { SSL_CERT_FILE: this.#pki.ca });
    this.#process = running;
    await eventually("KES answers", 30_000, () => this.#call("GET", "status"), running.output);
  }

  output(): string {
    return this.#process?.output() ?? "";
  }

  async #call(method: string, path: string): Promise<true> {
    const response = await fetch(`${this.url}/v1/${path}`, {
      method,
      tls: { ca: this.#pki.caText, ...this.#pki.client },
      keepalive: false, // the process is restarted under the same address
    });
    if (!response.ok) {
      throw new Error(`KES ${method} ${path}: ${response.status} ${await response.text()}`);
    }
    return true;
  }
}

/** What KES calls a client: SHA-256 of its public key. */
function identityOf(certificate: string): string {
  const { publicKey } = new X509Certificate(certificate);
  return createHash("sha256")
    .update(publicKey.export({ type: "spki", format: "der" }))
    .digest("hex");
}
