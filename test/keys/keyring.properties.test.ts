/**
 * No wrong answer, whatever happens between a wrap and an unwrap: random histories of wraps, rotations,
 * outages, wrong answers of Key4C, revocations and restarts, against a simple model of what may come out.
 */
import { expect } from "bun:test";
import { randomBytes } from "node:crypto";
import fc from "fast-check";
import type { Envelope } from "../../src/keys/envelope.ts";
import { formatKeyId, keyNameHash } from "../../src/keys/key-id.ts";
import type { Keyring } from "../../src/keys/keyring.ts";
import { type ErrorKind, PluginError } from "../../src/system/errors.ts";
import { holds } from "../properties.ts";
import { kindOf } from "../support.ts";
import { FakeKey4C, keyring } from "./fake-key4c.ts";

const KEYS = ["demo", "former"] as const;
type Key = (typeof KEYS)[number];

interface Item {
  readonly key: Key;
  readonly dek: Buffer;
  readonly envelope: Envelope;
}

/** What is known without looking into the keyring. */
class Model {
  readonly items: Item[] = [];
  readonly revoked = new Map<Key, ErrorKind>();
  failure: ErrorKind | undefined;
  /** Whether the probe has seen the failure. */
  isNoticed = false;
  /** Whether this keyring may have been given wrong local KEKs. */
  isMisled = false;
  newestVersion = 1;
  /** Below this, the version of the current local KEK must not go. */
  versionFloor = 0;
}

/** One that takes its time, and sees whether it is asked twice at once for the same. */
class SlowKey4C extends FakeKey4C {
  readonly #underWay = new Set<string>();
  askedTwice = 0;
  /** Set while a probe begins, which asks on its own. */
  isProbe = false;

  /** While it answers wrongly, it also wraps other bytes than it was given. */
  override wrap(...[keyId, bytes, aad]: Parameters<FakeKey4C["wrap"]>) {
    return super.wrap(keyId, this.mangle(bytes), aad);
  }

  override async unwrap(...args: Parameters<FakeKey4C["unwrap"]>): Promise<Buffer> {
    const [, wrapped] = args;
    const asked = this.isProbe ? new Set<string>() : this.#underWay;
    this.askedTwice += asked.has(wrapped) ? 1 : 0;
    asked.add(wrapped);
    await turn();
    asked.delete(wrapped);
    return super.unwrap(...args);
  }
}

/** The plugin's part of the world, with its Key4C and a clock that only the test moves. */
class System {
  readonly key4c = new SlowKey4C();
  readonly probe: { failure: PluginError | undefined } = { failure: undefined };
  /** Calls that nobody has waited for yet. */
  readonly pending: Promise<void>[] = [];
  current: Key = "demo";
  cacheSize = 1;
  nowMs = 0;
  ring: Keyring = this.start(8);

  start(maxUses: number): Keyring {
    this.ring = keyring(this.key4c, {
      kmsKeyId: this.current,
      previousKeyIds: KEYS.filter((key) => key !== this.current),
      cacheSize: this.cacheSize,
      maxUses,
      nowMs: () => this.nowMs,
      probeFailure: () => this.probe.failure,
    });
    return this.ring;
  }

  async settle(): Promise<void> {
    await Promise.all(this.pending.splice(0));
    await turn(); // the end of a renewal in the background
    await turn();
    await turn();
  }
}

const turn = () => new Promise((resolve) => setImmediate(resolve));

const DOCUMENTED: readonly (ErrorKind | "ok")[] = [
  "ok",
  "unavailable",
  "throttled",
  "denied",
  "keyUnusable",
  "invalid",
];

type Command = fc.AsyncCommand<Model, System>;

function command(name: string, run: (model: Model, system: System) => unknown): Command {
  return {
    check: () => true,
    async run(model, system) {
      await run(model, system);
      const { ring, cacheSize, key4c } = system;
      expect(ring.cache.size).toBeLessThanOrEqual(cacheSize);
      expect(key4c.askedTwice).toBe(0);
      if (ring.snapshot !== undefined) {
        const { keyId, header } = ring.snapshot;
        expect(keyId).toBe(formatKeyId(header.keyNameHash, header.keyVersion));
        expect(header.keyVersion).toBeGreaterThanOrEqual(model.versionFloor);
        model.versionFloor = header.keyVersion;
      }
    },
    toString: () => name,
  };
}

async function renew({ ring }: System): Promise<void> {
  expect(DOCUMENTED).toContain(await kindOf(ring.renew()));
}

async function wrap(model: Model, { ring, current }: System, dek: Buffer): Promise<void> {
  const { envelope, keyId } = await ring.wrap(dek);
  const { keyNameHash: hash, keyVersion } = envelope.header;
  expect(hash).toEqual(keyNameHash(current));
  expect(keyId).toBe(formatKeyId(hash, keyVersion));
  model.items.push({ key: current, dek, envelope });
}

async function unwrap({ ring }: System, { envelope, dek }: Item): Promise<void> {
  expect(await ring.unwrap(envelope)).toEqual(dek);
}

function itemAt({ items }: Model, number: number): Item | undefined {
  return items[number % items.length];
}

const dek = fc.uint8Array({ maxLength: 48 }).map((bytes) => Buffer.from(bytes));
const key = fc.constantFrom(...KEYS);
const number = fc.nat(1_000);
const refusal = fc.constantFrom<ErrorKind[]>("denied", "keyUnusable");
const failure = fc.constantFrom<ErrorKind[]>("unavailable", "throttled", "denied", "keyUnusable");

const COMMANDS: fc.Arbitrary<Command>[] = [
  dek.map((bytes) =>
    command(`wrap ${bytes.length} bytes`, async (model, system) => {
      await system.settle();
      const { ring, current, probe } = system;
      const expected =
        model.revoked.get(current) ??
        (ring.snapshot === undefined ? (probe.failure?.kind ?? "unavailable") : "ok");
      expect(await kindOf(wrap(model, system, bytes))).toBe(expected);
    }),
  ),
  fc.tuple(number, fc.integer({ min: 1, max: 8 })).map(([which, callers]) =>
    command(`unwrap ${which} for ${callers}`, async (model, system) => {
      await system.settle();
      const item = itemAt(model, which);
      if (item === undefined) {
        return;
      }
      const before = system.key4c.calls.unwrap;
      const kinds = await Promise.all(
        Array.from({ length: callers }, () => kindOf(unwrap(system, item))),
      );
      expect(system.key4c.calls.unwrap - before).toBeLessThanOrEqual(1);
      const revocation = model.revoked.get(item.key);
      const allowed =
        revocation !== undefined
          ? [revocation]
          : [
              "ok",
              ...(model.failure ? [model.failure] : []),
              ...(model.isMisled ? ["invalid"] : []),
            ];
      for (const kind of kinds) {
        expect(allowed).toContain(kind);
      }
    }),
  ),
  // What is under way while other things happen may fail, but in a documented way.
  dek.map((bytes) =>
    command(`begin to wrap ${bytes.length} bytes`, (model, system) => {
      const wrapping = kindOf(wrap(model, system, bytes));
      system.pending.push(wrapping.then((kind) => expect(DOCUMENTED).toContain(kind)));
    }),
  ),
  number.map((which) =>
    command(`begin to unwrap ${which}`, (model, system) => {
      const item = itemAt(model, which);
      if (item !== undefined) {
        const unwrapping = kindOf(unwrap(system, item));
        system.pending.push(unwrapping.then((kind) => expect(DOCUMENTED).toContain(kind)));
      }
    }),
  ),
  fc.nat(2).map((lag) =>
    command(`rotate, seen ${lag} versions late`, (model, { key4c }) => {
      model.newestVersion += 1;
      key4c.version = Math.max(1, model.newestVersion - lag);
    }),
  ),
  fc.constant(command("renew", (_, system) => renew(system))),
  fc.constant(
    command("begin to verify", (_, { ring, key4c, pending }) => {
      key4c.isProbe = true;
      const verifying = kindOf(ring.verifyCurrent());
      key4c.isProbe = false;
      pending.push(verifying.then((kind) => expect(DOCUMENTED).toContain(kind)));
    }),
  ),
  fc.constantFrom(1_000, 5_000, 10_000, 4 * 3_600_000).map((ms) =>
    command(`${ms} ms pass`, (_, system) => {
      system.nowMs += ms;
      system.ring.renewIfDue();
    }),
  ),
  fc.tuple(failure, fc.boolean()).map(([kind, isNoticed]) =>
    command(`${isNoticed ? "noticed " : ""}failure: ${kind}`, async (model, { key4c, probe }) => {
      model.failure = kind;
      key4c.failure = new PluginError(kind, "fake");
      probe.failure = isNoticed ? key4c.failure : undefined;
    }),
  ),
  fc.boolean().map((isMisleading) =>
    command(`Key4C works${isMisleading ? ", with wrong answers" : ""}`, async (model, system) => {
      await system.settle();
      model.failure = undefined;
      model.isMisled ||= isMisleading;
      system.key4c.failure = undefined;
      system.key4c.mangle = (bytes) => (isMisleading ? randomBytes(32) : bytes);
      system.probe.failure = undefined;
    }),
  ),
  fc.tuple(key, refusal).map(([which, kind]) =>
    command(`revoke ${which}: ${kind}`, (model, { ring, current }) => {
      ring.revoke(which, new PluginError(kind, "fake"));
      model.revoked.set(which, kind);
      // With the local KEK goes what was known of its version.
      model.versionFloor = which === current ? 0 : model.versionFloor;
    }),
  ),
  key.map((which) =>
    command(`restore ${which}`, async (model, system) => {
      expect(system.ring.restore(which)).toBe(model.revoked.delete(which));
      await renew(system);
    }),
  ),
  fc.tuple(key, fc.nat(3), fc.integer({ min: 1, max: 4 })).map(([current, cacheSize, maxUses]) =>
    command(
      `restart with ${current}, cache ${cacheSize}, uses ${maxUses}`,
      async (model, system) => {
        await system.settle();
        Object.assign(system, { current, cacheSize });
        model.revoked.clear();
        model.versionFloor = 0;
        model.isMisled = system.key4c.mangle(Buffer.alloc(32)).some((byte) => byte !== 0);
        system.start(maxUses);
        await renew(system);
      },
    ),
  ),
];

holds(
  "what was wrapped comes back as it was or fails in a documented way, whatever happens between",
  1_500,
  fc.asyncProperty(fc.commands(COMMANDS, { maxCommands: 60, size: "max" }), async (commands) => {
    const system = new System();
    await system.ring.renew();
    await fc.asyncModelRun(() => ({ model: new Model(), real: system }), commands);
    await system.settle();
  }),
);
