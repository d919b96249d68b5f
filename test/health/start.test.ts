/** What the first probe asks at the same time. */
import { expect, test } from "bun:test";
import { PluginError } from "../../src/system/errors.ts";
import { turn } from "../clock.ts";
import { FakeKey4C, plugin } from "../keys/fake-key4c.ts";

/** A Key4C that answers when it is told to. */
function slow() {
  const key4c = new FakeKey4C();
  const gate = Promise.withResolvers<void>();
  key4c.gate = gate.promise;
  return { key4c, gate };
}

test("at the start a local KEK is wrapped while the key is described, and given back after both", async () => {
  const { key4c, gate } = slow();
  const { health, ring } = plugin(key4c);
  health.start();
  await turn();
  expect(key4c.calls).toEqual({ describe: 1, wrap: 1, unwrap: 0 });
  gate.resolve();
  await turn();
  expect(key4c.calls).toEqual({ describe: 1, wrap: 1, unwrap: 1 });
  expect([health.state, ring.snapshot?.header.keyVersion]).toEqual(["ok", 1]);
});

test("what describe and encrypt do not tell alike does not become current", async () => {
  const { key4c, gate } = slow();
  key4c.told = () => 2;
  const { health, ring } = plugin(key4c);
  health.start();
  gate.resolve();
  await turn();
  expect([ring.snapshot, health.standing.failure?.kind]).toEqual([undefined, "olderVersion"]);
  expect(key4c.calls.unwrap).toBe(0);
});

test("where describe fails, its failure is told at once, and what was being wrapped is wiped after it", async () => {
  const key4c = new FakeKey4C();
  const wrapping = Promise.withResolvers<void>();
  const { wrap } = key4c;
  key4c.wrap = async (...call) => {
    const wrapped = wrap.call(key4c, ...call);
    await wrapping.promise;
    return wrapped;
  };
  key4c.describe = () => Promise.reject(new PluginError("denied", "fake"));
  const { health, ring } = plugin(key4c);
  health.start();
  await turn();
  expect([ring.snapshot, health.standing.failure?.kind]).toEqual([undefined, "denied"]);
  expect(key4c.given[0]?.some((byte) => byte !== 0)).toBe(true); // Key4C has it in hand
  wrapping.resolve();
  await turn();
  expect(key4c.given[0]?.every((byte) => byte === 0)).toBe(true);
});

test("after a failure it asks for one thing after the other", async () => {
  const { key4c, gate } = slow();
  key4c.failure = new PluginError("denied", "fake");
  const { health, clock } = plugin(key4c);
  health.start();
  gate.resolve();
  await turn();
  const before = { ...key4c.calls };
  key4c.gate = new Promise(() => {});
  await clock.pass(60_000);
  await turn();
  expect(key4c.calls).toEqual({ ...before, describe: before.describe + 1 });
});
