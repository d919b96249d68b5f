/** Certificates of one run, made when they are needed: nothing of it is in the repo. */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { startBinary } from "./support.ts";

/** `openssl req` makes nothing that has expired; `openssl ca` does, and wants a configuration. */
const CA_CONFIG = `[ca]
default_ca = own
[own]
database = DIRECTORY/index.txt
new_certs_dir = DIRECTORY
rand_serial = yes
default_md = sha256
policy = any
copy_extensions = copy
[any]
commonName = supplied
`;

export interface Pki {
  /** The path of NAME.pem or NAME.key; `ca` is the authority. */
  file(name: string): string;
  /** @param days how long it is valid */
  issue(name: string, subjectAltName: string, days?: number): Promise<void>;
  /** One that vouches for itself. */
  issueSelfSigned(name: string, subjectAltName: string): Promise<void>;
  /** One that was valid in the past. */
  issueExpired(name: string, subjectAltName: string): Promise<void>;
}

export function makePki(): Pki {
  const directory = mkdtempSync(join(tmpdir(), "k4c-pki-"));
  process.on("exit", () => rmSync(directory, { recursive: true, force: true }));
  const file = (name: string) => join(directory, name);
  const make = async (name: string, subjectAltName: string, days: number, isSigned = true) => {
    const to = ["-subj", `/CN=${name}`, "-addext", `subjectAltName=${subjectAltName}`];
    const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    const by = !isSigned ? [] : ["-CA", file("ca.pem"), "-CAkey", file("ca.key")];
    await $`openssl req -x509 ${key} -keyout ${file(`${name}.key`)} -out ${file(`${name}.pem`)} -days ${days} ${to} ${by}`.quiet();
  };
  const needCa = async () => {
    if (!existsSync(file("ca.pem"))) {
      await make("ca", "DNS:ca", 30, false);
    }
  };
  return {
    file,
    async issueExpired(name, subjectAltName) {
      await needCa();
      writeFileSync(file("index.txt"), "");
      writeFileSync(file("ca.cnf"), CA_CONFIG.replaceAll("DIRECTORY", directory));
      const to = ["-subj", `/CN=${name}`, "-addext", `subjectAltName=${subjectAltName}`];
      const csr = file(`${name}.csr`);
      await $`openssl req -new -newkey rsa:2048 -nodes -keyout ${file(`${name}.key`)} -out ${csr} ${to}`.quiet();
      const days = ["-startdate", "20200101000000Z", "-enddate", "20200201000000Z"];
      const by = ["-cert", file("ca.pem"), "-keyfile", file("ca.key"), "-config", file("ca.cnf")];
      await $`openssl ca -batch -notext -in ${csr} -out ${file(`${name}.pem`)} ${days} ${by}`.quiet();
    },
    issueSelfSigned: (name, subjectAltName) => make(name, subjectAltName, 30, false),
    async issue(name, subjectAltName, days = 30) {
      await needCa();
      await make(name, subjectAltName, days);
    },
  };
}

/** An emulator of its own process that speaks https; its URL. */
export async function startHttpsEmulator(
  { file }: Pki,
  certificate: string,
  host = "127.0.0.1",
): Promise<string> {
  const files = [
    ...["--tls-cert-file", file(`${certificate}.pem`)],
    ...["--tls-key-file", file(`${certificate}.key`)],
  ];
  const running = startBinary(["emulator", "--listen", `${host}:0`, "--control", ...files]);
  return (await running.until(/export KEY4C_URL=(https:\/\/\S+)/))[1] ?? "";
}
