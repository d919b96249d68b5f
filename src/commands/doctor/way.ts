/** The way to Key4C: its name, the proxy, the connection, the certificates. */
import { X509Certificate } from "node:crypto";
import { lookup } from "node:dns/promises";
import { isIP, connect as netConnect, type Socket } from "node:net";
import { type TLSSocket, connect as tlsConnect } from "node:tls";
import type { Config } from "../../config/config.ts";
import { connectFault } from "../../key4c/connect-error.ts";
import { errorCode } from "../../system/files.ts";
import { type Check, fail, pass, skip, warn } from "./check.ts";
import { proxyOf } from "./proxy.ts";

/** Long enough for a resolver or a handshake, short enough for a person who waits. */
const CONNECT_TIMEOUT_MS = 5_000;
/** How long before its end a certificate is worth a warning; the alert Key4cKmsCertificateExpires has the same. */
export const CERTIFICATE_WARNING_DAYS = 14;
const DAY_MS = 86_400_000;
/** Beside twice what the handshake took: how long an alert may take that follows it. */
const ALERT_TIMEOUT_MS = 100;
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

async function checkConnection(url: URL, proxy: URL | undefined, config: Config): Promise<Check> {
  const startMs = performance.now();
  const target = `${hostOf(url)}:${portOf(url)}`;
  const through = proxy === undefined ? "" : ` through the proxy ${proxy.host}`;
  let socket: Socket | undefined;
  try {
    socket = await connectTo(proxy ?? url);
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
    const ms = performance.now() - startMs;
    await withoutAlert(tls, 2 * ms + ALERT_TIMEOUT_MS);
    return certificateCheck(tls, through, ms);
  } catch (error) {
    if (error instanceof ProxyRefusal) {
      return fail("connection", `${target}${through}: ${error.message}`, error.remedy);
    }
    const { cause, remedy } = connectFault(error, config.clientCertificate?.current.cert);
    return fail("connection", `${target}${through}: ${cause}`, remedy);
  } finally {
    socket?.destroy();
  }
}

/** By every address that the name has, as serve does. @throws the error of the last one */
async function connectTo(url: URL): Promise<Socket> {
  let failure: unknown;
  for (const host of await addressesOf(hostOf(url))) {
    try {
      return await settled(netConnect({ host, port: portOf(url) }), "connect");
    } catch (error) {
      failure = error;
    }
  }
  throw failure;
}

async function addressesOf(host: string): Promise<string[]> {
  return host === "localhost"
    ? ["127.0.0.1", "::1"] // to Bun's fetch, whatever /etc/hosts says (RFC 6761 §6.3)
    : (await lookup(host, { all: true })).map(({ address }) => address);
}

/** With TLS 1.3 a server judges the client's certificate after the handshake. @throws its alert */
function withoutAlert(socket: TLSSocket, ms: number): Promise<void> {
  return new Promise((resolve, reject) => {
    socket.once("error", reject);
    setTimeout(resolve, ms);
  });
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
    socket.setTimeout(CONNECT_TIMEOUT_MS, () =>
      failed(new DOMException("no answer in time", "TimeoutError")),
    );
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
    socket.once("timeout", () =>
      reject(new DOMException("no answer from the proxy in time", "TimeoutError")),
    );
  });
  socket.removeAllListeners("data");
  const status = /^HTTP\/1\.[01] (\d{3})/.exec(answer)?.[1];
  if (status === "407") {
    throw new ProxyRefusal(
      user === "" ? "the proxy requires credentials" : "the proxy refuses its credentials",
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
