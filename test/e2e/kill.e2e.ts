/** Scenario 7: the plugin dies under load, a new one takes over, and it starts before or after its client. */
import { expect, test } from "bun:test";
import { kms } from "./apiserver.ts";
import { Cluster } from "./cluster.ts";
import { startLoad } from "./load.ts";
import { eventually, figure, seconds } from "./process.ts";

const APIS = ["v1", "v2"] as const;
const ROUNDS = 5;
const featureGates = "KMSv1=true";

for (const api of APIS) {
  for (const signal of ["SIGKILL", "SIGTERM"] as const) {
    test(`${api}: ${signal} under load, with a new one at once, loses no object`, async () => {
      const cluster = await Cluster.start({
        featureGates,
        providers: (socket) => [kms(api, "key4c", socket)],
      });
      const load = startLoad(cluster.api, 8, 5);
      for (let round = 0; round < ROUNDS; round++) {
        await progress(load.acknowledged);
        await cluster.plugin.stop(signal);
        await cluster.startPlugin();
      }
      await progress(load.acknowledged);
      await load.stop();

      const acknowledged = new Map(load.acknowledged);
      await cluster.restartPlugin();
      await cluster.restartApi();
      const values = await cluster.api.values();
      for (const [name, value] of acknowledged) {
        expect([name, values.get(name)]).toEqual([name, value]);
      }
      // A write that was answered with an error may have been done all the same; it must read too.
      await cluster.expectStoredUnder(values, `k8s:enc:kms:${api}:key4c:`);
      for (const error of load.errors) {
        expect(error).toStartWith("500 "); // in the API server's words, and nothing else broke
      }
      // With v2 the data keys are the API server's own; and who is asked to end lets its calls end first.
      if (api === "v2" || signal === "SIGTERM") {
        expect(load.errors).toEqual([]);
      }
      expect(load.longestGapMs()).toBeLessThan(15_000); // a second, where the machine is not busy
      figure(
        `${api}, ${ROUNDS} times ${signal}: ${acknowledged.size} Secrets written, all read; ` +
          `${load.errors.length} errors (${distinct(load.errors)}), no write for ${load.longestGapMs()} ms at most`,
      );
    }, 180_000);
  }

  test(`${api}: the API server starts first`, async () => {
    const cluster = await Cluster.start({
      featureGates,
      providers: (socket) => [kms(api, "key4c", socket)],
      start: false,
    });
    const server = cluster.launchApi();
    await eventually(
      "the API server answers",
      60_000,
      () => server.request("GET", "/api/v1/namespaces/default"),
      () => server.output(),
    );
    await expect(server.create("early", "too early")).rejects.toThrow(/^500 /);
    expect(await cluster.stored()).toEqual(new Map());

    await cluster.startPlugin();
    const secrets = new Map([["late", "in the clear nowhere"]]);
    const writtenS = await seconds(() =>
      eventually("it writes", 150_000, () => server.createAll(secrets).then(() => true)),
    );
    const readyS = await seconds(() => server.ready(150_000));
    expect(await server.values()).toEqual(secrets);
    await cluster.expectStoredUnder(secrets, `k8s:enc:kms:${api}:key4c:`);
    figure(
      `${api}, API server first: plugin ok, first write ${writtenS} s later, ready ${readyS} s after that`,
    );
  }, 240_000);
}

/** Waits until more has been acknowledged. */
async function progress(acknowledged: ReadonlyMap<string, string>): Promise<void> {
  const before = acknowledged.size;
  await eventually("writes succeed", 30_000, () => acknowledged.size > before + 50);
}

/** The gRPC codes and texts in the API server's errors. */
function distinct(errors: readonly string[]): string {
  const kinds = errors.map(
    (text) => text.match(/code = (\w+) desc = ([^"\\,]{0,60})/)?.[0] ?? text,
  );
  return [...new Set(kinds)].join("; ").slice(0, 500) || "none";
}
