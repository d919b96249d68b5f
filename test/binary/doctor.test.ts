/** The doctor of the compiled binary against a setup that is well, and one broken setup for each check. */
import { expect, test } from "bun:test";
import { chmodSync, copyFileSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { Server, ServerCredentials } from "@grpc/grpc-js";
import type { Check } from "../../src/commands/doctor/check.ts";
import { KeyManagementService as V1 } from "../../src/gen/v1beta1/api_pb.ts";
import { addService } from "../../src/socket/rpc.ts";
import { testWith } from "../needs.ts";
import { NO_CONFIG_FILE } from "../no-config.ts";
import { makePki, startHttpsEmulator } from "../pki.ts";
import { freePort } from "../ports.ts";
import {
  BINARY,
  BUILD_VERSION,
  emulator,
  fakeServer,
  onTestEnd,
  runBinary,
  silentLog,
  startBinary,
  startPlugin,
  temporaryDirectory,
  temporaryFile,
} from "../support.ts";

const pki = makePki();

/** Runs the doctor with nothing in its environment but `env`. */
async function doctor(env: Record<string, string>, ...flags: string[]) {
  const child = Bun.spawn([BINARY, "doctor", "--json", ...flags], {
    env: { ...NO_CONFIG_FILE, ...env },
    stderr: "pipe",
  });
  const checks = (await child.stdout.json()) as Check[];
  return {
    exitCode: await child.exited,
    stderr: await child.stderr.text(),
    failed: checks.filter(({ result }) => result === "fail"),
    of: (name: string) => checks.find(({ check }) => check === name),
    checks,
  };
}

/** What a configuration must have, on a socket that nobody serves. */
function setup(url: string, env: Record<string, string> = {}) {
  const KMS_ENDPOINT = `unix://${temporaryDirectory()}/kms.sock`;
  return { KMS_ENDPOINT, KEY4C_URL: url, KMS_KEY_ID: "demo", KMS_USER_ID: "the-token", ...env };
}

/** Expects that one check fails, saying so and what to do, and that the exit code is 1. */
async function expectFault(
  env: Record<string, string>,
  [check, detail, remedy]: readonly [string, RegExp, RegExp],
  ...flags: string[]
) {
  const { exitCode, failed, checks, stderr } = await doctor(env, ...flags);
  expect({ exitCode, stderr }).toEqual({ exitCode: 1, stderr: "" });
  expect(failed).toEqual([
    {
      check,
      result: "fail",
      detail: expect.stringMatching(detail),
      remedy: expect.stringMatching(remedy),
    },
  ]);
  expect(JSON.stringify(checks)).not.toContain("the-token");
}

testWith("openssl")("before the installation: everything but the plugin is there", async () => {
  await pki.issue("server", "DNS:localhost");
  const url = (await startHttpsEmulator(pki, "server")).replace("127.0.0.1", "localhost");
  const { exitCode, of } = await doctor(setup(url, { KEY4C_CA_FILE: pki.file("ca.pem") }));
  expect(exitCode).toBe(0);
  for (const [name, detail] of [
    ["configuration", /complete/],
    ["name", /^localhost is 127\.0\.0\.1|::1/],
    ["connection", /^TLSv1\.3, certificate valid until 20/],
    ["credential", /accepted/],
    ["key", /^demo: AES, version 1, key check value [0-9A-F]{6} \(/],
    [
      "wrap and unwrap",
      /^\d+ ms for both, of the 3000 ms .* key_id k4c-fbajn2fxsguq6aegzffhmyn5zi\.v1\.k[a-z2-7]{8}$/,
    ],
  ] as const) {
    expect(of(name)).toMatchObject({ result: "pass", detail: expect.stringMatching(detail) });
  }
  expect(of("socket")).toMatchObject({
    result: "skip",
    detail: expect.stringContaining("no plugin runs yet"),
  });
});

test("after it: the plugin serves both APIs and every authority", async () => {
  const key4c = emulator();
  const { socket } = await startPlugin(key4c.url);
  const env = setup(key4c.url, { KMS_ENDPOINT: `unix://${socket}` });
  const { exitCode, of } = await doctor(env);
  expect(exitCode).toBe(0);
  for (const name of [
    "directory",
    "socket",
    "plugin, Status",
    "plugin, key",
    "plugin, KMS v2",
    "plugin, KMS v1",
  ]) {
    expect(of(name)).toMatchObject({ result: "pass" });
  }
  expect(of("plugin, authorities")).toMatchObject({
    result: "pass",
    detail: `serves ${socket}, ${encodeURIComponent(socket)}, localhost`,
  });
  const text = Bun.spawn([BINARY, "doctor"], { env: { ...NO_CONFIG_FILE, ...env } });
  const lines = (await text.stdout.text()).split("\n").filter(Boolean);
  const others = lines.filter((line) => !/^[✓–] [^:]+: .+$/.test(line));
  expect(others.filter((line) => !line.startsWith("! tmpfiles: "))).toEqual([]); // of a test in /tmp
  expect(of("plugin, version")).toMatchObject({
    result: "pass",
    detail: expect.stringMatching(BUILD_VERSION),
  });
  expect(of("plugin, key_id")).toMatchObject({ result: "pass" });
});

test("its key_id is not what Key4C wraps under now", async () => {
  const key4c = emulator();
  const { socket } = await startPlugin(key4c.url, { KMS_PROBE_INTERVAL: "1h" });
  await key4c.control("POST", "keys/demo/rotate");
  await expectFault(setup(key4c.url, { KMS_ENDPOINT: `unix://${socket}` }), [
    "plugin, key_id",
    /is k4c-\w+\.v1\.k\w+, and Key4C wraps under k4c-\w+\.v2\.k\w+ now/,
    /after a rotation ask again.*key check value/,
  ]);
});

test("its state is what its /readyz says", async () => {
  const key4c = emulator();
  const plugin = await startPlugin(key4c.url, {
    KMS_HTTP_ADDRESS: "127.0.0.1:0",
    KMS_PROBE_INTERVAL: "100ms",
  });
  const address = (await plugin.until(/"url":"http:\/\/([^"/]+)/))[1] ?? "";
  const env = { KMS_ENDPOINT: `unix://${plugin.socket}`, KMS_HTTP_ADDRESS: address };
  expect((await doctor(setup(key4c.url, env))).of("plugin, state")).toMatchObject({
    result: "pass",
  });
  key4c.stop();
  await plugin.until(/degraded/);
  expect((await doctor(setup(key4c.url, env))).of("plugin, state")).toMatchObject({
    result: "warn",
    detail: expect.stringContaining("degraded"),
  });
});

test("configuration: each problem is a line, and nothing is asked of Key4C", async () => {
  const { failed, of, exitCode } = await doctor({
    KMS_PROBE_INTERVAL: "soon",
    KMS_ENDPOINT: "/kms.sock",
  });
  expect(exitCode).toBe(1);
  expect(failed.map(({ check }) => check)).toEqual(Array(5).fill("configuration"));
  expect(failed.map(({ detail }) => detail.split(" ")[0]).sort()).toEqual(
    ["KEY4C_URL", "KMS_ENDPOINT", "KMS_KEY_ID", "KMS_PROBE_INTERVAL", "KMS_USER_ID"].sort(),
  );
  expect(of("wrap and unwrap")).toMatchObject({ result: "skip" });
});

test("an environment that serve refuses", async () => {
  const fault = ["configuration", /^NODE_TLS_REJECT_UNAUTHORIZED is set/, /^unset /] as const;
  await expectFault(setup(emulator().url, { NODE_TLS_REJECT_UNAUTHORIZED: "0" }), fault);
});

test("a name that does not resolve", async () => {
  await expectFault(setup("https://no-such-host.invalid"), [
    "name",
    /^no-such-host\.invalid does not resolve/,
    /correct KEY4C_URL, or \/etc\/resolv\.conf/,
  ]);
});

test("nobody listens", async () => {
  await expectFault(setup(`http://127.0.0.1:${freePort()}`), [
    "connection",
    /ECONNREFUSED/,
    /check KEY4C_URL/,
  ]);
});

testWith("openssl")("certificates: unknown CA, another host, expired", async () => {
  await pki.issue("server", "DNS:localhost,IP:127.0.0.1");
  await pki.issue("elsewhere", "DNS:elsewhere.example");
  await pki.issueExpired("expired", "DNS:localhost,IP:127.0.0.1");
  const ca = { KEY4C_CA_FILE: pki.file("ca.pem") };
  for (const [certificate, env, detail, remedy] of [
    ["server", {}, /UNABLE|SELF_SIGNED/, /KEY4C_CA_FILE/],
    ["elsewhere", ca, /ALTNAME/, /let KEY4C_URL name a host/],
    ["expired", ca, /CERT_HAS_EXPIRED/, /renewed/],
  ] as const) {
    const url = await startHttpsEmulator(pki, certificate);
    await expectFault(setup(url, env), ["connection", detail, remedy]);
  }
});

test("credential, key and answers that are not the service's", async () => {
  const refusing = (status: number, body: object | string) =>
    fakeServer(() =>
      typeof body === "string" ? new Response(body, { status }) : Response.json(body, { status }),
    ).url;
  const denied = refusing(401, { code: "DENIED" });
  await expectFault(setup(denied), ["credential", /401 DENIED/, /renew the credential/]);
  const { control, url } = emulator();
  await control("POST", "keys/demo/disable");
  await expectFault(setup(url), [
    "key",
    /the state of the key is DISABLED/,
    /enable the key in Key4C/,
  ]);
  await expectFault(setup(url, { KMS_KEY_ID: "absent" }), ["key", /404/, /and KMS_KEY_ID/]);
  for (const other of [
    refusing(200, "<html>"),
    refusing(404, "<html>"),
    refusing(404, { message: "Not Found" }),
    refusing(200, { message: "hello" }),
  ]) {
    await expectFault(setup(other), [
      "key",
      /not JSON|404|version/,
      /KEY4C_PROFILE that of the service\?/,
    ]);
    expect((await doctor(setup(other))).of("credential")).toMatchObject({ result: "skip" });
  }
  const rsa = refusing(200, { version: 1, state: "ENABLED", algorithm: "RSA" });
  await expectFault(setup(rsa), ["key", /RSA/, /name an AES key/]);
});

test("a certificate that is about to expire is a warning, and the checks go on", async () => {
  await pki.issue("soon", "DNS:localhost,IP:127.0.0.1", 3);
  const url = await startHttpsEmulator(pki, "soon");
  const { exitCode, of } = await doctor(setup(url, { KEY4C_CA_FILE: pki.file("ca.pem") }));
  expect(exitCode).toBe(0);
  expect(of("connection")).toMatchObject({
    result: "warn",
    detail: expect.stringContaining("valid until"),
    remedy: expect.stringContaining("about to expire"),
  });
  expect(of("wrap and unwrap")).toMatchObject({ result: "pass" });
});

test("a client certificate with the key of another", async () => {
  await pki.issue("one", "DNS:localhost");
  await pki.issue("other", "DNS:localhost");
  await expectFault(
    setup("https://localhost:1", {
      KEY4C_CERT_FILE: pki.file("one.pem"),
      KEY4C_CERT_KEY_FILE: pki.file("other.key"),
    }),
    [
      "configuration",
      /KEY4C_CERT_KEY_FILE .*do not fit: .*other\.key is not the key of/,
      /correct/,
    ],
  );
});

test("a broken configuration asks nothing of Key4C", async () => {
  const { url, requests } = fakeServer(() => new Response("{}"));
  const { failed, of } = await doctor(
    setup(url, { KEY4C_PROFILE: temporaryFile('{"encrypt":{}}') }),
  );
  expect(failed).toMatchObject([{ check: "configuration" }]);
  expect(of("wrap and unwrap")).toMatchObject({ result: "skip" });
  expect(requests).toEqual([]);
});

test("a slow Key4C is called slow, and warned of before it is too slow", async () => {
  const key4c = emulator();
  await key4c.control("PUT", "latency", { ms: 1_600 });
  const warned = await doctor(setup(key4c.url));
  expect(warned.of("key")).toMatchObject({ result: "warn", remedy: expect.stringMatching(/slow/) });
  await key4c.control("PUT", "latency", { ms: 30_000 });
  await expectFault(setup(key4c.url), ["key", /no answer in [\d.]+ s/, /what makes Key4C slow/]);
});

/** A proxy that opens tunnels to loopback only for whoever has its credential, if it wants one. */
async function startProxy(credential?: string) {
  const targets: string[] = [];
  const proxy = createServer((client) => {
    client.on("error", () => {});
    client.once("data", (head) => {
      const [, target = "", port] = /^CONNECT ([^ ]+?:(\d+)) /.exec(head.toString()) ?? [];
      targets.push(target);
      const given = `Basic ${Buffer.from(credential ?? "").toString("base64")}`;
      if (credential !== undefined && !head.toString().includes(given)) {
        client.end("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n");
        return;
      }
      const server = connect(Number(port), "127.0.0.1", () => {
        client.write("HTTP/1.1 200 OK\r\n\r\n");
        client.pipe(server).pipe(client);
      });
      server.on("error", () => client.destroy());
    });
  });
  await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  onTestEnd(() => proxy.close());
  return { host: `127.0.0.1:${(proxy.address() as { port: number }).port}`, targets };
}

test("the proxy that serve would use", async () => {
  await pki.issue("behind", "DNS:key4c.invalid");
  const url = await startHttpsEmulator(pki, "behind");
  const env = setup(url.replace("127.0.0.1", "key4c.invalid"), {
    KEY4C_CA_FILE: pki.file("ca.pem"),
  });
  const open = await startProxy();
  const through = await doctor({ ...env, ALL_PROXY: open.host }); // a name without scheme
  expect([through.exitCode, through.failed]).toEqual([0, []]);
  expect(through.of("connection")).toMatchObject({
    detail: expect.stringContaining(`through the proxy ${open.host}, certificate valid until`),
  });
  expect(new Set(open.targets)).toEqual(new Set([new URL(env.KEY4C_URL).host]));

  const guarded = await startProxy("user:pass word");
  await expectFault({ ...env, HTTPS_PROXY: `http://${guarded.host}` }, [
    "connection",
    /the proxy requires credentials/,
    /USER:PASSWORD/,
  ]);
  const known = { ...env, HTTPS_PROXY: `http://user:pass%20word@${guarded.host}` };
  expect((await doctor(known)).failed).toEqual([]);
  await expectFault({ ...known, NO_PROXY: ".invalid" }, ["name", /does not resolve/, /KEY4C_URL/]);
});

testWith("IPv6")(
  "a name whose last address is the one that answers, as serve finds it",
  async () => {
    const emulated = startBinary(["emulator", "--listen", "[::1]:0", "--key-id", "demo"]);
    const [, port] = await emulated.until(/KEY4C_URL=http:\/\/\[::1\]:(\d+)/);
    const { of } = await doctor(setup(`http://localhost:${port}`));
    expect(of("connection")).toMatchObject({ result: "pass" });
    expect(of("wrap and unwrap")).toMatchObject({ result: "pass" });
  },
);

test("a service that does not unwrap what it wrapped", async () => {
  const { url } = fakeServer((request) => {
    const path = new URL(request.url).pathname;
    return Response.json(
      path.endsWith("/encrypt")
        ? { ciphertext: "AAAA", version: 1 }
        : path.endsWith("/decrypt")
          ? { plaintext: Buffer.alloc(32).toString("base64") }
          : { version: 1, state: "ENABLED", algorithm: "AES" },
    );
  });
  await expectFault(setup(url), ["wrap and unwrap", /does not unwrap/, /KEY4C_PROFILE/]);
});

test("a previous key that is gone", async () => {
  const key4c = emulator({ keyIds: ["demo", "old"] });
  await key4c.control("POST", "keys/old/delete");
  await expectFault(setup(key4c.url, { KMS_PREVIOUS_KEY_IDS: "old" }), [
    "previous key",
    /^old: .*DELETED/,
    /KMS_PREVIOUS_KEY_IDS/,
  ]);
});

test("directory and socket that others could use, or that are not what they should be", async () => {
  const { url } = emulator();
  const shared = join(temporaryDirectory(), "shared");
  mkdirSync(shared);
  chmodSync(shared, 0o1777);
  const at = (path: string) => setup(url, { KMS_ENDPOINT: `unix://${path}` });
  await expectFault(at(join(shared, "kms.sock")), ["directory", /01777: others can write/, /0700/]);

  const file = join(temporaryDirectory(), "file");
  writeFileSync(file, "");
  await expectFault(at(file), ["socket", /is not a socket/, /KMS_ENDPOINT/]);
  await expectFault(at(join(file, "kms.sock")), [
    "directory",
    /is not a directory/,
    /KMS_ENDPOINT/,
  ]);

  const open = await startPlugin(url, { KMS_SOCKET_MODE: "0666" });
  await expectFault(at(open.socket), ["socket", /0666: every user/, /KMS_SOCKET_MODE=0600/]);

  const held = join(temporaryDirectory(), "held.sock");
  const holder = createServer(() => {}); // as systemd holds the socket of a service that is dead
  await new Promise<void>((resolve) => holder.listen(held, resolve));
  onTestEnd(() => holder.close());
  chmodSync(held, 0o600);
  await expectFault(at(held), ["socket", /did not answer within 3 s/, /systemd holds the socket/]);

  const killed = await startPlugin(url);
  await killed.stop("SIGKILL");
  await expectFault(at(killed.socket), [
    "socket",
    /the process that made it has ended/,
    /start it: systemctl start .* Starting is safe/,
  ]);
});

test("no plugin runs: a failure where the EncryptionConfiguration names its socket, and else none", async () => {
  const env = setup(emulator().url);
  expect((await doctor(env)).exitCode).toBe(0);
  const { stdout } = await runBinary(["manifest", "encryption-configuration"], { env });
  const file = temporaryFile(stdout.toString());
  await expectFault(
    env,
    [
      "socket",
      /is not there: no plugin runs, and the EncryptionConfiguration names it/,
      /start it: systemctl start key4c-kms-plugin\.socket .* Starting is safe/,
    ],
    "--encryption-configuration",
    file,
  );
  // One of another plugin alone refers to another socket.
  writeFileSync(file, stdout.toString().replaceAll("kms.sock", "other.sock"));
  const other = await doctor(env, "--encryption-configuration", file);
  expect(other.of("socket")).toMatchObject({ result: "skip" });
});

testWith("root", "setpriv")(
  "a path that this user may not look into is not called absent",
  async () => {
    const closed = temporaryDirectory(); // 0700, of root
    const binary = join("/tmp", `k4c-doctor-${crypto.randomUUID()}`);
    copyFileSync(BINARY, binary);
    onTestEnd(() => rmSync(binary));
    chmodSync(binary, 0o755);
    const drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
    const child = Bun.spawn([...drop, binary, "doctor", "--json"], {
      env: {
        ...NO_CONFIG_FILE,
        KMS_ENDPOINT: `unix://${closed}/inside/kms.sock`,
        PATH: process.env["PATH"] ?? "",
      },
      cwd: "/",
    });
    const checks = (await child.stdout.json()) as Check[];
    for (const check of ["directory", "socket"]) {
      expect(checks).toContainEqual({
        check,
        result: "fail",
        detail: expect.stringContaining("not allowed to look (EACCES)"),
        remedy: expect.stringContaining("as root"),
      });
    }
  },
);

test("an EncryptionConfiguration is found by the API server's static pod", async () => {
  const { url } = emulator();
  const directory = temporaryDirectory();
  const configuration = join(directory, "encryption.yaml");
  const pod = join(directory, "kube-apiserver.yaml");
  writeFileSync(
    pod,
    JSON.stringify({
      spec: {
        containers: [
          {
            command: ["kube-apiserver", `--encryption-provider-config=/etc/enc/encryption.yaml`],
            volumeMounts: [{ name: "v", mountPath: "/etc/enc" }],
          },
        ],
        volumes: [{ name: "v", hostPath: { path: directory } }],
      },
    }),
  );
  const env = setup(url);
  const endpoint = JSON.stringify(env.KMS_ENDPOINT);
  writeFileSync(
    configuration,
    `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - identity: {}
  - kms: { apiVersion: v2, name: key4c, endpoint: ${endpoint} }
`,
  );
  const { exitCode, failed, of } = await doctor(env, "--kube-apiserver", pod);
  expect(exitCode).toBe(1);
  expect(failed).toMatchObject([
    { check: "socket", detail: expect.stringContaining("the EncryptionConfiguration names it") },
    {
      check: "EncryptionConfiguration: who writes secrets",
      detail: expect.stringContaining("identity, in clear (line 6"),
    },
    { check: "kube-apiserver: socket", detail: expect.stringContaining("is not mounted") },
  ]);
  expect(of("kube-apiserver: encryption")).toMatchObject({ result: "pass" });
  expect(of("kube-apiserver: reload")).toMatchObject({ result: "warn" });
});

test("directory and socket, and the group that is meant", async () => {
  const { url } = emulator();
  const { socket } = await startPlugin(url);
  const group = { KMS_ENDPOINT: `unix://${socket}`, KMS_SOCKET_GROUP: "4711" };
  const { failed } = await doctor(setup(url, group));
  expect(failed).toMatchObject([
    { check: "directory", detail: expect.stringMatching(/KMS_SOCKET_GROUP \(4711\) cannot reach/) },
    { check: "socket", detail: expect.stringMatching(/KMS_SOCKET_GROUP \(4711\) may not connect/) },
  ]);
  const mode = { KMS_ENDPOINT: `unix://${socket}`, KMS_SOCKET_MODE: "0660" };
  expect((await doctor(setup(url, mode))).of("socket")).toMatchObject({
    result: "warn",
    detail: expect.stringContaining("KMS_SOCKET_MODE says 0660"),
  });
});

test("a plugin that is not ok, or wraps under another key", async () => {
  const key4c = emulator({ keyIds: ["demo", "other"] });
  const { socket } = await startPlugin(key4c.url);
  const env = setup(key4c.url, { KMS_ENDPOINT: `unix://${socket}`, KMS_KEY_ID: "other" });
  await expectFault(env, ["plugin, key", /does not stand for KMS_KEY_ID \(other\)/, /restart/]);

  const lost = `unix://${temporaryDirectory()}/kms.sock`;
  const waiting = startBinary(
    ["serve"],
    setup("http://127.0.0.1:9", { KMS_ENDPOINT: lost, KMS_HTTP_ADDRESS: "" }),
  );
  await waiting.until(/there is no local KEK yet/);
  const { failed } = await doctor(setup(key4c.url, { KMS_ENDPOINT: lost }));
  expect(failed.map(({ check }) => check)).toEqual([
    "plugin, Status",
    "plugin, KMS v2",
    "plugin, KMS v1",
  ]);
  expect(failed[0]).toMatchObject({
    detail: expect.stringContaining("UNAVAILABLE"),
    remedy: expect.stringContaining("log"),
  });
});

test("a plugin that refuses the authority of old API servers", async () => {
  const socket = join(temporaryDirectory(), "kms.sock");
  const grpc = new Server();
  const version = () => ({ version: "v1beta1" });
  const unused = () => ({});
  const log = silentLog;
  addService(grpc, V1, { version, encrypt: unused, decrypt: unused }, { api: "v1", log });
  const bound = Promise.withResolvers<number>();
  grpc.bindAsync(`unix:${socket}`, ServerCredentials.createInsecure(), (error, port) =>
    error === null ? bound.resolve(port) : bound.reject(error),
  );
  await bound.promise;
  onTestEnd(() => grpc.forceShutdown());
  const { of } = await doctor(setup(emulator().url, { KMS_ENDPOINT: `unix://${socket}` }));
  expect(of("plugin, authorities")).toMatchObject({
    result: "fail",
    detail: expect.stringContaining(`:authority ${socket} is refused`),
    remedy: expect.stringContaining("cannot serve every kube-apiserver"),
  });
});
