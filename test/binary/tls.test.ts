/** Transport to Key4C: what the compiled binary trusts and presents. */
import { beforeAll, expect } from "bun:test";
import { X509Certificate } from "node:crypto";
import { copyFileSync, readFileSync, renameSync } from "node:fs";
import { type AddressInfo, connect } from "node:net";
import { join } from "node:path";
import { createServer } from "node:tls";
import { $ } from "bun";
import type { Check } from "../../src/commands/doctor/check.ts";
import { helloOf, tlsTable } from "../documents/tls-table.ts";
import { missing, testWith } from "../needs.ts";
import { makePki, startHttpsEmulator } from "../pki.ts";
import {
  emulator,
  fakeServer,
  onTestEnd,
  runBinary,
  startBinary,
  startPlugin,
  startProcess,
  temporaryDirectory,
  withUntil,
} from "../support.ts";
import { eventually, launchOk, type Told } from "./bent-key4c.ts";

const test = testWith("openssl");
const pki = makePki();
const { file } = pki;

beforeAll(async () => {
  if (missing("openssl").length > 0) {
    return; // this runs even where every test is skipped
  }
  await pki.issue("server", "DNS:localhost,IP:127.0.0.1");
  await pki.issue("elsewhere", "DNS:elsewhere.example");
  await pki.issue("client", "DNS:client");
});

const httpsEmulator = (certificate: string) => startHttpsEmulator(pki, certificate);

test("trusts the CA it is given, and tells when certificates expire", async () => {
  const plugin = await startPlugin(await httpsEmulator("server"), {
    KEY4C_CA_FILE: file("ca.pem"),
    KEY4C_CERT_FILE: file("client.pem"),
    KEY4C_CERT_KEY_FILE: file("client.key"),
    KMS_HTTP_ADDRESS: "127.0.0.1:0",
  });
  const url = (await plugin.until(/"url":"(http:[^"]*)"/))[1];
  const metrics = await (await fetch(`${url}metrics`)).text();
  for (const [option, name] of [
    ["KEY4C_CA_FILE", "ca.pem"],
    ["KEY4C_CERT_FILE", "client.pem"],
  ] as const) {
    const { validTo } = new X509Certificate(readFileSync(file(name)));
    expect(metrics).toContain(
      `\nkey4c_kms_certificate_expiry_timestamp_seconds{option="${option}"} ${Date.parse(validTo) / 1000}\n`,
    );
  }
});

/** What the first failed probe logs. */
async function told(url: string, env: Record<string, string>): Promise<Told> {
  const running = startBinary(["serve"], {
    KMS_ENDPOINT: `unix://${join(temporaryDirectory(), "kms.sock")}`,
    KEY4C_URL: url,
    KMS_KEY_ID: "demo",
    KMS_USER_ID: "u",
    ...env,
  });
  const [line] = await running.until(/\{[^\n]*"state":"starting".*\}/);
  return JSON.parse(line) as Told;
}

const failure = async (url: string, env: Record<string, string>) =>
  (await told(url, env)).cause ?? "";

test.each([
  ["a CA that it does not know", "server", {}],
  ["a certificate for another host", "elsewhere", { KEY4C_CA_FILE: "ca.pem" }],
  ["a certificate of another CA", "server", { KEY4C_CA_FILE: "client.pem" }],
])("refuses %s", async (_, certificate, env) => {
  const url = await httpsEmulator(certificate);
  const files = Object.entries(env).map(([name, value]) => [name, file(value)]);
  expect(await failure(url, Object.fromEntries(files))).toMatch(/CERT|VERIFY|SELF_SIGNED|ALTNAME/i);
});

test("presents its client certificate", async () => {
  const pem = (name: string) => readFileSync(file(name), "utf8");
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    tls: {
      cert: pem("server.pem"),
      key: pem("server.key"),
      ca: pem("ca.pem"),
      requestCert: true,
      rejectUnauthorized: true,
    },
    fetch: () => Response.json({ code: "DENIED" }, { status: 403 }),
  });
  onTestEnd(() => server.stop(true));
  const url = `https://localhost:${server.port}`;
  const ca = { KEY4C_CA_FILE: file("ca.pem") };
  const client = { KEY4C_CERT_FILE: file("client.pem"), KEY4C_CERT_KEY_FILE: file("client.key") };
  expect(await failure(url, { ...ca, ...client })).toContain("HTTP status 403 DENIED");
  expect(await failure(url, ca)).toContain("did not reach Key4C");
});

test("loopback is not proxied, and a redirect is not followed with the credential", async () => {
  const elsewhere = fakeServer(() => Response.json({}));
  const server = fakeServer(() => Response.redirect(`${elsewhere.url}/v1/keys/demo`, 307));
  const env = { HTTP_PROXY: elsewhere.url, http_proxy: elsewhere.url };
  expect(await failure(server.url, env)).toContain("HTTP status 307");
  expect(elsewhere.requests.length).toBe(0);
});

test("a client certificate and a key that do not fit each other are refused at the start, by name", async () => {
  const encrypted = join(temporaryDirectory(), "encrypted.key");
  await $`openssl ec -in ${file("client.key")} -aes256 -passout pass:x -out ${encrypted}`.quiet();
  const names =
    "KEY4C_CERT_FILE (--key4c-cert-file) and KEY4C_CERT_KEY_FILE (--key4c-cert-key-file)";
  for (const [key, why] of [
    [file("server.key"), "is not the key of that certificate"],
    [encrypted, "cannot be read: is it encrypted?"],
  ] as const) {
    const plugin = startBinary(["serve"], {
      KEY4C_URL: "https://127.0.0.1:9",
      KMS_KEY_ID: "demo",
      KMS_USER_ID: "u",
      KEY4C_CERT_FILE: file("client.pem"),
      KEY4C_CERT_KEY_FILE: key,
    });
    expect(await plugin.exited).toBe(2);
    const [first, ...more] = plugin.output().trimEnd().split("\n");
    expect(first).toBe(`key4c-kms-plugin: ${names} do not fit: ${key} ${why}`);
    expect(more).toEqual(["key4c-kms-plugin: see: key4c-kms-plugin help serve"]);
  }
});

test("a renewed client certificate waits for its key, and the pair before stays in use", async () => {
  const directory = temporaryDirectory();
  const seen = new Set<string>();
  const key4c = emulator();
  const server = createServer(
    {
      cert: readFileSync(file("server.pem")),
      key: readFileSync(file("server.key")),
      ca: readFileSync(file("ca.pem")),
      requestCert: true,
      rejectUnauthorized: true,
    },
    (client) => {
      seen.add(`${client.getPeerCertificate().subject.CN}`);
      const behind = connect(Number(new URL(key4c.url).port), "127.0.0.1");
      for (const socket of [client, behind]) {
        socket.on("error", () => {});
      }
      client.pipe(behind).pipe(client);
    },
  );
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestEnd(() => server.close());
  await pki.issue("renewed", "DNS:client");
  const put = (name: string, kind: "pem" | "key") => {
    copyFileSync(file(`${name}.${kind}`), join(directory, "next"));
    renameSync(join(directory, "next"), join(directory, kind));
  };
  put("client", "pem");
  put("client", "key");
  const plugin = await launchOk(`https://localhost:${(server.address() as AddressInfo).port}`, {
    KEY4C_CA_FILE: file("ca.pem"),
    KEY4C_CERT_FILE: join(directory, "pem"),
    KEY4C_CERT_KEY_FILE: join(directory, "key"),
  });
  put("renewed", "pem");
  await plugin.untilLogged(
    /"option":"KEY4C_CERT_FILE and its key","cause":"\S+pem waits for \S+key:/,
  );
  seen.clear();
  await eventually("a probe with the pair before", () => seen.has("client"));
  await Bun.sleep(1_000); // five probes
  expect([await plugin.state(), plugin.statesSinceOk()]).toEqual(["ok", new Set(["ok"])]);
  put("renewed", "key");
  await eventually("the renewed pair", () => seen.has("renewed"));
  await plugin.untilLogged(/a file can be used again/);
  expect(plugin.statesSinceOk()).toEqual(new Set(["ok"]));
});

/** What serve logs, and what the doctor says: each failing check with its detail and remedy in a line. */
async function bothSay(url: string, env: Record<string, string>) {
  const { cause, remedy } = await told(url, env);
  const { stdout } = await runBinary(["doctor", "--json"], {
    env: { KEY4C_URL: url, KMS_KEY_ID: "demo", KMS_USER_ID: "u", KMS_ENDPOINT, ...env },
  });
  const failed = (JSON.parse(stdout.toString()) as Check[]).filter((one) => one.result === "fail");
  return [`${cause} → ${remedy}`, failed.map((one) => `${one.detail} → ${one.remedy}`).join("\n")];
}

const KMS_ENDPOINT = "unix:///nowhere/kms.sock";

/** A server by openssl, which can be told to speak nearly anything. */
async function opensslServer(certificate: string, ...options: string[]): Promise<string> {
  const files = ["-cert", file(`${certificate}.pem`), "-key", file(`${certificate}.key`)];
  const server = withUntil(
    startProcess(["openssl", "s_server", "-www", "-accept", "0", ...files, ...options]),
  );
  const [, port] = await server.until(/ACCEPT [^\n]*:(\d+)/);
  return `https://localhost:${port}`;
}

const HANDSHAKE =
  /the TLS handshake failed \(EPROTO\) → .*doctor.*REFERENCE\.md \(TLS\).*do not restart/;

test("TLS in words: each fault has its own cause and remedy, in the log and from the doctor", async () => {
  const ca = { KEY4C_CA_FILE: file("ca.pem") };
  const client = { KEY4C_CERT_FILE: file("client.pem"), KEY4C_CERT_KEY_FILE: file("client.key") };
  const expired = {
    KEY4C_CERT_FILE: file("expired.pem"),
    KEY4C_CERT_KEY_FILE: file("expired.key"),
  };
  await pki.issueExpired("expired", "DNS:localhost");
  await pki.issueSelfSigned("stranger", "DNS:localhost");
  await $`openssl req -x509 -newkey rsa-pss -pkeyopt rsa_keygen_bits:2048 -nodes -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout ${file("pss.key")} -out ${file("pss.pem")}`.quiet();
  const plain = fakeServer(() => new Response("")).url.replace(
    "http://127.0.0.1",
    "https://localhost",
  );
  const wants = ["-Verify", "1", "-verify_return_error", "-CAfile"];
  const old = ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"];
  const sha = ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA384"];
  const cases = [
    [await opensslServer("pss"), ca, HANDSHAKE, /handshake failed \(ERR_SSL_SSLV3_ALERT_HAND/],
    [await opensslServer("server", "-curves", "P-521"), ca, HANDSHAKE, /ALERT_HANDSHAKE_FAILURE/],
    [await opensslServer("server", ...sha), ca, HANDSHAKE, /ALERT_HANDSHAKE_FAILURE/],
    [await opensslServer("server", ...old), ca, HANDSHAKE, /no TLS version.*→ .*TLS 1\.2 or 1\.3/],
    [plain, ca, HANDSHAKE, /does not speak TLS.*→ correct host and port/],
    [
      await opensslServer("expired"),
      ca,
      /certificate has expired, by the clock of this machine.*→ .*renewed.*timedatectl/,
      /certificate has expired, by the clock.*→ .*renewed.*timedatectl/,
    ],
    [await opensslServer("elsewhere"), ca, /for another name.*→ let KEY4C_URL/, /for another name/],
    [
      await opensslServer("stranger"),
      ca,
      /CA that is not trusted.*→ set KEY4C_CA_FILE/,
      /not trusted/,
    ],
    [
      await opensslServer("server", ...wants, file("ca.pem")),
      ca,
      HANDSHAKE,
      /requires a client certificate.*→ set KEY4C_CERT_FILE/,
    ],
    [
      await opensslServer("server", ...wants, file("stranger.pem")),
      { ...ca, ...client },
      HANDSHAKE,
      /refuses the client certificate.*→ have a client certificate issued/,
    ],
    [
      await opensslServer("server", ...wants, file("ca.pem")),
      { ...ca, ...expired },
      /the client certificate has expired \(EPROTO\) → have it renewed/,
      /it was valid until 2020/,
    ],
    ["https://localhost:1", ca, /nobody listens there/, /nobody listens there.*→ check KEY4C_URL/],
    [
      "https://no-such-host.invalid",
      ca,
      /does not resolve \(ENOTFOUND\) → correct/,
      /does not resolve/,
    ],
  ] as const;
  await Promise.all(
    cases.map(async ([url, env, log, doctor]) => {
      const [inLog, byDoctor] = await bothSay(url, env);
      expect([url, inLog]).toEqual([url, expect.stringMatching(log)]);
      expect([url, byDoctor]).toEqual([url, expect.stringMatching(doctor)]);
    }),
  );
});

test("REFERENCE has what the compiled binary offers a TLS server", async () => {
  const hello = await helloOf((url) =>
    startBinary(["serve"], {
      KMS_ENDPOINT: `unix://${join(temporaryDirectory(), "kms.sock")}`,
      KEY4C_URL: url,
      KMS_KEY_ID: "demo",
      KMS_USER_ID: "u",
    }),
  );
  const reference = readFileSync(join(import.meta.dir, "../../docs/REFERENCE.md"), "utf8");
  expect(reference).toContain(tlsTable(hello));
});
