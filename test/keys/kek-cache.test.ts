import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { LocalKek } from "../../src/keys/envelope.ts";
import { KekCache } from "../../src/keys/kek-cache.ts";

test("what no longer fits is dropped and wiped, but not before this turn ends", async () => {
  const cache = new KekCache(1, () => 0);
  const bytes = randomBytes(32);
  const first = new LocalKek(bytes);
  cache.keep("a", first);
  cache.keep("b", new LocalKek(randomBytes(32)));
  expect(first.isDropped).toBe(false); // who was just given it uses it in this turn
  await new Promise((resolve) => setImmediate(resolve));
  expect(first.isDropped).toBe(true);
  expect(bytes.equals(Buffer.alloc(32))).toBe(true);
  expect([cache.get("a"), cache.size]).toEqual([undefined, 1]);
});

test("counts what it found and what it did not", () => {
  const cache = new KekCache(2, () => 0);
  cache.keep("a", new LocalKek(randomBytes(32)));
  cache.get("a");
  cache.get("b");
  cache.get("a");
  expect(cache.hits).toBe(2);
});
