/** A Key4C whose answers a test bends while it runs, and a plugin of the compiled binary on it. */
import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import defaultProfile from "../../src/key4c/key4c.profile.json";
import { rpcsWithin, Sightings, wrapBoth } from "../faults/callers.ts";
import type { Wrapped } from "../faults/material.ts";
import {
  grpcClient,
  onTestEnd,
  passOn,
  startBinary,
  temporaryDirectory,
  temporaryFile,
} from "../support.ts";

/** One request on its way to the emulator. */
export interface Asked {
  readonly method: string;
  readonly headers: Headers;
  /** `/v1/keys/ID` or that and `/encrypt` or `/decrypt`. */
  readonly path: string;
  readonly body: string;
  /** Requests on one connection have the same number. */
  readonly connection: number;
  /** What the emulator answers, or another one. */
  honest(url?: string): Promise<Response>;
}

export type Behaviour = (asked: Asked) => Response | Promise<Response>;

const forward = (asked: Omit<Asked, "honest">, url: string) =>
  passOn(url, { ...asked, url: `http://key4c${asked.path}` }, asked.body);

export interface BentKey4C {
  readonly url: string;
  /** Undefined: honest. */
  behaviour: Behaviour | undefined;
  /** The emulator behind it. */
  behind: string;
  /** `describe`, `encrypt` or `decrypt`, and the key's ID, of every request so far. */
  readonly requests: { readonly operation: string; readonly keyId: string }[];
}

export function bendKey4C(emulatorUrl: string): BentKey4C {
  const bent: Omit<BentKey4C, "url"> = { behaviour: undefined, behind: emulatorUrl, requests: [] };
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    idleTimeout: 0, // some of its behaviours never answer
    async fetch(request, bun) {
      const { pathname: path } = new URL(request.url);
      const [, , , keyId = "", operation = "describe"] = path.split("/");
      bent.requests.push({ operation, keyId });
      const asked = {
        method: request.method,
        headers: request.headers,
        path,
        body: await request.text(),
        connection: bun.requestIP(request)?.port ?? 0,
      };
      const honest = (url = bent.behind) => forward(asked, url);
      return bent.behaviour === undefined ? honest() : bent.behaviour({ ...asked, honest });
    },
  });
  onTestEnd(() => server.stop(true));
  return Object.assign(bent, { url: server.url.href.replace(/\/$/, "") });
}

/** An emulator of its own process: where it must not share a thread with many callers. */
export async function startKey4C() {
  const flags = ["--listen", "127.0.0.1:0", "--control"];
  const { until } = startBinary(["emulator", ...flags]);
  const url = (await until(/export KEY4C_URL=(\S+)/))[1] ?? "";
  return {
    url,
    setLatency: (ms: number) =>
      fetch(`${url}/emulator/latency`, { method: "PUT", body: JSON.stringify({ ms }) }),
    wraps: async () =>
      ((await (await fetch(`${url}/emulator/stats`)).json()) as { encrypt: number }).encrypt,
  };
}

/** Answers with this JSON. */
export const says =
  (code: number, body: object, headers: Record<string, string> = {}): Behaviour =>
  () =>
    Response.json(body, { status: code, headers });
/** Answers with a page, as what stands between does. */
export const page =
  (code: number): Behaviour =>
  () =>
    new Response("<html>", { status: code });
export const hangs: Behaviour = () => new Promise(() => {});

/** A profile that does not ask for the key check value: nothing but the answers tells the materials apart. */
export const withoutKcv = () => {
  const { kcv: _, ...result } = defaultProfile.describe.result;
  const describe = { ...defaultProfile.describe, result };
  return { KEY4C_PROFILE: temporaryFile(JSON.stringify({ ...defaultProfile, describe })) };
};

/** Many scenarios are played side by side: whoever looks or calls more often takes the processor from the others. */
const LOOK_INTERVAL_MS = 100;
const CALL_INTERVAL_MS = 250;
/**
 * So long that a busy machine keeps nobody waiting for it. Whoever waits for Key4C is told so before: a call to it ends
 * after 10 s.
 */
const DEADLINE_MS = 30_000;
export const rpcs = rpcsWithin(DEADLINE_MS);

/** What an RPC may take on a machine that does something else besides. */
const GIVE_UP_MS = 90_000;

export async function eventually<T>(
  what: string,
  look: () => Promise<T | undefined | false> | T | undefined | false,
): Promise<T> {
  for (const endMs = performance.now() + GIVE_UP_MS; performance.now() < endMs; ) {
    const found = await look();
    if (found !== undefined && found !== false) {
      return found;
    }
    await Bun.sleep(LOOK_INTERVAL_MS);
  }
  throw new Error(`${what}: waited in vain`);
}

export type Plugin = Awaited<ReturnType<typeof launch>>;

/** Starts a plugin and waits for its HTTP address only. */
export async function launch(key4cUrl: string, env: Record<string, string> = {}) {
  const socket = join(temporaryDirectory(), "kms.sock");
  const userIdFile = temporaryFile("first");
  const running = startBinary(["serve"], {
    KMS_ENDPOINT: `unix://${socket}`,
    KEY4C_URL: key4cUrl,
    KMS_KEY_ID: "demo",
    KMS_USER_ID_FILE: userIdFile,
    KMS_PROBE_INTERVAL: "200ms",
    KMS_HTTP_ADDRESS: "127.0.0.1:0",
    ...env,
  });
  const { output } = running;
  const http = await eventually(
    `the HTTP address in ${output()}`,
    () => /"url":"(http:[^"]*)"/.exec(output())?.[1],
  );
  const readyz = async () => {
    const response = await fetch(`${http}readyz`);
    return { status: response.status, text: (await response.text()).trim() };
  };
  /** Lines of the log that tell a state. */
  const told = () =>
    output()
      .split("\n")
      .filter((line) => line.includes('"state":"'))
      .map((line) => JSON.parse(line) as Told);
  const state = async () => (await readyz()).text.split(" ")[0] ?? "";
  return {
    ...running,
    socket,
    client: grpcClient(socket),
    /** A secret that Key4C refused is not tried again for 30 s, unless it changes. */
    renewSecret: () => writeFileSync(userIdFile, crypto.randomUUID()),
    readyz,
    state,
    untilState: (wanted: string) =>
      eventually(`state ${wanted}`, async () => (await state()) === wanted),
    untilLogged: (pattern: RegExp) => eventually(`${pattern}`, () => pattern.test(output())),
    /** The value of a sample, by its name with its labels. */
    metric: async (sample: string) => {
      const text = await (await fetch(`${http}metrics`)).text();
      const line = text.split("\n").find((one) => one.startsWith(`${sample} `));
      return line === undefined ? undefined : Number(line.slice(sample.length));
    },
    told,
    /** On a busy machine the first probe may fail: what was before it succeeded does not count. */
    statesSinceOk: () => {
      const states = told().map(({ state }) => state);
      return new Set(states.slice(states.indexOf("ok")));
    },
  };
}

/** A line of the log about a state. */
export interface Told {
  readonly time: string;
  readonly level: string;
  readonly msg: string;
  readonly state: string;
  readonly kind?: string;
  readonly cause?: string;
  readonly remedy?: string;
}

/** The same, and waits until it is ok. */
export async function launchOk(
  key4cUrl: string,
  env: Record<string, string> = {},
): Promise<Plugin> {
  const plugin = await launch(key4cUrl, env);
  await plugin.untilState("ok");
  return plugin;
}

/** A new DEK as the plugin wraps it now, by either API. */
export const wrap = ({ client }: Plugin): Promise<Wrapped> =>
  wrapBoth(client, randomBytes(32), rpcs);

/** @throws Error when it is not readable by both APIs */
export async function unwrap({ client }: Plugin, wrapped: Wrapped): Promise<void> {
  await Promise.all([rpcs.decrypt1(client, wrapped), rpcs.decrypt2(client, wrapped)]);
}

/** Everything that was acknowledged is read by a plugin that knows nothing but what etcd holds. */
export async function expectReadable(
  key4cUrl: string,
  wrapped: readonly Wrapped[],
  env: Record<string, string> = {},
): Promise<void> {
  const fresh = await launchOk(key4cUrl, env);
  for (const one of wrapped) {
    await unwrap(fresh, one);
  }
  await fresh.stop();
}

/** Asks for Status, an Encrypt and a Decrypt of each API, again and again. */
export function keepCalling({ client }: Plugin, known: Wrapped, callers = 1) {
  const seen = new Sightings();
  const dek = randomBytes(32);
  /** What Encrypt returned, in the order of time. */
  const acknowledged: Wrapped[] = [];
  let isOver = false;
  const loops = Array.from({ length: callers }, async () => {
    while (!isOver) {
      await seen.see("status", () => rpcs.status(client));
      await seen.see("encrypt", async () => {
        acknowledged.push(await wrapBoth(client, dek, rpcs));
      });
      await seen.see("known", () => rpcs.decrypt1(client, known));
      await seen.see("known", () => rpcs.decrypt2(client, known));
      await Bun.sleep(CALL_INTERVAL_MS);
    }
  });
  return {
    acknowledged,
    seen,
    async stop(): Promise<Sightings> {
      isOver = true;
      await Promise.all(loops);
      return seen;
    },
  };
}

/** Nobody was told anything but OK. */
export const ALL_WELL = { defects: [], status: ["OK"], encrypt: ["OK"], known: ["OK"] };

/** What callers were told, to be compared with {@link ALL_WELL}. */
export function toldTo(seen: Sightings) {
  const codes = (role: "status" | "encrypt" | "known") =>
    seen
      .codesOf(role)
      .map((code) => status[code])
      .sort();
  return {
    defects: [...seen.defects],
    status: codes("status"),
    encrypt: codes("encrypt"),
    known: codes("known"),
  };
}
