import { expect } from "bun:test";
import { X509Certificate } from "node:crypto";
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { certificates } from "../../src/config/option-types.ts";
import { expiryOf } from "../../src/health/telemetry.ts";
import { testWith } from "../needs.ts";
import { makePki } from "../pki.ts";
import { temporaryDirectory } from "../support.ts";

testWith("openssl")(
  "the expiry of a file is that of its first certificate to expire, and follows the file",
  async () => {
    const pki = makePki();
    const pem: Record<string, string> = {};
    for (const [name, days] of [
      ["long", 90],
      ["short", 10],
      ["renewed", 30],
    ] as const) {
      await pki.issue(name, "DNS:localhost", days);
      pem[name] = readFileSync(pki.file(`${name}.pem`), "utf8");
    }
    const seconds = (name: string) =>
      Date.parse(new X509Certificate(pem[name] ?? "").validTo) / 1000;
    const path = join(temporaryDirectory(), "certificates.pem");
    const replace = (text: string) => {
      writeFileSync(`${path}.new`, text);
      renameSync(`${path}.new`, path);
    };
    replace(`${pem["long"]}# a comment\n${pem["short"]}`);
    const file = certificates(path);
    const expiry = expiryOf(() => file.current);
    expect(expiry()).toBe(seconds("short"));
    expect(seconds("short") - Date.now() / 1000).toBeWithin(9 * 86_400, 11 * 86_400);
    replace(pem["renewed"] ?? "");
    expect(expiry()).toBe(seconds("renewed"));
    replace("half-written"); // what was read last is what is in use
    expect(expiry()).toBe(seconds("renewed"));
    const broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    replace(`${pem["long"]}${broken}`);
    expect(expiry()).toBe(seconds("long"));
    expect(expiryOf(() => broken)()).toBeUndefined();
  },
);
