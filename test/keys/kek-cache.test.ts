import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { kekHeader, LocalKek } from "../../src/keys/envelope.ts";
import { CacheSpace, kekName } from "../../src/keys/kek-cache.ts";
import { keyNameHash, NO_KCV } from "../../src/keys/key-id.ts";
import { TestClock } from "../clock.ts";

function headerOf(wrappedLocalKek: string) {
  const hash = keyNameHash("demo");
  const fields = { keyNameHash: hash, keyVersion: 1, kcvHash: NO_KCV, aadSent: true };
  return kekHeader({ ...fields, wrappedLocalKek });
}

const A = headerOf("a");
const B = headerOf("b");
const newKek = () => new LocalKek(randomBytes(32));

test("what no longer fits is dropped and wiped, but not before this turn ends", async () => {
  const clock = new TestClock();
  const space = new CacheSpace(1, clock);
  const cache = space.cache();
  const bytes = randomBytes(32);
  const first = new LocalKek(bytes);
  cache.keep({ header: A, localKek: first });
  cache.keep({ header: B, localKek: newKek() });
  expect(first.isDropped).toBe(false); // who was just given it uses it in this turn
  await clock.pass(0);
  expect(first.isDropped).toBe(true);
  expect(bytes.equals(Buffer.alloc(32))).toBe(true);
  expect([cache.get(kekName(A)), cache.size]).toEqual([undefined, 1]);
});

test("counts what it found and what it did not", () => {
  const space = new CacheSpace(2, new TestClock());
  const cache = space.cache();
  cache.keep({ header: A, localKek: newKek() });
  cache.get(kekName(A));
  cache.get(kekName(B));
  cache.get(kekName(A));
  expect(space.hits).toBe(2);
});

test("the longest unused goes first, of whatever key, and its key alone is dropped", async () => {
  const clock = new TestClock();
  const space = new CacheSpace(3, clock);
  const [mine, theirs] = [space.cache(), space.cache()];
  const [a, b, c, d] = [newKek(), newKek(), newKek(), newKek()];
  mine.keep({ header: A, localKek: a });
  theirs.keep({ header: A, localKek: b });
  mine.keep({ header: B, localKek: c });
  expect(mine.get(kekName(A))).toBe(a); // now theirs is the longest unused
  theirs.keep({ header: headerOf("c"), localKek: d });
  expect([theirs.get(kekName(A)), mine.size, theirs.size, space.size]).toEqual([
    undefined,
    2,
    1,
    3,
  ]);
  mine.dropAll();
  await clock.pass(0);
  expect([a, b, c, d].map(({ isDropped }) => isDropped)).toEqual([true, true, true, false]);
});

test("one that is released is kept by somebody else: it is not wiped", async () => {
  const clock = new TestClock();
  const cache = new CacheSpace(1, clock).cache();
  const localKek = newKek();
  cache.keep({ header: A, localKek });
  cache.release(kekName(A));
  await clock.pass(0);
  expect([cache.size, localKek.isDropped]).toEqual([0, false]);
});

test("another one under the same name takes the place of the former, which is wiped", async () => {
  const clock = new TestClock();
  const cache = new CacheSpace(2, clock).cache();
  const [first, second] = [newKek(), newKek()];
  cache.keep({ header: A, localKek: first });
  cache.keep({ header: A, localKek: second });
  cache.keep({ header: A, localKek: second });
  await clock.pass(0);
  expect([cache.get(kekName(A)), cache.size]).toEqual([second, 1]);
  expect([first.isDropped, second.isDropped]).toEqual([true, false]);
});

test("one that has opened nothing is doubted after ten seconds, a proven one never", async () => {
  const clock = new TestClock();
  const space = new CacheSpace(2, clock);
  const cache = space.cache();
  const [unproven, proven] = [newKek(), newKek()];
  proven.isProven = true;
  cache.keep({ header: A, localKek: unproven });
  cache.keep({ header: B, localKek: proven });
  await clock.pass(9_999);
  expect(cache.isDoubtful(kekName(A))).toBe(false);
  await clock.pass(1);
  expect([cache.isDoubtful(kekName(A)), cache.isDoubtful(kekName(B))]).toEqual([true, false]);
});

test("thousands that are dropped at once are wiped in batches, all of them", async () => {
  const clock = new TestClock();
  const space = new CacheSpace(10_000, clock);
  const cache = space.cache();
  const dropped = Array.from({ length: 10_000 }, newKek);
  for (const [at, localKek] of dropped.entries()) {
    cache.keep({ header: headerOf(`${at}`), localKek });
  }
  cache.dropAll();
  expect(cache.size).toBe(0);
  expect(dropped.filter(({ isDropped }) => isDropped)).toEqual([]);
  expect(dropped.every((one) => space.isToBeWiped(one))).toBe(true);
  expect(clock.timers).toBe(1); // not one for each
  await clock.pass(0);
  expect(dropped.every(({ isDropped }) => isDropped)).toBe(true);
});
