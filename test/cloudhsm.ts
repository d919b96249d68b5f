/**
 * The HSM service of the document in docs/PROFILES.md, made up after what Korean HSM services publish: a login with a PIN
 * that locks, tokens that expire and end each other, a ciphertext of two members, a code in a 200. Its profile is
 * cloudhsm.json.
 */
import { createCipheriv, createDecipheriv, createHash, randomBytes } from "node:crypto";

const MAX_WRONG_PINS = 5;
const TAG_BYTES = 16;

interface CloudHsmOptions {
  readonly uuid: string;
  readonly pin: string;
  readonly apiKey: string;
  /** In milliseconds, from any beginning. */
  readonly nowMs?: () => number;
  readonly tokenSeconds?: number;
  readonly maxTokens?: number;
}

export class CloudHsm {
  readonly #options: Required<CloudHsmOptions>;
  /** By token, when it ends. */
  readonly #tokens = new Map<string, number>();
  readonly #material = new Map([["demo", randomBytes(32)]]);
  readonly state = { demo: "ACTIVE" as "ACTIVE" | "STOP" | "DESTROYED" };
  wrongPins = 0;
  logins = 0;
  /** Each answer's code, by the last word of its path. */
  readonly answered: string[] = [];

  constructor(options: CloudHsmOptions) {
    this.#options = { nowMs: Date.now, tokenSeconds: 1800, maxTokens: 5, ...options };
  }

  /** Ends all tokens. */
  logOut(): void {
    this.#tokens.clear();
  }

  /** Another one ends the tokens of the former. */
  accepts(apiKey: string): void {
    if (apiKey !== this.#options.apiKey) {
      Object.assign(this.#options, { apiKey });
      this.logOut();
    }
  }

  set pin(pin: string) {
    Object.assign(this.#options, { pin });
  }

  readonly answer = (request: Request, body: string): Response => {
    const { pathname } = new URL(request.url);
    const [resultCode, data] = this.#answer(pathname, request, JSON.parse(body));
    this.answered.push(`${pathname.split("/").at(-1)} ${resultCode}`);
    return Response.json({ resultCode, resultMsg: "…", ...(data && { data }) });
  };

  #answer(
    pathname: string,
    request: Request,
    body: Readonly<Record<string, string>>,
  ): readonly [string, object?] {
    if (request.headers.get("Content-Type") !== "application/json; charset=UTF-8") {
      return ["E301"];
    }
    if (pathname === "/api/v1/token") {
      return this.#login(body);
    }
    const token = /^Bearer (.*)$/.exec(request.headers.get("Authorization") ?? "")?.[1] ?? "";
    const endMs = this.#tokens.get(token);
    if (endMs === undefined) {
      return ["E101"];
    }
    if (this.#options.nowMs() >= endMs) {
      return ["E102"];
    }
    return this.#operation(pathname, body);
  }

  #login({ uuid, pin, apiKey }: Readonly<Record<string, string>>): readonly [string, object?] {
    this.logins += 1;
    if (this.wrongPins >= MAX_WRONG_PINS) {
      return ["E104"];
    }
    const { nowMs, tokenSeconds, maxTokens, ...right } = this.#options;
    if (uuid !== right.uuid || pin !== right.pin || apiKey !== right.apiKey) {
      this.wrongPins += 1;
      return ["E103"];
    }
    this.wrongPins = 0;
    const accessToken = randomBytes(24).toString("base64url");
    this.#tokens.set(accessToken, nowMs() + tokenSeconds * 1000);
    for (const oldest of [...this.#tokens.keys()].slice(0, -maxTokens)) {
      this.#tokens.delete(oldest);
    }
    return ["0000", { accessToken, tokenType: "Bearer", expiresIn: tokenSeconds }];
  }

  #operation(
    pathname: string,
    { keyId = "", data = "", iv = "", aad = "", mode, ...rest }: Readonly<Record<string, string>>,
  ): readonly [string, object?] {
    const material = this.#material.get(keyId);
    if (material === undefined) {
      return ["E201"];
    }
    if (pathname === "/api/v1/key/info") {
      const kcv = createHash("sha256").update(material).digest("hex").slice(0, 6).toUpperCase();
      return ["0000", { keyId, algorithm: "AES", length: 256, kcv, status: this.state.demo }];
    }
    if (this.state.demo !== "ACTIVE") {
      return [this.state.demo === "STOP" ? "E202" : "E203"];
    }
    if (mode !== "GCM" || Object.keys(rest).join() !== "algorithm" || !isHex(data + iv + aad)) {
      return ["E301"];
    }
    if (pathname === "/api/v1/crypto/encrypt") {
      const nonce = randomBytes(12);
      const cipher = createCipheriv("aes-256-gcm", material, nonce).setAAD(Buffer.from(aad, "hex"));
      const sealed = [cipher.update(data, "hex"), cipher.final(), cipher.getAuthTag()];
      return ["0000", { cipherText: hex(Buffer.concat(sealed)), iv: hex(nonce) }];
    }
    try {
      const bytes = Buffer.from(data, "hex");
      const decipher = createDecipheriv("aes-256-gcm", material, Buffer.from(iv, "hex"));
      decipher.setAAD(Buffer.from(aad, "hex")).setAuthTag(bytes.subarray(-TAG_BYTES));
      const opened = [decipher.update(bytes.subarray(0, -TAG_BYTES)), decipher.final()];
      return ["0000", { plainText: hex(Buffer.concat(opened)) }];
    } catch {
      return ["E302"];
    }
  }
}

const hex = (bytes: Buffer) => bytes.toString("hex");
const isHex = (text: string) => /^([0-9A-Fa-f]{2})*$/.test(text);
