import { beforeAll, expect, spyOn, test } from "bun:test";
import { randomBytes } from "node:crypto";
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { readMoment } from "../../src/cache/age.ts";
import { decodeStored, encodeStored, type StoredKey } from "../../src/cache/form.ts";
import { fileName } from "../../src/cache/key-file.ts";
import { PersistentCache } from "../../src/cache/persistent-cache.ts";
import { Store } from "../../src/cache/store.ts";
import { kekHeader, LocalKek } from "../../src/keys/envelope.ts";
import type { Kept } from "../../src/keys/kek-cache.ts";
import { keyNameHash, NO_KCV } from "../../src/keys/key-id.ts";
import { TestClock } from "../clock.ts";
import { eventually } from "../e2e/process.ts";
import { testWith } from "../needs.ts";
import { onTestEnd, recordingLog, temporaryDirectory, temporaryFile } from "../support.ts";

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const BLOCK = 2 ** 20;
const HASH = keyNameHash("demo");
const FILE = fileName("demo");

function kek(): Kept {
  const bytes = randomBytes(32);
  const fields = { keyNameHash: HASH, keyVersion: 1, kcvHash: NO_KCV, aadSent: true };
  const header = kekHeader({ ...fields, wrappedLocalKek: randomBytes(16).toString("base64") });
  return { header, localKek: new LocalKek(bytes) };
}

function inMemory(): string {
  const directory = mkdtempSync("/dev/shm/k4c-");
  onTestEnd(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

interface Settings {
  readonly keyFile?: string;
  readonly maxAgeMs?: number;
  readonly kmsKeyId?: string;
}

/** The part of a plugin that keeps the local KEKs of one key. */
async function plugin(directory: string, settings: Settings = {}) {
  const { keyFile, maxAgeMs = DAY_MS, kmsKeyId = "demo" } = settings;
  const clock = new TestClock();
  const { log, lines } = recordingLog();
  const held: { current?: Kept; canary?: Kept; others: Kept[] } = { others: [] };
  const options = { directory, keyFile, maxAgeMs, socket: "/run/nowhere/kms.sock", log, clock };
  const cache = new PersistentCache(options);
  const holding = () => ({ current: held.current, canary: held.canary, others: held.others });
  const keeper = cache.keeper(kmsKeyId, holding);
  onTestEnd(() => cache.stop());
  cache.start();
  const told = (text: string) => lines.filter(({ msg }) => String(msg).includes(text));
  return { cache, keeper, held, clock, told };
}
type Plugin = Awaited<ReturnType<typeof plugin>>;

/** What disks still do: the only thing here that takes real time, however long that is. */
const underWay = new Set<Promise<unknown>>();
function track<T>(promise: Promise<T>): Promise<T> {
  underWay.add(promise);
  const end = () => underWay.delete(promise);
  promise.then(end, end);
  return promise;
}
beforeAll(() => {
  const { open } = Store;
  const { read, write } = Store.prototype;
  spyOn(Store, "open").mockImplementation((...args) => track(open.apply(Store, args)));
  spyOn(Store.prototype, "read").mockImplementation(function (this: Store, ...args) {
    return track(read.apply(this, args));
  });
  spyOn(Store.prototype, "write").mockImplementation(function (this: Store, ...args) {
    return track(write.apply(this, args));
  });
});

/** Lets time pass, and what it made due come to its end. */
async function pass({ clock }: Plugin, ms: number): Promise<void> {
  await clock.pass(ms);
  while (underWay.size > 0) {
    await Promise.allSettled([...underWay]);
    await clock.pass(0); // one that ended may make another one due now
  }
}

/** What a plugin that Key4C answers keeps. */
async function wellPlugin(directory: string, settings: Settings = {}): Promise<Plugin> {
  const one = await plugin(directory, settings);
  await one.keeper.handover;
  one.held.current = kek();
  one.held.canary = kek();
  one.held.others = [kek(), kek()];
  one.keeper.confirmed();
  one.keeper.more("current");
  await pass(one, 0);
  return one;
}

const path = (directory: string, name = FILE) => join(directory, "local-keks", name);
const names = (directory: string) => readdirSync(join(directory, "local-keks"));
const stored = (directory: string): StoredKey =>
  decodeStored(readFileSync(path(directory)), HASH, undefined, readMoment().bootId);
const bytesOf = (one: Kept | undefined) => one?.localKek.copyBytes().toString("hex");

const SEALING_KEY = randomBytes(32);
const forms = [
  ["in memory", () => ({}), inMemory],
  [
    "sealed",
    () => ({ keyFile: temporaryFile(SEALING_KEY.toString("base64")) }),
    temporaryDirectory,
  ],
] as const;

test.each(forms)(
  "%s: the next process has what the former one held",
  async (_, settings, place) => {
    const directory = place();
    const former = await wellPlugin(directory, settings());
    expect(statSync(path(directory)).mode & 0o777).toBe(0o600);
    expect(former.cache.outlook("demo")).toMatchObject({ kekCount: 4, isComplete: true });
    await former.cache.stop();
    const { keeper, told } = await plugin(directory, settings());
    const handover = await keeper.handover;
    expect(bytesOf(handover?.current)).toBe(bytesOf(former.held.current) ?? "");
    expect(bytesOf(handover?.canary)).toBe(bytesOf(former.held.canary) ?? "");
    expect(handover?.others.map(bytesOf)).toEqual(former.held.others.map(bytesOf));
    expect(handover?.confirmedMsAgo).toBeLessThan(60_000);
    expect(told("not")).toEqual([]);
  },
);

test("one that is both current and canary is one", async () => {
  const directory = inMemory();
  const former = await wellPlugin(directory);
  former.held.canary = former.held.current as Kept;
  former.keeper.more("current");
  await former.cache.stop();
  const handover = await (await plugin(directory)).keeper.handover;
  expect(handover?.current).toBe(handover?.canary as Kept);
  expect(handover?.others).toHaveLength(2);
});

test("each start charges the current local KEK a block of uses, which no process passes", async () => {
  const directory = inMemory();
  const former = await wellPlugin(directory);
  expect(stored(directory).chargedBlocks).toBe(1);
  await former.cache.stop();
  for (const start of [1, 2, 3]) {
    const one = await plugin(directory);
    const handover = await one.keeper.handover;
    expect(handover?.current?.localKek.usesBefore).toBe(start * BLOCK);
    expect(stored(directory).chargedBlocks).toBe(start + 1);
    await one.cache.stop();
  }
  const busy = await plugin(directory);
  Object.assign(busy.held, await busy.keeper.handover);
  const { localKek } = busy.held.current as Kept;
  localKek.uses += BLOCK / 2;
  await pass(busy, 10_000);
  expect(stored(directory).chargedBlocks).toBe(5);
  localKek.uses += 1;
  await pass(busy, 10_000);
  expect(
    stored(directory).chargedBlocks * BLOCK - localKek.usesBefore - localKek.uses,
  ).toBeGreaterThanOrEqual(BLOCK);
});

test("a local KEK whose 2^32 uses are charged is only for reading", async () => {
  const directory = inMemory();
  const former = await wellPlugin(directory);
  await former.cache.stop();
  writeFileSync(
    path(directory),
    encodeStored({ ...stored(directory), chargedBlocks: 4_096 }, undefined),
  );
  const handover = await (await plugin(directory)).keeper.handover;
  expect(handover?.current).toBeUndefined();
  expect(handover?.others.map(bytesOf)).toContain(bytesOf(former.held.current) ?? "");
});

test("a new current local KEK is written at once, what data needed in 5 s, a confirmation in a minute", async () => {
  const directory = inMemory();
  const one = await wellPlugin(directory);
  const count = () => stored(directory).keks.length;
  one.held.others.push(kek());
  one.keeper.confirmed();
  await pass(one, 4_999);
  expect(count()).toBe(4);
  one.keeper.more("other");
  await pass(one, 1);
  expect(count()).toBe(5);
  one.held.others.push(kek());
  one.keeper.confirmed();
  await pass(one, 59_000);
  expect(count()).toBe(5);
  await pass(one, 1_000);
  expect(count()).toBe(6);
  await pass(one, 60_000);
  one.held.others.push(kek());
  one.keeper.more("current");
  await pass(one, 0);
  expect(count()).toBe(7);
});

test("what is not written yet is written at the end", async () => {
  const directory = inMemory();
  const one = await wellPlugin(directory);
  one.held.others.push(kek());
  one.keeper.more("other");
  await one.cache.stop();
  expect(stored(directory).keks).toHaveLength(5);
});

test("nothing is kept that Key4C has not confirmed", async () => {
  const directory = inMemory();
  const one = await plugin(directory);
  one.held.current = kek();
  one.keeper.more("current");
  await pass(one, 120_000);
  expect(names(directory)).toEqual([]);
  expect(one.cache.outlook("demo")).toBeUndefined();
});

test.each(forms)(
  "%s: what is revoked is gone before the call returns, also under a write",
  async (_, settings, place) => {
    const directory = place();
    const one = await wellPlugin(directory, settings());
    for (const during of [false, true, true]) {
      one.keeper.confirmed();
      one.keeper.more("current");
      if (during) {
        await one.clock.pass(1_000);
      }
      one.keeper.fewer("all");
      expect(names(directory).filter((name) => !name.startsWith("."))).toEqual([]);
      await pass(one, 3 * 60_000);
      expect(names(directory)).toEqual([]);
    }
    await one.cache.stop();
    expect(await (await plugin(directory, settings())).keeper.handover).toBeUndefined();
  },
);

test("what is revoked while it is read is not handed over", async () => {
  const directory = inMemory();
  await (await wellPlugin(directory)).cache.stop();
  const one = await plugin(directory);
  one.keeper.fewer("all");
  expect(await one.keeper.handover).toBeUndefined();
  expect(names(directory)).toEqual([]);
});

test("one local KEK less: the file is removed at once, and the others are written again", async () => {
  const directory = inMemory();
  const one = await wellPlugin(directory);
  const [lost] = one.held.others.splice(0, 1);
  one.keeper.fewer("some");
  expect(names(directory)).toEqual([]);
  await pass(one, 1_000);
  const keys = stored(directory).keks.map(({ bytes }) => bytes.toString("hex"));
  expect(keys).toHaveLength(3);
  expect(keys).not.toContain(bytesOf(lost) ?? "");
});

test.each([
  ["half a file", (bytes: Buffer) => bytes.subarray(0, bytes.length / 2), "damaged"],
  ["the beginning of a file", (bytes: Buffer) => bytes.subarray(0, 20), "part of a file"],
  ["an empty file", () => Buffer.alloc(0), "no file of this plugin"],
  ["a foreign file", () => randomBytes(1_000), "no file of this plugin"],
  [
    "a changed file",
    (bytes: Buffer) => bytes.fill((bytes.at(-1) ?? 0) ^ 1, bytes.length - 1),
    "damaged",
  ],
  [
    "a file that is too large",
    () => Buffer.alloc(16 * 2 ** 20 + 1, "k4cc"),
    "no file of this plugin",
  ],
] as const)("%s is skipped with one line, and written anew", async (_, changed, cause) => {
  const directory = inMemory();
  await (await wellPlugin(directory)).cache.stop();
  writeFileSync(path(directory), changed(readFileSync(path(directory))));
  const one = await plugin(directory);
  expect(await one.keeper.handover).toBeUndefined();
  expect(one.told("is not used")).toEqual([
    expect.objectContaining({ level: "warn", cause: expect.stringContaining(cause) }),
  ]);
  one.held.current = kek();
  one.keeper.confirmed();
  await pass(one, 60_000);
  expect(stored(directory).keks).toHaveLength(1);
});

test("a file that is a link or a pipe is not followed, and does not stop the start", async () => {
  const directory = inMemory();
  await (await wellPlugin(directory)).cache.stop();
  const elsewhere = join(temporaryDirectory(), "file");
  copyFileSync(path(directory), elsewhere);
  rmSync(path(directory));
  symlinkSync(elsewhere, path(directory));
  const one = await plugin(directory);
  expect(await one.keeper.handover).toBeUndefined();
  expect(one.told("is not used")).toMatchObject([{ cause: "is a link" }]);
  await one.cache.stop();
  rmSync(path(directory));
  Bun.spawnSync(["mkfifo", path(directory)]);
  expect(await (await plugin(directory)).keeper.handover).toBeUndefined();
});

test("a copied directory is of no use without the sealing key, and a copied key file of none without it", async () => {
  const [directory, stolen] = [temporaryDirectory(), temporaryDirectory()];
  const keyFile = temporaryFile(SEALING_KEY.toString("hex"));
  await (await wellPlugin(directory, { keyFile })).cache.stop();
  mkdirSync(join(stolen, "local-keks"), { mode: 0o700 });
  copyFileSync(path(directory), path(stolen));
  const thief = await plugin(stolen, { keyFile: temporaryFile(randomBytes(32).toString("hex")) });
  expect(await thief.keeper.handover).toBeUndefined();
  expect(thief.told("is not used")).toMatchObject([
    { cause: "is damaged, or sealed under another key" },
  ]);
  await thief.cache.stop();
  expect((await (await plugin(stolen, { keyFile })).keeper.handover)?.others).toHaveLength(2);
});

test("a restored former state is as old as it was: it is read until it is older than the maximum", async () => {
  const directory = inMemory();
  const one = await wellPlugin(directory);
  const snapshot = readFileSync(path(directory));
  one.keeper.fewer("all");
  await one.cache.stop();
  writeFileSync(path(directory), snapshot);
  const restored = await plugin(directory);
  expect((await restored.keeper.handover)?.others).toHaveLength(2);
  await restored.cache.stop();
  const { keeper, told } = await plugin(directory, { maxAgeMs: -1 });
  expect(await keeper.handover).toBeUndefined();
  expect(told("is not used")).toMatchObject([{ cause: expect.stringContaining("MAX_AGE") }]);
});

/** Rewrites the file as if it had been confirmed before a reboot, so many hours ago by the wall clock. */
function rebooted(directory: string, keyFile: string, hours: number): void {
  const key = readFileSync(keyFile);
  const content = decodeStored(readFileSync(path(directory)), HASH, key, "");
  const confirmed = { wallMs: Date.now() - hours * HOUR_MS, bootId: "earlier", bootMs: 1 };
  writeFileSync(path(directory), encodeStored({ ...content, confirmed }, key));
}

test.each([
  [23, "used"],
  [25, "refused"],
  [-1, "used, with a warning"],
  [-25, "refused"],
])("after a reboot the wall clock counts: confirmed %p hours ago is %s", async (hours, result) => {
  const directory = temporaryDirectory();
  const keyFile = temporaryFile(SEALING_KEY.toString("hex"));
  await (await wellPlugin(directory, { keyFile })).cache.stop();
  rebooted(directory, keyFile, hours);
  const { keeper, told } = await plugin(directory, { keyFile });
  const handover = await keeper.handover;
  expect(handover === undefined ? "refused" : "used").toBe(
    result.slice(0, result.includes("used,") ? 4 : 7) as "used",
  );
  expect(told("the clock was set back")).toHaveLength(result.includes("warning") ? 1 : 0);
  expect(handover?.confirmedMsAgo ?? 0).toBeLessThan(24 * HOUR_MS);
});

test("of two plugins one has the directory; the other begins without it, and takes it over", async () => {
  const directory = inMemory();
  const first = await wellPlugin(directory);
  const second = await plugin(directory);
  let handover: unknown = "none yet";
  second.keeper.handover.then((one) => {
    handover = one;
  });
  await pass(second, 30_000);
  expect(handover).toBe("none yet");
  expect(second.told("not kept")).toMatchObject([
    { cause: expect.stringContaining("another plugin") },
  ]);
  expect(second.cache.outlook("demo")).toBeUndefined();
  await first.cache.stop();
  await pass(second, 1_000);
  expect(await second.keeper.handover).toMatchObject({ others: [{}, {}] });
});

test("a sealing key that is lost, or is none, costs the cache and not the start; when it comes, it is used", async () => {
  const directory = temporaryDirectory();
  const keyFile = join(temporaryDirectory(), "key");
  const one = await plugin(directory, { keyFile });
  expect(one.told("not kept")).toMatchObject([
    { level: "error", cause: `cannot read ${keyFile} (ENOENT)` },
  ]);
  writeFileSync(keyFile, randomBytes(31));
  await pass(one, 1_000);
  expect(one.told("not kept")[1]).toMatchObject({
    cause: `${keyFile} has 31 bytes, and a sealing key has at least 32`,
  });
  writeFileSync(keyFile, randomBytes(32));
  await pass(one, 1_000);
  expect(await one.keeper.handover).toBeUndefined();
  expect(one.told("for the next process")).toMatchObject([{ form: "sealed" }]);
});

test("unfinished files of a process that was killed are removed; others stay", async () => {
  const directory = inMemory();
  await (await wellPlugin(directory)).cache.stop();
  writeFileSync(path(directory, `.${FILE}`), "half");
  writeFileSync(path(directory, fileName("other")), "x");
  await (await plugin(directory)).keeper.handover;
  expect(names(directory).sort()).toEqual([FILE, fileName("other")].sort());
});

test("files of other keys go when they are too old to be used, once Key4C answers", async () => {
  const directory = inMemory();
  await (await wellPlugin(directory)).cache.stop();
  copyFileSync(path(directory), path(directory, fileName("fresh")));
  const confirmed = { ...readMoment(), bootMs: -2 * DAY_MS };
  writeFileSync(
    path(directory, fileName("old")),
    encodeStored(
      { ...stored(directory), confirmed: { ...confirmed, bootId: "earlier", wallMs: 0 } },
      undefined,
    ),
  );
  writeFileSync(path(directory, "foreign"), "x");
  const one = await plugin(directory);
  await pass(one, HOUR_MS);
  expect(names(directory)).toHaveLength(4);
  one.keeper.confirmed();
  await eventually("the old ones are gone", 60_000, async () => {
    await pass(one, 0);
    return names(directory).length <= 2; // the files of others are read beside
  });
  expect(names(directory).sort()).toEqual([FILE, fileName("fresh")].sort());
});

testWith("root")(
  "a full disk: the former file stays while it is true, and goes where it is not",
  async () => {
    const directory = temporaryDirectory();
    const keyFile = temporaryFile(SEALING_KEY.toString("hex"));
    expect(
      Bun.spawnSync(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", directory]).success,
    ).toBe(true);
    onTestEnd(() => Bun.spawnSync(["umount", "-l", directory]));
    const one = await wellPlugin(directory, { keyFile });
    const fill = () =>
      Bun.spawnSync(["dd", "if=/dev/zero", `of=${join(directory, "full")}`, "bs=4k"]);
    fill();
    const before = readFileSync(path(directory));
    one.held.others.push(kek());
    one.keeper.more("other");
    await pass(one, 5_000);
    expect(one.told("not kept")).toMatchObject([{ cause: expect.stringContaining("ENOSPC") }]);
    expect(readFileSync(path(directory))).toEqual(before);
    expect(names(directory)).toEqual([FILE]);
    await one.cache.stop();
    // A start that cannot charge removes the file, and goes on with what it has read.
    const next = await plugin(directory, { keyFile });
    Object.assign(next.held, await next.keeper.handover);
    expect(next.held.current).toBeDefined();
    expect(names(directory)).toEqual([]);
    fill();
    await pass(next, 1_000);
    expect(names(directory)).toEqual([]);
    rmSync(join(directory, "full"));
    await pass(next, 60_000);
    expect(names(directory)).toEqual([FILE]);
    expect(next.told("kept again")).toHaveLength(1);
  },
);
