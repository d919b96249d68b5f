/**
 * What 1,000 clusters of three control planes ask of one Key4C. The plugins' own Health, Keyring and Key4C run,
 * all in this process and in fast time; only `fetch` is replaced, by a Key4C that counts.
 */
import { Health } from "../../src/health/health.ts";
import { Key4C } from "../../src/key4c/client.ts";
import { DEFAULT_PROFILE } from "../../src/key4c/profile.ts";
import { Keyring } from "../../src/keys/keyring.ts";
import { createLog } from "../../src/system/log.ts";

/** So much faster than real; more, and the machine is too slow for the bursts. */
const SPEED = 10;
const PROBE_INTERVAL_MS = 30_000;

type Operation = "describe" | "encrypt" | "decrypt";

export async function fleet(quick: boolean): Promise<void> {
  const plugins = quick ? 300 : 3_000;
  const clock = fastTime();
  const key = { isAway: false, version: 1 };
  const perSecond: Record<Operation, number>[] = [];
  globalThis.fetch = Object.assign(
    async (input: unknown, init?: RequestInit) => {
      const operation = /encrypt$|decrypt$/.exec(String(input))?.[0] ?? "describe";
      const at = Math.floor(clock.nowMs() / 1000);
      perSecond[at] ??= { describe: 0, encrypt: 0, decrypt: 0 };
      perSecond[at][operation as Operation] += 1; // the pattern's words or "describe"
      if (key.isAway) {
        throw new Error("away");
      }
      const { plaintext, ciphertext } = JSON.parse(String(init?.body ?? "{}"));
      return Response.json(
        operation === "describe"
          ? { version: key.version, state: "ENABLED" }
          : { ciphertext: plaintext, plaintext: ciphertext, version: key.version },
      );
    },
    { preconnect: globalThis.fetch.preconnect },
  );
  const log = createLog({ level: "error", format: "json", write: () => {} });
  const healths = Array.from({ length: plugins }, () => {
    const key4c = new Key4C({
      url: "http://key4c",
      profile: DEFAULT_PROFILE,
      credentials: () => ({ userId: "fleet" }),
      tls: () => ({}),
      userAgent: "fleet",
      log,
    });
    const keyring = new Keyring({
      service: key4c,
      configured: { kmsKeyId: () => "fleet", previousIds: () => [] },
      limits: { outageGraceMs: undefined, revocationGraceMs: 60_000 },
      maxUses: 2 ** 20,
      maxAgeMs: 7 * 86_400_000,
      cacheSize: 16,
      log,
    });
    return new Health({
      keyring,
      intervalMs: PROBE_INTERVAL_MS,
      log,
    });
  });

  console.log(`${plugins} plugins, Key4C calls a second:\n`);
  console.log("| phase | seconds | mean | highest | of which unwraps, highest |");
  console.log("|---|---|---|---|---|");
  const phase = async (name: string, seconds: number, change: () => void) => {
    const from = Math.floor(clock.nowMs() / 1000);
    change();
    await Bun.sleep(seconds * 1000);
    const seen = Array.from({ length: seconds }, (_, at) => perSecond[from + at]);
    const totals = seen.map((one) => (one ? one.describe + one.encrypt + one.decrypt : 0));
    const unwraps = seen.map((one) => one?.decrypt ?? 0);
    const mean = totals.reduce((sum, one) => sum + one, 0) / seconds;
    const cells = [seconds, mean.toFixed(0), Math.max(...totals), Math.max(...unwraps)];
    console.log(`| ${name} | ${cells.join(" | ")} |`);
  };
  await phase("all start at once", 10, () => {
    for (const health of healths) {
      health.start();
    }
  });
  await phase("the minutes after", 240, () => {});
  await phase("at rest", 300, () => {});
  await phase("Key4C is unreachable", 60, () => {
    key.isAway = true;
  });
  await phase("it is back", 30, () => {
    key.isAway = false;
  });
  await phase("the key is rotated", 45, () => {
    key.version += 1;
  });
  for (const health of healths) {
    health.stop();
  }
}

/** Makes the clocks and timers of this process run SPEED times as fast. */
function fastTime(): { nowMs: () => number } {
  const { setTimeout: slowTimeout } = globalThis;
  const slowNow = performance.now.bind(performance);
  const slowSleep = Bun.sleep.bind(Bun);
  const startMs = slowNow();
  performance.now = () => startMs + (slowNow() - startMs) * SPEED;
  globalThis.setTimeout = Object.assign(
    ((task: () => void, ms = 0) => slowTimeout(task, ms / SPEED)) as typeof setTimeout,
    slowTimeout,
  );
  Bun.sleep = (ms) => slowSleep(Number(ms) / SPEED);
  return { nowMs: () => performance.now() - startMs };
}
