/** The plugin beside other plugins and beside two bare servers, against one fake KMS, in turns. */
import { availableParallelism, cpus, loadavg, release } from "node:os";
import manifest from "../../../package.json" with { type: "json" };
import { commitOf } from "../../../src/build/commit.ts";
import { buildFloor, buildGo, buildLoader } from "../servers.ts";
import { disabled, outage } from "./failures.ts";
import { startFake } from "./fake.ts";
import { type Found, loads, memories, readSecrets, type Size, starts } from "./phases.ts";
import { bare, eachDek, given, OURS, PEERS, type Peer, type Plugin, versionOf } from "./plugins.ts";
import { type Figures, type Result, readStored, store } from "./result.ts";
import { spreadOf } from "./spread.ts";
import { provenance, resultTable, SECRETS, TITLES } from "./table.ts";

const OUTAGE_MS = 60_000;

const FULL: Size = {
  ...{ rounds: 5, slice: "400ms", warmUp: "500ms", starts: 9 },
  ...{ encrypts: 100_000, theirSecrets: SECRETS },
};
const QUICK: Size = {
  ...{ rounds: 3, slice: "150ms", warmUp: "250ms", starts: 3 },
  ...{ encrypts: 10_000, theirSecrets: 1_000 },
};

type Paths = Readonly<Partial<Record<Peer, string>>>;

/** @param options.store what is measured becomes what the documents say; options.spread how far it is from that */
export async function peers(
  quick: boolean,
  options: Paths & { readonly store?: boolean; readonly spread?: boolean },
): Promise<void> {
  const loader = buildLoader();
  if (loader === undefined) {
    throw new Error(
      "peers needs Go: the callers, the fake KMS and the bare server are written in it",
    );
  }
  const size = quick ? QUICK : FULL;
  const [load = Number.NaN] = loadavg();
  const commit = await commitOf(); // of the binary, which was built a moment ago
  const driver = buildGo("driver", "./peers/driver");
  const openKms = await startFake();
  const each = eachDek(buildGo("each", "./peers/each"));
  const withKms = [OURS, ...(await given(options)), each];
  const all = [
    ...withKms,
    bare("grpc-go", loader, ["-serve"]),
    bare("floor", await buildFloor(), []),
  ];
  const absent = PEERS.filter((peer) => options[peer] === undefined);
  if (absent.length > 0) {
    console.log(
      `LEFT OUT, because no binary was given: ${absent.map((peer) => `${TITLES[peer]} (--${peer} PATH)`).join(", ")}`,
    );
  }

  console.log("from exec to the first ok Status");
  const readyMs = await starts(all, driver, size.starts, openKms);
  console.log("memory");
  const rss = await memories(all, loader, size.encrypts, openKms);
  console.log("rates and CPU");
  const { rates, kmsCalls } = await loads(all, loader, size, openKms);
  console.log("10,000 Secrets after a restart");
  const secrets: Found<"secrets"> = new Map([
    [OURS, await readSecrets(OURS, driver, SECRETS, openKms)],
  ]);
  console.log("an outage, a disabled key, and the Secrets of the others: three minutes");
  const outages: Found<"outages"> = new Map();
  const revocations: Found<"disabled"> = new Map();
  await Promise.all(
    withKms.map(async (plugin) => {
      const [hang, refuse, revocation, read] = await Promise.all([
        outage(plugin, "hang", OUTAGE_MS, openKms),
        outage(plugin, "refuse", OUTAGE_MS, openKms),
        disabled(plugin, openKms),
        plugin === OURS || !plugin.hasV1
          ? undefined
          : readSecrets(plugin, driver, size.theirSecrets, openKms),
      ]);
      outages.set(plugin, { hang, refuse });
      revocations.set(plugin, revocation);
      if (read !== undefined) {
        secrets.set(plugin, read);
      }
    }),
  );

  const rssMiB = await rss();
  const figuresOf = (plugin: Plugin): Figures => {
    const [revocation, read] = [revocations.get(plugin), secrets.get(plugin)];
    return {
      version: plugin === OURS ? `${manifest.version} ${commit}` : versionOf(plugin),
      binaryMB: Bun.file(plugin.binary).size / 1e6,
      rates: rates.get(plugin) ?? {},
      rssMiB: rssMiB.get(plugin) ?? { idle: Number.NaN, loaded: Number.NaN, later: Number.NaN },
      readyMs: readyMs.get(plugin) ?? {},
      kmsCalls: kmsCalls.get(plugin) ?? {},
      outages: outages.get(plugin) ?? {},
      ...(revocation && { disabled: revocation }),
      ...(read && { secrets: read }),
    };
  };
  const result: Result = {
    date: new Date().toISOString().slice(0, 10),
    commit,
    machine: `${availableParallelism()} × ${cpus()[0]?.model ?? "?"}, Linux ${release().split(".").slice(0, 2).join(".")}`,
    load: Math.round(load * 10) / 10,
    isQuick: quick,
    encrypts: size.encrypts,
    outageSeconds: OUTAGE_MS / 1_000,
    absent,
    figures: Object.fromEntries(all.map((plugin) => [plugin.name, figuresOf(plugin)])),
  };
  console.log(`\n${provenance(result)}\n\n${resultTable(result)}`);
  if (options.store) {
    await store(result);
    console.log("\nstored: npm run generate writes it into the documents");
  }
  if (options.spread) {
    const stored = readStored();
    const spread = spreadOf(stored, result);
    console.log("\nratio to the stored run, the larger to the smaller:", spread);
    await store({ ...stored, spread });
  }
}
