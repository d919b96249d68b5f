/** What callers of a plugin see while its KMS fails, while its key is disabled, and after that. */
import { stop, untilOk } from "../servers.ts";
import { KmsClient } from "./client.ts";
import type { OpenKms } from "./fake.ts";
import { type Plugin, type Probe, startInstance } from "./plugins.ts";
import type { Disabled, Outage } from "./result.ts";

/** Of the KMS, meanwhile. */
const DISTANCE_MS = 20;
/** Calls are sent at this pace, whether those before are answered or not: what hangs must hide nothing. */
const PACE_MS = 100;
/** What is sent at once with the fault, or shortly before its end, may be answered by either. */
const SETTLES_MS = 200;
const PROBE_INTERVAL_MS = 10_000; // of the manifests, and of a kubelet that is told nothing
const RECOVERY_LIMIT_MS = 15_000;
const REVOCATION_LIMIT_MS = 150_000;
/** So long refused, it is obeyed. */
const REFUSED_MS = 5_000;

interface Seen {
  readonly sentMs: number;
  readonly endMs: number;
  readonly isOk: boolean;
}

/** Makes one kind of call again and again. */
class Watch {
  readonly seen: Seen[] = [];
  readonly #timer: Timer;

  constructor(call: () => Promise<boolean>) {
    this.#timer = setInterval(async () => {
      const sentMs = performance.now();
      const isOk = await call();
      this.seen.push({ sentMs, endMs: performance.now(), isOk });
    }, PACE_MS);
  }

  /** Part of the calls sent in an outage that were answered before it ended. */
  answered(outageMs: number, outageEndMs: number): number {
    const sent = this.seen.filter(
      ({ sentMs }) => sentMs >= outageMs + SETTLES_MS && sentMs < outageEndMs - SETTLES_MS,
    );
    return sent.filter(({ isOk, endMs }) => isOk && endMs < outageEndMs).length / sent.length;
  }

  /** From a time to the first answer after it. */
  firstAfterMs(fromMs: number): number | null {
    const ends = this.seen.flatMap(({ endMs, isOk }) => (isOk && endMs > fromMs ? [endMs] : []));
    return ends.length === 0 ? null : Math.min(...ends) - fromMs;
  }

  /** When the last call that was answered had been sent. */
  lastSentMs(): number {
    return Math.max(...this.seen.flatMap(({ sentMs, isOk }) => (isOk ? [sentMs] : [])));
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}

/** A plugin with a ciphertext that it knows, and one that another instance wrapped and that it has not seen yet. */
async function prepare(plugin: Plugin, openKms: OpenKms) {
  const kms = await openKms();
  await kms.set({ delayMs: DISTANCE_MS });
  const encrypted = async () => {
    const instance = startInstance(plugin, kms);
    await untilOk(instance);
    const client = new KmsClient(instance.socket);
    const sealed = await client.encrypt();
    if (sealed === undefined) {
      throw new Error(`${plugin.name} does not encrypt`);
    }
    return { instance, client, sealed };
  };
  const other = await encrypted();
  other.client.close();
  await stop(other.instance);
  return { kms, ...(await encrypted()), unknown: other.sealed };
}

/** @param mode how the KMS fails */
export async function outage(
  plugin: Plugin,
  mode: "hang" | "refuse",
  outageMs: number,
  openKms: OpenKms,
): Promise<Outage> {
  const { kms, instance, client, sealed, unknown } = await prepare(plugin, openKms);
  const watches = {
    encrypt: new Watch(async () => (await client.encrypt()) !== undefined),
    decrypt: new Watch(() => client.decrypt(sealed)),
    status: new Watch(() => client.status()),
  };
  await Bun.sleep(2_000);
  await kms.set({ mode });
  const faultMs = performance.now();
  const needsKms = new Watch(() => client.decrypt(unknown));
  const isRestarted = await restarts(instance.probe, faultMs + outageMs);
  await Bun.sleep(faultMs + outageMs - performance.now());
  const endMs = performance.now();
  await kms.set({ mode: "ok" });
  const usedAfterMs = await until(RECOVERY_LIMIT_MS, () => needsKms.firstAfterMs(endMs));
  for (const watch of [...Object.values(watches), needsKms]) {
    watch.stop();
  }
  const answered = (watch: Watch) => watch.answered(faultMs, endMs);
  const { encrypt, decrypt, status } = watches;
  await Bun.sleep(3_000); // the last deadlines
  client.close();
  await stop(instance);
  return {
    answered: {
      encrypt: answered(encrypt),
      decrypt: answered(decrypt),
      status: answered(status),
    },
    usedAfterMs,
    isRestarted,
  };
}

/** Asks as a kubelet would. @returns whether it would restart the plugin; null without a probe */
async function restarts(probe: Probe | undefined, endMs: number): Promise<boolean | null> {
  if (probe === undefined) {
    return null;
  }
  let failed = 0;
  while (failed < probe.failures && performance.now() + PROBE_INTERVAL_MS < endMs) {
    await Bun.sleep(PROBE_INTERVAL_MS);
    failed = (await probe.isAlive()) ? 0 : failed + 1;
  }
  return failed >= probe.failures;
}

export async function disabled(plugin: Plugin, openKms: OpenKms): Promise<Disabled> {
  const { kms, instance, client, sealed } = await prepare(plugin, openKms);
  const watch = new Watch(() => client.decrypt(sealed));
  await Bun.sleep(2_000);
  await kms.set({ mode: "disabled" });
  const disabledMs = performance.now();
  const obeyedAfterMs = await until(REVOCATION_LIMIT_MS, () => {
    const lastMs = watch.lastSentMs();
    return performance.now() - Math.max(lastMs, disabledMs) > REFUSED_MS
      ? Math.max(lastMs - disabledMs, 0)
      : null;
  });
  const enabledMs = performance.now();
  await kms.set({ mode: "ok" });
  const usedAfterMs = await until(RECOVERY_LIMIT_MS, () => watch.firstAfterMs(enabledMs));
  watch.stop();
  client.close();
  await stop(instance);
  return { obeyedAfterMs, usedAfterMs };
}

async function until(limitMs: number, found: () => number | null): Promise<number | null> {
  for (const beginMs = performance.now(); performance.now() - beginMs < limitMs; ) {
    const result = found();
    if (result !== null) {
      return result;
    }
    await Bun.sleep(50);
  }
  return null;
}
