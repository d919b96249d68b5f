/** A certificate authority for one test, and what it issues. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { run } from "./process.ts";

export interface Pki {
  readonly ca: string;
  /** Of kube-apiserver and of the emulator: localhost and 127.0.0.1. */
  readonly serverCert: string;
  readonly serverKey: string;
  /** Of a user in system:masters; the PEM texts. */
  readonly client: { readonly cert: string; readonly key: string };
  readonly clientCertFile: string;
  readonly clientKeyFile: string;
  /** Of a client of the same CA whom nobody lets in. */
  readonly strangerCertFile: string;
  readonly strangerKeyFile: string;
  /** What kube-apiserver signs service account tokens with. */
  readonly serviceAccountKey: string;
  /** The PEM text of the CA. */
  readonly caText: string;
}

export async function makePki(directory: string): Promise<Pki> {
  const file = (name: string) => join(directory, name);
  const openssl = (...args: string[]) =>
    run(["openssl", ...args], { PATH: process.env["PATH"] ?? "" });
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
  await openssl(
    ...["req", "-x509", ...key, "-days", "2", "-subj", "/CN=e2e CA"],
    ...["-keyout", file("ca.key"), "-out", file("ca.crt")],
  );
  const issue = async (name: string, subject: string, extensions: string) => {
    writeFileSync(file(`${name}.ext`), extensions);
    await openssl(
      ...["req", ...key, "-subj", subject],
      ...["-keyout", file(`${name}.key`), "-out", file(`${name}.csr`)],
    );
    await openssl(
      ...[
        "x509",
        "-req",
        "-in",
        file(`${name}.csr`),
        "-days",
        "2",
        "-extfile",
        file(`${name}.ext`),
      ],
      ...["-CA", file("ca.crt"), "-CAkey", file("ca.key"), "-CAcreateserial"],
      ...["-out", file(`${name}.crt`)],
    );
  };
  await issue(
    "server",
    "/CN=localhost",
    "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n",
  );
  await issue("client", "/O=system:masters/CN=e2e", "extendedKeyUsage=clientAuth\n");
  await issue("stranger", "/CN=stranger", "extendedKeyUsage=clientAuth\n");
  await openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", file("sa.key"));
  return {
    ca: file("ca.crt"),
    serverCert: file("server.crt"),
    serverKey: file("server.key"),
    client: {
      cert: readFileSync(file("client.crt"), "utf8"),
      key: readFileSync(file("client.key"), "utf8"),
    },
    clientCertFile: file("client.crt"),
    clientKeyFile: file("client.key"),
    strangerCertFile: file("stranger.crt"),
    strangerKeyFile: file("stranger.key"),
    serviceAccountKey: file("sa.key"),
    caText: readFileSync(file("ca.crt"), "utf8"),
  };
}
