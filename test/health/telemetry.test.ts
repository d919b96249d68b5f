import { expect, test } from "bun:test";
import { X509Certificate } from "node:crypto";
import { readdirSync, readFileSync, renameSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { certificates } from "../../src/config/option-types.ts";
import { KINDS } from "../../src/failures/kinds.ts";
import { PluginError } from "../../src/failures/plugin-error.ts";
import { Metrics } from "../../src/health/metrics.ts";
import {
  addStateMetrics,
  expiryOf,
  key4cCallDurations,
  rpcDurations,
  type TelemetrySources,
} from "../../src/health/telemetry.ts";
import { STATES } from "../../src/keys/key-health.ts";
import { Fault } from "../../src/system/files.ts";
import { FakeKey4C, plugin, revoke } from "../keys/fake-key4c.ts";
import { testWith } from "../needs.ts";
import { makePki } from "../pki.ts";
import { temporaryDirectory } from "../support.ts";

const DEK = Buffer.alloc(32, 7);

/** Keyring and probes in the test's time, and what their metrics say, without the prefix of each name. */
function observed(sources: Partial<TelemetrySources> = {}) {
  const key4c = new FakeKey4C();
  const parts = plugin(key4c, { previousKeyIds: ["old"], maxUses: 2 });
  const metrics = new Metrics();
  addStateMetrics(metrics, {
    version: "1.2.3",
    keyring: parts.ring,
    health: parts.health,
    cache: undefined,
    connections: () => 3,
    live: () => true,
    secretFiles: {},
    watchedFiles: new Map(),
    certificateFiles: {},
    ...sources,
  });
  const values = () =>
    Object.fromEntries(
      [...metrics.text().matchAll(/^(?:key4c_kms_)?(\S+?)(\{.*\})? (\S+)$/gm)].map(
        ([, name = "", labels = "", value]) => [`${name}${labels}`, Number(value)],
      ),
    );
  /** The label values of a family with a sample of 1. */
  const ones = (name: string) =>
    Object.entries(values()).flatMap(([key, value]) =>
      key.startsWith(`${name}{`) && value === 1 ? [/"(.*)"/.exec(key)?.[1]] : [],
    );
  return { ...parts, key4c, values, ones };
}

test("the metrics of a plugin: before its first probe, while it is ok, and when the key is revoked", async () => {
  const { health, ring, clock, key4c, values, ones } = observed();
  const count = (name: string) =>
    Object.keys(values()).filter((key) => key.startsWith(`${name}{`)).length;
  expect([count("state"), count("failure"), count("key_revoked")]).toEqual([
    STATES.length,
    Object.keys(KINDS).length,
    2,
  ]);
  expect([ones("state"), ones("failure"), ones("key_revoked"), ones("key_info")]).toEqual([
    ["starting"],
    [],
    [],
    [],
  ]);
  expect(ones("build_info")).toEqual(["1.2.3"]);
  expect(ring.isReady).toBe(false);
  for (const name of [
    "key_version",
    "key4c_last_contact_timestamp_seconds",
    "local_kek_age_seconds",
    "local_kek_uses",
  ]) {
    expect(values()).not.toContainKey(name);
  }

  health.start();
  await clock.pass(0);
  const old = await ring.wrap(DEK);
  await ring.wrap(DEK);
  await clock.pass(4_000);
  const { keyId } = await ring.status();
  expect(ring.isReady).toBe(true);
  expect([ones("state"), ones("failure"), ones("key_info")]).toEqual([["ok"], [], [keyId]]);
  expect(values()).toMatchObject({
    key_version: 1,
    key_change_failed: 0,
    local_kek_uses: ring.snapshot?.localKek.uses,
    local_kek_age_seconds: (ring.ageMs ?? 0) / 1_000,
    local_keks_orphaned: 0,
    local_keks_of_current_key_refused_total: 0,
    encrypts_over_limit_total: 0,
    local_kek_cache_misses_total: 0,
    local_kek_unwraps_under_way: 0,
    connections: 3,
    socket_live: 1,
    log_lines_dropped_total: 0,
  });
  const contactS = (health.lastContact?.getTime() ?? 0) / 1_000; // by the wall clock, anew at each look
  expect(values()["key4c_last_contact_timestamp_seconds"]).toBeWithin(contactS - 60, contactS + 60);
  expect(ring.ageMs).toBeGreaterThan(0);

  const entries = ring.cache.size;
  await ring.unwrap(old.envelope);
  const foreign = await foreignObject(key4c);
  let open = () => {};
  key4c.gate = new Promise<void>((resolve) => {
    open = resolve;
  });
  const unwrapped = ring.unwrap(foreign);
  await clock.pass(0);
  expect(values()).toMatchObject({ local_kek_unwraps_under_way: 1 });
  open();
  await unwrapped;
  await ring.unwrap(foreign);
  expect(values()).toMatchObject({
    local_kek_cache_entries: entries + 1,
    local_kek_cache_hits_total: ring.cache.hits,
    local_kek_cache_misses_total: 1,
    local_kek_unwraps_under_way: 0,
  });
  expect(ring.cache.hits).toBeGreaterThan(0);

  revoke({ ring }, "demo");
  key4c.failure = new PluginError("keyUnusable", "fake", { isByContract: true });
  await clock.pass(120_000);
  const revoked = ones("key_revoked");
  expect(ring.isReady).toBe(false);
  expect([ones("state"), ones("failure"), revoked]).toEqual([
    ["revoked"],
    ["keyUnusable"],
    [keyId.replace(/\.v1.*$/, "")],
  ]);
});

/** What another node wrapped under the same key. */
async function foreignObject(key4c: FakeKey4C) {
  const { ring, health, clock } = plugin(key4c);
  health.start();
  await clock.pass(0);
  const { envelope } = await ring.wrap(DEK);
  return envelope;
}

test("material that is replaced, and no new local KEK: orphans, and Encrypts over the limit", async () => {
  const { health, ring, clock, key4c, values } = observed();
  health.start();
  await clock.pass(0);
  key4c.trouble = (operation) =>
    operation === "wrap" ? new PluginError("unavailable", "fake") : undefined;
  for (let count = 0; count < 5; count++) {
    await ring.wrap(DEK).catch(() => undefined);
  }
  expect(ring.overLimit).toBeGreaterThan(0);
  expect(values()).toMatchObject({ encrypts_over_limit_total: ring.overLimit });
  key4c.trouble = () => undefined;
  key4c.replaceMaterial();
  await clock.pass(60_000);
  expect(ring.orphans).toBeGreaterThan(0);
  expect(values()).toMatchObject({ local_keks_orphaned: ring.orphans });
});

test("files, certificates, the socket and what is kept over a restart", () => {
  const path = join(temporaryDirectory(), "user-id");
  writeFileSync(path, "of a secret");
  utimesSync(path, 1_700_000_000, 1_700_000_000.5);
  const fault = new Fault();
  const outlook = { isComplete: true, kekCount: 7, untilMs: 5_500 };
  let [isLive, isKept] = [true, true];
  const { values } = observed({
    cache: { outlook: () => (isKept ? outlook : undefined) },
    live: () => isLive,
    secretFiles: {
      KMS_USER_ID_FILE: path,
      KMS_PIN_FILE: undefined,
      KMS_TOKEN_FILE: `${path}.none`,
    },
    watchedFiles: new Map([
      ["KMS_KEY_ID_FILE", { fault }],
      ["KMS_PREVIOUS_KEY_IDS_FILE", { fault: new Fault() }],
    ]),
    certificateFiles: {
      KEY4C_CA_FILE: () => 77,
      KEY4C_CERT_FILE: () => undefined,
      OTHER: undefined,
    },
  });
  const found = values();
  expect(found).toMatchObject({
    'secret_file_modified_timestamp_seconds{option="KMS_USER_ID_FILE"}': 1_700_000_000.5,
    'file_unusable{option="KMS_KEY_ID_FILE"}': 0,
    'file_unusable{option="KMS_PREVIOUS_KEY_IDS_FILE"}': 0,
    'certificate_expiry_timestamp_seconds{option="KEY4C_CA_FILE"}': 77,
    persistent_cache_ready: 1,
    persistent_cache_local_keks: 7,
    persistent_cache_expiry_timestamp_seconds: 5.5,
    key_change_failed: 0,
    socket_live: 1,
  });
  const named = Object.keys(found).filter((name) => /^(secret_file|certificate)/.test(name));
  expect(named).toHaveLength(2); // of the others nothing is known
  fault.set("it is a FIFO");
  [isLive, isKept] = [false, false];
  expect(values()).toMatchObject({
    'file_unusable{option="KMS_KEY_ID_FILE"}': 1,
    'file_unusable{option="KMS_PREVIOUS_KEY_IDS_FILE"}': 0,
    key_change_failed: 1,
    persistent_cache_ready: 0,
    persistent_cache_local_keks: 0,
    socket_live: 0,
  });
  expect(values()).not.toContainKey("persistent_cache_expiry_timestamp_seconds");
  const without = observed().values();
  expect(Object.keys(without).filter((name) => name.startsWith("persistent"))).toEqual([]);
});

test("the figures of the process are its own", () => {
  const { values } = observed();
  const found = values();
  const { user, system } = process.cpuUsage();
  expect(found["process_cpu_seconds_total"]).toBeWithin(0.01, (user + system) / 1e6 + 0.01);
  const startSeconds = Date.now() / 1_000 - process.uptime();
  expect(found["process_start_time_seconds"]).toBeWithin(startSeconds - 5, startSeconds + 5);
  expect(found["process_resident_memory_bytes"]).toBeWithin(2 ** 24, 2 ** 34);
  const open = readdirSync("/proc/self/fd").length;
  expect(found["process_open_fds"]).toBeWithin(open - 20, open + 20);
});

test("RPCs and calls to Key4C are counted by what they were", () => {
  const metrics = new Metrics();
  rpcDurations(metrics)({ api: "v2", method: "Encrypt", code: "OK" }, 0.5);
  key4cCallDurations(metrics)({ operation: "encrypt", kind: "ok" }, 0.25);
  expect(metrics.text().match(/^\w+_sum.*$/gm)).toEqual([
    `key4c_kms_rpc_duration_seconds_sum{api="v2",method="Encrypt",code="OK"} 0.5`,
    `key4c_kms_key4c_call_duration_seconds_sum{operation="encrypt",kind="ok"} 0.25`,
  ]);
});

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
