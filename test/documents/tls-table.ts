/** What the plugin offers a TLS server, as its own ClientHello says (RFC 8446 §4.1.2). */
import { createServer } from "node:net";

const VERSIONS: Readonly<Record<number, string>> = { 771: "TLS 1.2", 772: "TLS 1.3" };
/** By the registries of IANA, with OpenSSL's names where those are what a server's configuration has. */
const SUITES: Readonly<Record<number, string>> = {
  4865: "TLS_AES_128_GCM_SHA256",
  4866: "TLS_AES_256_GCM_SHA384",
  4867: "TLS_CHACHA20_POLY1305_SHA256",
  49195: "ECDHE-ECDSA-AES128-GCM-SHA256",
  49196: "ECDHE-ECDSA-AES256-GCM-SHA384",
  49199: "ECDHE-RSA-AES128-GCM-SHA256",
  49200: "ECDHE-RSA-AES256-GCM-SHA384",
  52392: "ECDHE-RSA-CHACHA20-POLY1305",
  52393: "ECDHE-ECDSA-CHACHA20-POLY1305",
  49161: "ECDHE-ECDSA-AES128-SHA",
  49162: "ECDHE-ECDSA-AES256-SHA",
  49171: "ECDHE-RSA-AES128-SHA",
  49172: "ECDHE-RSA-AES256-SHA",
  156: "AES128-GCM-SHA256",
  157: "AES256-GCM-SHA384",
  47: "AES128-SHA",
  53: "AES256-SHA",
};
const GROUPS: Readonly<Record<number, string>> = {
  4588: "X25519MLKEM768",
  29: "X25519",
  23: "P-256",
  24: "P-384",
  25: "P-521",
};
const SIGNATURES: Readonly<Record<number, string>> = {
  1027: "ECDSA P-256 SHA-256",
  1283: "ECDSA P-384 SHA-384",
  1539: "ECDSA P-521 SHA-512",
  2055: "Ed25519",
  2052: "RSA-PSS SHA-256 (rsaEncryption)",
  2053: "RSA-PSS SHA-384 (rsaEncryption)",
  2054: "RSA-PSS SHA-512 (rsaEncryption)",
  1025: "RSA PKCS#1 SHA-256",
  1281: "RSA PKCS#1 SHA-384",
  1537: "RSA PKCS#1 SHA-512",
  513: "RSA PKCS#1 SHA-1",
};

/** Extensions of a ClientHello. */
const SUPPORTED_GROUPS = 10;
const SIGNATURE_ALGORITHMS = 13;
const SUPPORTED_VERSIONS = 43;

/** A server that closes each connection after its first bytes. @param call makes the connection */
export async function helloOf(call: (url: string) => unknown): Promise<Buffer> {
  const { promise, resolve } = Promise.withResolvers<Buffer>();
  const server = createServer((socket) => {
    socket.on("error", () => {});
    socket.once("data", (bytes) => {
      resolve(Buffer.from(bytes)); // no encoding is set, so it is bytes
      socket.destroy();
    });
  });
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  try {
    call(`https://127.0.0.1:${(server.address() as { port: number }).port}`);
    return await promise;
  } finally {
    server.close();
  }
}

/** A table of what a ClientHello offers, in its order. @throws Error for what has no name here */
export function tlsTable(hello: Buffer): string {
  const RECORD_AND_HANDSHAKE_HEADERS = 5 + 4;
  let at = RECORD_AND_HANDSHAKE_HEADERS + 2 + 32; // version and random
  at += 1 + hello.readUInt8(at); // session
  const suites = numbers(hello.subarray(at + 2, at + 2 + hello.readUInt16BE(at)));
  at += 2 + hello.readUInt16BE(at);
  at += 1 + hello.readUInt8(at); // compression
  const extensions = new Map<number, Buffer>();
  for (at += 2; at + 4 <= hello.length; ) {
    const length = hello.readUInt16BE(at + 2);
    extensions.set(hello.readUInt16BE(at), hello.subarray(at + 4, at + 4 + length));
    at += 4 + length;
  }
  const list = (extension: number, lengthBytes = 2) =>
    numbers((extensions.get(extension) ?? Buffer.alloc(0)).subarray(lengthBytes));
  const rows: readonly (readonly [string, readonly number[], Readonly<Record<number, string>>])[] =
    [
      ["versions", list(SUPPORTED_VERSIONS, 1), VERSIONS],
      ["cipher suites", suites, SUITES],
      ["curves and groups", list(SUPPORTED_GROUPS), GROUPS],
      ["signatures", list(SIGNATURE_ALGORITHMS), SIGNATURES],
    ];
  const lines = rows.map(([name, offered, names]) => {
    const told = offered.map((number) => {
      const text = names[number];
      if (text === undefined) {
        throw new Error(`${name}: 0x${number.toString(16)} has no name in tls-table.ts`);
      }
      return `\`${text}\``;
    });
    return `| ${name} | ${told.join(", ")} |`;
  });
  return ["| TLS | what the plugin offers |", "|---|---|", ...lines].join("\n");
}

function numbers(bytes: Buffer): number[] {
  return Array.from({ length: bytes.length / 2 }, (_, index) => bytes.readUInt16BE(2 * index));
}
