import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { kekHeader, LocalKek } from "../../src/keys/envelope.ts";
import { cacheKey, KekCache } from "../../src/keys/kek-cache.ts";
import { keyNameHash, NO_KCV } from "../../src/keys/key-id.ts";
import { TestClock } from "../clock.ts";

function headerOf(wrappedLocalKek: string, kmsKeyId = "demo") {
  const hash = keyNameHash(kmsKeyId);
  const fields = { keyNameHash: hash, keyVersion: 1, kcvHash: NO_KCV, aadSent: true };
  return kekHeader({ ...fields, wrappedLocalKek });
}

const A = headerOf("a");
const B = headerOf("b");
const newKek = () => new LocalKek(randomBytes(32));

test("what no longer fits is dropped and wiped, but not before this turn ends", async () => {
  const clock = new TestClock();
  const cache = new KekCache(1, clock);
  const bytes = randomBytes(32);
  const first = new LocalKek(bytes);
  cache.keep(A, first);
  cache.keep(B, newKek());
  expect(first.isDropped).toBe(false); // who was just given it uses it in this turn
  await clock.pass(0);
  expect(first.isDropped).toBe(true);
  expect(bytes.equals(Buffer.alloc(32))).toBe(true);
  expect([cache.get(cacheKey(A)), cache.size]).toEqual([undefined, 1]);
});

test("counts what it found and what it did not", () => {
  const cache = new KekCache(2, new TestClock());
  cache.keep(A, newKek());
  cache.get(cacheKey(A));
  cache.get(cacheKey(B));
  cache.get(cacheKey(A));
  expect(cache.hits).toBe(2);
});

test("an orphaned one is never forgotten, nor dropped with its key; given back it is like the others", async () => {
  const clock = new TestClock();
  const cache = new KekCache(1, clock);
  const orphan = newKek();
  cache.keep(A, orphan);
  expect([cache.orphan(A, orphan), cache.orphan(A, orphan)]).toEqual([true, false]);
  cache.keep(B, newKek());
  cache.keep(headerOf("c"), newKek());
  cache.dropKey(A.keyNameHash);
  cache.keep(A, newKek()); // whatever else is taken for it
  await clock.pass(0);
  expect([cache.get(cacheKey(A)), orphan.isDropped]).toEqual([orphan, false]);
  expect([cache.size, cache.orphans, cache.isOrphaned(cacheKey(A))]).toEqual([0, 1, true]);
  cache.adopt(A, false);
  expect([cache.get(cacheKey(A)), cache.size, cache.orphans]).toEqual([orphan, 1, 0]);
  cache.keep(B, newKek());
  await clock.pass(0);
  expect(orphan.isDropped).toBe(true);
});

test("only those of one key are dropped, and told, with it", async () => {
  const clock = new TestClock();
  const cache = new KekCache(4, clock);
  const other = headerOf("a", "other");
  const [mine, orphan, theirs] = [newKek(), newKek(), newKek()];
  cache.keep(A, mine);
  cache.keep(B, orphan);
  cache.keep(other, theirs);
  cache.orphan(B, orphan);
  expect(cache.keptFor(A.keyNameHash).map(({ localKek }) => localKek)).toEqual([mine, orphan]);
  expect(cache.orphansFor(A.keyNameHash).map(({ localKek }) => localKek)).toEqual([orphan]);
  expect(cache.orphansFor(other.keyNameHash)).toEqual([]);
  cache.dropKey(A.keyNameHash);
  await clock.pass(0);
  expect([mine, orphan, theirs].map(({ isDropped }) => isDropped)).toEqual([true, false, false]);
});

test("one that has opened nothing is doubted after ten seconds, a proven one never", async () => {
  const clock = new TestClock();
  const cache = new KekCache(2, clock);
  const [unproven, proven] = [newKek(), newKek()];
  proven.isProven = true;
  cache.keep(A, unproven);
  cache.keep(B, proven);
  await clock.pass(9_999);
  expect(cache.isDoubtful(cacheKey(A))).toBe(false);
  await clock.pass(1);
  expect([cache.isDoubtful(cacheKey(A)), cache.isDoubtful(cacheKey(B))]).toEqual([true, false]);
});

test("thousands that are dropped at once are wiped in batches, all of them", async () => {
  const clock = new TestClock();
  const cache = new KekCache(10_000, clock);
  const other = headerOf("a", "former");
  const kept = newKek();
  cache.keep(other, kept);
  const dropped = Array.from({ length: 10_000 - 1 }, newKek);
  for (const [at, localKek] of dropped.entries()) {
    cache.keep(headerOf(`${at}`), localKek);
  }
  cache.dropKey(A.keyNameHash);
  expect([cache.size, cache.get(cacheKey(other))]).toEqual([1, kept]);
  expect(dropped.filter(({ isDropped }) => isDropped)).toEqual([]);
  expect(clock.timers).toBe(1); // not one for each
  await clock.pass(0);
  expect([dropped.every(({ isDropped }) => isDropped), kept.isDropped]).toEqual([true, false]);
});

test("one that was dropped while Key4C was asked for it does not come back as orphaned", async () => {
  const clock = new TestClock();
  const cache = new KekCache(10_000, clock);
  const many = Array.from({ length: 5_000 }, (_, index) => ({
    header: headerOf(`w${index}`),
    localKek: newKek(),
  }));
  for (const { header, localKek } of many) {
    cache.keep(header, localKek);
  }
  cache.dropKey(A.keyNameHash);
  // They are wiped in batches, in the turns that follow.
  expect(many.some(({ header, localKek }) => cache.orphan(header, localKek))).toBe(false);
  await clock.pass(10);
  expect([cache.orphans, many.every(({ localKek }) => localKek.isDropped)]).toEqual([0, true]);
});
