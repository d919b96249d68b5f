/**
 * Why Key4C was not reached, and what to do: one table for the log of serve, the doctor and its --profile-check. The codes
 * are those of Bun's fetch and of node:tls. fetch calls every alert of a handshake EPROTO; node:tls names it.
 */
import { X509Certificate } from "node:crypto";
import { DO_NOT_RESTART } from "../failures/kinds.ts";
import { PluginError } from "../failures/plugin-error.ts";
import { errorCode } from "../system/files.ts";

export interface ConnectFault {
  /** With its code. */
  readonly cause: string;
  readonly remedy: string;
}

type Words = readonly [cause: string, remedy: string];

const NO_NAME: Words = [
  "its name does not resolve",
  "correct KEY4C_URL, or /etc/resolv.conf and /etc/hosts of this machine",
];
const NO_ROUTE: Words = [
  "no way leads to it",
  "check KEY4C_URL, routes, firewalls and HTTPS_PROXY of this machine",
];
const LATE: Words = [
  "no answer in time",
  "check firewalls and HTTPS_PROXY, and whether Key4C is overloaded",
];
const UNKNOWN_CA: Words = [
  "its certificate is of a CA that is not trusted here",
  "set KEY4C_CA_FILE to a file with the CA that issued the certificate",
];
const HANDSHAKE: Words = [
  "the TLS handshake failed",
  "let `key4c-kms-plugin doctor` name the alert; compare TLS versions, cipher suites, curves and certificates of the server with REFERENCE.md (TLS); or Key4C wants another client certificate (KEY4C_CERT_FILE)",
];
const NO_COMMON_VERSION: Words = [
  "it speaks no TLS version that this plugin does",
  "let the server speak TLS 1.2 or 1.3",
];
const NO_TLS: Words = ["it does not speak TLS", "correct host and port of KEY4C_URL"];
const CLIENT_REFUSED: Words = [
  "it refuses the client certificate",
  "have a client certificate issued by a CA that Key4C trusts; KEY4C_CERT_FILE and KEY4C_CERT_KEY_FILE are read again",
];
const CLIENT_EXPIRED: Words = [
  "the client certificate has expired",
  "have it renewed; KEY4C_CERT_FILE and KEY4C_CERT_KEY_FILE are read again",
];

const WORDS: Readonly<Record<string, Words>> = {
  ECONNREFUSED: [
    "nobody listens there",
    "check KEY4C_URL (host and port) and HTTPS_PROXY, and whether Key4C runs",
  ],
  ENOTFOUND: NO_NAME,
  EAI_AGAIN: NO_NAME,
  EHOSTUNREACH: NO_ROUTE,
  ENETUNREACH: NO_ROUTE,
  ETIMEDOUT: LATE,
  TimeoutError: LATE,
  ECONNRESET: [
    "the connection was closed",
    "a firewall, a proxy or the service closes it: check all three, and that https is spoken there",
  ],
  FailedToOpenSocket: [
    "the files of TLS cannot be used",
    "check KEY4C_CA_FILE, KEY4C_CERT_FILE and KEY4C_CERT_KEY_FILE",
  ],
  // Its certificate, as this machine judges it.
  CERT_HAS_EXPIRED: [
    "its certificate has expired, by the clock of this machine",
    "have the certificate of Key4C renewed; where other nodes accept it, correct the clock of this machine (timedatectl)",
  ],
  CERT_NOT_YET_VALID: [
    "its certificate is not valid yet, by the clock of this machine",
    "correct the clock of this machine (timedatectl)",
  ],
  ERR_TLS_CERT_ALTNAME_INVALID: [
    "its certificate is for another name",
    "let KEY4C_URL name a host that the certificate names",
  ],
  DEPTH_ZERO_SELF_SIGNED_CERT: UNKNOWN_CA,
  SELF_SIGNED_CERT_IN_CHAIN: UNKNOWN_CA,
  UNABLE_TO_GET_ISSUER_CERT: UNKNOWN_CA,
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: UNKNOWN_CA,
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: UNKNOWN_CA,
  CERT_UNTRUSTED: UNKNOWN_CA,
  CERT_SIGNATURE_FAILURE: [
    "a signature of its certificates cannot be verified",
    "set KEY4C_CA_FILE to the very CA that issued it; or have it signed with ECDSA, Ed25519, or RSA with SHA-2 (RSASSA-PSS only with a salt as long as the hash)",
  ],
  // Alerts (RFC 8446 §6.2): what the server says.
  EPROTO: HANDSHAKE,
  HANDSHAKE_FAILURE: HANDSHAKE,
  ILLEGAL_PARAMETER: HANDSHAKE,
  PROTOCOL_VERSION: NO_COMMON_VERSION,
  UNSUPPORTED_PROTOCOL: NO_COMMON_VERSION,
  WRONG_VERSION_NUMBER: NO_TLS,
  HTTP_REQUEST: NO_TLS,
  UNRECOGNIZED_NAME: [
    "it serves no host of that name",
    "let KEY4C_URL name the host as the server knows it",
  ],
  CERTIFICATE_REQUIRED: [
    "it requires a client certificate",
    "set KEY4C_CERT_FILE and KEY4C_CERT_KEY_FILE",
  ],
  UNKNOWN_CA: CLIENT_REFUSED,
  BAD_CERTIFICATE: CLIENT_REFUSED,
  CERTIFICATE_UNKNOWN: CLIENT_REFUSED,
  CERTIFICATE_REVOKED: CLIENT_REFUSED,
  UNSUPPORTED_CERTIFICATE: CLIENT_REFUSED,
  ACCESS_DENIED: CLIENT_REFUSED,
  CERTIFICATE_EXPIRED: CLIENT_EXPIRED,
};

/** @param clientCertificate in PEM form, if one was presented */
export function connectFault(error: unknown, clientCertificate?: string): ConnectFault {
  const code = errorCode(error);
  const alert = code.replace(/^ERR_SSL_((SSLV3|TLSV1|TLSV13)_)?(ALERT_)?/, "");
  const isExpired = WORDS[alert] === HANDSHAKE && hasExpired(clientCertificate);
  const [cause, remedy] = isExpired ? CLIENT_EXPIRED : (WORDS[alert] ?? otherWords(code));
  return { cause: `${cause} (${code})`, remedy };
}

function otherWords(code: string): Words {
  return /CERT|SIGN|ISSUER|CHAIN|VERIFY/.test(code)
    ? ["its certificate is not accepted", "have it issued again, and set KEY4C_CA_FILE to its CA"]
    : ["the connection failed", "check KEY4C_URL, routes, firewalls, HTTPS_PROXY"];
}

function hasExpired(pem: string | undefined): boolean {
  return pem !== undefined && Date.parse(new X509Certificate(pem).validTo) < Date.now();
}

/** @param operation what was not done */
export function notReached(
  operation: string,
  error: unknown,
  clientCertificate: string | undefined,
): PluginError {
  const { cause, remedy } = connectFault(error, clientCertificate);
  return new PluginError("unavailable", `${operation} did not reach Key4C: ${cause}`, {
    remedy: `${remedy}; ${DO_NOT_RESTART}`,
  });
}
