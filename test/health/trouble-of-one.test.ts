/**
 * What is known of one key or one operation stops no call of another: rights by operation, a sick key beside a well one,
 * replicas that lag, material that only a key check value or only encrypt tells. In the test's time.
 */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { PluginError } from "../../src/failures/plugin-error.ts";
import type { Envelope } from "../../src/keys/envelope.ts";
import { within } from "../clock.ts";
import { changing, FakeKey4C, plugin, ready, verdict } from "../keys/fake-key4c.ts";
import { kindOf } from "../support.ts";

const DEK = randomBytes(32);
const SECOND_MS = 1_000;
const MINUTE_MS = 60_000;
const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const INTERVAL_MS = 30_000;
/** Interval with jitter, KMS_REVOCATION_GRACE, and what three answers take. */
const REVOCATION_BOUND_MS = 1.1 * INTERVAL_MS + MINUTE_MS + 6 * SECOND_MS;

const DENIED = new PluginError("denied", "fake", { isByContract: true, about: "call" });
const UNAVAILABLE = new PluginError("unavailable", "fake");

/** Objects of another node, each under a local KEK that nobody here has seen. */
async function objectsOf(key4c: FakeKey4C, count: number, kmsKeyId = "demo"): Promise<Envelope[]> {
  const objects: Envelope[] = [];
  while (objects.length < count) {
    objects.push((await (await ready(key4c, { kmsKeyId })).wrap(DEK)).envelope);
  }
  return objects;
}

/** A plugin after its first probe, whatever came of it. */
async function started(...[key4c, options]: Parameters<typeof plugin>) {
  const parts = plugin(key4c, options);
  parts.health.start();
  await parts.clock.pass(0);
  const { ring, clock } = parts;
  const read = (envelope: Envelope | undefined) =>
    kindOf(within(clock, 3_000, ring.unwrap(envelope as Envelope)));
  return { ...parts, read };
}

test("a key that left the list and was then deleted is refused after 30 days too", async () => {
  const key4c = new FakeKey4C();
  const [old] = await objectsOf(key4c, 1, "old");
  const { now, configured } = changing("demo", "old");
  const { clock, read } = await started(key4c, { configured, intervalMs: HOUR_MS });
  expect(await read(old)).toBe("ok");
  now.previous = [];
  await clock.pass(2 * HOUR_MS);
  expect(await read(old)).toBe("unknownKey");
  key4c.trouble = (_, kmsKeyId) => (kmsKeyId === "old" ? verdict("keyUnusable") : undefined);
  await clock.pass(30 * DAY_MS);
  expect(await read(old)).toBe("unknownKey");
}, 60_000);

test.each(["denied", "unavailable"] as const)(
  "the current key is %s for good, and the revocation of a previous one is noticed in its bound",
  async (kind) => {
    const key4c = new FakeKey4C();
    const [old] = await objectsOf(key4c, 1, "old");
    const { ring, clock, health, read } = await started(key4c, { previousKeyIds: ["old"] });
    expect(await read(old)).toBe("ok");
    const failure = new PluginError(kind, "fake", { isByContract: kind === "denied" });
    key4c.trouble = (_, kmsKeyId) => (kmsKeyId === "old" ? verdict("keyUnusable") : failure);
    await clock.pass(REVOCATION_BOUND_MS);
    expect(ring.member("old").key.health.state).toBe("revoked");
    expect([await read(old), health.state]).toEqual(["keyUnusable", "degraded"]);
  },
);

test("a restart while encrypt fails and decrypt is well: every read is served", async () => {
  const key4c = new FakeKey4C();
  const objects = await objectsOf(key4c, 20);
  key4c.trouble = (operation) => (operation === "wrap" ? UNAVAILABLE : undefined);
  key4c.calls = { describe: 0, wrap: 0, unwrap: 0 };
  const { health, clock, read } = await started(key4c);
  for (const object of objects) {
    expect(await read(object)).toBe("ok");
    await clock.pass(SECOND_MS);
  }
  expect([health.state, key4c.calls.unwrap]).toEqual(["starting", 20]);
  expect(key4c.calls.wrap).toBeLessThan(20); // at its own pace
  key4c.trouble = () => undefined;
  await clock.pass(6 * SECOND_MS);
  expect(health.state).toBe("ok");
});

test("a grant that is missing on a new key stops no read of the old one", async () => {
  const key4c = new FakeKey4C();
  const objects = await objectsOf(key4c, 5, "old");
  key4c.trouble = (operation, kmsKeyId) =>
    kmsKeyId === "new" && operation !== "describe" ? DENIED : undefined;
  const { clock, health, read } = await started(key4c, {
    kmsKeyId: "new",
    previousKeyIds: ["old"],
  });
  for (const object of objects) {
    expect(await read(object)).toBe("ok");
    await clock.pass(MINUTE_MS);
  }
  expect(health.state).toBe("starting");
});

test("the right to encrypt is withdrawn, and a renewal due: all that is not held is still read", async () => {
  const key4c = new FakeKey4C();
  const objects = await objectsOf(key4c, 12);
  const { ring, clock, health, read } = await started(key4c, { maxUses: 10 });
  key4c.trouble = (operation) => (operation === "wrap" ? DENIED : undefined);
  for (const object of objects) {
    expect(await kindOf(within(clock, 3_000, ring.wrap(DEK)))).toBe("ok");
    expect(await read(object)).toBe("ok");
    await clock.pass(SECOND_MS);
  }
  expect([health.state, ring.overLimit > 0]).toEqual(["ok", true]);
});

test("a key that may only decrypt serves reads from its first minute, for a day", async () => {
  const key4c = new FakeKey4C();
  const objects = await objectsOf(key4c, 7);
  key4c.trouble = (operation) => (operation === "wrap" ? DENIED : undefined);
  key4c.calls.wrap = 0;
  const { clock, health, read } = await started(key4c);
  for (const object of objects) {
    expect(await read(object)).toBe("ok");
    await clock.pass(DAY_MS / 7);
  }
  expect(health.state).toBe("starting");
  expect(key4c.calls.wrap).toBeLessThanOrEqual(DAY_MS / (30 * SECOND_MS) + 3); // one in 30 s, after 5, 10 and 20
}, 60_000);

test("a key that is enabled again while encrypt fails: its data are read, and it wraps when encrypt works", async () => {
  const key4c = new FakeKey4C();
  const [object] = await objectsOf(key4c, 1);
  const { health, clock, read } = await started(key4c);
  key4c.trouble = () => verdict("keyUnusable");
  await clock.pass(REVOCATION_BOUND_MS);
  expect([health.state, await read(object)]).toEqual(["revoked", "keyUnusable"]);
  key4c.trouble = (operation) => (operation === "wrap" ? UNAVAILABLE : undefined);
  await clock.pass(2 * INTERVAL_MS);
  expect([health.state, await read(object)]).toEqual(["starting", "ok"]);
  key4c.trouble = () => undefined;
  await clock.pass(2 * INTERVAL_MS);
  expect(health.state).toBe("ok");
});

test("a service whose encrypt makes a key that is gone: where describe does not find it, nothing is wrapped", async () => {
  const key4c = new FakeKey4C();
  const { health, clock } = await started(key4c);
  expect(health.state).toBe("ok");
  key4c.replaceMaterial(); // what was wrapped is invalid
  const missing = new PluginError("keyNotFound", "fake: a status, and no code");
  key4c.trouble = (operation) => (operation === "describe" ? missing : undefined);
  const { wrap } = key4c.calls;
  await clock.pass(HOUR_MS);
  expect([health.state, key4c.calls.wrap]).toEqual(["degraded", wrap]);
});

test("describe is refused for a day, and decrypt is well: reads are served, nothing is revoked", async () => {
  const key4c = new FakeKey4C();
  const objects = await objectsOf(key4c, 3);
  const { clock, ring, health, read } = await started(key4c);
  key4c.trouble = (operation) => (operation === "describe" ? DENIED : undefined);
  for (const object of objects) {
    await clock.pass(DAY_MS / 3);
    expect(await read(object)).toBe("ok");
  }
  expect([health.state, await kindOf(ring.wrap(DEK))]).toEqual(["degraded", "ok"]);
}, 60_000);

test("material that is replaced while describe is refused is a mismatch all the same", async () => {
  const key4c = new FakeKey4C();
  const { clock, health } = await started(key4c);
  key4c.trouble = (operation) => (operation === "describe" ? DENIED : undefined);
  await clock.pass(MINUTE_MS);
  key4c.replaceMaterial();
  await clock.pass(MINUTE_MS);
  expect(health.state).toBe("mismatch");
});

test("a kcv and no version: a rotation is noticed, and wraps under the key_id that a fresh plugin has", async () => {
  const key4c = new FakeKey4C();
  key4c.version = undefined;
  key4c.kcv = "A1B2C3";
  const { ring, clock, health } = await started(key4c);
  const before = await ring.wrap(DEK);
  key4c.kcv = "99FF00";
  await clock.pass(1.1 * INTERVAL_MS + 16 * SECOND_MS);
  const after = await ring.wrap(DEK);
  expect([health.state, after.keyId !== before.keyId]).toEqual(["ok", true]);
  expect((await (await ready(key4c)).wrap(DEK)).keyId).toBe(after.keyId);
  expect(await kindOf(ring.unwrap(before.envelope))).toBe("ok");
});

test("replicas that tell two key check values by turns change no key_id; a former one counts after ten minutes", async () => {
  const key4c = new FakeKey4C();
  key4c.version = undefined;
  key4c.kcv = "A1B2C3";
  const { ring, clock } = await started(key4c);
  const { keyId } = await ring.wrap(DEK);
  const describe = key4c.describe.bind(key4c);
  let asked = 0;
  key4c.describe = (...args) => {
    key4c.kcv = (asked++ / 2) % 2 < 1 ? "99FF00" : "A1B2C3";
    return describe(...args);
  };
  await clock.pass(DAY_MS);
  expect((await ring.wrap(DEK)).keyId).toBe(keyId);
  key4c.describe = describe;
  key4c.kcv = "99FF00";
  await clock.pass(MINUTE_MS);
  expect((await ring.wrap(DEK)).keyId).not.toBe(keyId);
  key4c.kcv = "A1B2C3";
  await clock.pass(9 * MINUTE_MS);
  expect((await ring.wrap(DEK)).keyId).not.toBe(keyId);
  await clock.pass(3 * MINUTE_MS);
  expect((await ring.wrap(DEK)).keyId).toBe(keyId);
}, 60_000);

test("a kcv that changes with the material is told as a mismatch first, then wraps", async () => {
  const key4c = new FakeKey4C();
  key4c.kcv = "A1B2C3";
  const { ring, clock, health, lines } = await started(key4c);
  const before = await ring.wrap(DEK);
  key4c.replaceMaterial();
  key4c.kcv = "99FF00";
  await clock.pass(2 * MINUTE_MS);
  expect([health.state, (await ring.wrap(DEK)).keyId !== before.keyId]).toEqual(["ok", true]);
  expect(lines.map(({ state }) => state)).toContain("mismatch");
  expect([ring.orphans, await kindOf(ring.unwrap(before.envelope))]).toEqual([1, "ok"]);
});

test("only encrypt tells the version, the old material is gone: the new one wraps, and few controls are made", async () => {
  const key4c = new FakeKey4C();
  key4c.told = () => undefined;
  const { ring, clock, health } = await started(key4c, { intervalMs: 5 * MINUTE_MS });
  const before = await ring.wrap(DEK);
  key4c.replaceMaterial();
  key4c.version = 2;
  key4c.calls.wrap = 0;
  await clock.pass(6 * MINUTE_MS);
  expect([health.state, (await ring.wrap(DEK)).keyId.slice(-3)]).toEqual(["ok", ".v2"]);
  expect([ring.orphans, await kindOf(ring.unwrap(before.envelope))]).toEqual([1, "ok"]);
  await clock.pass(30 * DAY_MS);
  expect(key4c.calls.wrap).toBeLessThan(30);
}, 60_000);

test("a mismatch that lasts for a day costs no more than a control a minute", async () => {
  const key4c = new FakeKey4C();
  const { clock, health } = await started(key4c);
  key4c.replaceMaterial();
  await clock.pass(2 * MINUTE_MS);
  key4c.calls.wrap = 0;
  await clock.pass(DAY_MS);
  expect(health.state).toBe("mismatch");
  expect(key4c.calls.wrap).toBeLessThanOrEqual(24 * 60 + 1);
  expect(key4c.calls.wrap).toBeGreaterThan(24 * 60 * 0.9);
}, 60_000);

test("Retry-After 300: KMS_OUTAGE_GRACE ends, and a change to a well key does not wait", async () => {
  const key4c = new FakeKey4C();
  const { now, configured } = changing("demo");
  const { ring, clock, health } = await started(key4c, { configured, outageGraceMs: MINUTE_MS });
  const throttled = new PluginError("throttled", "fake", { retryAfterMs: 300_000 });
  key4c.trouble = (_, kmsKeyId) => (kmsKeyId === "demo" ? throttled : undefined);
  await clock.pass(34 * SECOND_MS);
  expect(health.state).toBe("degraded");
  const { describe } = key4c.calls;
  await clock.pass(MINUTE_MS + 4 * SECOND_MS);
  expect([health.state, key4c.calls.describe]).toEqual(["expired", describe]); // and nobody asked
  now.current = "well";
  await clock.pass(1.1 * INTERVAL_MS + SECOND_MS);
  expect([health.state, ring.key.kmsKeyId]).toEqual(["ok", "well"]);
});

test("a replica that lags: honest objects of another node are not called invalid, and are read when it catches up", async () => {
  const key4c = new FakeKey4C();
  key4c.version = 2;
  const objects = await objectsOf(key4c, 50);
  const { knows } = key4c;
  key4c.version = 1;
  key4c.knows = (ciphertext) => !ciphertext.endsWith("-v2");
  const { clock, health, read } = await started(key4c);
  for (const object of objects) {
    expect(await read(object)).toBe("unavailable");
  }
  expect(health.state).toBe("ok");
  key4c.version = 2;
  key4c.knows = knows;
  await clock.pass(SECOND_MS);
  for (const object of objects) {
    expect(await read(object)).toBe("ok");
  }
});

test("what an object claims is believed for ten minutes, and then it is not valid", async () => {
  const key4c = new FakeKey4C();
  key4c.version = 9;
  const [lying] = await objectsOf(key4c, 1);
  key4c.version = 1;
  key4c.replaceMaterial();
  const { clock, read } = await started(key4c);
  expect(await read(lying)).toBe("unavailable");
  await clock.pass(10 * MINUTE_MS);
  expect(await read(lying)).toBe("invalid");
});

test("a start behind replicas that are asked in turn becomes ok, whatever the order", async () => {
  for (let first = 0; first < 4; first++) {
    const key4c = new FakeKey4C();
    let connections = first;
    const isLagging = () => connections++ % 2 === 0;
    const { knows } = key4c;
    const describe = key4c.describe.bind(key4c);
    key4c.describe = (...args) => {
      key4c.version = isLagging() ? 1 : 2;
      return describe(...args);
    };
    const wrap = key4c.wrap.bind(key4c);
    key4c.wrap = (...args) => {
      key4c.version = isLagging() ? 1 : 2;
      return wrap(...args);
    };
    const unwrap = key4c.unwrap.bind(key4c);
    key4c.unwrap = (...args) => {
      key4c.knows = isLagging() ? (ciphertext) => !ciphertext.endsWith("-v2") : knows;
      return unwrap(...args);
    };
    const { clock, health } = await started(key4c);
    let at = 0;
    clock.random = () => [0.1, 0.9, 0.3, 0.7, 0.2, 0.6][at++ % 6] ?? 0;
    await clock.pass(MINUTE_MS);
    expect([first, health.state === "starting"]).toEqual([first, false]);
  }
});

test("a disabled key that is only configured is told as what it is: nothing was dropped", async () => {
  const key4c = new FakeKey4C();
  key4c.trouble = (_, kmsKeyId) => (kmsKeyId === "old" ? verdict("keyUnusable") : undefined);
  const { ring, clock, lines } = await started(key4c, { previousKeyIds: ["old"] });
  await clock.pass(5 * MINUTE_MS);
  expect(ring.member("old").key.health.state).toBe("revoked");
  expect(ring.member("old").key.hasDropped).toBe(false);
  const told = lines.filter(({ kmsKeyId }) => kmsKeyId === "old");
  expect(told.map(({ level, msg }) => [level, msg])).toEqual([
    ["warn", "a previous key is not healthy: its known local KEKs still decrypt"],
    ["warn", "a previous key is disabled or deleted: its data are not decrypted"],
  ]);
});

test("a previous key is not healthy: said once, at the first failure, and again when another kind follows", async () => {
  const key4c = new FakeKey4C();
  const { clock, lines } = await started(key4c, { previousKeyIds: ["old"] });
  const about = () => lines.filter(({ kmsKeyId }) => kmsKeyId === "old").map(({ msg }) => msg);
  await clock.pass(MINUTE_MS);
  expect(about()).toEqual([]);
  key4c.trouble = (_, kmsKeyId) => (kmsKeyId === "old" ? UNAVAILABLE : undefined);
  await clock.pass(10 * MINUTE_MS);
  expect(about()).toEqual(["a previous key is not healthy: its known local KEKs still decrypt"]);
  key4c.trouble = () => undefined;
  await clock.pass(MINUTE_MS);
  expect(about().at(-1)).toBe("a previous key is healthy again");
});

test("an answer with a code that is not listed costs one call a second, and no reader's patience", async () => {
  const key4c = new FakeKey4C();
  const [damaged] = await objectsOf(key4c, 1);
  const unlisted = new PluginError("unavailable", "fake", { isUnlisted: true });
  const { ring, clock, health } = await started(key4c);
  key4c.trouble = (operation) => (operation === "unwrap" ? unlisted : undefined);
  key4c.calls.unwrap = 0;
  for (let reads = 0; reads < 10_000; reads++) {
    expect(await kindOf(ring.unwrap(damaged as Envelope))).toBe("unavailable");
  }
  expect([key4c.calls.unwrap, health.state]).toEqual([1, "ok"]);
  await clock.pass(SECOND_MS);
  await kindOf(ring.unwrap(damaged as Envelope));
  expect(key4c.calls.unwrap).toBe(2);
});

test("a flipped AAD flag of a stored object refuses that object alone", async () => {
  const key4c = new FakeKey4C();
  const [honest] = await objectsOf(key4c, 1);
  const { read } = await started(key4c);
  const { header, ...rest } = honest as Envelope;
  expect(await read({ ...rest, header: { ...header, aadSent: false } })).toBe("invalid");
  expect(await read(honest)).toBe("ok");
});

test("two probes of one key never run at a time, however many callers want one", async () => {
  const key4c = new FakeKey4C();
  const { ring, clock } = await started(key4c);
  let underWay = 0;
  let most = 0;
  const describe = key4c.describe.bind(key4c);
  key4c.describe = async (...args) => {
    most = Math.max(most, ++underWay);
    await new Promise<void>((resolve) => {
      clock.after(5 * SECOND_MS, resolve);
    });
    underWay -= 1;
    return describe(...args);
  };
  for (let second = 0; second < 300; second++) {
    ring.key.health.wantProbe();
    await clock.pass(SECOND_MS);
  }
  expect(most).toBe(1);
});

test("stop during a probe: nothing follows it", async () => {
  const key4c = new FakeKey4C();
  const { health, clock } = await started(key4c);
  const { promise, resolve } = Promise.withResolvers<void>();
  key4c.gate = promise;
  await clock.pass(1.1 * INTERVAL_MS);
  const { describe } = key4c.calls;
  health.stop();
  resolve();
  await clock.pass(HOUR_MS);
  expect([key4c.calls.describe, clock.timers]).toEqual([describe, 0]);
});

test("refused and unwrapped gives no alarm of refused local KEKs", async () => {
  const key4c = new FakeKey4C();
  const [lost] = await objectsOf(key4c, 1);
  key4c.replaceMaterial();
  const [found] = await objectsOf(key4c, 1);
  const { clock, lines, read } = await started(key4c);
  expect([await read(found), await read(lost)]).toEqual(["ok", "invalid"]);
  await clock.pass(MINUTE_MS);
  expect(lines.filter(({ level }) => level === "error")).toEqual([]);
});
