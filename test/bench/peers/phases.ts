/** The phases of a run: what is measured of every server, in turns. */
import { join } from "node:path";
import { memoryOf } from "../footprint.ts";
import { freeSocket, median, scratch, stop, untilOk } from "../servers.ts";
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
/** Twice, by the loader. */
const WARM_UP = "500ms";

export interface Size {
  readonly rounds: number;
  readonly slice: string;
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
  const rests: Promise<void>[] = [];
  for (const plugin of plugins) {
    const kms = await openKms();
    await kms.set({ delayMs: AWAY_MS });
    const instance = startInstance(plugin, kms);
    await untilOk(instance);
    const { idle, loaded, later } = await memoryOf(instance, loader, encrypts);
    rests.push(
      Bun.sleep(60_000).then(async () => {
        found.set(plugin, { idle: idle.rss, loaded: loaded.rss, later: later().rss });
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
  { rounds, slice }: Size,
  openKms: OpenKms,
) {
  const rates = new Map<Plugin, Record<string, Rate>>();
  const instances: { plugin: Plugin; kms: Kms; instance: Instance }[] = [];
  for (const plugin of plugins) {
    const kms = await openKms();
    const instance = startInstance(plugin, kms);
    await untilOk(instance);
    instances.push({ plugin, kms, instance });
    rates.set(plugin, {});
  }
  // An engine compiles what it has run often: what is compared is what a plugin does from its second minute on.
  for (const operation of OPERATIONS) {
    const targets = instances.map(({ instance }) => instance);
    await slices(loader, targets, { operation, callers: 64, rounds: 1, slice: WARM_UP });
  }
  for (const distanceMs of DISTANCES_MS) {
    await Promise.all(instances.map(({ kms }) => kms.set({ delayMs: distanceMs })));
    const loaded = instances.filter(({ plugin }) => !plugin.isBare || distanceMs === 0);
    for (const callers of CALLERS) {
      for (const operation of OPERATIONS) {
        const targets = loaded.map(({ instance }) => instance);
        const found = await slices(loader, targets, { operation, callers, rounds, slice });
        for (const [at, { plugin }] of loaded.entries()) {
          const row = rowOf(operation, distanceMs, callers);
          rates.set(plugin, { ...rates.get(plugin), [row]: rateOf(found[at] ?? []) });
        }
        const shown = loaded.map(
          ({ plugin }, at) => `${plugin.name} ${medianOf(found[at] ?? [], "perSecond").toFixed(0)}`,
        );
        console.log(`  ${rowOf(operation, distanceMs, callers)}: ${shown.join(", ")}`);
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
  return { rates, kmsCalls };
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
