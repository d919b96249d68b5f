/**
 * No wrong answer, whatever happens between a wrap and an unwrap: random histories of wraps, rotations,
 * outages, wrong answers of Key4C, revocations and restarts, against a simple model of what may come out.
 */
import { expect } from "bun:test";
import { randomBytes } from "node:crypto";
import fc from "fast-check";
import type { ErrorKind } from "../../src/failures/kinds.ts";
import { PluginError } from "../../src/failures/plugin-error.ts";
import type { Envelope } from "../../src/keys/envelope.ts";
import { formatKeyId, keyNameHash } from "../../src/keys/key-id.ts";
import { TestClock, turn } from "../clock.ts";
import { holds } from "../properties.ts";
import { kindOf } from "../support.ts";
import {
  adopt,
  FakeKey4C,
  failUnwraps,
  type RingParts,
  revoke,
  ringParts,
  wellAgain,
} from "./fake-key4c.ts";

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

  /** While it answers wrongly, it also wraps other bytes than it was given. */
  override wrap(...[keyId, bytes, aad]: Parameters<FakeKey4C["wrap"]>) {
    return super.wrap(keyId, this.mangle(bytes), aad);
  }

  override async unwrap(...args: Parameters<FakeKey4C["unwrap"]>): Promise<Buffer> {
    const [, wrapped, , options] = args;
    // A probe and a renewal ask for themselves, not for callers.
    const asked = options?.newConnection ? new Set<string>() : this.#underWay;
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
  readonly clock = new TestClock();
  /** Calls that nobody has waited for yet. */
  readonly pending: Promise<void>[] = [];
  current: Key = "demo";
  cacheSize = 1;
  parts: RingParts = this.start(8);

  get ring() {
    return this.parts.ring;
  }

  start(maxUses: number): RingParts {
    this.parts = ringParts(this.key4c, {
      kmsKeyId: this.current,
      previousKeyIds: KEYS.filter((key) => key !== this.current),
      cacheSize: this.cacheSize,
      maxUses,
      clock: this.clock,
      revocationGraceMs: 0,
    });
    return this.parts;
  }

  /** What the last probe met, of keys that are not revoked. */
  hear(failure: PluginError | undefined): void {
    for (const one of KEYS) {
      const { key } = this.ring.member(one);
      if (key.health.revocation === undefined && one === this.current && failure !== undefined) {
        failUnwraps(key, failure);
      } else if (key.health.revocation === undefined) {
        wellAgain(key);
      }
    }
  }

  async settle(): Promise<void> {
    await Promise.all(this.pending.splice(0));
    await turn(); // the end of a renewal in the background
    await turn();
    await turn();
  }
}

const DOCUMENTED: readonly (ErrorKind | "ok")[] = [
  "ok",
  "unavailable",
  "throttled",
  "denied",
  "keyUnusable",
  "olderVersion",
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
        expect(keyId).toBe(formatKeyId(header));
        expect(header.keyVersion).toBeGreaterThanOrEqual(model.versionFloor);
        model.versionFloor = header.keyVersion;
      }
    },
    toString: () => name,
  };
}

async function renew({ ring, key4c, current }: System): Promise<ErrorKind | "ok"> {
  const kind = await kindOf(adopt(ring, key4c, current));
  expect(DOCUMENTED).toContain(kind);
  return kind;
}

async function wrap(model: Model, { ring, current }: System, dek: Buffer): Promise<void> {
  const { envelope, keyId } = await ring.wrap(dek);
  expect(envelope.header.keyNameHash).toEqual(keyNameHash(current));
  expect(keyId).toBe(formatKeyId(envelope.header));
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
const failure = fc.constantFrom<ErrorKind[]>("unavailable", "throttled", "denied", "keyUnusable");

const COMMANDS: fc.Arbitrary<Command>[] = [
  dek.map((bytes) =>
    command(`wrap ${bytes.length} bytes`, async (model, system) => {
      await system.settle();
      const { ring, current, parts } = system;
      const expected =
        model.revoked.get(current) ??
        (ring.snapshot === undefined ? (parts.key.health.failure?.kind ?? "unavailable") : "ok");
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
              ...(model.isMisled ? ["invalid", "unavailable"] : []),
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
    command("begin to ask for what is missing", (_, { ring, pending }) => {
      const verifying = kindOf(ring.missing());
      pending.push(verifying.then((kind) => expect(DOCUMENTED).toContain(kind)));
    }),
  ),
  fc.constantFrom(1_000, 5_000, 10_000, 4 * 3_600_000).map((ms) =>
    command(`${ms} ms pass`, async (_, system) => {
      await system.clock.pass(ms);
      system.ring.renewIfDue();
    }),
  ),
  fc.tuple(failure, fc.boolean()).map(([kind, isNoticed]) =>
    command(`${isNoticed ? "noticed " : ""}failure: ${kind}`, async (model, system) => {
      model.failure = kind;
      system.key4c.failure = new PluginError(kind, "fake");
      system.hear(isNoticed ? system.key4c.failure : undefined);
    }),
  ),
  fc.boolean().map((isMisleading) =>
    command(`Key4C works${isMisleading ? ", with wrong answers" : ""}`, async (model, system) => {
      await system.settle();
      model.failure = undefined;
      model.isMisled ||= isMisleading;
      system.key4c.failure = undefined;
      system.key4c.mangle = (bytes) => (isMisleading ? randomBytes(32) : bytes);
      system.hear(undefined);
    }),
  ),
  key.map((which) =>
    command(`revoke ${which}`, (model, { parts, current }) => {
      revoke(parts, which);
      model.revoked.set(which, "keyUnusable");
      // With the local KEK goes what was known of its version.
      model.versionFloor = which === current ? 0 : model.versionFloor;
    }),
  ),
  key.map((which) =>
    command(`enable ${which}`, async (model, system) => {
      const isWell = which !== system.current || (await renew(system)) === "ok";
      if (isWell) {
        const { key } = system.ring.member(which);
        expect(key.health.revocation !== undefined).toBe(model.revoked.delete(which));
        wellAgain(key);
      }
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
    await renew(system);
    await fc.asyncModelRun(() => ({ model: new Model(), real: system }), commands);
    await system.settle();
  }),
);
