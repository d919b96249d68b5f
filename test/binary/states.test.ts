/**
 * What each behaviour of Key4C does to a plugin that starts into it, to one that is warm (it has already
 * unwrapped the old data's local KEK) and to one that is cold (it has not).
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { type EncryptResponse, KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import { startEmulator } from "../../src/key4c/emulator.ts";
import { callRpc, failureOf, grpcClient, startBinary, temporaryDirectory } from "../support.ts";

const DEK = randomBytes(32);
const { OK, UNAVAILABLE, RESOURCE_EXHAUSTED, FAILED_PRECONDITION, INVALID_ARGUMENT } = status;

type Answer = (request: Request, forward: () => Promise<Response>) => Response | Promise<Response>;

const json =
  (body: object, code: number, headers = {}) =>
  () =>
    Response.json(body, { status: code, headers });
const isDecrypt = (request: Request) => request.url.endsWith("/decrypt");

/** Nobody listens. */
const REFUSES: Answer = () => Response.error();

/** Name, behaviour, code of what then needs Key4C, state of a plugin that was ok. */
const BEHAVIOURS: [string, Answer, status, string][] = [
  ["refuses connections", REFUSES, UNAVAILABLE, "degraded"],
  ["hangs", () => new Promise(() => {}), UNAVAILABLE, "degraded"],
  ["500", json({ code: "OOPS" }, 500), UNAVAILABLE, "degraded"],
  ["503 of a gateway", () => new Response("<html>", { status: 503 }), UNAVAILABLE, "degraded"],
  ["garbage", () => new Response("garbage"), UNAVAILABLE, "degraded"],
  ["unexpected JSON", json([], 200), UNAVAILABLE, "degraded"],
  ["oversized", () => new Response("x".repeat(100_000)), UNAVAILABLE, "degraded"],
  ["redirects", () => Response.redirect("http://127.0.0.1:9/"), UNAVAILABLE, "degraded"],
  [
    "429",
    json({ code: "THROTTLED" }, 429, { "Retry-After": "60" }),
    RESOURCE_EXHAUSTED,
    "degraded",
  ],
  ["401", json({ code: "DENIED" }, 401), FAILED_PRECONDITION, "degraded"],
  ["403", json({ code: "DENIED" }, 403), FAILED_PRECONDITION, "degraded"],
  ["404", json({ code: "KEY_NOT_FOUND" }, 404), FAILED_PRECONDITION, "degraded"],
  ["409", json({ code: "KEY_DISABLED" }, 409), FAILED_PRECONDITION, "degraded"],
  [
    "state DISABLED",
    (request) =>
      request.method === "GET"
        ? Response.json({ version: 1, state: "DISABLED" })
        : Response.json({ code: "KEY_DISABLED" }, { status: 409 }),
    FAILED_PRECONDITION,
    "degraded",
  ],
];

/** Behaviours of the decrypt alone: describe stays well, so a plugin that was ok stays so. */
const DECRYPT_BEHAVIOURS: [string, Answer][] = [
  ["400 to a decrypt", json({ code: "INVALID_CIPHERTEXT" }, 400)],
  ["422 to a decrypt", json({ code: "X" }, 422)],
  ["another key's plaintext", json({ plaintext: randomBytes(32).toString("base64") }, 200)],
];

const key4c = startEmulator({
  host: "127.0.0.1",
  port: 0,
  keyIds: ["demo"],
  dataFile: undefined,
  control: true,
});
let behaviour: Answer | undefined;

async function proxied(request: Request): Promise<Response> {
  const body = await request.text();
  const { pathname } = new URL(request.url);
  const init = { method: request.method, headers: { "X-Key4C-User-Id": "u" } };
  const forward = () => fetch(key4c.url + pathname, { ...init, ...(body && { body }) });
  return behaviour === undefined ? forward() : behaviour(request, forward);
}

const serveProxy = (port = 0) => Bun.serve({ hostname: "127.0.0.1", port, fetch: proxied });
let proxy = serveProxy();
const { port: proxyPort } = proxy;

type Plugin = Awaited<ReturnType<typeof start>>;

/** Starts a plugin on the proxy and waits for its HTTP address only. */
async function start() {
  const socket = join(temporaryDirectory(), "kms.sock");
  const plugin = startBinary(["serve"], {
    KMS_ENDPOINT: `unix://${socket}`,
    KEY4C_URL: `http://127.0.0.1:${proxyPort}`,
    KMS_KEY_ID: "demo",
    KMS_USER_ID: "u",
    KMS_PROBE_INTERVAL: "100ms",
    KMS_HTTP_ADDRESS: "127.0.0.1:0",
  });
  const http = (await plugin.until(/"url":"(http:[^"]*)"/))[1] ?? "";
  return { ...plugin, client: grpcClient(socket), http };
}

const get = async ({ http }: Plugin, path: string) => {
  const response = await fetch(http + path);
  return [response.status, await response.text()] as const;
};

/** The state, which /readyz tells first; the metrics are made only once a second. */
const stateOf = async (plugin: Plugin) => (await get(plugin, "readyz"))[1].match(/^\w+/)?.[0];

async function until(plugin: Plugin, state: string): Promise<void> {
  while ((await stateOf(plugin)) !== state) {
    await Bun.sleep(10);
  }
}

const encrypt = ({ client }: Plugin) => callRpc(client, V2.method.encrypt, { plaintext: DEK });
const decrypt = ({ client }: Plugin, { ciphertext, keyId, annotations }: EncryptResponse) =>
  callRpc(client, V2.method.decrypt, { ciphertext, keyId, annotations });

async function codeOf(call: Promise<{ plaintext?: Uint8Array }>): Promise<status> {
  const result = await call.catch(() => undefined);
  if (result?.plaintext !== undefined) {
    expect(Buffer.from(result.plaintext)).toEqual(DEK); // never a wrong one
  }
  return result === undefined ? (await failureOf(call))[0] : OK;
}

/** A row of the table: the codes of Status, Encrypt, Decrypt of own and of old data, then HTTP. */
async function row(plugin: Plugin, own: EncryptResponse | undefined, old: EncryptResponse) {
  return {
    status: await codeOf(callRpc(plugin.client, V2.method.status, {}) as never),
    encrypt: await codeOf(encrypt(plugin) as never),
    decryptOwn: own === undefined ? "none" : await codeOf(decrypt(plugin, own)),
    decryptOld: await codeOf(decrypt(plugin, old)),
    livez: (await get(plugin, "livez"))[0],
    readyz: (await get(plugin, "readyz"))[0],
    state: await stateOf(plugin),
  };
}

let old: EncryptResponse;
beforeAll(async () => {
  const first = await start();
  await until(first, "ok");
  old = await encrypt(first);
  await first.stop();
});
afterAll(() => {
  proxy.stop(true); // not awaited: of what it never answered it may wait for the end
  key4c.stop();
});

/** Runs the three plugins into a behaviour and out of it. */
async function play(
  answer: Answer,
  stateAfter: string,
  check: (rows: Record<string, unknown>) => void,
) {
  behaviour = undefined;
  const [warm, cold] = [await start(), await start()];
  await Promise.all([until(warm, "ok"), until(cold, "ok")]);
  const [warmOwn, coldOwn] = [await encrypt(warm), await encrypt(cold)];
  await decrypt(warm, old);
  behaviour = answer;
  if (answer === REFUSES) {
    await proxy.stop(true);
  }
  const starting = await start();
  await Promise.all([until(warm, stateAfter), until(cold, stateAfter)]);
  await starting.until(/"state":"starting"/);
  check({
    starting: await row(starting, undefined, old),
    warm: await row(warm, warmOwn, old),
    cold: await row(cold, coldOwn, old),
  });
  behaviour = undefined;
  if (answer === REFUSES) {
    proxy = serveProxy(proxyPort);
  }
  await Promise.all([starting, warm, cold].map((plugin) => until(plugin, "ok")));
  // Healed, without a restart.
  for (const plugin of [starting, warm]) {
    expect(await codeOf(decrypt(plugin, old))).toBe(OK);
    expect(await codeOf(encrypt(plugin) as never)).toBe(OK);
  }
}

describe("Key4C", () => {
  test.each(BEHAVIOURS)("%s", async (_, answer, code, state) => {
    await play(answer, state, (rows) => {
      const on = { status: OK, encrypt: OK, decryptOwn: OK, livez: 200, readyz: 200, state };
      expect(rows).toEqual({
        starting: {
          status: code,
          encrypt: code,
          decryptOwn: "none",
          decryptOld: code,
          livez: 200,
          readyz: 503,
          state: "starting",
        },
        warm: { ...on, decryptOld: OK },
        cold: { ...on, decryptOld: code },
      });
    });
  });

  test.each(DECRYPT_BEHAVIOURS)("%s", async (_, answer) => {
    const onlyDecrypt: Answer = (request, forward) =>
      isDecrypt(request) ? answer(request, forward) : forward();
    await play(onlyDecrypt, "ok", (rows) => {
      const on = {
        status: OK,
        encrypt: OK,
        decryptOwn: OK,
        livez: 200,
        readyz: 200,
        state: "ok",
      };
      expect(rows).toEqual({
        starting: {
          status: UNAVAILABLE,
          encrypt: UNAVAILABLE,
          decryptOwn: "none",
          decryptOld: UNAVAILABLE,
          livez: 200,
          readyz: 503,
          state: "starting",
        },
        warm: { ...on, decryptOld: OK },
        cold: { ...on, decryptOld: INVALID_ARGUMENT },
      });
    });
  });
});
