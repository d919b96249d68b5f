/** Whether Key4C can do its part: name, TLS, credential, key, and a real wrap and unwrap. */
import { lookup } from "node:dns/promises";
import { isIP, connect as netConnect, type Socket } from "node:net";
import { TLSSocket, connect as tlsConnect } from "node:tls";
import { type Config, required } from "../../config/config.ts";
import { Metrics } from "../../health/metrics.ts";
import type { Key4C } from "../../key4c/client.ts";
import { formatKeyId } from "../../keys/key-id.ts";
import { expectedOf, makeLocalKek } from "../../keys/local-kek.ts";
import { describeError, toPluginError } from "../../system/errors.ts";
import { errorCode } from "../../system/files.ts";
import { createLog } from "../../system/log.ts";
import { API_SERVER_TIMEOUT_MS } from "../client.ts";
import { key4cClient } from "../configured.ts";
import { type Check, fail, pass, skip } from "./check.ts";

/** Long for a resolver or a handshake, short for whoever waits for the doctor. */
const CONNECT_TIMEOUT_MS = 5_000;
/** Nobody likes to learn of it on the last day. */
const CERTIFICATE_WARNING_DAYS = 7;
const DAY_MS = 86_400_000;

const KEY4C_CHECKS = ["name", "connection", "credential", "key", "wrap and unwrap"] as const;

/** What client and keyring would log, the checks say in their own words. */
const SILENT = createLog({ level: "error", format: "text", write: () => {} });

/** @param config complete, or these checks are left out */
export async function checkKey4C(config: Config): Promise<Check[]> {
  if (config.key4cUrl === undefined || config.kmsKeyId === undefined || !hasCredential(config)) {
    return KEY4C_CHECKS.map((check) => skip(check, "the configuration is not complete"));
  }
  const url = new URL(config.key4cUrl);
  const key4c = key4cClient(config, undefined, SILENT, new Metrics());
  const way = await checkWay(url, config);
  if (way.some(({ result }) => result === "fail")) {
    const rest = KEY4C_CHECKS.slice(way.length);
    return [...way, ...rest.map((check) => skip(check, "Key4C is not reached"))];
  }
  const key = await checkKey(key4c, config);
  const refused = key.some(({ result }) => result === "fail");
  const wrap = refused
    ? skip("wrap and unwrap", "the key is not usable")
    : await checkWrap(key4c, config.kmsKeyId);
  return [...way, ...key, wrap, ...(refused ? [] : await checkPreviousKeys(key4c, config))];
}

function hasCredential({ kmsUserId, kmsUserIdFile }: Config): boolean {
  return (kmsUserId ?? kmsUserIdFile) !== undefined;
}

async function checkWay(url: URL, config: Config): Promise<Check[]> {
  const proxy = process.env["https_proxy"] || process.env["HTTPS_PROXY"];
  if (url.protocol === "https:" && proxy) {
    const host = URL.canParse(proxy) ? new URL(proxy).host : "one that is not a URL";
    return [
      skip("name", `the proxy ${host} resolves it`),
      skip("connection", `through the proxy ${host}: the next checks show it`),
    ];
  }
  const name = await checkName(url.hostname);
  if (name.result === "fail") {
    return [name];
  }
  return [name, await checkConnection(url, config)];
}

async function checkName(hostname: string): Promise<Check> {
  const host = hostname.replace(/[[\]]/g, "");
  if (isIP(host) !== 0) {
    return skip("name", `${host} is an address`);
  }
  const late = Bun.sleep(CONNECT_TIMEOUT_MS).then(() => {
    throw new Error("no answer of the resolver");
  });
  try {
    const found = await Promise.race([lookup(host, { all: true }), late]);
    return pass("name", `${host} is ${found.map(({ address }) => address).join(", ")}`);
  } catch (error) {
    const cause = errorCode(error);
    return fail(
      "name",
      `${host} does not resolve (${cause})`,
      "correct KEY4C_URL, or /etc/resolv.conf and /etc/hosts of this machine",
    );
  } finally {
    late.catch(() => {});
  }
}

/** What to do about the codes of a failed handshake; any other is a matter of the network. */
const TLS_REMEDIES: Readonly<Record<string, string>> = {
  CERT_HAS_EXPIRED: "have the certificate of Key4C renewed, or correct the clock of this machine",
  CERT_NOT_YET_VALID: "correct the clock of this machine",
  ERR_TLS_CERT_ALTNAME_INVALID: "let KEY4C_URL name a host that the certificate names",
};
const UNKNOWN_CA = "let KEY4C_CA_FILE name a file with the CA that issued the certificate";

async function checkConnection(url: URL, config: Config): Promise<Check> {
  const host = url.hostname.replace(/[[\]]/g, "");
  const port = Number(url.port || (url.protocol === "https:" ? 443 : 80));
  const isTls = url.protocol === "https:";
  const startMs = performance.now();
  const socket: Socket = isTls
    ? tlsConnect({
        host,
        port,
        ...(isIP(host) === 0 && { servername: host }),
        ca: config.caFile?.current,
        cert: config.certFile?.current,
        key: config.certKeyFile?.current,
        rejectUnauthorized: true,
      })
    : netConnect({ host, port });
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once(isTls ? "secureConnect" : "connect", () => resolve());
      socket.once("error", reject);
      socket.setTimeout(CONNECT_TIMEOUT_MS, () => reject(new Error("no answer in time")));
    });
    const ms = (performance.now() - startMs).toFixed(0);
    return socket instanceof TLSSocket
      ? certificateCheck(socket, ms)
      : pass("connection", `plain http on loopback, ${ms} ms`);
  } catch (error) {
    const code = errorCode(error);
    const isCertificate = /CERT|SIGN|ISSUER|CHAIN|VERIFY/.test(code);
    return fail(
      "connection",
      `${host}:${port}: ${code === "Error" ? describeError(error) : code}`,
      TLS_REMEDIES[code] ??
        (isCertificate ? UNKNOWN_CA : "check KEY4C_URL, routes, firewalls, HTTPS_PROXY"),
    );
  } finally {
    socket.destroy();
  }
}

function certificateCheck(socket: TLSSocket, ms: string): Check {
  const until = new Date(socket.getPeerCertificate().valid_to);
  const detail = `${socket.getProtocol() ?? "TLS"}, certificate valid until ${until.toISOString().slice(0, 10)}, ${ms} ms`;
  return until.getTime() - Date.now() < CERTIFICATE_WARNING_DAYS * DAY_MS
    ? fail("connection", detail, "have the certificate of Key4C renewed: it is about to expire")
    : pass("connection", detail);
}

async function checkKey(key4c: Key4C, config: Config): Promise<Check[]> {
  const kmsKeyId = required(config.kmsKeyId);
  if (!key4c.canDescribe) {
    const why = "the profile has no describe: the wrap shows it";
    return [skip("credential", why), skip("key", why)];
  }
  try {
    const { version, algorithm } = await key4c.describe(kmsKeyId);
    const told = `${kmsKeyId}: ${algorithm ?? "algorithm not told"}, version ${version ?? "not told"}`;
    return [
      pass("credential", "accepted"),
      algorithm === undefined || /^AES/i.test(algorithm)
        ? pass("key", told)
        : fail("key", told, "let KMS_KEY_ID name an AES key"),
    ];
  } catch (error) {
    const { kind, message } = toPluginError(error);
    switch (kind) {
      case "denied":
        return [
          fail(
            "credential",
            message,
            "correct KMS_USER_ID (and KMS_API_KEY, if the service wants it)",
          ),
          skip("key", "the credential is refused"),
        ];
      case "keyUnusable":
        return [
          pass("credential", "accepted"),
          fail("key", message, "let KMS_KEY_ID name a key that exists and is enabled"),
        ];
      case "keyNotFound":
        return [
          skip("credential", "no such key, which another tenant's credential may be told, too"),
          fail("key", message, "check KMS_KEY_ID, KMS_USER_ID (another tenant?) and KEY4C_URL"),
        ];
      default:
        return [
          skip("credential", "no answer to judge by"),
          fail(
            "key",
            describeError(error),
            "check KEY4C_URL and KEY4C_PROFILE: is this the service?",
          ),
        ];
    }
  }
}

/** Makes a local KEK in the way of serve, and throws it away. */
async function checkWrap(key4c: Key4C, kmsKeyId: string): Promise<Check> {
  const check = "wrap and unwrap";
  const startMs = performance.now();
  try {
    const expected = expectedOf(kmsKeyId, await key4c.describe(kmsKeyId));
    const { header, localKek } = await makeLocalKek(key4c, kmsKeyId, expected, {});
    localKek.drop();
    const keyId = formatKeyId(header);
    const ms = performance.now() - startMs;
    const detail = `${ms.toFixed(0)} ms for both, of the ${API_SERVER_TIMEOUT_MS} ms that the API server waits; key_id ${keyId}`;
    return ms < API_SERVER_TIMEOUT_MS
      ? pass(check, detail)
      : fail(check, detail, "find out what makes Key4C slow: network, proxy, HSM");
  } catch (error) {
    return fail(
      check,
      describeError(error),
      "see that the key may wrap and unwrap, and that KEY4C_PROFILE fits the service",
    );
  }
}

async function checkPreviousKeys(key4c: Key4C, config: Config): Promise<Check[]> {
  return Promise.all(
    (config.previousKeyIds ?? []).map(async (keyId) => {
      try {
        await key4c.describe(keyId);
        return pass("previous key", keyId);
      } catch (error) {
        const remedy = "enable it, or take it from KMS_PREVIOUS_KEY_IDS when nothing is under it";
        return fail("previous key", `${keyId}: ${describeError(error)}`, remedy);
      }
    }),
  );
}
