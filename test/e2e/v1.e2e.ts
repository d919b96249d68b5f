/** Scenario 2: KMS v1, where kube-apiserver asks the plugin once for each object. */
import { expect, test } from "bun:test";
import { kms } from "./apiserver.ts";
import { Cluster, someSecrets } from "./cluster.ts";
import { figure, seconds } from "./process.ts";

const COUNT = 2_000;
const LATENCY_MS = 50;

test("v1: 2,000 Secrets, read by a restarted API server near to and far from Key4C", async () => {
  const cluster = await Cluster.start({
    featureGates: "KMSv1=true",
    providers: (socket) => [kms("v1", "key4c", socket)],
    pluginEnv: { KMS_PROBE_INTERVAL: "1h" }, // else the calls are those of probes, one a second
  });
  const secrets = someSecrets(COUNT);
  const createS = await seconds(() => cluster.api.createAll(secrets));
  await cluster.expectStoredUnder(secrets, "k8s:enc:kms:v1:key4c:");
  expect(await cluster.api.values()).toEqual(secrets);

  const reports: string[] = [];
  for (const latencyMs of [0, LATENCY_MS]) {
    await cluster.key4c.setLatency(latencyMs);
    await cluster.restartPlugin(); // it knows no local KEK of before
    const before = await cluster.key4c.stats();
    const readyS = await cluster.restartApi();
    const listS = await seconds(async () => expect(await cluster.api.values()).toEqual(secrets));
    const { decrypt } = await cluster.key4c.stats();
    const calls = decrypt - before.decrypt;
    // One for the local KEK of the data, and what a probe asks.
    expect(calls).toBeLessThan(20);
    reports.push(
      `Key4C at ${latencyMs} ms: ready after ${readyS} s, all listed ${listS} s later, ` +
        `${calls} unwraps by Key4C (computed for one call an object: ${computedS(COUNT, latencyMs, 10)} s more, ` +
        `before Kubernetes 1.37 ${computedS(COUNT, latencyMs, 1)} s)`,
    );
  }
  figure(
    `v1: ${COUNT} Secrets written in ${createS} s; API server restarted, ${reports.join("; ")}`,
  );
}, 240_000);

// From 1.37 on, kube-apiserver decodes ten objects at a time when it fills its watch cache; before, one.
for (const [concurrent, callsAtATime] of [
  [true, 10],
  [false, 1],
] as const) {
  test(`v1: one call for each object, as with other plugins, ${callsAtATime} at a time`, async () => {
    const count = 200; // a tenth, for this is slow
    const cluster = await Cluster.start({
      featureGates: `KMSv1=true,ConcurrentWatchObjectDecode=${concurrent}`,
      providers: (socket) => [kms("v1", "key4c", socket)],
      pluginEnv: { KMS_LOCAL_KEK_MAX_USES: "1" },
    });
    const secrets = someSecrets(count);
    await cluster.api.createAll(secrets);
    await cluster.expectStoredUnder(secrets, "k8s:enc:kms:v1:key4c:");
    await cluster.key4c.setLatency(LATENCY_MS);
    await cluster.restartPlugin();
    const before = await cluster.key4c.stats();
    const readyS = await cluster.restartApi();
    const listS = await seconds(async () => expect(await cluster.api.values()).toEqual(secrets));
    const calls = (await cluster.key4c.stats()).decrypt - before.decrypt;
    expect(calls).toBeGreaterThan(count * 0.9); // writes at the same moment may share a local KEK
    figure(
      `v1, KMS_LOCAL_KEK_MAX_USES=1, ${callsAtATime} at a time: ${count} Secrets, Key4C at ` +
        `${LATENCY_MS} ms: ready after ${readyS} s, all listed ${listS} s later, ${calls} unwraps ` +
        `(computed: ${computedS(count, LATENCY_MS, callsAtATime)} s more)`,
    );
  }, 180_000);
}

/** What one call of Key4C for each object adds. */
function computedS(count: number, latencyMs: number, callsAtATime: number): number {
  return (count * latencyMs) / callsAtATime / 1_000;
}
