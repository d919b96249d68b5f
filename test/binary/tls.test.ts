/** Transport to Key4C: what the compiled binary trusts and presents. */
import { beforeAll, expect } from "bun:test";
import { X509Certificate } from "node:crypto";
import { copyFileSync, readFileSync, renameSync } from "node:fs";
import { type AddressInfo, connect } from "node:net";
import { join } from "node:path";
import { createServer } from "node:tls";
import { $ } from "bun";
import { missing, testWith } from "../needs.ts";
import { makePki, startHttpsEmulator } from "../pki.ts";
import {
  emulator,
  fakeServer,
  onTestEnd,
  startBinary,
  startPlugin,
  temporaryDirectory,
} from "../support.ts";
import { eventually, launchOk } from "./bent-key4c.ts";

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

/** The cause that the first failed probe logs. */
async function failure(url: string, env: Record<string, string>): Promise<string> {
  const running = startBinary(["serve"], {
    KMS_ENDPOINT: `unix://${join(temporaryDirectory(), "kms.sock")}`,
    KEY4C_URL: url,
    KMS_KEY_ID: "demo",
    KMS_USER_ID: "u",
    ...env,
  });
  return (await running.until(/"state":"starting".*"cause":"([^"]*)"/))[1] ?? "";
}

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
  expect([await plugin.state(), plugin.told().map(({ state }) => state)]).toEqual(["ok", ["ok"]]);
  put("renewed", "key");
  await eventually("the renewed pair", () => seen.has("renewed"));
  await plugin.untilLogged(/a file can be used again/);
  expect(plugin.told().map(({ state }) => state)).toEqual(["ok"]);
});
