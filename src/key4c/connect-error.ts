/**
 * Why Key4C was not reached, and what to do: one table for the log of serve, the doctor and its --profile-check. The codes
 * are those of Bun's fetch and of node:tls. fetch calls every alert of a handshake EPROTO; node:tls names it.
 */
import { X509Certificate } from "node:crypto";
import { DO_NOT_RESTART } from "../failures/kinds.ts";
import { PluginError } from "../failures/plugin-error.ts";
import { errorCode } from "../system/files.ts";
import table from "./connect-errors.json";

interface ConnectFault {
  readonly cause: string;
  readonly remedy: string;
}

/** By code; those of alerts (RFC 8446 §6.2) without what stands before them. */
const WORDS = new Map(table.flatMap((row) => row.codes.map((code) => [code, row] as const)));

/** The cause has its code with it. @param clientCertificate in PEM form, if one was presented */
export function connectFault(error: unknown, clientCertificate?: string): ConnectFault {
  const code = errorCode(error);
  const alert = code.replace(/^ERR_SSL_((SSLV3|TLSV1|TLSV13)_)?(ALERT_)?/, "");
  const words = WORDS.get(alert);
  const isExpired = words === WORDS.get("EPROTO") && hasExpired(clientCertificate);
  const { cause, remedy } =
    (isExpired ? WORDS.get("CERTIFICATE_EXPIRED") : words) ?? otherWords(code);
  return { cause: `${cause} (${code})`, remedy };
}

function otherWords(code: string): ConnectFault {
  return /CERT|SIGN|ISSUER|CHAIN|VERIFY/.test(code)
    ? {
        cause: "its certificate is not accepted",
        remedy: "have it issued again, and set KEY4C_CA_FILE to its CA",
      }
    : {
        cause: "the connection failed",
        remedy: "check KEY4C_URL, routes, firewalls, HTTPS_PROXY",
      };
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
