/** What the plugin costs a node beside its calls: the start, and memory. */
import {
  BINARY,
  median,
  memoryMiB,
  startEmulator,
  startPlugin,
  stop,
  type Target,
  untilOk,
} from "./servers.ts";
import { slices } from "./slices.ts";

const STARTS = 11;
const AWAY_MS = 100;
const ENCRYPTS = 100_000;

/** Exec to the first Status ok, with Key4C inside the process, and with one that takes 100 ms to answer. */
export async function start(quick: boolean): Promise<void> {
  const rounds = quick ? 5 : STARTS;
  console.log(`binary: ${(Bun.file(BINARY).size / 1e6).toFixed(1)} MB`);
  console.log(`exec to first Status ok, median of ${rounds}:`);
  console.log(`  Key4C inside: ${(await readyMs(rounds, {})).toFixed(0)} ms`);
  const { url, process } = await startEmulator(AWAY_MS);
  const env = { KEY4C_URL: url, KMS_USER_ID: "bench", KMS_KEY_ID: "demo" };
  console.log(`  Key4C ${AWAY_MS} ms away: ${(await readyMs(rounds, env)).toFixed(0)} ms\n`);
  process.kill();
}

async function readyMs(rounds: number, env: Readonly<Record<string, string>>): Promise<number> {
  const took: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const beginMs = performance.now();
    const plugin = startPlugin(env);
    await untilOk(plugin);
    took.push(performance.now() - beginMs);
    await stop(plugin);
  }
  return median(took);
}

/** RSS of a plugin of its own: idle, after 100,000 v2 Encrypts of 64 callers, and a minute later. */
export async function memory(loader: string | undefined, quick: boolean): Promise<void> {
  const plugin = startPlugin();
  await untilOk(plugin);
  await Bun.sleep(REST_MS);
  const idle = memoryMiB(plugin);
  const loaded = await loadedMiB(plugin, loader, ENCRYPTS);
  const restMs = quick ? 10_000 : 60_000;
  await Bun.sleep(restMs);
  const shown = [idle, loaded, memoryMiB(plugin)].map(
    ({ rss, own }) => `${rss.toFixed(0)} (${own.toFixed(0)})`,
  );
  console.log(
    `\nRSS (of which private) MiB: idle ${shown[0]}, after ${ENCRYPTS} Encrypts ${shown[1]}, ${restMs / 1_000} s later ${shown[2]}`,
  );
  await stop(plugin);
}

/** After which a process that has started is idle. */
export const REST_MS = 3_000;

/** Memory right after so many v2 Encrypts of 64 callers. */
export async function loadedMiB(target: Target, loader: string | undefined, encrypts: number) {
  const load = { operation: "encrypt", callers: 64, rounds: 1, slice: "500ms" };
  for (let made = 0; made < encrypts; ) {
    const [[slice] = []] = await slices(loader, [target], load);
    made += 2 * (slice?.calls ?? 0); // one slice warmed up
  }
  return memoryMiB(target);
}
