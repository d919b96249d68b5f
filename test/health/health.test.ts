import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { PluginError } from "../../src/failures/plugin-error.ts";
import { Health } from "../../src/health/health.ts";
import { DEFAULT_PROFILE, type Profile } from "../../src/key4c/profile.ts";
import { callerFailed } from "../../src/keys/admission.ts";
import type { Limits, State } from "../../src/keys/key-health.ts";
import { materialOf } from "../../src/keys/material.ts";
import { type Clock, systemClock } from "../../src/system/clock.ts";
import { ringParts } from "../keys/fake-key4c.ts";
import { emulator, fakeServer, key4cClient, kindOf, onTestEnd, recordingLog } from "../support.ts";

const DEK = randomBytes(32);

interface Setup extends Partial<Limits> {
  readonly url?: string;
  readonly previousKeyIds?: readonly string[];
  readonly intervalMs?: number;
  readonly profile?: Profile;
}

/** A probe that comes every 20 ms, on a clock that only the test moves, of an emulator or another URL. */
function setup({ url, profile, intervalMs = 20, ...options }: Setup = {}) {
  const remote = emulator({ keyIds: ["demo", "old"] });
  const clock = { ms: 0 };
  const mixed: Clock = { ...systemClock, nowMs: () => clock.ms };
  const key4c = key4cClient({
    url: url ?? remote.url,
    clock: mixed,
    ...(profile && { profile }),
  });
  const parts = ringParts(key4c, { clock: mixed, maxUses: 1_000, maxAgeMs: 1e9, ...options });
  const { ring: keyring } = parts;
  const { log, lines } = recordingLog();
  const health = new Health({ keyring, intervalMs, log, clock: mixed });
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

test("before the first probe begins, Status is an error; while it is under way, it waits", async () => {
  const { health, keyring } = setup();
  expect(health.state).toBe("starting");
  expect(await kindOf(keyring.status())).toBe("unavailable");
  health.start();
  expect(keyring.isReady).toBe(false);
  const [one, two] = await Promise.all([keyring.status(), keyring.wrap(DEK)]);
  expect([one.keyId, health.state]).toEqual([two.keyId, "ok"]);
});

test("a Key4C that hangs at the start keeps Status waiting for two seconds, and no Encrypt for less", async () => {
  const { url } = fakeServer(() => new Promise<Response>(() => {}));
  const { health, keyring } = setup({ url });
  health.start();
  const beganMs = performance.now();
  const wrapping = kindOf(keyring.wrap(DEK));
  expect(await kindOf(keyring.status())).toBe("unavailable");
  expect(performance.now() - beganMs).toBeGreaterThanOrEqual(1_900);
  expect(await Promise.race([wrapping, Bun.sleep(1).then(() => "waits")])).toBe("waits");
});

test("a probe makes the first local KEK", async () => {
  const { health, until, keyring } = setup();
  health.start();
  await until("ok");
  expect(await keyring.status()).toBe(keyring.snapshot as never);
});

test("one line a change of state, however many probes", async () => {
  const { health, keyring, until, lines, control, probes } = setup();
  health.start();
  await until("ok");
  await control("POST", "keys/demo/disable");
  await until("degraded");
  await probes(5);
  expect((await keyring.status()).keyId).toMatch(/\.v1\.k.{8}$/); // it goes on with what it has
  await control("POST", "keys/demo/enable");
  await until("ok");
  await probes(1);
  // Disabled between describe and unwrap of a probe, the key is refused in two ways: a line for each cause.
  const told = lines.map(({ level, msg }) => `${level} ${msg}`);
  expect(told.filter((one, index) => one !== told[index - 1])).toEqual([
    "info Key4C is ok",
    "warn Key4C says that the key is disabled or deleted; known local KEKs continue to work",
    "info Key4C is ok",
  ]);
  const remedy = expect.stringContaining("enable the key");
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
  while (keyring.snapshot?.header.keyVersion !== 2) {
    await Bun.sleep(5);
  }
  expect((await keyring.status()).keyId).toMatch(/\.v2\.k.{8}$/);
});

test("with a grace, an outage ends Status and Encrypt; known data are still decrypted", async () => {
  const { health, until, stop, clock, keyring, probes } = setup({ outageGraceMs: 5_000 });
  health.start();
  await until("ok");
  const { envelope } = await keyring.wrap(DEK);
  clock.ms += 60_000; // a success long ago is no outage
  await stop();
  await until("degraded");
  clock.ms += 4_000;
  await probes(1);
  expect(health.state).toBe("degraded");
  await keyring.wrap(DEK);
  clock.ms += 2_000;
  await until("expired"); // at the next probe
  expect(keyring.status()).rejects.toThrow("KMS_OUTAGE_GRACE");
  expect(await kindOf(keyring.wrap(DEK))).toBe("unavailable");
  expect(await keyring.unwrap(envelope)).toEqual(DEK);
});

test("without a grace an outage may last", async () => {
  const { health, until, stop, clock, keyring, probes } = setup();
  health.start();
  await until("ok");
  await stop();
  await until("degraded");
  clock.ms += 1e10;
  await probes(2);
  expect(health.state).toBe("degraded");
  expect((await keyring.status()).header.keyVersion).toBe(1);
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
  expect(health.failure?.message).toContain("does not unwrap");
  key4c.unwrap = unwrap;
  await until("ok");
  expect(keyring.snapshot?.header.keyVersion).toBe(1);
});

test("every probe has the local KEK unwrapped, although describe is well", async () => {
  const { health, until, control, key4c, probes } = setup();
  health.start();
  await until("ok");
  await probes(3);
  const { describe = 0, decrypt = 0 } = await control("GET", "stats");
  expect(decrypt).toBeGreaterThanOrEqual(4); // the first is that of the new local KEK
  expect(describe - decrypt).toBeLessThanOrEqual(1);
  key4c.unwrap = async () => randomBytes(32);
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
  expect(keyring.status()).rejects.toThrow("revoked");
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
  ["a gateway's 404", () => Response.json({ code: 404 }, { status: 404 })],
  ["a sealed service", () => Response.json({ errors: ["sealed"] }, { status: 503 })],
  ["an answer to a decrypt", () => Response.json({ code: "INVALID_CIPHERTEXT" }, { status: 400 })],
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
  expect((await keyring.wrap(DEK)).keyId).toBe((await keyring.status()).keyId);
  broken = false;
  while (health.state !== "ok") {
    clock.ms += 30_000; // a secret that was refused is tried again
    await Bun.sleep(5);
  }
});

test("a previous key that is refused is dropped alone", async () => {
  const { health, until, control, clock, keyring, probes, lines, key4c } = setup({
    previousKeyIds: ["old"],
  });
  const former = ringParts(key4c, { kmsKeyId: "old" }).ring;
  await former.keys.current.prober.make(materialOf("old", await key4c.describe("old")));
  const { envelope } = await former.wrap(DEK);
  health.start();
  await until("ok");
  expect(await keyring.unwrap(envelope)).toEqual(DEK);
  await control("POST", "keys/old/delete");
  await probes(3);
  expect(await keyring.unwrap(envelope)).toEqual(DEK); // not yet
  clock.ms += 60_000;
  const { health: old } = keyring.member("old").key;
  while (old.revocation === undefined) {
    await probes(1);
  }
  expect(health.state).toBe("ok");
  expect(await kindOf(keyring.unwrap(envelope))).toBe("keyUnusable");
  expect(lines.find(({ level }) => level === "error")).toMatchObject({ kmsKeyId: "old" });
  await control("POST", "keys/old/enable");
  while (old.revocation !== undefined) {
    await probes(1);
  }
  expect(await keyring.unwrap(envelope)).toEqual(DEK);
});

test("a caller's failure brings the probe forward", async () => {
  const { health, until, stop, clock, keyring } = setup({ intervalMs: 3_600_000 });
  health.start();
  await until("ok");
  await stop();
  clock.ms += 1_000;
  keyring.key.health.wantProbe();
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

test("a state that a caller's answer leads to is told at once, and not first by the next probe", async () => {
  const { health, keyring, until, lines } = setup({ intervalMs: 3_600_000 });
  health.start();
  await until("ok");
  await Bun.sleep(1); // the end of that probe
  callerFailed(keyring.key, new PluginError("throttled", "fake", { retryAfterMs: 60_000 }));
  expect(health.state).toBe("degraded");
  expect(lines.at(-1)).toMatchObject({ level: "warn", state: "degraded", kind: "throttled" });
});
