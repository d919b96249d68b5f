import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { PluginError } from "../../src/failures/plugin-error.ts";
import { base32, keyNameHash } from "../../src/keys/key-id.ts";
import { KeySet } from "../../src/keys/key-set.ts";
import { kindOf } from "../support.ts";
import { adopt, FakeKey4C, readyParts } from "./fake-key4c.ts";

const DEK = randomBytes(32);
const hashOf = (kmsKeyId: string) => base32(keyNameHash(kmsKeyId));

/** What is configured, as a file holds it that changes while we run. */
function configured(current: string, ...previous: string[]) {
  const now = { current, previous };
  const keys = new KeySet(
    () => now.current,
    () => now.previous,
  );
  return { now, keys };
}

test("what is configured anew counts from the next reload, and wraps once it is proven", () => {
  const { now, keys } = configured("a", "old");
  expect([keys.configuredId, keys.currentId, keys.previousIds]).toEqual(["a", "a", ["old"]]);
  now.current = "b";
  expect([keys.configuredId, keys.idOf(hashOf("b"))]).toEqual(["a", undefined]);
  keys.reload();
  expect([keys.configuredId, keys.currentId]).toEqual(["b", "a"]);
  expect(keys.previousIds).toEqual(["b", "old"]); // its data are read already: another replica may be ahead
  keys.becomeCurrent("b");
  expect([keys.configuredId, keys.currentId, keys.previousIds]).toEqual(["b", "b", ["old", "a"]]);
  for (const id of ["a", "b", "old"]) {
    expect(keys.idOf(hashOf(id))).toBe(id);
  }
  expect(keys.idOf(hashOf("stranger"))).toBeUndefined();
});

test("a previous key comes and goes with its file; one that wrapped in this process stays", () => {
  const { now, keys } = configured("a");
  now.previous = ["x", "y"];
  keys.reload();
  expect(keys.previousIds).toEqual(["x", "y"]);
  now.current = "b";
  now.previous = [];
  keys.reload();
  keys.becomeCurrent("b");
  keys.reload();
  expect(keys.previousIds).toEqual(["a"]); // there may be no other place that still knows it
});

test("going back to a former key leaves neither out, nor counts one twice", () => {
  const { now, keys } = configured("a", "b");
  for (const id of ["b", "a", "b"]) {
    now.current = id;
    keys.reload();
    keys.becomeCurrent(id);
    expect([keys.currentId, keys.previousIds]).toEqual([id, [id === "a" ? "b" : "a"]]);
  }
});

test("another key wraps from the moment that it is proven, and the former one's data are read", async () => {
  const { now, keys } = configured("a");
  const key4c = new FakeKey4C();
  const { ring, standings } = await readyParts(key4c, { keys, maxUses: 1, cacheSize: 0 });
  const before = await ring.wrap(DEK);
  now.current = "b";
  keys.reload();
  key4c.mangle = () => randomBytes(32);
  expect(await kindOf(adopt(ring, key4c, "b"))).toBe("unavailable");
  expect([keys.currentId, (await ring.wrap(DEK)).keyId]).toEqual(["a", before.keyId]);
  key4c.mangle = (bytes) => bytes;
  await adopt(ring, key4c, "b");
  const after = await ring.wrap(DEK);
  expect(after.envelope.header.keyNameHash).toEqual(keyNameHash("b"));
  expect(ring.acknowledgedNow()?.keyId).toBe(after.keyId);
  expect([standings.of("a").hasLocalKek, standings.of("b").hasLocalKek]).toEqual([false, true]);
  expect(await ring.unwrap(before.envelope)).toEqual(DEK);
  expect(await ring.unwrap(after.envelope)).toEqual(DEK);
});

test("a key that is no longer wanted when it is proven does not become current", async () => {
  const { now, keys } = configured("a");
  const key4c = new FakeKey4C();
  const { ring } = await readyParts(key4c, { keys });
  now.current = "b";
  keys.reload();
  const { promise, resolve } = Promise.withResolvers<void>();
  key4c.gate = promise;
  const adopting = kindOf(adopt(ring, key4c, "b"));
  now.current = "a";
  keys.reload();
  resolve();
  expect([await adopting, keys.currentId]).toEqual(["unavailable", "a"]);
});

test("a renewal that ends after the key was changed does not bring the former one back", async () => {
  const { now, keys } = configured("a");
  const key4c = new FakeKey4C();
  const { ring } = await readyParts(key4c, { keys, maxUses: 1 });
  await ring.wrap(DEK);
  const { promise, resolve } = Promise.withResolvers<void>();
  key4c.gate = promise;
  const waiting = ring.wrap(DEK); // begins a renewal
  key4c.gate = Promise.resolve();
  now.current = "b";
  keys.reload();
  await adopt(ring, key4c, "b");
  resolve();
  expect((await waiting).envelope.header.keyNameHash).toEqual(keyNameHash("b"));
  await Bun.sleep(1);
  expect([keys.currentId, ring.snapshot?.kmsKeyId]).toEqual(["b", "b"]);
});

test("what the former key meets is not the current one's, and the reverse", async () => {
  const { now, keys } = configured("a");
  const key4c = new FakeKey4C();
  const { ring, standings } = await readyParts(key4c, { keys, revocationGraceMs: 0 });
  const before = await ring.wrap(DEK);
  now.current = "b";
  keys.reload();
  await adopt(ring, key4c, "b");
  const revocation = new PluginError("keyUnusable", "fake", { isVerdict: true });
  standings.of("a").hear(revocation);
  ring.revoke("a");
  expect(await kindOf(ring.unwrap(before.envelope))).toBe("keyUnusable");
  expect((await ring.wrap(DEK)).envelope.header.keyNameHash).toEqual(keyNameHash("b"));
});
