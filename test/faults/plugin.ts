/** A plugin under test, and what the machine does to it. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { BINARY, grpcClient, type Running, startProcess, temporaryDirectory } from "../support.ts";
import { type Fault, KEY4C_NAME, type Setup } from "./faults.ts";

export const PROBE_INTERVAL_MS = 1_000;
export const CONNECTIONS = 4;
/** So few that local KEKs are renewed in the fault, too. */
const LOCAL_KEK_MAX_USES = 1_000;
const GIVE_UP_MS = 90_000;

export type Plugin = Awaited<ReturnType<typeof start>>;

/** Starts a plugin and waits for its HTTP address only. */
export async function start(setup: Setup, way: Fault["way"]) {
  const socket = join(temporaryDirectory(), "kms.sock");
  const env = {
    PATH: process.env["PATH"] ?? "",
    KMS_ENDPOINT: `unix://${socket}`,
    KEY4C_URL: `https://${way === "address" ? "127.0.0.1" : KEY4C_NAME}:${setup.fake.port}`,
    ...(way === "proxy" && { HTTPS_PROXY: setup.proxy.url }),
    KEY4C_CA_FILE: setup.caFile,
    KMS_KEY_ID: "demo",
    KMS_USER_ID_FILE: setup.userIdFile,
    KMS_PROBE_INTERVAL: `${PROBE_INTERVAL_MS}ms`,
    KMS_LOCAL_KEK_MAX_USES: String(LOCAL_KEK_MAX_USES),
    KMS_HTTP_ADDRESS: "127.0.0.1:0",
  };
  // A mount namespace has a hosts file of its own.
  const inNamespace = `mount --bind ${setup.hostsFile} /etc/hosts && exec ${BINARY} serve`;
  const running = startProcess(
    way === "name" ? ["unshare", "--mount", "sh", "-c", inNamespace] : [BINARY, "serve"],
    env,
  );
  const http = await until(() => /"url":"(http:[^"]*)"/.exec(running.output())?.[1]);
  const clients = Array.from({ length: CONNECTIONS }, () => grpcClient(socket));
  const state = async () => (await (await fetch(`${http}readyz`)).text()).split(" ")[0] ?? "";
  return { ...running, clients, state };
}

export async function until<T>(look: () => Promise<T | undefined> | T | undefined): Promise<T> {
  for (const endMs = performance.now() + GIVE_UP_MS; ; await Bun.sleep(20)) {
    const found = await look();
    if (found !== undefined) {
      return found;
    }
    if (performance.now() > endMs) {
      throw new Error("waited in vain");
    }
  }
}

export const untilState = (plugin: Plugin, wanted: string) =>
  until(async () => ((await plugin.state()) === wanted ? true : undefined));

/** The most memory that a process has ever had resident. */
export function peakMiB({ pid }: Running): number {
  const kib = /VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
  return Math.round(Number(kib) / 1024);
}

const TICK_MS = 10;

/** How late a timer has ever been. */
export function watchStalls() {
  let longestMs = 0;
  let dueMs = performance.now() + TICK_MS;
  const timer = setInterval(() => {
    longestMs = Math.max(longestMs, performance.now() - dueMs);
    dueMs = performance.now() + TICK_MS;
  }, TICK_MS);
  return {
    stop(): number {
      clearInterval(timer);
      return longestMs;
    },
  };
}
