/**
 * Four services as small servers. Three answer as their documentation shows: Vault's transit engine, NHN Cloud's
 * Secure Key Manager (API v1.3) and MinIO KES. The fourth is the one of the example in PROFILES.md: what HTTP APIs
 * before HSMs do. Their profiles are in src/commands/manifest/profiles.
 */
import { createCipheriv, createDecipheriv, createHash, randomBytes } from "node:crypto";

export const API_KEY = "s.service-token";
export const PIN = "pin-of-the-hsm-04711";

/** AES-256-GCM over a text, one key for each version. */
export class ServiceKey {
  readonly versions: Buffer[];
  /** In which the service answers for it. */
  condition: "ok" | "throttled" | "disabled" | "deleted" = "ok";
  /** The credential that the service accepts. */
  apiKey = API_KEY;

  constructor(versions = [randomBytes(32)]) {
    this.versions = versions;
  }

  seal(plaintext: string, aad: string): string {
    const iv = randomBytes(12);
    const cipher = createCipheriv("aes-256-gcm", this.#key(this.versions.length), iv);
    cipher.setAAD(Buffer.from(aad));
    const sealed = [cipher.update(plaintext, "utf8"), cipher.final(), cipher.getAuthTag()];
    return Buffer.concat([iv, ...sealed]).toString("base64");
  }

  open(ciphertext: string, aad: string, version: number): string {
    const bytes = Buffer.from(ciphertext, "base64");
    const decipher = createDecipheriv("aes-256-gcm", this.#key(version), bytes.subarray(0, 12));
    decipher.setAAD(Buffer.from(aad)).setAuthTag(bytes.subarray(-16));
    const opened = [decipher.update(bytes.subarray(12, -16)), decipher.final()];
    return Buffer.concat(opened).toString("utf8");
  }

  #key(version: number): Buffer {
    return this.versions[version - 1] ?? Buffer.alloc(0);
  }
}

export type Service = (key: ServiceKey) => (request: Request, body: string) => Response;

/** https://developer.hashicorp.com/vault/api-docs/secret/transit */
export const vault: Service = (key) => (request, body) => {
  const { pathname } = new URL(request.url);
  const failed = (status: number, ...errors: string[]) => Response.json({ errors }, { status });
  if (request.headers.get("X-Vault-Token") !== key.apiKey) {
    return failed(403, "permission denied");
  }
  if (key.condition === "throttled") {
    return failed(429, "request path: rate limit quota exceeded");
  }
  const isThere = key.condition !== "deleted";
  if (isThere && pathname === "/v1/transit/keys/demo" && request.method === "GET") {
    return Response.json({ data: { type: "aes256-gcm96", latest_version: key.versions.length } });
  }
  if (request.method === "GET") {
    return failed(404);
  }
  const { plaintext, ciphertext = "", associated_data: aad = "" } = JSON.parse(body);
  if (isThere && pathname === "/v1/transit/encrypt/demo") {
    const sealed = key.seal(plaintext, aad);
    const key_version = key.versions.length;
    return Response.json({ data: { ciphertext: `vault:v${key_version}:${sealed}`, key_version } });
  }
  const [, version, sealed] = /^vault:v(\d+):(.*)$/.exec(ciphertext) ?? [];
  if (!isThere) {
    return failed(400, "encryption key not found");
  }
  try {
    return Response.json({ data: { plaintext: key.open(sealed ?? "", aad, Number(version)) } });
  } catch {
    return failed(400, "cipher: message authentication failed");
  }
};

/** https://docs.nhncloud.com/en/Security/Secure%20Key%20Manager/en/api-guide-v1.3/ */
export const nhn: Service = (key) => (request, body) => {
  const { pathname } = new URL(request.url);
  // This service answers 200 to everything and tells success in the header of the body. The number
  // of the failure is the test's own; the profile of a user maps those of the service.
  const answer = (content: object | null, resultCode = 0) =>
    Response.json({
      header: { resultCode, resultMessage: "…", isSuccessful: resultCode === 0 },
      body: content,
    });
  if (request.headers.get("X-NHN-Authorization") !== `Bearer ${key.apiKey}`) {
    return answer(null, 401);
  }
  if (key.condition !== "ok") {
    return answer(null, key.condition === "throttled" ? 429 : 404);
  }
  const keyVersion = key.versions.length;
  const { plaintext, ciphertext = "" } = JSON.parse(body);
  if (pathname === "/keymanager/v1.3/appkey/app/symmetric-keys/demo/encrypt") {
    return answer({ ciphertext: `${keyVersion}.${key.seal(plaintext, "")}`, keyVersion });
  }
  const [version, sealed] = ciphertext.split(".");
  try {
    const keyVersion = Number(version);
    return answer({ plaintext: key.open(sealed, "", keyVersion), keyVersion });
  } catch {
    return answer(null, 400);
  }
};

/** https://min.io/docs/kes/concepts/server-api/ */
export const kes: Service = (key) => (request, body) => {
  const { pathname } = new URL(request.url);
  const failed = (status: number, message: string) => Response.json({ message }, { status });
  if (key.apiKey !== API_KEY) {
    return failed(403, "not authorized: insufficient permissions");
  }
  if (key.condition === "throttled") {
    return failed(429, "too many requests");
  }
  if (key.condition === "deleted") {
    return failed(404, "key does not exist");
  }
  if (pathname === "/v1/key/describe/demo") {
    const [bytes = ""] = key.versions;
    const id = createHash("sha256").update(bytes).digest("hex").slice(0, 32); // of the key itself
    return Response.json({ name: "demo", id, created_at: "…", created_by: "…" });
  }
  if (request.method === "GET") {
    return Response.json({ message: "key does not exist" }, { status: 404 });
  }
  const { plaintext, ciphertext, context } = JSON.parse(body);
  if (pathname === "/v1/key/encrypt/demo") {
    return Response.json({ ciphertext: key.seal(plaintext, context) });
  }
  try {
    return Response.json({ plaintext: key.open(ciphertext, context, 1) });
  } catch {
    return Response.json(
      { message: "decryption failed: ciphertext is not authentic" },
      { status: 400 },
    );
  }
};

/** PROFILES.md has the document of it. */
export const hsm: Service = (key) => (request, body) => {
  const [, id = "", operation = ""] =
    /^\/api\/v2\/keys\/([^/]+)\/(\w+)$/.exec(new URL(request.url).pathname) ?? [];
  const failed = (rc: number, text: string) => Response.json({ rc, text });
  const { pin, data = "", blob = "", aad } = JSON.parse(body);
  if (key.condition === "throttled") {
    return failed(99, "busy");
  }
  if (request.headers.get("X-Api-Key") !== key.apiKey || pin !== PIN) {
    return failed(160, "PIN or API key incorrect");
  }
  if (id !== "demo" || key.condition === "deleted") {
    return failed(96, "key handle invalid");
  }
  if (!/^([0-9A-Fa-f]{2})*$/.test(data)) {
    return failed(32, "data is not hex");
  }
  const generation = String(key.versions.length);
  const enabled = key.condition !== "disabled";
  if (!enabled && operation !== "info") {
    return failed(97, "key disabled");
  }
  switch (operation) {
    case "info":
      return Response.json({ rc: 0, key: { alg: "AES-256", generation, enabled } });
    case "encrypt": {
      const sealed = Buffer.from(key.seal(data, aad), "base64").toString("hex");
      return Response.json({ rc: 0, out: { blob: `${generation}.${sealed}`, generation } });
    }
    default:
      try {
        const [version, sealed] = blob.split(".");
        const bytes = Buffer.from(sealed, "hex").toString("base64");
        return Response.json({
          rc: 0,
          out: { data: key.open(bytes, aad, Number(version)).toUpperCase() },
        });
      } catch {
        return failed(64, "encrypted data invalid");
      }
  }
};
