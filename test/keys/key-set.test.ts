import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { PluginError } from "../../src/failures/plugin-error.ts";
import { base32, keyNameHash } from "../../src/keys/key-id.ts";
import { TestClock } from "../clock.ts";
import { kindOf } from "../support.ts";
import {
  adopt,
  changing,
  FakeKey4C,
  keyring,
  ready,
  readyParts,
  revoke,
  type TestKeyring,
} from "./fake-key4c.ts";

const DEK = randomBytes(32);
const MINUTE_MS = 60_000;
const hashOf = (kmsKeyId: string) => base32(keyNameHash(kmsKeyId));
const idsOf = ({ keys }: TestKeyring) => keys.members.map(({ key }) => key.kmsKeyId);

test("what is configured anew is read from the next look on, and wraps once it is proven", async () => {
  const { now, configured } = changing("a", "old");
  const key4c = new FakeKey4C();
  const ring = keyring(key4c, { configured });
  expect(idsOf(ring)).toEqual(["a", "old"]);
  await adopt(ring, key4c, "a");
  now.current = "b";
  expect(ring.knows(hashOf("b"))).toBe(false);
  ring.keys.follow();
  // Its data are read already: another replica may be ahead.
  expect([ring.key.kmsKeyId, idsOf(ring).sort()]).toEqual(["a", ["a", "b", "old"]]);
  await adopt(ring, key4c, "b");
  expect([ring.key.kmsKeyId, idsOf(ring).sort()]).toEqual(["b", ["a", "b", "old"]]);
  for (const id of ["a", "b", "old"]) {
    expect(ring.knows(hashOf(id))).toBe(true);
  }
  expect(ring.knows(hashOf("stranger"))).toBe(false);
});

test("a key that wrapped stays until a list that named it drops it", async () => {
  const { now, configured } = changing("a");
  const key4c = new FakeKey4C();
  const ring = keyring(key4c, { configured });
  await adopt(ring, key4c, "a");
  now.current = "b";
  ring.keys.follow();
  await adopt(ring, key4c, "b");
  ring.keys.follow();
  expect(idsOf(ring)).toEqual(["b", "a"]); // there may be no other place that still knows it
  now.previous = ["a"];
  ring.keys.follow();
  now.previous = [];
  ring.keys.follow();
  expect(idsOf(ring)).toEqual(["b"]);
});

test("going back to a former key leaves neither out, counts none twice, and proves it anew", async () => {
  const { now, configured } = changing("a", "b");
  const key4c = new FakeKey4C();
  const ring = keyring(key4c, { configured });
  for (const id of ["a", "b", "a", "b"]) {
    now.current = id;
    ring.keys.follow();
    expect(ring.member(id).key.current).toBeUndefined();
    await adopt(ring, key4c, id);
    expect(idsOf(ring)).toEqual([id, id === "a" ? "b" : "a"].slice(0, idsOf(ring).length));
  }
  expect(idsOf(ring).length).toBe(2);
});

test("another key wraps from the moment that it is proven, and the former one's data are read", async () => {
  const { now, configured } = changing("a");
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const { ring } = await readyParts(key4c, { configured, maxUses: 1, cacheSize: 0, clock });
  const before = await ring.wrap(DEK);
  now.current = "b";
  ring.keys.follow();
  key4c.mangle = () => randomBytes(32);
  expect(await kindOf(adopt(ring, key4c, "b"))).toBe("unavailable");
  expect([ring.key.kmsKeyId, (await ring.wrap(DEK)).keyId]).toEqual(["a", before.keyId]);
  key4c.mangle = (bytes) => bytes;
  clock.skip(MINUTE_MS);
  await adopt(ring, key4c, "b");
  const after = await ring.wrap(DEK);
  expect(after.envelope.header.keyNameHash).toEqual(keyNameHash("b"));
  expect((await ring.status()).keyId).toBe(after.keyId);
  expect([ring.member("a").key.current, ring.member("a").key.wraps]).toEqual([undefined, false]);
  expect(await ring.unwrap(before.envelope)).toEqual(DEK);
  expect(await ring.unwrap(after.envelope)).toEqual(DEK);
});

test("a key that is no longer wanted when it is proven does not become current", async () => {
  const { now, configured } = changing("a");
  const key4c = new FakeKey4C();
  const { ring } = await readyParts(key4c, { configured });
  now.current = "b";
  ring.keys.follow();
  const { promise, resolve } = Promise.withResolvers<void>();
  key4c.gate = promise;
  const adopting = kindOf(adopt(ring, key4c, "b"));
  now.current = "a";
  ring.keys.follow();
  resolve();
  expect([await adopting, ring.key.kmsKeyId]).toEqual(["unavailable", "a"]);
});

test("a renewal that ends after the key was changed does not bring the former one back", async () => {
  const { now, configured } = changing("a");
  const key4c = new FakeKey4C();
  const { ring } = await readyParts(key4c, { configured, maxUses: 1 });
  await ring.wrap(DEK);
  const { promise, resolve } = Promise.withResolvers<void>();
  key4c.gate = promise;
  const waiting = ring.wrap(DEK); // begins a renewal
  key4c.gate = Promise.resolve();
  now.current = "b";
  ring.keys.follow();
  await adopt(ring, key4c, "b");
  resolve();
  expect((await waiting).envelope.header.keyNameHash).toEqual(keyNameHash("b"));
  await Bun.sleep(1);
  expect([ring.key.kmsKeyId, ring.snapshot?.kmsKeyId]).toEqual(["b", "b"]);
});

test("what the former key meets is not the current one's, and the reverse", async () => {
  const { now, configured } = changing("a");
  const key4c = new FakeKey4C();
  const { ring } = await readyParts(key4c, { configured, revocationGraceMs: 0 });
  const before = await ring.wrap(DEK);
  now.current = "b";
  ring.keys.follow();
  await adopt(ring, key4c, "b");
  revoke({ ring }, "a");
  expect(await kindOf(ring.unwrap(before.envelope))).toBe("keyUnusable");
  expect((await ring.wrap(DEK)).envelope.header.keyNameHash).toEqual(keyNameHash("b"));
});

/** A keyring that has unwrapped a local KEK of a previous key. */
async function withPrevious() {
  const { now, configured } = changing("a", "old");
  const clock = new TestClock();
  const key4c = new FakeKey4C();
  const old = await (await ready(key4c, { kmsKeyId: "old" })).wrap(DEK);
  const { ring } = await readyParts(key4c, { configured, clock });
  expect(await ring.unwrap(old.envelope)).toEqual(DEK);
  const [held] = ring.member("old").key.holds;
  const leave = () => {
    now.previous = [];
    ring.keys.follow();
  };
  return { now, clock, key4c, old, ring, localKek: held?.localKek, leave };
}

test("a key that left the configuration is refused at once, and usable again when it comes back", async () => {
  const { now, key4c, old, ring, localKek, leave } = await withPrevious();
  leave();
  expect([await kindOf(ring.unwrap(old.envelope)), ring.knows(hashOf("old"))]).toEqual([
    "unknownKey",
    false,
  ]);
  expect(localKek?.isDropped).toBe(false);
  key4c.failure = new PluginError("unavailable", "fake"); // an accident in an outage
  now.previous = ["old"];
  ring.keys.follow();
  expect(await ring.unwrap(old.envelope)).toEqual(DEK);
});

test("what it held is wiped after ten minutes in which Key4C answered, an outage does not count", async () => {
  const { clock, ring, localKek, leave } = await withPrevious();
  ring.keys.keyAnswered(true);
  leave();
  const pass = async (minutes: number, hasAnswered: boolean) => {
    for (let at = 0; at < minutes; at++) {
      await clock.pass(MINUTE_MS);
      ring.keys.keyAnswered(hasAnswered);
    }
  };
  await pass(9, true);
  await pass(10_000, false);
  await pass(1, true); // the first answer after an outage tells nothing of the time before
  await clock.pass(1);
  expect(localKek?.isDropped).toBe(false);
  await pass(1, true);
  await clock.pass(1);
  expect(localKek?.isDropped).toBe(true);
});

test("an unwrap that is under way when its key leaves answers nobody, and is wiped", async () => {
  const { key4c, ring, leave } = await withPrevious();
  const other = await (await ready(key4c, { kmsKeyId: "old" })).wrap(DEK);
  const { promise, resolve } = Promise.withResolvers<void>();
  key4c.gate = promise;
  const given: Buffer[] = [];
  key4c.mangle = (bytes) => {
    given.push(bytes);
    return bytes;
  };
  const unwrapping = kindOf(ring.unwrap(other.envelope));
  leave();
  resolve();
  expect(await unwrapping).toBe("unavailable");
  expect(given.map((bytes) => bytes.equals(Buffer.alloc(32)))).toEqual([true]);
});

test("of a key that leaves the configuration nothing is looked through any more, now and later", async () => {
  const key4c = new FakeKey4C();
  const writer = await ready(key4c, { ...changing("old"), maxUses: 1 });
  const { now, configured } = changing("a", "old");
  const clock = new TestClock();
  const { ring } = await readyParts(key4c, { configured, clock, cacheSize: 200 });
  for (let held = 0; held < 40; held++) {
    await ring.unwrap((await writer.wrap(DEK)).envelope);
  }
  const asked = async (forMs: number) => {
    const before = key4c.calls.unwrap;
    ring.lookThrough.resume(ring.keys.members.map(({ key }) => key));
    await clock.pass(forMs);
    return key4c.calls.unwrap - before;
  };
  const { key } = ring.member("old");
  key.lookThrough();
  expect(await asked(150)).toBe(10);
  now.previous = [];
  ring.keys.follow();
  expect(await asked(MINUTE_MS)).toBe(0);
  expect(await asked(10 * MINUTE_MS)).toBe(0);
});
