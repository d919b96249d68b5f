/** KMS_LOCAL_KEK_MAX_USES=1: Key4C is asked for each DEK, and still nobody fails. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { status } from "@grpc/grpc-js";
import { Sightings } from "../faults/callers.ts";
import { peakMiB } from "../faults/plugin.ts";
import { grpcClient } from "../support.ts";
import { launchOk, type Plugin, rpcs, startKey4C } from "./bent-key4c.ts";

const EACH = { KMS_LOCAL_KEK_MAX_USES: "1", KMS_PROBE_INTERVAL: "30s" };
const RUN_MS = 2_000;

const overLimit = async (plugin: Plugin) =>
  (await plugin.metric("key4c_kms_encrypts_over_limit_total")) ?? 0;

/** So many callers over connections of 125, as long as RUN_MS. None may fail. @returns how many local KEKs they met */
async function encryptAll(plugin: Plugin, callers: number) {
  const clients = Array.from({ length: Math.ceil(callers / 125) }, () => grpcClient(plugin.socket));
  const seen = new Sightings();
  const keks = new Set<string>();
  const startMs = performance.now();
  await Promise.all(
    Array.from({ length: callers }, async (_, caller) => {
      const client = clients[caller % clients.length] as (typeof clients)[number]; // there is one
      while (performance.now() - startMs < RUN_MS) {
        await seen.see("encrypt", async () => {
          const { annotations } = await rpcs.encrypt2(client, randomBytes(32));
          keks.add(Buffer.from(Object.values(annotations)[0] ?? []).toString("latin1"));
        });
      }
    }),
  );
  const encrypts = seen.count;
  const rate = encrypts / ((performance.now() - startMs) / 1000);
  expect([seen.codesOf("encrypt"), [...seen.defects]]).toEqual([[status.OK], []]);
  return { keks: keks.size, encrypts, rate };
}

test("64 callers, Key4C 100 ms away: as many wraps as Encrypts", async () => {
  const key4c = await startKey4C();
  const plugin = await launchOk(key4c.url, EACH);
  await key4c.setLatency(100);
  const before = await key4c.wraps();
  const { keks, encrypts, rate } = await encryptAll(plugin, 64);
  const [wraps, over] = [(await key4c.wraps()) - before, await overLimit(plugin)];
  console.log(
    `figure: ${encrypts} Encrypts, ${wraps} wraps, ${over} over the limit, ${Math.round(rate)} a second`,
  );
  expect(wraps + over + 1).toBeGreaterThanOrEqual(encrypts); // the first one was made before
  expect(keks + over).toBeGreaterThanOrEqual(encrypts);
});

test("1,000 callers: nobody fails, and memory stays below 200 MiB", async () => {
  const key4c = await startKey4C();
  const plugin = await launchOk(key4c.url, EACH);
  await key4c.setLatency(100);
  const { encrypts, rate } = await encryptAll(plugin, 1_000);
  const over = await overLimit(plugin);
  console.log(
    `figure: 1,000 callers: ${encrypts} Encrypts, ${Math.round(rate)} a second, ` +
      `${over} over the limit, peak ${peakMiB(plugin)} MiB`,
  );
  expect(peakMiB(plugin)).toBeLessThan(200);
});
