/**
 * Scenario 6: Key4C away, and the key disabled. Each row of the operator's table of what still works is one
 * call of `expectRow`.
 */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { temporaryDirectory, temporaryFile } from "../support.ts";
import { ApiError, kms } from "./apiserver.ts";
import { Cluster, someSecrets } from "./cluster.ts";
import { StatusError } from "./key4c.ts";
import { eventually, figure, seconds } from "./process.ts";

const V2 = "k8s:enc:kms:v2:key4c:";

type Outcome = "ok" | "error";

interface Row {
  /** Of the plugin's Status. */
  readonly status: Outcome;
  /** Of a Secret that was there before. */
  readonly read: Outcome;
  readonly write: Outcome;
  /** Of kube-apiserver's /readyz. */
  readonly apiReady: Outcome;
}

const works: Row = { status: "ok", read: "ok", write: "ok", apiReady: "ok" };
const cached: Row = { status: "error", read: "ok", write: "ok", apiReady: "error" };
const readOnly: Row = { status: "error", read: "ok", write: "error", apiReady: "error" };
const nothing: Row = { status: "error", read: "error", write: "error", apiReady: "error" };

for (const api of ["v1", "v2"] as const) {
  test(`${api}, Key4C down: everything running, API server restarted, plugin restarted, both`, async () => {
    const prefix = `k8s:enc:kms:${api}:key4c:`;
    const cluster = await Cluster.start({
      featureGates: "KMSv1=true",
      providers: (socket) => [kms(api, "key4c", socket)],
    });
    const secrets = someSecrets(20);
    await cluster.api.createAll(secrets);

    await cluster.key4c.stop();
    await pluginIs(cluster, 200, "degraded", 60_000);
    await expectRow(`${api}, Key4C down, everything running`, cluster, secrets, works);
    await cluster.restartApi();
    await expectRow(`${api}, Key4C down, API server restarted`, cluster, secrets, works);
    await cluster.expectStoredUnder(secrets, prefix);

    // A restarted plugin knows no local KEK. The API server goes on with the DEKs that it knows: with v1
    // for reading, with v2 also for writing, up to 3 minutes after the last good Status.
    await cluster.plugin.stop();
    cluster.launchPlugin();
    await pluginIs(cluster, 503, "starting", 60_000);
    await apiNotices(cluster);
    const row = api === "v1" ? readOnly : cached;
    await expectRow(`${api}, Key4C down, plugin restarted`, cluster, secrets, row);
    await cluster.expectStoredUnder(secrets, prefix);

    await cluster.api.stop();
    cluster.launchApi();
    await apiAnswers(cluster);
    await expectRow(`${api}, Key4C down, both restarted`, cluster, secrets, nothing);

    await cluster.key4c.start();
    const pluginS = await seconds(() => cluster.plugin.ok());
    const apiS = await seconds(() => cluster.api.ready());
    await expectRow(`${api}, Key4C back, nothing restarted`, cluster, secrets, works);
    expect(await cluster.api.values()).toEqual(secrets);
    await cluster.expectStoredUnder(secrets, prefix);
    figure(`${api}, Key4C back: plugin ok after ${pluginS} s, API server ready ${apiS} s later`);
  }, 240_000);
}

/** Longer than what data needed waits until it is written (key-file.ts: 5 s), also on a busy machine. */
const WRITTEN_MS = 15_000;

for (const [api, outage] of [
  ["v1", "hangs"],
  ["v2", "refuses"],
] as const) {
  test(`${api}, local KEKs are kept, Key4C ${outage}: plugin killed, API server restarted, and all continues`, async () => {
    const prefix = `k8s:enc:kms:${api}:key4c:`;
    const cluster = await Cluster.start({
      featureGates: "KMSv1=true",
      providers: (socket) => [kms(api, "key4c", socket)],
      pluginEnv: {
        KMS_PERSISTENT_CACHE: temporaryDirectory(),
        KMS_PERSISTENT_CACHE_KEY_FILE: temporaryFile(randomBytes(32).toString("base64")),
        KMS_LOCAL_KEK_MAX_USES: "5", // several are in use
      },
    });
    const secrets = someSecrets(20);
    await cluster.api.createAll(secrets);
    await Bun.sleep(WRITTEN_MS);
    outage === "hangs" ? cluster.key4c.hang() : await cluster.key4c.stop();
    await cluster.plugin.stop("SIGKILL");
    cluster.launchPlugin();
    const pluginS = await seconds(() => cluster.plugin.ok());
    const apiS = await cluster.restartApi();
    await expectRow(`${api}, kept, Key4C ${outage}, both restarted`, cluster, secrets, works);
    expect(await cluster.api.values()).toEqual(secrets);
    await cluster.expectStoredUnder(secrets, prefix);
    figure(`${api}, kept: plugin ok after ${pluginS} s, API server ready after ${apiS} s`);
    outage === "hangs" ? cluster.key4c.continue() : await cluster.key4c.start();
    await pluginIs(cluster, 200, "ok", 30_000);
    expect(await cluster.api.values()).toEqual(secrets);
  }, 240_000);
}

test("key disabled: revoked after a minute, writes stop within 3 more, enabled again it heals", async () => {
  const cluster = await Cluster.start();
  const secrets = someSecrets(20);
  await cluster.api.createAll(secrets);

  const revokedS = await seconds(async () => {
    await cluster.key4c.key("demo", "disable");
    await pluginIs(cluster, 200, "degraded", 30_000);
    await expectRow("key disabled, first minute", cluster, secrets, works);
    await pluginIs(cluster, 503, "revoked", 90_000);
  });
  expect(revokedS).toBeGreaterThan(59); // a slip of the hand can be taken back

  await apiNotices(cluster);
  await expectRow("key disabled, revoked", cluster, secrets, cached);
  const stoppedS = await seconds(() =>
    eventually("writes are refused", 200_000, async () => {
      const name = `late-${crypto.randomUUID()}`;
      const outcome = await outcomeOf(cluster.api.create(name, name));
      if (outcome === "ok") {
        secrets.set(name, name);
      }
      return outcome === "error";
    }),
  );
  await expectRow("key disabled, 3 minutes later", cluster, secrets, readOnly);

  await cluster.api.stop();
  cluster.launchApi();
  await apiAnswers(cluster);
  await expectRow("key disabled, API server restarted", cluster, secrets, nothing);
  await cluster.expectStoredUnder(secrets, V2);

  await cluster.key4c.key("demo", "enable");
  const pluginS = await seconds(() => cluster.plugin.ok());
  const apiS = await seconds(() => cluster.api.ready());
  await expectRow("key enabled, nothing restarted", cluster, secrets, works);
  expect(await cluster.api.values()).toEqual(secrets);
  await cluster.expectStoredUnder(secrets, V2);
  figure(
    `key disabled: revoked after ${revokedS} s, writes refused ${stoppedS} s later; ` +
      `enabled: plugin ok after ${pluginS} s, API server ready ${apiS} s later`,
  );
}, 420_000);

/** Tries what the table has columns for; a Secret that could be written joins `secrets`. */
async function expectRow(
  when: string,
  cluster: Cluster,
  secrets: Map<string, string>,
  expected: Row,
): Promise<void> {
  const { api, plugin } = cluster;
  const name = `new-${crypto.randomUUID()}`;
  const [status, read, write, apiReady] = await Promise.all([
    outcomeOf(plugin.keyId()),
    outcomeOf(api.read("s-0000").then((value) => expect(value).toBe(secrets.get("s-0000") ?? ""))),
    outcomeOf(api.create(name, name)),
    outcomeOf(api.request("GET", "/readyz")),
  ]);
  if (write === "ok") {
    secrets.set(name, name);
  }
  expect({ when, status, read, write, apiReady }).toEqual({ when, ...expected });
  figure(
    `${when}: Status ${status}, read ${read}, write ${write}, API server's readyz ${apiReady}`,
  );
}

/** An error is one that somebody answered with; a connection that failed is not what a row is about. */
async function outcomeOf(work: Promise<unknown>): Promise<Outcome> {
  try {
    await work;
    return "ok";
  } catch (error) {
    if (error instanceof ApiError || error instanceof StatusError) {
      return "error";
    }
    throw error;
  }
}

async function pluginIs(cluster: Cluster, status: number, state: string, withinMs: number) {
  await eventually(
    `the plugin is ${state}`,
    withinMs,
    async () => {
      const answer = await cluster.plugin.readyz();
      return answer.status === status && answer.body.includes(state);
    },
    () => cluster.plugin.output(),
  );
}

/** kube-apiserver keeps a good result of a probe for 20 s. */
async function apiNotices(cluster: Cluster) {
  await eventually("the API server's readyz fails", 40_000, async () => {
    return (await outcomeOf(cluster.api.request("GET", "/readyz"))) === "error";
  });
}

/** It listens, though it cannot become ready. */
async function apiAnswers(cluster: Cluster) {
  await eventually(
    "the API server answers",
    60_000,
    () => cluster.api.request("GET", "/api/v1/namespaces/default"),
    () => cluster.api.output(),
  );
}
