/** The way to Key4C: its name, the proxy, the connection, the certificates. */
import { X509Certificate } from "node:crypto";
import { lookup } from "node:dns/promises";
import { isIP, connect as netConnect, type Socket } from "node:net";
import { type TLSSocket, connect as tlsConnect } from "node:tls";
import type { Config } from "../../config/config.ts";
import { describeError } from "../../system/errors.ts";
import { errorCode } from "../../system/files.ts";
import { type Check, fail, pass, skip, warn } from "./check.ts";
import { proxyOf } from "./proxy.ts";

/** Long enough for a resolver or a handshake, short enough for a person who waits. */
const CONNECT_TIMEOUT_MS = 5_000;
/** How long before its end a certificate is worth a warning; the alert Key4cKmsCertificateExpires has the same. */
export const CERTIFICATE_WARNING_DAYS = 14;
const DAY_MS = 86_400_000;
/** A proxy's answer to CONNECT: a line and a few headers. */
const MAX_PROXY_ANSWER_BYTES = 16 * 1024;

/** Checks the name, then the connection, and stops at the first failure. */
export async function checkWay(url: URL, config: Config): Promise<Check[]> {
  const proxy = proxyOf(url, process.env);
  if (proxy === "not a URL") {
    return [fail("name", "the proxy is not a URL", "correct HTTPS_PROXY or ALL_PROXY")];
  }
  if (proxy !== undefined && proxy.protocol !== "http:") {
    const why = `through the proxy ${proxy.protocol}//${proxy.host}: the next checks show it`;
    return [skip("name", why), skip("connection", why)];
  }
  const name = await checkName(proxy ?? url, proxy === undefined ? "KEY4C_URL" : "HTTPS_PROXY");
  return name.result === "fail" ? [name] : [name, await checkConnection(url, proxy, config)];
}

function hostOf(url: URL): string {
  return url.hostname.replace(/[[\]]/g, "");
}

function portOf(url: URL): number {
  return Number(url.port || (url.protocol === "https:" ? 443 : 80));
}

async function checkName(url: URL, option: string): Promise<Check> {
  const host = hostOf(url);
  const who = option === "KEY4C_URL" ? host : `the proxy ${host}`;
  if (isIP(host) !== 0) {
    return skip("name", `${who} is an address`);
  }
  const late = Bun.sleep(CONNECT_TIMEOUT_MS).then(() => {
    throw new Error("no answer from the resolver");
  });
  try {
    const found = await Promise.race([lookup(host, { all: true }), late]);
    return pass("name", `${who} is ${found.map(({ address }) => address).join(", ")}`);
  } catch (error) {
    return fail(
      "name",
      `${who} does not resolve (${errorCode(error)})`,
      `correct ${option}, or /etc/resolv.conf and /etc/hosts of this machine`,
    );
  } finally {
    late.catch(() => {});
  }
}

/** What to do about the codes of a failed handshake. Any other code is a problem of the network. */
const TLS_REMEDIES: Readonly<Record<string, string>> = {
  CERT_HAS_EXPIRED: "have the certificate of Key4C renewed, or correct the clock of this machine",
  CERT_NOT_YET_VALID: "correct the clock of this machine",
  ERR_TLS_CERT_ALTNAME_INVALID: "let KEY4C_URL name a host that the certificate names",
};
const UNKNOWN_CA = "set KEY4C_CA_FILE to a file with the CA that issued the certificate";

async function checkConnection(url: URL, proxy: URL | undefined, config: Config): Promise<Check> {
  const startMs = performance.now();
  const target = `${hostOf(url)}:${portOf(url)}`;
  const through = proxy === undefined ? "" : ` through the proxy ${proxy.host}`;
  let socket: Socket | undefined;
  try {
    socket = await settled(
      netConnect({ host: hostOf(proxy ?? url), port: portOf(proxy ?? url) }),
      "connect",
    );
    if (proxy !== undefined) {
      await openTunnel(socket, target, proxy);
    }
    if (url.protocol === "http:") {
      const ms = (performance.now() - startMs).toFixed(0);
      return pass("connection", `plain http on loopback, ${ms} ms`);
    }
    const tls = tlsConnect({
      socket,
      ...(isIP(hostOf(url)) === 0 && { servername: hostOf(url) }),
      host: hostOf(url),
      ca: config.caFile?.current,
      ...config.clientCertificate?.current,
      rejectUnauthorized: true,
    });
    socket = await settled(tls, "secureConnect");
    return certificateCheck(tls, through, performance.now() - startMs);
  } catch (error) {
    if (error instanceof ProxyRefusal) {
      return fail("connection", `${target}${through}: ${error.message}`, error.remedy);
    }
    const code = errorCode(error);
    const isCertificate = /CERT|SIGN|ISSUER|CHAIN|VERIFY/.test(code);
    return fail(
      "connection",
      `${target}${through}: ${code === "Error" ? describeError(error) : code}`,
      TLS_REMEDIES[code] ??
        (isCertificate ? UNKNOWN_CA : "check KEY4C_URL, routes, firewalls, HTTPS_PROXY"),
    );
  } finally {
    socket?.destroy();
  }
}

/** The socket at its event. @throws the socket's error, or that it was late */
function settled<S extends Socket>(socket: S, event: "connect" | "secureConnect"): Promise<S> {
  return new Promise((resolve, reject) => {
    const failed = (error: Error) => {
      socket.destroy();
      reject(error);
    };
    socket.once(event, () => resolve(socket));
    socket.once("error", failed);
    socket.setTimeout(CONNECT_TIMEOUT_MS, () => failed(new Error("no answer in time")));
  });
}

class ProxyRefusal extends Error {
  readonly remedy: string;

  constructor(message: string, remedy: string) {
    super(message);
    this.remedy = remedy;
  }
}

async function openTunnel(socket: Socket, target: string, proxy: URL): Promise<void> {
  const user = decodeURIComponent(proxy.username);
  const credential = `${user}:${decodeURIComponent(proxy.password)}`;
  const authorization =
    user === ""
      ? ""
      : `Proxy-Authorization: Basic ${Buffer.from(credential).toString("base64")}\r\n`;
  socket.write(`CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n${authorization}\r\n`);
  const answer = await new Promise<string>((resolve, reject) => {
    let text = "";
    socket.on("data", (chunk) => {
      text += chunk.toString("latin1");
      if (text.includes("\r\n\r\n") || text.length > MAX_PROXY_ANSWER_BYTES) {
        resolve(text);
      }
    });
    socket.once("close", () => resolve(text));
    socket.once("error", reject);
    socket.once("timeout", () => reject(new Error("no answer from the proxy in time")));
  });
  socket.removeAllListeners("data");
  const status = /^HTTP\/1\.[01] (\d{3})/.exec(answer)?.[1];
  if (status === "407") {
    throw new ProxyRefusal(
      user === "" ? "the proxy wants credentials" : "the proxy refuses its credentials",
      "set HTTPS_PROXY to http://USER:PASSWORD@HOST:PORT, in a file that only root can read",
    );
  }
  if (status?.startsWith("2") !== true) {
    const told = status === undefined ? "does not speak HTTP" : `answers ${status}`;
    throw new ProxyRefusal(`the proxy ${told}`, "check HTTPS_PROXY, and what the proxy allows");
  }
}

function certificateCheck(socket: TLSSocket, through: string, ms: number): Check {
  const until = new Date(socket.getPeerCertificate().valid_to);
  const detail = `${socket.getProtocol() ?? "TLS"}${through}, certificate valid until ${dateOf(until)}, ${ms.toFixed(0)} ms`;
  return isSoon(until)
    ? warn("connection", detail, "have the certificate of Key4C renewed: it is about to expire")
    : pass("connection", detail);
}

function dateOf(date: Date): string {
  return date.toISOString().slice(0, 10);
}

function isSoon(date: Date): boolean {
  return date.getTime() - Date.now() < CERTIFICATE_WARNING_DAYS * DAY_MS;
}

/** The client certificate, where there is one. */
export function checkClientCertificate({ clientCertificate }: Config): Check[] {
  if (clientCertificate === undefined) {
    return [];
  }
  const check = "client certificate";
  const certificate = new X509Certificate(clientCertificate.current.cert);
  const until = new Date(certificate.validTo);
  const detail = `valid until ${dateOf(until)}`;
  if (until.getTime() < Date.now()) {
    return [fail(check, `it was ${detail}`, "have it renewed")];
  }
  return [isSoon(until) ? warn(check, detail, "have it renewed") : pass(check, detail)];
}
