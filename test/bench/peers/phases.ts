/** The phases of a run: what is measured of every server, in turns. */
import { join } from "node:path";
import { loadedMiB, REST_MS } from "../footprint.ts";
import { freeSocket, median, memoryMiB, scratch, stop, untilOk } from "../servers.ts";
import { medianOf, type Slice, slices } from "../slices.ts";
import { KmsClient } from "./client.ts";
import type { Kms, OpenKms } from "./fake.ts";
import { type Instance, type Plugin, startInstance } from "./plugins.ts";
import {
  CALLERS,
  DISTANCES_MS,
  type Figures,
  OPERATIONS,
  type Operation,
  type Rate,
  rowOf,
  type Secrets,
} from "./result.ts";

/** Where nothing else is said. */
const AWAY_MS = 20;

export interface Size {
  readonly rounds: number;
  readonly slice: string;
  /** Of each operation, twice. */
  readonly warmUp: string;
  readonly starts: number;
  readonly encrypts: number;
  /** The others take one call for each. Ours are always 10,000. */
  readonly theirSecrets: number;
}
/** What of Figures is measured in a phase. */
export type Found<K extends keyof Figures> = Map<Plugin, Figures[K]>;

/** Starts each in turns; none of them has anything else to do. */
export async function starts(
  plugins: readonly Plugin[],
  driver: string,
  rounds: number,
  openKms: OpenKms,
): Promise<Found<"readyMs">> {
  const kms = await openKms();
  const found: Found<"readyMs"> = new Map();
  const took = new Map<string, number[]>();
  for (let round = 0; round < rounds; round++) {
    for (const delayMs of DISTANCES_MS) {
      await kms.set({ delayMs });
      for (const plugin of plugins.filter(({ isBare }) => !isBare || delayMs === 0)) {
        const socket = freeSocket();
        const { words, env } = plugin.invocation(kms, socket, "v2");
        const ms = await drive(driver, ["ready", socket, plugin.binary, ...words], env);
        const key = `${plugin.name} ${delayMs}`;
        took.set(key, [...(took.get(key) ?? []), ms]);
        found.set(plugin, { ...found.get(plugin), [delayMs]: median(took.get(key) ?? []) });
      }
    }
  }
  return found;
}

/** @returns what waits until a minute after the last load */
export async function memories(
  plugins: readonly Plugin[],
  loader: string,
  encrypts: number,
  openKms: OpenKms,
): Promise<() => Promise<Found<"rssMiB">>> {
  const found: Found<"rssMiB"> = new Map();
  const idles: { plugin: Plugin; instance: Instance; idle: number }[] = [];
  for (const plugin of plugins) {
    const kms = await openKms();
    await kms.set({ delayMs: AWAY_MS });
    const instance = startInstance(plugin, kms);
    await untilOk(instance);
    idles.push({ plugin, instance, idle: Number.NaN });
  }
  await Bun.sleep(REST_MS);
  for (const one of idles) {
    one.idle = memoryMiB(one.instance).rss;
  }
  const rests: Promise<void>[] = [];
  for (const { plugin, instance, idle } of idles) {
    const loaded = await loadedMiB(instance, loader, encrypts);
    rests.push(
      Bun.sleep(60_000).then(async () => {
        found.set(plugin, { idle, loaded: loaded.rss, later: memoryMiB(instance).rss });
        await stop(instance);
      }),
    );
  }
  return async () => {
    await Promise.all(rests);
    return found;
  };
}

export async function loads(
  plugins: readonly Plugin[],
  loader: string,
  { rounds, slice, warmUp }: Size,
  openKms: OpenKms,
) {
  const all = new Map<string, Slice[]>();
  const instances: { plugin: Plugin; kms: Kms; instance: Instance }[] = [];
  for (const plugin of plugins) {
    const kms = await openKms();
    const instance = startInstance(plugin, kms);
    await untilOk(instance);
    instances.push({ plugin, kms, instance });
  }
  // An engine compiles what it has run often: what is compared is what a plugin does from its second minute on.
  for (const operation of OPERATIONS) {
    const targets = instances.map(({ instance }) => instance);
    await slices(loader, targets, { operation, callers: 64, rounds: 1, slice: warmUp });
  }
  // Rounds of minutes, and in each of them the servers in turns: what else the machine does hits one slice of a figure.
  for (let round = 1; round <= rounds; round++) {
    console.log(`  round ${round} of ${rounds}`);
    for (const distanceMs of DISTANCES_MS) {
      await Promise.all(instances.map(({ kms }) => kms.set({ delayMs: distanceMs })));
      const loaded = instances.filter(({ plugin }) => !plugin.isBare || distanceMs === 0);
      for (const [operation, callers] of OPERATIONS.flatMap((one) =>
        CALLERS.map((width) => [one, width] as const),
      )) {
        const targets = loaded.map(({ instance }) => instance);
        const load = { operation, callers, rounds: 1, slice };
        for (const [at, [found]] of (await slices(loader, targets, load)).entries()) {
          const row = `${targets[at]?.name} ${rowOf(operation, distanceMs, callers)}`;
          all.set(row, [...(all.get(row) ?? []), ...(found ? [found] : [])]);
        }
      }
    }
  }
  const kmsCalls: Found<"kmsCalls"> = new Map();
  for (const { plugin, kms, instance } of instances) {
    await kms.set({ delayMs: 0 });
    if (!plugin.isBare) {
      kmsCalls.set(plugin, await callsFor(instance, kms));
    }
    await stop(instance);
  }
  const ratesOf = ({ name }: Plugin) =>
    Object.fromEntries(
      [...all].flatMap(([row, found]) =>
        row.startsWith(`${name} `) ? [[row.slice(name.length + 1), rateOf(found)]] : [],
      ),
    );
  return { rates: new Map(plugins.map((plugin) => [plugin, ratesOf(plugin)])), kmsCalls };
}

function rateOf(all: readonly Slice[]): Rate {
  return {
    perSecond: medianOf(all, "perSecond"),
    p50Micros: medianOf(all, "p50Micros"),
    p99Micros: medianOf(all, "p99Micros"),
    cpuMicros: medianOf(all, "cpuMicros"),
    errors: all.reduce((sum, { errors }) => sum + errors, 0),
  };
}

/** What one call of the plugin costs the KMS. */
async function callsFor(instance: Instance, kms: Kms): Promise<Figures["kmsCalls"]> {
  const CALLS = 50;
  const client = new KmsClient(instance.socket);
  const sealed = await client.encrypt();
  if (sealed === undefined) {
    throw new Error(`${instance.name} does not encrypt`);
  }
  const counted: Partial<Record<Operation, number>> = {};
  const make = {
    encrypt: () => client.encrypt(),
    decrypt: () => client.decrypt(sealed),
    status: () => client.status(),
  };
  for (const operation of OPERATIONS) {
    const before = (await kms.calls()).all;
    for (let call = 0; call < CALLS; call++) {
      await make[operation]();
    }
    counted[operation] = ((await kms.calls()).all - before) / CALLS;
  }
  client.close();
  return counted;
}

/** Plugin and API server have restarted: one process wraps, another one reads. */
export async function readSecrets(
  plugin: Plugin,
  driver: string,
  count: number,
  openKms: OpenKms,
): Promise<Secrets> {
  const kms = await openKms();
  const file = join(scratch, `${plugin.name}.secrets`);
  const before = startInstance(plugin, kms, "v1");
  await drive(driver, ["seal", before.socket, file, `${count}`]);
  await stop(before);
  const instance = startInstance(plugin, kms, "v1");
  await Bun.sleep(2_000); // what it asks its KMS at the start is not what is counted
  await kms.set({ delayMs: AWAY_MS });
  const asked = (await kms.calls()).decrypt;
  const seconds = await drive(driver, ["read", instance.socket, file, "1"]);
  const kmsCalls = (await kms.calls()).decrypt - asked;
  await stop(instance);
  return { count, seconds, kmsCalls };
}

async function drive(
  driver: string,
  words: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<number> {
  const child = Bun.spawn([driver, ...words], {
    env: { KMS_CONFIG: "/dev/null", ...env },
    stderr: "pipe",
  });
  const [text, problem] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  if ((await child.exited) !== 0) {
    throw new Error(`${words.slice(0, 3).join(" ")}: ${problem}`);
  }
  return Number(text);
}
