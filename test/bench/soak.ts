/**
 * `npm run soak -- --minutes N`: the compiled binary under grpc-go for a long time (test/bench/soak: KMS v1
 * and v2, every answer verified, connections that come and go or break off), while the key is rotated and
 * Key4C killed and started again. Fails when any RPC fails or answers wrongly (every local KEK is known to
 * the plugin, so an outage of Key4C excuses none), when it does not come back to ok, or when memory or
 * file descriptors grow.
 */
import { copyFileSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { compile, NAME, ROOT } from "../../src/build/compile.ts";
import { scriptArguments } from "../../src/build/usage.ts";
import { makePki } from "../e2e/pki.ts";
import { eventually } from "../e2e/process.ts";
import { NO_CONFIG_FILE } from "../no-config.ts";
import { freePort } from "../ports.ts";

const SAMPLE_INTERVAL_MS = 5_000;
const ROTATION_INTERVAL_MS = 45_000;
/** From one outage of Key4C to the next. */
const OUTAGE_INTERVAL_MS = 60_000;
const MAX_OUTAGE_MS = 10_000;
/** What the last quarter may have more than the second; the first one is warming up. */
const MAX_RSS_GROWTH = 1.2;
/** Connections of the moment differ by a few from sample to sample. */
const MAX_FDS_GROWTH = 5;

interface Sample {
  readonly atMs: number;
  readonly rssMiB: number;
  readonly fds: number;
}

/** The loader's line. */
interface Totals {
  readonly rpcs: number;
  readonly errors: number;
  readonly connections: number;
  readonly cut: number;
}

const USAGE = `npm run soak [-- --minutes N] [--rate N]: builds the binary and loads it with grpc-go for N minutes (default: 20; a
line a minute), while keys are rotated and Key4C is killed. Needs Go and openssl.

  --minutes N   how long
  --rate N      RPCs a second (default: 6000)
`;
const { values } = scriptArguments(USAGE, {
  minutes: { type: "string", default: "20" },
  rate: { type: "string", default: "6000" },
});
const durationMs = Number(values.minutes) * 60_000;
const scratch = mkdtempSync(join(tmpdir(), "k4c-soak-"));
// A copy, so that the next build does not pull it away from under a run of hours.
const binary = join(scratch, "key4c-kms-plugin");
console.log("building the binary and the loader (Go modules are downloaded once)");
const built = join(ROOT, "dist", NAME);
await compile(built);
copyFileSync(built, binary);
mkdirSync(join(scratch, "pki"));
const pki = await makePki(join(scratch, "pki"));
const loader = join(scratch, "soak");
const build = Bun.spawnSync(["go", "build", "-o", loader, "./soak"], {
  cwd: join(import.meta.dir, "."),
});
if (build.exitCode !== 0) {
  throw new Error(`the loader needs Go: ${build.stderr}`);
}

const [emulatorPort, httpPort] = [freePort(), freePort()];
const emulatorUrl = `https://localhost:${emulatorPort}`;
const socket = join(scratch, "kms.sock");
const pluginLog = join(scratch, "plugin.log");

function startEmulator(): Bun.Subprocess {
  const listen = ["--listen", `127.0.0.1:${emulatorPort}`, "--control"];
  const files = ["--tls-cert-file", pki.serverCert, "--tls-key-file", pki.serverKey];
  const data = ["--data", join(scratch, "key4c.json")];
  return Bun.spawn([binary, "emulator", ...listen, ...files, ...data], {
    env: NO_CONFIG_FILE,
    stdout: "ignore",
    stderr: "ignore",
  });
}

async function get(url: string, method = "GET"): Promise<string> {
  const response = await fetch(url, { method, keepalive: false, tls: { ca: pki.caText } });
  if (!response.ok) {
    throw new Error(`${url}: ${response.status}`);
  }
  return response.text();
}

async function untilOk(): Promise<void> {
  await eventually(
    "the plugin is ok",
    30_000,
    async () => (await get(`http://127.0.0.1:${httpPort}/readyz`)).startsWith("ok "),
    () => readFileSync(pluginLog, "utf8"),
  );
}

let emulator = startEmulator();
const log = openSync(pluginLog, "w");
const plugin = Bun.spawn([binary, "serve"], {
  env: {
    ...NO_CONFIG_FILE,
    KMS_ENDPOINT: `unix://${socket}`,
    KEY4C_URL: emulatorUrl,
    KEY4C_CA_FILE: pki.ca,
    KMS_KEY_ID: "demo",
    KMS_USER_ID: "soak",
    KMS_HTTP_ADDRESS: `127.0.0.1:${httpPort}`,
    KMS_PROBE_INTERVAL: "1s",
    KMS_LOCAL_KEK_MAX_USES: "50000", // a renewal every half minute or so
  },
  stdout: log,
  stderr: log,
});

let rotations = 0;
let outages = 0;

/** Rotations and outages until the end; Key4C is there when it resolves. */
async function disturb(endMs: number): Promise<void> {
  let nextRotationMs = performance.now() + ROTATION_INTERVAL_MS;
  let nextOutageMs = performance.now() + OUTAGE_INTERVAL_MS / 2;
  while (performance.now() < endMs - MAX_OUTAGE_MS * 2) {
    if (performance.now() >= nextRotationMs) {
      nextRotationMs += ROTATION_INTERVAL_MS;
      await get(`${emulatorUrl}/emulator/keys/demo/rotate`, "POST");
      rotations += 1;
    }
    if (performance.now() >= nextOutageMs) {
      nextOutageMs += OUTAGE_INTERVAL_MS;
      emulator.kill("SIGKILL");
      await emulator.exited;
      await Bun.sleep(Math.random() * MAX_OUTAGE_MS);
      emulator = startEmulator();
      await untilOk();
      outages += 1;
    }
    await Bun.sleep(500);
  }
}

async function sample(startMs: number): Promise<Sample> {
  const metrics = await get(`http://127.0.0.1:${httpPort}/metrics`);
  const value = (name: string) => Number(metrics.match(`\n${name} (\\S+)`)?.[1]);
  return {
    atMs: performance.now() - startMs,
    rssMiB: value("process_resident_memory_bytes") / 1024 ** 2,
    fds: value("process_open_fds"),
  };
}

/** The median of a value in one quarter of the run; a single sample says little about a heap. */
function medianOfQuarter(samples: readonly Sample[], quarter: number, of: keyof Sample): number {
  const from = Math.floor((samples.length * (quarter - 1)) / 4);
  const part = samples.slice(from, Math.floor((samples.length * quarter) / 4));
  const sorted = part.map((one) => one[of]).sort((a, b) => a - b);
  return sorted[sorted.length >> 1] ?? Number.NaN;
}

try {
  await untilOk();
  const startMs = performance.now();
  const idle = await sample(startMs);
  const load = Bun.spawn(
    [loader, "-socket", socket, "-duration", `${durationMs}ms`, "-rate", values.rate],
    { stdout: "pipe", stderr: "inherit" },
  );
  let totals: Totals = { rpcs: 0, errors: 0, connections: 0, cut: 0 };
  const reading = (async () => {
    let rest = "";
    for await (const chunk of load.stdout.pipeThrough(new TextDecoderStream())) {
      const lines = (rest + chunk).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        totals = JSON.parse(line) as Totals; // the loader's own
      }
    }
  })();
  const disturbing = disturb(startMs + durationMs);
  disturbing.catch(() => load.kill()); // awaited below

  console.log(
    "| minute | RPCs | errors | RSS MiB | fds | connections | cut | rotations | outages |",
  );
  console.log("|---|---|---|---|---|---|---|---|---|");
  const samples: Sample[] = [];
  let shownMinute = 0;
  while (performance.now() < startMs + durationMs) {
    await Promise.race([Bun.sleep(SAMPLE_INTERVAL_MS), load.exited]);
    if (load.exitCode !== null) {
      break;
    }
    const one = await sample(startMs);
    samples.push(one);
    const minute = Math.floor(one.atMs / 60_000);
    if (minute > shownMinute) {
      shownMinute = minute;
      const { rpcs, errors, connections, cut } = totals;
      const counts = [connections, cut, rotations, outages].join(" | ");
      console.log(
        `| ${minute} | ${rpcs} | ${errors} | ${one.rssMiB.toFixed(0)} | ${one.fds} | ${counts} |`,
      );
    }
  }
  await disturbing;
  const exitCode = await load.exited;
  await reading;
  await untilOk();
  let after = await sample(startMs);
  for (let tries = 0; after.fds > idle.fds + MAX_FDS_GROWTH && tries < 20; tries++) {
    await Bun.sleep(500); // the last connections are being closed
    after = await sample(startMs);
  }

  const [rss2, rss4] = [
    medianOfQuarter(samples, 2, "rssMiB"),
    medianOfQuarter(samples, 4, "rssMiB"),
  ];
  const [fds2, fds4] = [medianOfQuarter(samples, 2, "fds"), medianOfQuarter(samples, 4, "fds")];
  console.log(
    `${totals.rpcs} RPCs, ${totals.errors} errors, ${rotations} rotations, ${outages} outages; ` +
      `RSS MiB: idle ${idle.rssMiB.toFixed(0)}, second quarter ${rss2.toFixed(0)}, last quarter ` +
      `${rss4.toFixed(0)}; fds: idle ${idle.fds}, second quarter ${fds2}, last quarter ${fds4}, ` +
      `afterwards ${after.fds}`,
  );
  const problems = [
    exitCode === 0 ? "" : `the loader ended with ${exitCode} and ${totals.errors} errors`,
    plugin.exitCode === null ? "" : "the plugin ended",
    rss4 <= rss2 * MAX_RSS_GROWTH ? "" : `RSS grew from ${rss2} to ${rss4} MiB`,
    fds4 <= fds2 + MAX_FDS_GROWTH ? "" : `file descriptors grew from ${fds2} to ${fds4}`,
    after.fds <= idle.fds + MAX_FDS_GROWTH ? "" : `${after.fds - idle.fds} descriptors stay open`,
    /"level":"error"/.test(readFileSync(pluginLog, "utf8")) ? "the log has an error" : "",
  ].filter(Boolean);
  for (const problem of problems) {
    console.log(`FAIL ${problem}`);
  }
  process.exitCode = problems.length === 0 ? 0 : 1;
} finally {
  plugin.kill("SIGKILL");
  emulator.kill("SIGKILL");
  await Promise.all([plugin.exited, emulator.exited]);
  rmSync(scratch, { recursive: true });
}
