/** /livez, /readyz and /metrics of the compiled binary. */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync, renameSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { KeyManagementService as V1 } from "../../src/gen/v1beta1/api_pb.ts";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import { registeredMetrics } from "../documents/monitoring-tables.ts";
import { testWith } from "../needs.ts";
import { freePort } from "../ports.ts";
import {
  callRaw,
  callRpc,
  emulator,
  failureOf,
  onTestEnd,
  startBinary,
  startPlugin,
  temporaryDirectory,
} from "../support.ts";

/** A plugin with HTTP on a free port. */
async function setup(env: Record<string, string> = {}) {
  const key4c = emulator({ keyIds: ["demo", "old"] });
  const plugin = await startPlugin(key4c.url, { KMS_HTTP_ADDRESS: "127.0.0.1:0", ...env });
  const url = (await plugin.until(/"url":"(http:[^"]*)"/))[1] ?? "";
  const get = async (path: string, init: RequestInit = {}): Promise<[number, string]> => {
    const response = await fetch(url + path, init);
    return [response.status, await response.text()];
  };
  return { key4c, plugin, url, get };
}

/** A sample of what /metrics told. */
function metric(text: string, name: string): number | undefined {
  const line = text.split("\n").find((one) => one.startsWith(`${name} `));
  return line === undefined ? undefined : Number(line.slice(name.length));
}

test("the process is told as the kernel sees it", async () => {
  const startSeconds = Date.now() / 1000;
  const { plugin, get } = await setup();
  const [, text] = await get("metrics");
  const of = (path: string) => `/proc/${plugin.pid}/${path}`;
  const PAGE_BYTES = 4096;
  const rssBytes = Number(readFileSync(of("statm"), "utf8").split(" ")[1]) * PAGE_BYTES;
  const told = (name: string) => metric(text, `process_${name}`) ?? Number.NaN;
  expect(told("resident_memory_bytes") / rssBytes).toBeWithin(0.5, 2);
  expect(told("open_fds") / readdirSync(of("fd")).length).toBeWithin(0.5, 2);
  expect(told("start_time_seconds") - startSeconds).toBeWithin(-1, 30);
  expect(told("cpu_seconds_total")).toBeWithin(0.005, 30);
});

/** What a plugin tells after calls of each kind, and the key_id under which it wraps. */
async function toldAfterCalls() {
  const secretFile = join(temporaryDirectory(), "user-id");
  writeFileSync(secretFile, "u");
  utimesSync(secretFile, 0, 1_000_000_000);
  const { plugin, get } = await setup({
    KMS_USER_ID: "",
    KMS_USER_ID_FILE: secretFile,
    KMS_PREVIOUS_KEY_IDS: "old",
  });
  const { cipher } = await callRpc(plugin.client, V1.method.encrypt, { plain: Buffer.alloc(32) });
  await callRpc(plugin.client, V1.method.decrypt, { cipher });
  const { keyId } = await callRpc(plugin.client, V2.method.status, {});
  await failureOf(callRpc(plugin.client, V2.method.decrypt, { keyId: "garbage" }));
  await failureOf(callRaw(plugin.client, "/evil.Service/Method", Buffer.alloc(0)));
  const [status, text] = await get("metrics");
  expect(status).toBe(200);
  return { text, keyId };
}

testWith("promtool")("promtool finds no fault with the metrics", async () => {
  const { text } = await toldAfterCalls();
  const promtool = Bun.spawn(["promtool", "check", "metrics"], {
    stdin: Buffer.from(text),
    stdout: "pipe",
    stderr: "pipe",
  });
  const verdict = (await promtool.stdout.text()) + (await promtool.stderr.text());
  expect([await promtool.exited, verdict]).toEqual([0, ""]);
});

test("the metrics have a sample of everything that happened", async () => {
  const { text, keyId } = await toldAfterCalls();
  for (const [name, value] of [
    ['key4c_kms_rpc_duration_seconds_count{api="v1",method="Encrypt",code="OK"}', 1],
    ['key4c_kms_rpc_duration_seconds_count{api="v1",method="Decrypt",code="OK"}', 1],
    ['key4c_kms_rpc_duration_seconds_count{api="v2",method="Status",code="OK"}', 1],
    ['key4c_kms_rpc_duration_seconds_count{api="v2",method="Decrypt",code="NOT_FOUND"}', 1],
    ['key4c_kms_key4c_call_duration_seconds_count{operation="encrypt",kind="ok"}', 1],
    ['key4c_kms_state{state="ok"}', 1],
    ['key4c_kms_state{state="degraded"}', 0],
    [`key4c_kms_key_info{key_id="${keyId}"}`, 1],
    ["key4c_kms_key_version", 1],
    ['key4c_kms_key_revoked{key="k4c-fbajn2fxsguq6aegzffhmyn5zi"}', 0],
    ["key4c_kms_local_kek_uses", 1],
    ["key4c_kms_local_kek_cache_entries", 0],
    ["key4c_kms_connections", 1],
  ] as const) {
    expect([name, metric(text, name)]).toEqual([name, value]);
  }
  const modified = 'key4c_kms_secret_file_modified_timestamp_seconds{option="KMS_USER_ID_FILE"}';
  expect(metric(text, modified)).toBe(1_000_000_000);
  // They are those of REFERENCE.md, with the labels that it names.
  const families = new Map(registeredMetrics().map((one) => [one.name, one]));
  const exported = [...text.matchAll(/^# TYPE (\S+) (\S+)$/gm)];
  expect(exported.map(([, name, type]) => `${name} ${type}`).sort()).toEqual(
    [...families.values()].map(({ name, type }) => `${name} ${type}`).sort(),
  );
  const samples = [...text.matchAll(/^(\w+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? \S+$/gm)];
  expect(samples.length).toBeGreaterThan(60);
  for (const [, name = "", labels = ""] of samples) {
    const own = [...labels.matchAll(/(\w+)="/g)].map(([, label]) => label);
    const known = families.get(name)?.labelNames.slice();
    expect([name, own.filter((label) => label !== "le")]).toEqual([name, known ?? ["unknown"]]);
  }
  expect(
    Date.now() / 1000 - (metric(text, "key4c_kms_key4c_last_contact_timestamp_seconds") ?? 0),
  ).toBeLessThan(60);
  expect(metric(text, "process_resident_memory_bytes")).toBeGreaterThan(1e6);
  // Nothing that a caller sent became a label.
  expect(text).not.toContain("garbage");
  expect(text).not.toContain("evil");
});

test("ready follows Status, live follows the socket, and neither is the other", async () => {
  const { key4c, plugin, get } = await setup({
    KMS_PROBE_INTERVAL: "100ms",
    KMS_OUTAGE_GRACE: "6s", // long enough for a busy machine to look at what is before it
  });
  const [status, text] = await get("readyz");
  expect([status, text]).toEqual([200, expect.stringMatching(/^ok since \d{4}-.*Z\n$/)]);
  await key4c.stop();
  await plugin.until(/"state":"degraded"/);
  expect(await get("readyz")).toEqual([200, expect.stringMatching(/^degraded since /)]);
  await plugin.until(/"state":"expired"/);
  expect(await get("readyz")).toEqual([
    503,
    expect.stringMatching(
      /^expired since .*: unavailable: Key4C is unreachable; longer than KMS_OUTAGE_GRACE/,
    ),
  ]);
  expect(await get("livez")).toEqual([200, "ok\n"]);

  // It looks at its path every 2 s, and binds it again: it has just done so, and will not in the midst of this.
  rmSync(plugin.socket);
  await plugin.until(/bound again/);
  renameSync(plugin.socket, `${plugin.socket}.gone`);
  expect((await get("livez"))[0]).toBe(503);
  renameSync(`${plugin.socket}.gone`, plugin.socket);
  expect((await get("livez"))[0]).toBe(200);
  writeFileSync(`${plugin.socket}.other`, "");
  renameSync(`${plugin.socket}.other`, plugin.socket);
  expect((await get("livez"))[0]).toBe(503);
});

test("metrics are made once for all who ask at the same time, and are never old", async () => {
  const { plugin, get } = await setup();
  const statuses = 'key4c_kms_rpc_duration_seconds_count{api="v2",method="Status",code="OK"}';
  for (let turn = 1; turn <= 3; turn++) {
    await callRpc(plugin.client, V2.method.status, {});
    const texts = await Promise.all(
      Array.from({ length: 5 }, async () => (await get("metrics"))[1]),
    );
    expect(metric(texts[0] ?? "", statuses)).toBe(turn);
  }
  const startMs = performance.now();
  const rounds = 4;
  for (let round = 0; round < rounds; round++) {
    await get("metrics");
  }
  // Not a measurement: sooner would be a defect.
  expect(performance.now() - startMs).toBeGreaterThan((rounds - 1) * 1_000);
});

test("only GET, only these three paths", async () => {
  const { get } = await setup();
  expect((await get("metrics", { method: "POST" }))[0]).toBe(405);
  expect((await get("livez", { method: "HEAD" }))[0]).toBe(200);
  expect((await get(""))[0]).toBe(404);
});

test("a port in use is a warning; it is taken when it becomes free", async () => {
  const port = freePort();
  const squatter = Bun.serve({ hostname: "127.0.0.1", port, fetch: () => new Response("mine") });
  onTestEnd(() => squatter.stop(true));
  const plugin = await startPlugin(emulator().url, {
    KMS_HTTP_ADDRESS: `127.0.0.1:${port}`,
  });
  await plugin.until(/no health and metrics yet.*KMS_HTTP_ADDRESS/);
  expect((await callRpc(plugin.client, V2.method.status, {})).healthz).toBe("ok");
  await squatter.stop(true);
  await plugin.until(/"health and metrics"/);
  expect((await fetch(`http://127.0.0.1:${port}/livez`)).status).toBe(200);
});

test("an empty address means none", async () => {
  const plugin = startBinary(["serve", "--emulator"], {
    KMS_ENDPOINT: `unix://${temporaryDirectory()}/kms.sock`,
    KMS_HTTP_ADDRESS: "",
  });
  await plugin.until(/Key4C is ok/);
  expect(plugin.output()).not.toContain("health and metrics");
});
