/** Restarts and reboots while Key4C is unreachable, with KMS_PERSISTENT_CACHE: what comes up, and what must not. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { decodeStored, encodeStored } from "../../src/cache/form.ts";
import { type EncryptResponse, KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import { keyNameHash } from "../../src/keys/key-id.ts";
import { testWith } from "../needs.ts";
import { allowFile, secret } from "../secrets.ts";
import {
  BINARY,
  callRpc,
  emulator,
  failureOf,
  fakeServer,
  grpcClient,
  onTestEnd,
  passOn,
  runBinary,
  startProcess,
  temporaryDirectory,
  temporaryFile,
  toldDeadline,
  withUntil,
} from "../support.ts";

const DEK = randomBytes(32);
const BOOT_ID = "/proc/sys/kernel/random/boot_id";
const DEADLINE = toldDeadline(3_000);
/** Below the 3 s that an API server waits; the plugin ends a call 100 ms before. By its clock: a busy machine is late. */
const START_DEADLINE = toldDeadline(2_600);
/** What data needed is written 5 s after what was written before it; a busy machine and its disk take longer. */
const WRITE_MS = 60_000;

type Form = "in memory" | "sealed";
type Outage = "hangs" | "refuses";

/** A Key4C, and a machine with a directory for local KEKs. */
function machine(form: Form) {
  const key4c = emulator();
  const state = { isAway: false };
  const gate = fakeServer(async (request, body) => {
    if (state.isAway) {
      await new Promise(() => {});
    }
    return passOn(key4c.url, request, body);
  });
  const directory = form === "sealed" ? temporaryDirectory() : mkdtempSync("/dev/shm/k4c-");
  onTestEnd(() => rmSync(directory, { recursive: true, force: true }));
  const sealingKey = randomBytes(32);
  secret("sealing key", sealingKey);
  const settings = {
    KMS_PERSISTENT_CACHE: directory,
    ...(form === "sealed" && { KMS_PERSISTENT_CACHE_KEY_FILE: join(temporaryDirectory(), "key") }),
  };
  if (settings.KMS_PERSISTENT_CACHE_KEY_FILE !== undefined) {
    writeFileSync(settings.KMS_PERSISTENT_CACHE_KEY_FILE, sealingKey);
    allowFile(settings.KMS_PERSISTENT_CACHE_KEY_FILE);
  }
  const own = join(directory, "local-keks");
  return {
    key4c,
    gate,
    state,
    settings,
    sealingKey,
    directory,
    files: () => readdirSync(own),
    file: () => join(own, readdirSync(own)[0] ?? ""),
  };
}
type Machine = ReturnType<typeof machine>;

interface Start {
  /** Key4C from this start on. */
  readonly key4c?: "well" | Outage;
  /** Another one than before is a reboot. */
  readonly bootId?: string;
  readonly env?: Record<string, string>;
}

/** Starts a plugin, and waits for nothing. */
function start(on: Machine, { key4c = "well", bootId, env = {} }: Start = {}) {
  on.state.isAway = key4c === "hangs";
  const socket = join(temporaryDirectory(), "kms.sock");
  const serve = [BINARY, "serve"] as const;
  const seen = `mount --bind "$0" ${BOOT_ID} && exec "$@"`;
  const rebooted = ["unshare", "--mount", "sh", "-c", seen, temporaryFile(`${bootId}\n`)] as const;
  const environment = {
    PATH: process.env["PATH"] ?? "",
    KMS_ENDPOINT: `unix://${socket}`,
    KEY4C_URL: key4c === "refuses" ? "http://127.0.0.1:9" : on.gate.url,
    KMS_KEY_ID: "demo",
    KMS_USER_ID: `user-${crypto.randomUUID()}`,
    KMS_PROBE_INTERVAL: "200ms",
    KMS_HTTP_ADDRESS: "127.0.0.1:0",
    ...on.settings,
    ...env,
  };
  const running = startProcess(bootId === undefined ? serve : [...rebooted, ...serve], environment);
  return { ...withUntil(running), socket, client: grpcClient(socket), environment };
}
type Plugin = ReturnType<typeof start>;

const statusOf = ({ client }: Plugin, options?: typeof START_DEADLINE) =>
  callRpc(client, V2.method.status, {}, options);
const encrypt = ({ client }: Plugin, options?: typeof START_DEADLINE) =>
  callRpc(client, V2.method.encrypt, { plaintext: DEK }, options);
const decrypt = ({ client }: Plugin, { ciphertext, keyId, annotations }: EncryptResponse) =>
  callRpc(client, V2.method.decrypt, { ciphertext, keyId, annotations }, DEADLINE);

async function readyz(plugin: Plugin): Promise<string> {
  const [, url] = await plugin.until(/"url":"(http:[^"]*)"/);
  return (await fetch(`${url}readyz`)).text();
}

/** What the status command says of a restart. */
async function afterRestart(plugin: Plugin): Promise<{ localKeks: number; until: string } | null> {
  const { stdout, exitCode } = await runBinary(["status"], { env: plugin.environment });
  return exitCode === 0 ? JSON.parse(stdout.toString()).afterRestart : null;
}

async function untilKept(plugin: Plugin, count: number): Promise<void> {
  for (const endMs = Date.now() + WRITE_MS; Date.now() < endMs; await Bun.sleep(100)) {
    if (((await afterRestart(plugin))?.localKeks ?? 0) >= count) {
      return;
    }
  }
  throw new Error(`${count} local KEKs are not kept`);
}

/** A plugin that was killed. @returns what it wrote */
async function killed(on: Machine): Promise<EncryptResponse> {
  const plugin = start(on);
  await plugin.until(/Key4C is ok/);
  const written = await encrypt(plugin);
  await untilKept(plugin, 1);
  await plugin.stop("SIGKILL");
  return written;
}

/** The same of one that has read what an earlier process wrote, too. */
async function killedReader(on: Machine): Promise<readonly EncryptResponse[]> {
  const first = start(on, { env: { KMS_PERSISTENT_CACHE: "", KMS_PERSISTENT_CACHE_KEY_FILE: "" } });
  await first.until(/Key4C is ok/);
  const before = await encrypt(first);
  await first.stop();
  const second = start(on);
  await second.until(/Key4C is ok/);
  const after = await encrypt(second);
  await decrypt(second, before);
  await untilKept(second, 2);
  await second.stop("SIGKILL");
  return [before, after];
}

testWith("mount namespaces").each([
  ["in memory", "hangs", undefined],
  ["in memory", "refuses", undefined],
  ["sealed", "hangs", undefined],
  ["sealed", "refuses", "after a reboot"],
  ["sealed", "hangs", "after a reboot"],
] as const)("%s, Key4C %s: what was killed comes up %s", async (form, key4c, reboot) => {
  const on = machine(form);
  const written = await killedReader(on);
  const bootId = reboot && { bootId: crypto.randomUUID() };
  const plugin = start(on, { key4c, ...bootId });
  await plugin.until(/"msg":"serving"/);
  const [told, fresh] = await Promise.all([
    statusOf(plugin, START_DEADLINE),
    encrypt(plugin, START_DEADLINE),
  ]);
  expect(told).toMatchObject({ healthz: "ok", keyId: written[1]?.keyId ?? "" });
  for (const one of [...written, fresh]) {
    expect((await decrypt(plugin, one)).plaintext).toEqual(DEK);
  }
  expect(await readyz(plugin)).toMatch(
    /^degraded since .*: unavailable: .* under what the previous process kept, which another restart has until 20/,
  );
  expect(plugin.output()).toMatch(
    /using what the previous process kept.*"localKeks":2,"confirmedSeconds.*"until":"20/,
  );
  expect(plugin.output()).not.toContain("no local KEK yet");
  // And once more, with what this one wrote too.
  await plugin.stop("SIGKILL");
  const again = start(on, { key4c, ...bootId });
  await again.until(/"msg":"serving"/);
  for (const one of [...written, fresh, await encrypt(again)]) {
    expect((await decrypt(again, one)).plaintext).toEqual(DEK);
  }
  // Key4C comes back: a new local KEK is made, and what was kept is confirmed.
  if (key4c === "hangs") {
    on.state.isAway = false;
    await again.until(/Key4C is ok/);
    const renewed = await encrypt(again);
    expect(renewed.annotations).not.toEqual(fresh.annotations);
    expect(await readyz(again)).toMatch(/^ok since [^;]*$/m);
    await untilKept(again, 3);
  }
});

/** A plugin that must not serve. */
async function refuses(plugin: Plugin, written: EncryptResponse): Promise<void> {
  await plugin.until(/"msg":"serving"/);
  const failed = async (call: Promise<unknown>) => (await failureOf(call))[0];
  expect(await failed(statusOf(plugin))).toBeGreaterThan(0);
  expect(await failed(decrypt(plugin, written))).toBeGreaterThan(0);
}

testWith("mount namespaces")(
  "what is in memory ends with its boot, also when somebody puts it back",
  async () => {
    const on = machine("in memory");
    const written = await killed(on);
    const plugin = start(on, { key4c: "refuses", bootId: crypto.randomUUID() });
    await refuses(plugin, written);
    expect(plugin.output()).toContain("is of an earlier boot");
  },
);

test("what was confirmed longer ago than KMS_PERSISTENT_CACHE_MAX_AGE is not used; status and doctor say so", async () => {
  const on = machine("sealed");
  const written = await killed(on);
  rewrite(on, { hours: 25 });
  const plugin = start(on, { key4c: "refuses" });
  await refuses(plugin, written);
  const { stdout } = await runBinary(["doctor"], { env: plugin.environment });
  expect(stdout.toString()).toMatch(
    /✗ persistent cache: 1 local KEK of demo, sealed, .*so a restart now would not come up/,
  );
});

/** As if Key4C had last confirmed it so many hours ago, by a clock that may be wrong, before a reboot. */
function rewrite(on: Machine, { hours }: { hours: number }): void {
  const content = decodeStored(readFileSync(on.file()), keyNameHash("demo"), on.sealingKey, "");
  const confirmed = { wallMs: Date.now() - hours * 3_600_000, bootId: "earlier", bootMs: 0 };
  writeFileSync(on.file(), encodeStored({ ...content, confirmed }, on.sealingKey));
}

test("a clock that is an hour back after a reboot costs a warning", async () => {
  const on = machine("sealed");
  const written = await killed(on);
  rewrite(on, { hours: -1 });
  const plugin = start(on, { key4c: "refuses" });
  await plugin.until(/"msg":"serving"/);
  expect((await statusOf(plugin)).healthz).toBe("ok");
  expect((await decrypt(plugin, written)).plaintext).toEqual(DEK);
  expect(plugin.output()).toMatch(/"level":"warn","msg":"the clock was set back/);
});

test("KMS_OUTAGE_GRACE counts from the last confirmation: Encrypt ends, Decrypt does not", async () => {
  const on = machine("sealed");
  const written = await killed(on);
  rewrite(on, { hours: 2 });
  const plugin = start(on, { key4c: "refuses", env: { KMS_OUTAGE_GRACE: "1h" } });
  await plugin.until(/"msg":"serving"/);
  const [, why] = await failureOf(statusOf(plugin));
  expect(why).toMatch(/./);
  expect(await readyz(plugin)).toMatch(/^expired since /);
  expect((await decrypt(plugin, written)).plaintext).toEqual(DEK);
});

/** One that was just being written is given up, and gone in a moment. */
async function expectNoFile(on: Machine): Promise<void> {
  expect(on.files().filter((name) => !name.startsWith("."))).toEqual([]);
  while (on.files().length > 0) {
    await Bun.sleep(10); // the test's own timeout ends it
  }
}

test("a revocation removes the file at once; nothing of it is read by any later process", async () => {
  const on = machine("sealed");
  const written = await killed(on);
  const plugin = start(on, { env: { KMS_REVOCATION_GRACE: "1s" } });
  await plugin.until(/Key4C is ok/);
  await on.key4c.control("POST", "keys/demo/disable");
  await plugin.until(/"state":"revoked"/);
  await expectNoFile(on);
  await plugin.stop("SIGKILL");
  await refuses(start(on, { key4c: "refuses" }), written);
});

test("a key that is disabled while the plugin is down is served for KMS_REVOCATION_GRACE, and no longer", async () => {
  const on = machine("sealed");
  const written = await killed(on);
  await on.key4c.control("POST", "keys/demo/disable");
  const plugin = start(on, { env: { KMS_REVOCATION_GRACE: "6s" } });
  await plugin.until(/"msg":"serving"/);
  expect((await statusOf(plugin)).healthz).toBe("ok");
  expect((await decrypt(plugin, written)).plaintext).toEqual(DEK);
  await plugin.until(/"state":"revoked"/);
  await refuses(plugin, written);
  await expectNoFile(on);
  // Where there is no such grace, not even that.
  const other = machine("sealed");
  const kept = await killed(other);
  await other.key4c.control("POST", "keys/demo/disable");
  const strict = start(other, { env: { KMS_REVOCATION_GRACE: "0s" } });
  await refuses(strict, kept);
  await strict.until(/"state":"revoked"/); // Key4C refuses a Decrypt, perhaps, before the probe has its answer
  await expectNoFile(other);
});

test("of two plugins on one directory the second keeps nothing until the first has ended", async () => {
  const on = machine("in memory");
  const first = start(on);
  await first.until(/Key4C is ok/);
  await untilKept(first, 1);
  const second = start(on);
  await second.until(/Key4C is ok/);
  await second.until(/"level":"error","msg":"local KEKs are not kept.*another plugin keeps/);
  await first.stop("SIGKILL");
  await second.until(/local KEKs are kept for the next process/);
});

test("a sealing key that is lost costs the cache, never the start", async () => {
  const on = machine("sealed");
  await killed(on);
  rmSync(on.settings.KMS_PERSISTENT_CACHE_KEY_FILE ?? "");
  const plugin = start(on);
  await plugin.until(/Key4C is ok/);
  expect(plugin.output()).toMatch(
    /"level":"error","msg":"local KEKs are not kept.*cannot read .*ENOENT/,
  );
  expect((await statusOf(plugin)).healthz).toBe("ok");
});

test("a file of a later release is skipped, and a release without the option starts beside it", async () => {
  const on = machine("in memory");
  const written = await killed(on);
  const bytes = readFileSync(on.file());
  bytes.writeUInt8(9, 4);
  writeFileSync(on.file(), bytes);
  const plugin = start(on, { key4c: "refuses" });
  await refuses(plugin, written);
  expect(plugin.output()).toContain("has the form 9, which this release does not know");
  const without = start(on, { env: { KMS_PERSISTENT_CACHE: "" } });
  await without.until(/Key4C is ok/);
  expect(on.files()).toHaveLength(1);
});

test("forget: what was kept is gone, and says so where a plugin keeps it again", async () => {
  const on = machine("in memory");
  const written = await killed(on);
  const forget = async () => {
    const { stdout, exitCode } = await runBinary(["forget"], { env: on.settings });
    return [exitCode, stdout.toString().trim()];
  };
  const own = join(on.directory, "local-keks");
  expect(await forget()).toEqual([0, `removed 1 file from ${own}`]);
  expect(await forget()).toEqual([0, `removed 0 files from ${own}`]);
  const without = start(on, { key4c: "refuses" });
  await refuses(without, written);
  await without.stop();
  const plugin = start(on);
  await untilKept(plugin, 1);
  expect(await forget()).toEqual([
    0,
    `removed 1 file from ${own}; the plugin that has them in use keeps them again`,
  ]);
  rmSync(on.directory, { recursive: true });
  expect(await forget()).toEqual([0, `nothing was kept in ${on.directory}`]);
});

test("doctor and metrics say whether a restart would come up, and until when", async () => {
  const on = machine("sealed");
  const plugin = start(on);
  await untilKept(plugin, 1);
  const { stdout } = await runBinary(["doctor"], { env: plugin.environment });
  expect(stdout.toString()).toMatch(
    /✓ persistent cache: 1 local KEK of demo, sealed, for user 0 alone, confirmed at 20.*: a restart now comes up without Key4C, until 20/,
  );
  const [, url] = await plugin.until(/"url":"(http:[^"]*)"/);
  const metrics = await (await fetch(`${url}metrics`)).text();
  expect(metrics).toMatch(/^key4c_kms_persistent_cache_ready 1$/m);
  expect(metrics).toMatch(/^key4c_kms_persistent_cache_local_keks 1$/m);
  const until = Number(
    /^key4c_kms_persistent_cache_expiry_timestamp_seconds (\S+)$/m.exec(metrics)?.[1],
  );
  expect(Math.abs(until - Date.now() / 1_000 - 86_400)).toBeLessThan(120);
});

test.each([
  [{ KMS_PERSISTENT_CACHE: "/tmp/k4c-disk" }, "is not in memory (tmpfs)"],
  [
    { KMS_PERSISTENT_CACHE: "/run/k4c-nowhere/below" },
    "must not lie in the directory of the socket",
  ],
  [{ KMS_PERSISTENT_CACHE: "relative" }, "must be an absolute path"],
  [{ KMS_PERSISTENT_CACHE_KEY_FILE: "/key" }, "is of use only with KMS_PERSISTENT_CACHE"],
  [
    { KMS_PERSISTENT_CACHE: "/c", KMS_PERSISTENT_CACHE_KEY_FILE: "/c/key" },
    "whoever copied the one",
  ],
  [{ KMS_PERSISTENT_CACHE: "/c", KMS_LOCAL_KEK_MAX_USES: "1" }, "contradict each other"],
])("what can never work is refused before anything is done: %p", async (env, message) => {
  const endpoint = { KMS_ENDPOINT: "unix:///run/k4c-nowhere/kms.sock" };
  const needed = { KEY4C_URL: "https://k.example", KMS_KEY_ID: "demo", KMS_USER_ID: "u" };
  const { stderr, exitCode } = await runBinary(["serve"], {
    env: { ...needed, ...endpoint, ...env },
  });
  rmSync("/tmp/k4c-disk", { recursive: true, force: true });
  expect(stderr).toContain(message);
  expect(exitCode).toBe(2);
});
