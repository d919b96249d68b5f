/**
 * Faults that last longer than every grace, on the compiled binary: what is a verdict and what is none, who waits for
 * how long, and what is dropped. Intervals and graces are brought down, the rules are not.
 */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { Sightings } from "../faults/callers.ts";
import { type Wrapped, wrapUnderNewKeks } from "../faults/material.ts";
import { API_KEY, ServiceKey, vault } from "../services.ts";
import { emulator, fakeServer } from "../support.ts";
import {
  ALL_WELL,
  type Asked,
  type Behaviour,
  type BentKey4C,
  bendKey4C,
  eventually,
  hangs,
  keepCalling,
  launch,
  launchOk,
  type Plugin,
  page,
  rpcs,
  says,
  startKey4C,
  toldTo,
  unwrap,
  wrap,
} from "./bent-key4c.ts";
import { sideBySide } from "./side-by-side.ts";

const { OK, FAILED_PRECONDITION, INVALID_ARGUMENT, RESOURCE_EXHAUSTED } = status;
const PLAY_TIMEOUT_MS = 240_000;
/** What is no verdict is held so long: longer than MISMATCH_MS and than many times the grace. */
const HELD_MS = 13_000;
const GRACE = { KMS_REVOCATION_GRACE: "1s" };

const DISABLED = says(409, { code: "KEY_DISABLED" });
const THROTTLED = says(429, { code: "THROTTLED" });
const NOT_FOUND = says(404, { code: "KEY_NOT_FOUND" });

const toDescribe =
  (behaviour: Behaviour): Behaviour =>
  (asked) =>
    asked.method === "GET" ? behaviour(asked) : asked.honest();
const toKey =
  (keyId: string, behaviour: Behaviour): Behaviour =>
  (asked) =>
    asked.path.startsWith(`/v1/keys/${keyId}`) ? behaviour(asked) : asked.honest();
/** Towards one wrapped local KEK alone. */
const toKekOf =
  ({ v2 }: Wrapped, behaviour: Behaviour): Behaviour =>
  (asked) =>
    asked.body.includes(Buffer.from(Object.values(v2.annotations)[0] ?? []).toString())
      ? behaviour(asked)
      : asked.honest();

/** A Key4C that has both keys. */
const key4cOf = (url = emulator({ keyIds: ["demo", "old"] }).url) => bendKey4C(url);

/** What a plugin of before has left in etcd. */
async function left(key4c: BentKey4C, env: Record<string, string> = {}): Promise<Wrapped> {
  const former = await launchOk(key4c.url, env);
  const wrapped = await wrap(former);
  await former.stop();
  return wrapped;
}

/** Whatever it is, it drops nothing and stops nothing, and goes when it goes. */
async function isNoVerdict(
  behaviour: Behaviour,
  { key4c = key4cOf(), env = {} }: { key4c?: BentKey4C; env?: Record<string, string> } = {},
): Promise<void> {
  const plugin = await launchOk(key4c.url, { ...GRACE, ...env });
  const callers = keepCalling(plugin, await wrap(plugin));
  key4c.behaviour = behaviour;
  await plugin.untilState("degraded");
  await Bun.sleep(HELD_MS);
  expect(await plugin.state()).toBe("degraded");
  expect(toldTo(callers.seen)).toEqual(ALL_WELL);
  key4c.behaviour = undefined;
  plugin.renewSecret();
  await plugin.untilState("ok");
  expect(toldTo(await callers.stop())).toEqual(ALL_WELL);
  expect(plugin.statesSinceOk()).toEqual(new Set(["ok", "degraded"]));
  expect(plugin.output()).not.toContain("dropped, every RPC");
}

const vaultEnv = {
  KEY4C_PROFILE: join(import.meta.dir, "../../src/commands/manifest/profiles/vault.json"),
  KMS_API_KEY: API_KEY,
};
const vaultOf = () => ({
  key4c: key4cOf(fakeServer(vault(new ServiceKey())).url),
  env: vaultEnv,
});
const NO_VERDICTS = {
  "throttled, by a code": () => isNoVerdict(THROTTLED),
  "describe alone is throttled": () => isNoVerdict(toDescribe(THROTTLED)),
  "a gateway's 404 in JSON": () => isNoVerdict(says(404, { code: 404 })),
  "a gateway's 409 in JSON": () => isNoVerdict(says(409, { code: "409" })),
  "a gateway's page": () => isNoVerdict(page(404)),
  "INVALID_CIPHERTEXT to a describe": () => isNoVerdict(says(400, { code: "INVALID_CIPHERTEXT" })),
  "every decrypt is called invalid, of what was just wrapped too": () =>
    isNoVerdict((asked) =>
      asked.path.endsWith("/decrypt")
        ? says(400, { code: "INVALID_CIPHERTEXT" })(asked)
        : asked.honest(),
    ),
  "the credential is refused": () => isNoVerdict(says(401, { code: "DENIED" })),
  "no codes in the profile: sealed, 503": () =>
    isNoVerdict(says(503, { errors: ["Vault is sealed"] }), vaultOf()),
  "no codes in the profile: no such key, mount or namespace, 404": () =>
    isNoVerdict(says(404, { errors: [] }), vaultOf()),
  "a previous key is throttled": async () => {
    const key4c = key4cOf();
    const old = await left(key4c, { KMS_KEY_ID: "old" });
    const plugin = await launchOk(key4c.url, { ...GRACE, KMS_PREVIOUS_KEY_IDS: "old" });
    const callers = keepCalling(plugin, old);
    await eventually("the old data are read", () => callers.seen.codesOf("known").length > 0);
    key4c.behaviour = toKey("old", THROTTLED);
    await plugin.untilLogged(/a previous key is not healthy/);
    await Bun.sleep(HELD_MS);
    expect(toldTo(await callers.stop())).toEqual(ALL_WELL);
    expect(await plugin.state()).toBe("ok");
    expect(plugin.output()).not.toContain("a previous key is revoked");
  },
};

/** Until Status fails. */
async function untilRefused(plugin: Plugin): Promise<void> {
  await eventually(
    "Status fails",
    async () => !(await new Sightings().see("status", () => rpcs.status(plugin.client))),
  );
}

/** What Status, Encrypt and Decrypt end with now. */
async function codesNow(plugin: Plugin, known: Wrapped) {
  const callers = keepCalling(plugin, known);
  return toldTo(await callers.stop());
}

async function isRevokedWithin(graceMs: number): Promise<void> {
  const key4c = key4cOf();
  const plugin = await launchOk(key4c.url, {
    KMS_PROBE_INTERVAL: "500ms",
    KMS_REVOCATION_GRACE: `${graceMs}ms`,
  });
  const known = await wrap(plugin);
  key4c.behaviour = DISABLED;
  const disabledAtMs = performance.now();
  await untilRefused(plugin);
  const tookMs = performance.now() - disabledAtMs;
  console.log(`figure: grace ${graceMs} ms, revoked after ${Math.round(tookMs)} ms`);
  expect(tookMs).toBeGreaterThanOrEqual(graceMs); // at most how much: test/health/bad-days.test.ts
  const UNUSABLE = ["FAILED_PRECONDITION"];
  expect(await codesNow(plugin, known)).toEqual({
    defects: [],
    status: UNUSABLE,
    encrypt: UNUSABLE,
    known: UNUSABLE,
  });
  expect(plugin.told().at(-1)).toMatchObject({ state: "revoked", level: "error" });
  key4c.behaviour = undefined;
  await plugin.untilState("ok");
  expect(await codesNow(plugin, known)).toEqual(ALL_WELL);
}

const VERDICTS = {
  "DISABLED, a grace of 0s: at the next probe": () => isRevokedWithin(0),
  "DISABLED, a grace of 3s": () => isRevokedWithin(3_000),
  "KEY_NOT_FOUND, as of a wrong URL: stops what would be written, drops nothing": async () => {
    const key4c = key4cOf();
    const plugin = await launchOk(key4c.url, GRACE);
    const known = await wrap(plugin);
    const callers = keepCalling(plugin, known);
    await eventually("it is read", () => callers.seen.codesOf("known").length > 0);
    key4c.behaviour = NOT_FOUND;
    await plugin.untilState("degraded");
    expect(toldTo(callers.seen)).toEqual(ALL_WELL);
    await plugin.untilState("mismatch");
    const before = key4c.requests.length;
    await Bun.sleep(1_000);
    await eventually("Status and Encrypt fail", () =>
      (["status", "encrypt"] as const).every((role) =>
        callers.seen.codesOf(role).includes(FAILED_PRECONDITION),
      ),
    );
    expect(toldTo(await callers.stop())).toEqual({
      ...ALL_WELL,
      status: ["FAILED_PRECONDITION", "OK"],
      encrypt: ["FAILED_PRECONDITION", "OK"],
    });
    expect(plugin.told().at(-1)).toMatchObject({ state: "mismatch", kind: "keyNotFound" });
    expect((await plugin.readyz()).text).toContain("Key4C knows no such key");
    expect(await plugin.metric('key4c_kms_failure{kind="keyNotFound"}')).toBe(1);
    expect(key4c.requests.slice(before).map(({ operation }) => operation)).not.toContain("encrypt");
    key4c.behaviour = undefined;
    await plugin.untilState("ok");
    expect(await codesNow(plugin, known)).toEqual(ALL_WELL);
    expect(await plugin.metric("key4c_kms_local_keks_orphaned")).toBe(0);
  },
  "revoked while a renewal is under way: its local KEK is not used": async () => {
    const key4c = key4cOf();
    const env = { KMS_REVOCATION_GRACE: "0s", KMS_LOCAL_KEK_MAX_USES: "10" };
    const plugin = await launchOk(key4c.url, env);
    const held: { readonly asked: Asked; readonly resolve: (answer: Response) => void }[] = [];
    const holdEncrypts: Behaviour = (asked) =>
      asked.path.endsWith("/encrypt")
        ? new Promise((resolve) => held.push({ asked, resolve }))
        : asked.honest();
    key4c.behaviour = holdEncrypts;
    while (held.length === 0) {
      await rpcs.encrypt1(plugin.client, randomBytes(32));
    }
    key4c.behaviour = (asked) => (asked.method === "GET" ? DISABLED(asked) : asked.honest());
    await plugin.untilState("revoked");
    const kek = /"msg":"new local KEK"/g;
    const before = plugin.output().match(kek)?.length;
    for (const { asked, resolve } of held) {
      resolve(await asked.honest());
    }
    await Bun.sleep(1_000);
    expect(plugin.output().match(kek)?.length).toBe(before);
    expect(await plugin.state()).toBe("revoked");
    const encrypt = new Sightings();
    await encrypt.see("encrypt", () => rpcs.encrypt1(plugin.client, randomBytes(32)));
    expect(encrypt.codesOf("encrypt")).toEqual([FAILED_PRECONDITION]);
    key4c.behaviour = undefined;
    await plugin.untilState("ok");
    await wrap(plugin);
  },
};

/** Callers that want a local KEK which Key4C has to unwrap, in turn. */
function keepWanting({ client }: Plugin, wanted: readonly Wrapped[]) {
  const seen = new Sightings();
  let isOver = false;
  let at = 0;
  const loops = Array.from({ length: 4 }, async () => {
    while (!isOver) {
      const wrapped = wanted[at++ % wanted.length] as Wrapped; // there is one
      await seen.see("unseen", () => rpcs.decrypt1(client, wrapped));
      await Bun.sleep(50);
    }
  });
  return {
    seen,
    async stop(): Promise<Sightings> {
      isOver = true;
      await Promise.all(loops);
      return seen;
    },
  };
}

const RETRY_AFTER_AN_HOUR = says(429, { code: "THROTTLED" }, { "Retry-After": "3600" });

const WAITS = {
  "Retry-After is obeyed: neither the probe nor callers ask": async () => {
    const key4c = key4cOf();
    const wanted = await wrapUnderNewKeks(key4c.behind, 8);
    const plugin = await launchOk(key4c.url);
    const known = await wrap(plugin);
    key4c.behaviour = RETRY_AFTER_AN_HOUR;
    await plugin.untilState("degraded");
    await Bun.sleep(500); // what was under way
    const before = key4c.requests.length;
    const callers = [keepCalling(plugin, known), keepWanting(plugin, wanted)] as const;
    await Bun.sleep(HELD_MS);
    expect(toldTo(await callers[0].stop())).toEqual(ALL_WELL);
    const unseen = await callers[1].stop();
    expect([unseen.codesOf("unseen"), [...unseen.defects]]).toEqual([[RESOURCE_EXHAUSTED], []]);
    expect(key4c.requests.slice(before)).toEqual([]);
  },
  "Retry-After without a local KEK: obeyed for 15 s": async () => {
    const key4c = key4cOf();
    let refusedMs = 0;
    key4c.behaviour = (asked) => {
      refusedMs = performance.now(); // the log tells it later, by as much as the machine is busy
      return RETRY_AFTER_AN_HOUR(asked);
    };
    const plugin = await launch(key4c.url);
    await plugin.untilLogged(/"state":"starting".*"kind":"throttled"/);
    key4c.behaviour = undefined;
    const before = key4c.requests.length;
    await eventually("Key4C is asked again", () => key4c.requests.length > before);
    expect(performance.now() - refusedMs).toBeGreaterThanOrEqual(14_000);
    await plugin.untilState("ok");
  },
  "throttled without Retry-After, or with one of nothing: ever more rarely": async () => {
    await Promise.all(
      [{}, { "Retry-After": "0" }].map(async (headers) => {
        const key4c = key4cOf();
        const wanted = await wrapUnderNewKeks(key4c.behind, 8);
        const plugin = await launchOk(key4c.url);
        key4c.behaviour = says(429, { code: "THROTTLED" }, headers as Record<string, string>);
        await plugin.untilState("degraded");
        const before = key4c.requests.length;
        const callers = keepWanting(plugin, wanted);
        await Bun.sleep(HELD_MS);
        await callers.stop();
        // 1, 2, 4 and 8 s after each other, beside what was under way.
        expect(key4c.requests.length - before).toBeLessThanOrEqual(8);
      }),
    );
  },
  "a previous key that hangs keeps nobody from the current one": async () => {
    const key4c = key4cOf();
    key4c.behaviour = toKey("old", hangs);
    const plugin = await launch(key4c.url, { KMS_PREVIOUS_KEY_IDS: "old" });
    const first = keepCalling(plugin, await wrap(plugin));
    await eventually("the previous key was asked for", () =>
      key4c.requests.some(({ keyId }) => keyId === "old"),
    );
    await plugin.untilState("ok");
    expect(toldTo(await first.stop())).toEqual(ALL_WELL);
  },
  "KMS_OUTAGE_GRACE counts from the first failed probe": async () => {
    const key4c = key4cOf();
    const env = { KMS_PROBE_INTERVAL: "4s", KMS_OUTAGE_GRACE: "2s" };
    const plugin = await launchOk(key4c.url, env);
    const known = await wrap(plugin);
    await Bun.sleep(3_000); // longer than the grace since the last contact
    key4c.behaviour = page(503);
    await plugin.untilState("expired");
    const [degraded, expired] = plugin.told().slice(-2);
    expect([degraded?.state, expired?.state]).toEqual(["degraded", "expired"]);
    const lastedMs = Date.parse(expired?.time ?? "") - Date.parse(degraded?.time ?? "");
    expect(lastedMs).toBeGreaterThanOrEqual(1_990); // a log has whole milliseconds, and a probe lasts
    expect(await codesNow(plugin, known)).toEqual({
      ...ALL_WELL,
      status: ["UNAVAILABLE"],
      encrypt: ["UNAVAILABLE"],
    });
    key4c.behaviour = undefined;
    await plugin.untilState("ok");
    expect(await codesNow(plugin, known)).toEqual(ALL_WELL);
  },
  "a gateway's page to a decrypt is tried again, and not remembered": async () => {
    const key4c = key4cOf();
    const old = await left(key4c);
    const plugin = await launchOk(key4c.url);
    let pages = 0;
    key4c.behaviour = toKekOf(old, (asked) => (pages++ === 0 ? page(400)(asked) : asked.honest()));
    await unwrap(plugin, old);
    expect(pages).toBe(2);
  },
  "whoever needs Key4C makes the probe come, and does not wait for it": async () => {
    const key4c = key4cOf();
    const wanted = await wrapUnderNewKeks(key4c.behind, 64);
    const plugin = await launchOk(key4c.url, { KMS_PROBE_INTERVAL: "10m" });
    key4c.behaviour = page(503);
    const callers = keepWanting(plugin, wanted);
    await plugin.untilState("degraded");
    await Bun.sleep(3_000); // at rest the next probes would come 4 and 8 s after the first
    const probed = () => key4c.requests.filter(({ operation }) => operation === "describe").length;
    const [before, callsBefore] = [probed(), callers.seen.count];
    await Bun.sleep(8_000);
    const probes = probed() - before;
    const calls = callers.seen.count - callsBefore;
    console.log(`figure: in 8 s of an outage ${probes} probes, ${calls} calls refused`);
    expect(probes).toBeGreaterThanOrEqual(6); // 16 by the rule
    expect(probes).toBeLessThanOrEqual(40);
    expect(calls).toBeGreaterThanOrEqual(40); // 4 callers that wait for 2.9 s make 12
    const endedMs = performance.now();
    key4c.behaviour = undefined;
    await eventually("healed", () => callers.seen.codesOf("unseen").includes(OK));
    console.log(`figure: used ${Math.round(performance.now() - endedMs)} ms after it was back`);
    await callers.stop();
    await plugin.untilState("ok");
  },
};

/** The last byte of the tag is another one. */
function damaged({ dek, v1 }: Wrapped): { readonly dek: Buffer; readonly v1: Wrapped["v1"] } {
  const cipher = Buffer.from(v1.cipher);
  cipher[cipher.length - 1] = (cipher.at(-1) ?? 0) ^ 1;
  return { dek, v1: { cipher } };
}

const DAMAGED_AND_SAID = {
  "a damaged object, read in an outage, costs nobody else the local KEK": async () => {
    const emulated = emulator();
    const key4c = bendKey4C(emulated.url);
    const former = await left(key4c); // asked for once, and opened nothing since
    const plugin = await launchOk(key4c.url);
    const own = await wrap(plugin);
    await unwrap(plugin, former);
    await emulated.control("POST", "keys/demo/rotate");
    await plugin.untilLogged(/new local KEK.*\.v2/);
    await Bun.sleep(12_000); // as long as one that has opened nothing is believed
    key4c.behaviour = page(503);
    await plugin.untilState("degraded");
    const seen = new Sightings();
    for (const wrapped of [own, former]) {
      await seen.see("unseen", () =>
        rpcs.decrypt1(plugin.client, { ...wrapped, ...damaged(wrapped) }),
      );
      await Bun.sleep(200);
      await unwrap(plugin, wrapped);
    }
    expect([seen.codesOf("unseen"), [...seen.defects]]).toEqual([[INVALID_ARGUMENT], []]);
  },
  "a new cause is a line, and /readyz and metrics know it": async () => {
    const key4c = key4cOf();
    const plugin = await launchOk(key4c.url);
    for (const [behaviour, kind, words] of [
      [page(503), "unavailable", "Key4C is unreachable; known local KEKs continue to work"],
      [DISABLED, "keyUnusable", "Key4C says that the key is disabled or deleted; known"],
      [NOT_FOUND, "keyNotFound", "Key4C knows no such key; known"],
      [says(401, { code: "DENIED" }), "denied", "Key4C refuses the credential; known"],
    ] as const) {
      key4c.behaviour = behaviour;
      await plugin.untilLogged(new RegExp(`"msg":"${words}.*"kind":"${kind}"`));
      expect(await plugin.readyz()).toMatchObject({
        status: 200,
        text: expect.stringContaining(`: ${kind}: ${words}`),
      });
      expect(await plugin.metric(`key4c_kms_failure{kind="${kind}"}`)).toBe(1);
    }
    expect(plugin.told().every(({ state, remedy }) => state === "ok" || remedy)).toBe(true);
    key4c.behaviour = undefined;
    plugin.renewSecret();
    await plugin.untilState("ok");
    expect((await plugin.readyz()).text).toMatch(/^ok since [^ ]+$/);
    expect(await plugin.metric('key4c_kms_failure{kind="denied"}')).toBe(0);
  },
};

sideBySide(
  {
    "what is no verdict, held longer than the grace: everything goes on": NO_VERDICTS,
    "what is a verdict": VERDICTS,
    "who waits, and for how long": WAITS,
    "what is damaged, and what is said": DAMAGED_AND_SAID,
  },
  PLAY_TIMEOUT_MS,
);

test("1,100 local KEKs that are gone do not keep the others", async () => {
  const key4c = await startKey4C();
  const [gone, healthy] = [
    await wrapUnderNewKeks((await startKey4C()).url, 1_100),
    await wrapUnderNewKeks(key4c.url, 32),
  ];
  const plugin = await launchOk(key4c.url);
  const dead = new Sightings();
  for (let at = 0; at < gone.length; at += 100) {
    await Promise.all(
      gone
        .slice(at, at + 100)
        .map((wrapped) => dead.see("unseen", () => rpcs.decrypt1(plugin.client, wrapped))),
    );
  }
  expect(dead.codesOf("unseen")).not.toContain(OK);
  expect([...dead.defects]).toEqual([]);
  await Promise.all(healthy.map((wrapped) => unwrap(plugin, wrapped)));
});
