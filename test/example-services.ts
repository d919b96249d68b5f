/**
 * Services as their public documents show them, for those profiles whose service does not run here, in each condition
 * that a key and a credential may be in. Requests that differ from the document are refused.
 *
 * - Infisical, read 2026-11-30: https://infisical.com/docs/api-reference/endpoints/kms/keys/get-by-id,
 *   .../kms/encryption/encrypt and .../decrypt, .../universal-auth/login; the names of errors from
 *   https://github.com/Infisical/infisical, backend/src/server/plugins/error-handler.ts and lib/errors/index.ts.
 * - Fortanix DSM, read 2026-11-30: https://github.com/fortanix/sdkms-client-go (EncryptRequest, EncryptResponse: `tag_len`
 *   in bits, IV and tag returned for GCM). Its public API document declares no failure, so only statuses are used here.
 * - Vault, read 2026-11-30: https://developer.hashicorp.com/vault/api-docs/secret/transit and /auth/approle; a real OpenBao
 *   runs in test/e2e.
 */
import { createCipheriv, createDecipheriv, createHash, randomBytes } from "node:crypto";
import { type Service, vault } from "./services.ts";

export const USER_ID = "3f2a8b6c-user-0815";
const TAG_BYTES = 16;

/** Infisical KMS behind a login by Universal Auth. */
export const infisical: Service = (key) => {
  /** The last token, and the credential that it was given for. */
  let granted = { token: "", to: "" };
  const failed = (statusCode: number, error: string) =>
    Response.json({ reqId: "req-1", statusCode, message: "…", error }, { status: statusCode });
  return (request, body) => {
    const { pathname } = new URL(request.url);
    if (key.condition === "throttled") {
      return failed(429, "RateLimitExceeded");
    }
    if (pathname === "/api/v1/auth/universal-auth/login") {
      const { clientId, clientSecret } = JSON.parse(body);
      if (clientId !== USER_ID || clientSecret !== key.apiKey) {
        return failed(401, "UnauthorizedError");
      }
      const accessToken = randomBytes(24).toString("base64url");
      granted = { token: accessToken, to: clientSecret };
      return Response.json({
        accessToken,
        expiresIn: 7200,
        accessTokenMaxTTL: 43200,
        tokenType: "Bearer",
      });
    }
    const token = /^Bearer (.*)$/.exec(request.headers.get("Authorization") ?? "")?.[1] ?? "";
    if (token !== granted.token || granted.to !== key.apiKey) {
      return failed(403, "TokenError");
    }
    if (!pathname.startsWith("/api/v1/kms/keys/demo") || key.condition === "deleted") {
      return failed(404, "NotFound");
    }
    const isDisabled = key.condition === "disabled";
    if (request.method === "GET") {
      const encryptionAlgorithm = "aes-256-gcm";
      const version = key.versions.length;
      return Response.json({ key: { id: "demo", encryptionAlgorithm, isDisabled, version } });
    }
    if (isDisabled) {
      return failed(400, "BadRequest");
    }
    const { plaintext = "", ciphertext = "" } = JSON.parse(body);
    if (pathname.endsWith("/encrypt")) {
      const sealed = Buffer.from(key.seal(plaintext, ""), "base64");
      const blob = Buffer.concat([Buffer.from([key.versions.length]), sealed]);
      return Response.json({ ciphertext: blob.toString("base64") });
    }
    try {
      const blob = Buffer.from(ciphertext, "base64");
      const sealed = blob.subarray(1).toString("base64");
      return Response.json({ plaintext: key.open(sealed, "", blob[0] ?? 0) });
    } catch {
      return failed(500, "InternalServerError");
    }
  };
};

/** Fortanix DSM, with the API key of an app. */
const fortanix =
  (mode: "GCM" | "KWP"): Service =>
  (key) =>
  (request, body) => {
    const failed = (status: number) => new Response("…", { status }); // plain text
    if (key.condition === "throttled") {
      return failed(429);
    }
    if (request.headers.get("Authorization") !== `Basic ${key.apiKey}`) {
      return failed(401);
    }
    const { pathname } = new URL(request.url);
    const [material = Buffer.alloc(0)] = key.versions.slice(-1);
    if (request.method === "GET") {
      if (pathname !== "/crypto/v1/keys/demo" || key.condition === "deleted") {
        return failed(404);
      }
      const state = key.condition === "disabled" ? "Deactivated" : "Active";
      return Response.json({ kid: "demo", obj_type: "AES", state, kcv: kcvOf(material) });
    }
    const {
      key: descriptor,
      alg,
      mode: asked,
      plain,
      cipher,
      iv,
      tag,
      ad,
      tag_len,
    } = JSON.parse(body);
    if (descriptor?.kid !== "demo" || alg !== "AES" || asked !== mode || key.condition !== "ok") {
      return failed(key.condition === "deleted" ? 404 : 400);
    }
    if (pathname === "/crypto/v1/encrypt") {
      const bytes = Buffer.from(plain, "base64");
      if (mode === "KWP") {
        return Response.json({
          kid: "demo",
          cipher: wrapPadded(material, bytes).toString("base64"),
        });
      }
      if (tag_len !== 8 * TAG_BYTES) {
        return failed(400);
      }
      const nonce = randomBytes(12);
      const gcm = createCipheriv("aes-256-gcm", material, nonce).setAAD(Buffer.from(ad, "base64"));
      const sealed = Buffer.concat([gcm.update(bytes), gcm.final()]);
      return Response.json({
        kid: "demo",
        cipher: sealed.toString("base64"),
        iv: nonce.toString("base64"),
        tag: gcm.getAuthTag().toString("base64"),
      });
    }
    const opened = key.versions.flatMap((version) => {
      try {
        if (mode === "KWP") {
          return [unwrapPadded(version, Buffer.from(cipher, "base64"))];
        }
        const gcm = createDecipheriv("aes-256-gcm", version, Buffer.from(iv, "base64"));
        gcm.setAAD(Buffer.from(ad, "base64")).setAuthTag(Buffer.from(tag, "base64"));
        return [Buffer.concat([gcm.update(Buffer.from(cipher, "base64")), gcm.final()])];
      } catch {
        return [];
      }
    });
    return opened[0] === undefined
      ? failed(400)
      : Response.json({ kid: "demo", plain: opened[0].toString("base64") });
  };
export const fortanixGcm = fortanix("GCM");
export const fortanixKwp = fortanix("KWP");

/** Vault's transit behind a login by AppRole. */
export const vaultApprole: Service = (key) => {
  const transit = vault(key);
  let granted = { token: "", to: "" };
  return (request, body) => {
    if (new URL(request.url).pathname === "/v1/auth/approle/login") {
      const { role_id, secret_id } = JSON.parse(body);
      if (role_id !== USER_ID || secret_id !== key.apiKey) {
        return Response.json({ errors: ["invalid role or secret ID"] }, { status: 400 });
      }
      const client_token = `hvs.${randomBytes(24).toString("base64url")}`;
      granted = { token: client_token, to: secret_id };
      return Response.json({ auth: { client_token, lease_duration: 1200, renewable: true } });
    }
    const isValid =
      granted.to === key.apiKey && request.headers.get("X-Vault-Token") === granted.token;
    const headers = new Headers(request.headers);
    headers.set("X-Vault-Token", isValid ? key.apiKey : "none");
    return transit(new Request(request.url, { method: request.method, headers }), body);
  };
};

function kcvOf(material: Buffer): string {
  return createHash("sha256").update(material).digest("hex").slice(0, 6);
}

/** AES key wrap with padding (RFC 5649 §4.1) of whole blocks: 16 bytes or more, and a multiple of 8. */
export function wrapPadded(material: Buffer, bytes: Buffer): Buffer {
  const out = Buffer.concat([Buffer.from("a65959a600000000", "hex"), bytes]);
  out.writeUInt32BE(bytes.length, 4);
  return mixed(material, out, "wrap");
}

/** @throws Error unless it was wrapped under this material */
export function unwrapPadded(material: Buffer, bytes: Buffer): Buffer {
  const out = mixed(material, Buffer.from(bytes), "unwrap");
  if (out.readUInt32BE(0) !== 0xa65959a6 || out.readUInt32BE(4) !== out.length - 8) {
    throw new Error("not wrapped under this key");
  }
  return out.subarray(8);
}

/** The six rounds of RFC 3394 §2.2, in place, or back. */
function mixed(material: Buffer, out: Buffer, direction: "wrap" | "unwrap"): Buffer {
  const blocks = out.length / 8 - 1;
  const steps = Array.from({ length: 6 * blocks }, (_, step) => step + 1);
  const make = direction === "wrap" ? createCipheriv : createDecipheriv;
  for (const step of direction === "wrap" ? steps : steps.reverse()) {
    const at = 8 * (((step - 1) % blocks) + 1);
    const count = Buffer.alloc(8);
    count.writeUInt32BE(step, 4);
    const head = direction === "wrap" ? out.subarray(0, 8) : xor(out.subarray(0, 8), count);
    const aes = make("aes-256-ecb", material, null).setAutoPadding(false);
    const block = aes.update(Buffer.concat([head, out.subarray(at, at + 8)]));
    (direction === "wrap" ? xor(block.subarray(0, 8), count) : block).copy(out, 0, 0, 8);
    block.copy(out, at, 8);
  }
  return out;
}

const xor = (one: Buffer, other: Buffer) =>
  Buffer.from(one.map((byte, index) => byte ^ (other[index] ?? 0)));
