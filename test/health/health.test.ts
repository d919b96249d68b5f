import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { Health, type State } from "../../src/health/health.ts";
import { DEFAULT_PROFILE, type Profile } from "../../src/key4c/profile.ts";
import { Keyring } from "../../src/keys/keyring.ts";
import {
  emulator,
  fakeServer,
  key4cClient,
  kindOf,
  onTestEnd,
  recordingLog,
  silentLog,
} from "../support.ts";

const DEK = randomBytes(32);

interface Setup {
  readonly url?: string;
  readonly previousKeyIds?: readonly string[];
  readonly outageGraceMs?: number;
  readonly intervalMs?: number;
  readonly profile?: Profile;
}

/** A probe that comes every 20 ms, on a clock that only the test moves, of an emulator or another URL. */
function setup({ url, previousKeyIds = [], outageGraceMs, intervalMs = 20, profile }: Setup = {}) {
  const remote = emulator({ keyIds: ["demo", "old"] });
  const key4c = key4cClient({ url: url ?? remote.url, ...(profile && { profile }) });
  const clock = { ms: 0 };
  const nowMs = () => clock.ms;
  const keyring: Keyring = new Keyring({
    key4c,
    kmsKeyId: "demo",
    previousKeyIds,
    maxUses: 1_000,
    maxAgeMs: 1e9,
    cacheSize: 10,
    log: silentLog,
    probeFailure: () => health.failure,
    suspect: () => health.suspect(),
    nowMs,
  });
  const { log, lines } = recordingLog();
  const health: Health = new Health({
    key4c,
    keyring,
    kmsKeyId: "demo",
    previousKeyIds,
    outageGraceMs,
    intervalMs,
    log,
    nowMs,
  });
  onTestEnd(() => health.stop());
  const until = async (state: State) => {
    while (health.state !== state) {
      await Bun.sleep(5);
    }
  };
  /** Waits for so many more probes to end. */
  const probes = async (count: number) => {
    for (let round = 0; round < count; round++) {
      clock.ms += 0.001;
      const before = health.lastProbeMs;
      while (health.lastProbeMs === before) {
        await Bun.sleep(2);
      }
    }
  };
  return { ...remote, key4c, keyring, health, lines, clock, until, probes };
}

test("before the first probe ends, Status is an error", () => {
  const { health } = setup();
  expect(health.state).toBe("starting");
  expect(() => health.usable).toThrow("no local KEK");
});

test("a probe makes the first local KEK", async () => {
  const { health, until, keyring } = setup();
  health.start();
  await until("ok");
  expect(health.usable).toBe(keyring.snapshot as never);
});

test("one line a change of state, however many probes", async () => {
  const { health, until, lines, control, probes } = setup();
  health.start();
  await until("ok");
  await control("POST", "keys/demo/disable");
  await until("degraded");
  await probes(5);
  expect(health.usable.keyId).toEndWith(".v1"); // it goes on with what it has
  await control("POST", "keys/demo/enable");
  await until("ok");
  await probes(1);
  expect(lines.map(({ level, msg }) => `${level} ${msg}`)).toEqual([
    "info Key4C is ok",
    "warn Key4C is away; known local KEKs go on",
    "info Key4C is ok",
  ]);
  const remedy = expect.stringContaining("KMS_KEY_ID");
  expect(lines[1]).toMatchObject({ state: "degraded", kind: "keyUnusable", remedy });
});

test("plugins that start together do not go on probing together", async () => {
  const intervalMs = 400;
  const secondProbesMs = await Promise.all(
    Array.from({ length: 16 }, async () => {
      const { health, key4c, until, probes } = setup({ intervalMs });
      health.start();
      await until("ok");
      const describe = key4c.describe.bind(key4c);
      let askedMs = 0;
      key4c.describe = (keyId) => {
        askedMs ||= performance.now();
        return describe(keyId);
      };
      await probes(1);
      return askedMs;
    }),
  );
  const spanMs = Math.max(...secondProbesMs) - Math.min(...secondProbesMs);
  // Moved by a tenth either way alone, they would be within a fifth of the interval.
  expect(spanMs).toBeGreaterThan(intervalMs * 0.4);
});

test("a rotation is noticed by the version of the key", async () => {
  const { health, until, control, keyring } = setup();
  health.start();
  await until("ok");
  await control("POST", "keys/demo/rotate");
  while (!keyring.snapshot?.keyId.endsWith(".v2")) {
    await Bun.sleep(5);
  }
  expect(health.usable.keyId).toEndWith(".v2");
});

test("with a grace, an outage ends Status and Encrypt; known data are still decrypted", async () => {
  const { health, until, stop, clock, keyring, probes } = setup({ outageGraceMs: 5_000 });
  health.start();
  await until("ok");
  const { envelope } = await keyring.wrap(DEK);
  await stop();
  await until("degraded");
  clock.ms += 4_000;
  await probes(1);
  expect(health.state).toBe("degraded");
  health.refuseIfExpired();
  clock.ms += 2_000;
  expect(health.state).toBe("expired");
  expect(() => health.usable).toThrow("KMS_OUTAGE_GRACE");
  expect(() => health.refuseIfExpired()).toThrow("KMS_OUTAGE_GRACE");
  expect(await keyring.unwrap(envelope)).toEqual(DEK);
});

test("without a grace an outage may last", async () => {
  const { health, until, stop, clock } = setup();
  health.start();
  await until("ok");
  await stop();
  await until("degraded");
  clock.ms += 1e10;
  expect(health.state).toBe("degraded");
  expect(health.usable.keyId).toEndWith(".v1");
});

test("Key4C is called healthy again only after it has unwrapped the local KEK", async () => {
  const { health, until, control, keyring, key4c, probes } = setup();
  health.start();
  await until("ok");
  // The describe goes on being well while the HSM gives other bytes.
  const unwrap = key4c.unwrap.bind(key4c);
  key4c.unwrap = async () => randomBytes(32);
  await control("POST", "keys/demo/disable");
  await until("degraded");
  await control("POST", "keys/demo/enable");
  await probes(3);
  expect(health.state).toBe("degraded");
  expect(health.failure?.message).toContain("does not give back");
  key4c.unwrap = unwrap;
  await until("ok");
  expect(keyring.snapshot?.keyId).toEndWith(".v1");
});

test("every five minutes the probe has the local KEK unwrapped, although describe is well", async () => {
  const { health, until, control, clock, key4c, probes } = setup();
  health.start();
  await until("ok");
  await probes(3);
  expect(await control("GET", "stats")).toMatchObject({ decrypt: 1 });
  clock.ms += 300_000;
  await probes(2);
  expect(await control("GET", "stats")).toMatchObject({ decrypt: 2 });
  key4c.unwrap = async () => randomBytes(32);
  clock.ms += 300_000;
  await until("degraded");
});

test("a key is revoked after three answers over 60 s, and enabling it heals", async () => {
  const { health, until, control, clock, keyring, lines, probes } = setup();
  health.start();
  await until("ok");
  const { envelope } = await keyring.wrap(DEK);
  await control("POST", "keys/demo/disable");
  await probes(6);
  expect(health.state).toBe("degraded"); // often enough, but not for long enough
  clock.ms += 59_000;
  await probes(2);
  expect(health.state).toBe("degraded");
  clock.ms += 1_000;
  await until("revoked");
  await probes(1);
  expect(() => health.usable).toThrow("no local KEK");
  expect(await kindOf(keyring.wrap(DEK))).toBe("keyUnusable");
  expect(await kindOf(keyring.unwrap(envelope))).toBe("keyUnusable");
  expect(lines.filter(({ level }) => level === "error").length).toBe(1);
  await control("POST", "keys/demo/enable");
  await until("ok");
  expect(await keyring.unwrap(envelope)).toEqual(DEK);
});

test("three answers in a row must be refusals: a success between them starts anew", async () => {
  const { health, until, control, clock, probes } = setup();
  health.start();
  await until("ok");
  for (let round = 0; round < 4; round++) {
    await control("POST", "keys/demo/disable");
    await probes(2);
    clock.ms += 30_000;
    await control("POST", "keys/demo/enable");
    await until("ok");
  }
  await control("POST", "keys/demo/disable");
  await probes(2);
  expect(health.state).toBe("degraded");
});

test.each([
  ["a gateway's page", () => new Response("<h1>Forbidden</h1>", { status: 403 })],
  ["a gateway's JSON", () => Response.json({ code: "waf-block" }, { status: 403 })],
  ["a bare 401", () => new Response(null, { status: 401 })],
  ["a 404 of another server", () => Response.json({ error: "no route" }, { status: 404 })],
  ["a broken HSM", () => Response.json({ code: "HSM_DOWN" }, { status: 500 })],
])("is no revocation: %s, however long", async (_, answer) => {
  const { url: upstream } = emulator();
  let broken = false;
  const proxy = fakeServer((request, body) =>
    broken
      ? answer()
      : fetch(upstream + new URL(request.url).pathname, {
          method: request.method,
          headers: { "X-Key4C-User-Id": "u" },
          ...(body !== "" && { body }),
        }),
  );
  const { health, until, clock, probes, keyring } = setup({ url: proxy.url });
  health.start();
  await until("ok");
  broken = true;
  await until("degraded");
  for (let round = 0; round < 5; round++) {
    clock.ms += 60_000;
    await probes(1);
  }
  expect(health.state).toBe("degraded");
  expect((await keyring.wrap(DEK)).keyId).toBe(health.usable.keyId);
  broken = false;
  await until("ok");
});

test("a previous key that is refused is dropped alone", async () => {
  const { health, until, control, clock, keyring, probes, lines, key4c } = setup({
    previousKeyIds: ["old"],
  });
  const former = new Keyring({
    key4c,
    kmsKeyId: "old",
    previousKeyIds: [],
    maxUses: 10,
    maxAgeMs: 1e9,
    cacheSize: 1,
    log: silentLog,
  });
  await former.renew();
  const { envelope } = await former.wrap(DEK);
  health.start();
  await until("ok");
  expect(await keyring.unwrap(envelope)).toEqual(DEK);
  await control("POST", "keys/old/delete");
  await probes(3);
  expect(await keyring.unwrap(envelope)).toEqual(DEK); // not yet
  clock.ms += 60_000;
  await probes(2);
  expect([keyring.isRevoked("old"), health.state]).toEqual([true, "ok"]);
  expect(await kindOf(keyring.unwrap(envelope))).toBe("keyUnusable");
  expect(lines.find(({ level }) => level === "error")).toMatchObject({ kmsKeyId: "old" });
  await control("POST", "keys/old/enable");
  while (keyring.isRevoked("old")) {
    await probes(1);
  }
  expect(await keyring.unwrap(envelope)).toEqual(DEK);
});

test("a caller's failure brings the probe forward", async () => {
  const { health, until, stop, clock } = setup({ intervalMs: 3_600_000 });
  health.start();
  await until("ok");
  await stop();
  clock.ms += 1_000;
  health.suspect();
  await until("degraded");
});

test("without a describe, the probe is an unwrap", async () => {
  const { describe: _, ...profile } = DEFAULT_PROFILE;
  const { health, until, control } = setup({ profile });
  health.start();
  await until("ok");
  await control("POST", "keys/demo/disable");
  await until("degraded");
  expect(health.failure?.kind).toBe("keyUnusable");
  await control("POST", "keys/demo/enable");
  await until("ok");
});

test("the probe renews a local KEK that is due although nobody encrypts", async () => {
  const { health, until, keyring, clock } = setup();
  health.start();
  await until("ok");
  const first = keyring.snapshot;
  clock.ms = 1e9;
  while (keyring.snapshot === first) {
    await Bun.sleep(5);
  }
});

test("a Key4C that fails at once is not asked in a hot loop", async () => {
  const server = fakeServer(() => new Response(null, { status: 500 }));
  const { health } = setup({ url: server.url, intervalMs: 60_000 });
  health.start();
  await Bun.sleep(600);
  // Two attempts each at 0, about 250 and 750 ms, later every few seconds; a hot loop makes thousands.
  expect(server.requests.length).toBeLessThan(20);
});
