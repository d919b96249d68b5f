/** The login of a profile, against the HSM service of PROFILES.md, in simulated time. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import cloudhsm from "../../src/commands/manifest/profiles/cloudhsm.json";
import type { PluginError } from "../../src/failures/plugin-error.ts";
import { type Profile, parseProfile } from "../../src/key4c/profile.ts";
import type { Log } from "../../src/system/log.ts";
import { TestClock, within } from "../clock.ts";
import { CloudHsm } from "../cloudhsm.ts";
import { expectNoSecret, secret } from "../secrets.ts";
import { key4cClient, kindOf, recordingLog, silentLog } from "../support.ts";

const RIGHT = { userId: "token-uuid-4711", apiKey: "right-api-key-0815", pin: " right PIN 9! " };
const PROFILE = parseProfile(JSON.stringify(cloudhsm));
const AAD = Buffer.from("aad");
const SECOND = 1_000;
const MINUTE = 60_000;
const HOUR = 3_600_000;
const FOR_CALLER = { isForCaller: true };

interface Setup {
  readonly profile?: Profile;
  readonly tokenSeconds?: number;
  readonly maxTokens?: number;
  readonly pin?: string;
}

/** A service, and a client or more of it, on one clock. */
function setUp({ profile = PROFILE, pin = RIGHT.pin, ...options }: Setup = {}) {
  const clock = new TestClock();
  const { userId: uuid, apiKey } = RIGHT;
  const hsm = new CloudHsm({ uuid, pin, apiKey, nowMs: () => clock.nowMs(), ...options });
  const away = { login: false, all: false };
  const requests: string[] = [];
  const client = (credentials = { ...RIGHT }, quiet?: Log) => {
    const { log, lines } = recordingLog();
    const key4c = key4cClient({
      url: "https://hsm.example",
      profile,
      clock,
      log: quiet ?? log,
      credentials: () => credentials,
      async fetch(url, init) {
        const isLogin = url.endsWith("/token");
        requests.push(url);
        if (away.all || (away.login && isLogin)) {
          throw new TypeError("connection refused");
        }
        const { method = "", headers, body } = init;
        return hsm.answer(new Request(url, { method, headers: headers as Headers }), String(body));
      },
    });
    return { key4c, credentials, lines };
  };
  return { clock, hsm, away, client, requests };
}

const errorOf = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: PluginError) => error, // the client throws nothing else
  );

test("one login for all callers, and a ciphertext of two members goes there and back", async () => {
  const { hsm, client } = setUp();
  const { key4c } = client();
  const localKek = randomBytes(32);
  secret("local KEK", localKek);
  const many = await Promise.all(
    Array.from({ length: 64 }, () => key4c.wrap("demo", localKek, AAD)),
  );
  expect(hsm.logins).toBe(1);
  for (const { ciphertext, aadSent } of many) {
    expect(aadSent).toBe(true);
    expect(ciphertext).toMatch(/^\{"data":"[0-9a-f]{96}","iv":"[0-9a-f]{24}"\}$/);
    expect(await key4c.unwrap("demo", ciphertext, AAD)).toEqual(localKek);
  }
  expect(await key4c.describe("demo")).toMatchObject({ kcv: expect.any(String) });
});

test("24 hours, tokens of 5 minutes, 64 callers: a login for each life, and no call fails or waits for one", async () => {
  const { clock, hsm, client } = setUp({ tokenSeconds: 300 });
  const { key4c } = client({ ...RIGHT }, silentLog);
  const { ciphertext } = await key4c.wrap("demo", randomBytes(32), AAD);
  for (let probe = 0; clock.nowMs() < 24 * HOUR; probe++) {
    const calls =
      probe % 19 === 0
        ? Array.from({ length: 64 }, () => key4c.unwrap("demo", ciphertext, AAD))
        : [key4c.describe("demo")];
    expect(new Set(await Promise.all(calls.map(kindOf)))).toEqual(new Set(["ok"]));
    clock.skip(29 * SECOND);
  }
  expect(hsm.answered.filter((one) => !one.endsWith("0000"))).toEqual([]); // no token was refused
  const lives = (24 * HOUR) / (300 * SECOND);
  expect(hsm.logins).toBeGreaterThanOrEqual(lives);
  expect(hsm.logins).toBeLessThanOrEqual(lives / 0.8);
});

test("calls that come seldom find an expired token, and make one login each", async () => {
  const { clock, hsm, client } = setUp({ tokenSeconds: 300 });
  const { key4c } = client();
  for (let hour = 0; hour < 24; hour++) {
    expect(await kindOf(key4c.describe("demo"))).toBe("ok");
    clock.skip(HOUR);
  }
  expect(hsm.logins).toBe(24);
});

test("the login is unreachable for an hour: the old token serves until it is refused, and then it is an outage", async () => {
  const { clock, hsm, away, client } = setUp({ tokenSeconds: 1800 });
  const { key4c, lines } = client();
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  away.login = true;
  const kinds = new Map<string, number>();
  for (; clock.nowMs() < HOUR; clock.skip(10 * SECOND)) {
    const kind = await within(clock, 5 * SECOND, kindOf(key4c.describe("demo")));
    kinds.set(kind, kinds.get(kind) ?? clock.nowMs());
  }
  expect([...kinds.keys()]).toEqual(["ok", "unavailable"]);
  expect(kinds.get("unavailable")).toBeGreaterThanOrEqual(30 * MINUTE);
  expect(kinds.get("unavailable")).toBeLessThan(30 * MINUTE + 20 * SECOND);
  const failing = "the login fails: the present token is used until it is refused";
  expect(lines.filter(({ msg }) => msg === failing).length).toBe(1);
  away.login = false;
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  expect(hsm.logins).toBe(2);
});

test("a wrong PIN is presented once, in a day of calls; the right one is used at once", async () => {
  const { clock, hsm, client } = setUp();
  const { key4c, credentials, lines } = client({ ...RIGHT, pin: "wrong PIN of somebody" });
  for (; clock.nowMs() < 24 * HOUR; clock.skip(10 * MINUTE)) {
    const calls = Array.from({ length: 8 }, () => errorOf(key4c.describe("demo", FOR_CALLER)));
    for (const error of await Promise.all(calls)) {
      expect(error).toMatchObject({ kind: "denied", isByContract: true, about: "secret" });
      expect(error?.message).toBe(
        "Key4C answered login with HTTP status 200 E103; this PIN is not presented again before it changes",
      );
    }
  }
  expect([hsm.logins, hsm.wrongPins]).toEqual([1, 1]);
  credentials.pin = RIGHT.pin;
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  expect(JSON.stringify(lines)).not.toContain("PIN of somebody");
});

test("a PIN that was changed at the service: the token serves on, then one login is refused", async () => {
  const { clock, hsm, client } = setUp({ tokenSeconds: 300 });
  const { key4c, credentials } = client();
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  hsm.pin = "another PIN";
  const kinds = new Set<string>();
  for (; clock.nowMs() < HOUR; clock.skip(10 * SECOND)) {
    kinds.add(`${clock.nowMs() < 300 * SECOND} ${await kindOf(key4c.describe("demo"))}`);
  }
  expect([...kinds]).toEqual(["true ok", "false denied"]);
  expect(hsm.wrongPins).toBe(1);
  credentials.pin = "another PIN";
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
});

test("expired for ever is no loop: a login each 10 minutes and call at most", async () => {
  const { clock, hsm, client, requests } = setUp();
  const { key4c } = client();
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  for (let second = 0; second < 3_600; second += 2) {
    hsm.logOut();
    const refused = key4c.describe("demo");
    const isDenied = errorOf(refused);
    clock.skip(2 * SECOND);
    // The service forgets the new token too.
    const error = await isDenied;
    expect(error?.kind ?? "ok").toMatch(/^(denied|unavailable|ok)$/);
  }
  expect(hsm.logins).toBeLessThan(3_600 / 10);
  expect(requests.length).toBeLessThan(3 * 1_800);
});

test("a status that means expired and refused: one login, then it is refused for this call", async () => {
  const profile = parseProfile(
    JSON.stringify({ ...cloudhsm, errors: { statuses: { "403": "tokenExpired" } } }),
  );
  const clock = new TestClock();
  let logins = 0;
  const key4c = key4cClient({
    url: "https://hsm.example",
    profile,
    clock,
    credentials: () => RIGHT,
    async fetch(url, { body }) {
      if (url.endsWith("/token")) {
        logins += 1;
        const data = { accessToken: `token-${logins}`, expiresIn: "0" };
        return Response.json({ resultCode: "0000", data });
      }
      return String(body).includes("forbidden")
        ? new Response("no", { status: 403 })
        : Response.json({ resultCode: "0000", data: { status: "ACTIVE" } });
    },
  });
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  clock.skip(MINUTE);
  for (; clock.nowMs() < 8 * MINUTE; clock.skip(10 * SECOND)) {
    const error = await errorOf(key4c.describe("forbidden"));
    expect(error).toMatchObject({ kind: "denied", isByContract: false, about: "call" });
    expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  }
  expect(logins).toBe(2);
});

test("a token that is ended at once is replaced at once; the next one not before 10 s after the first login", async () => {
  const { clock, hsm, client } = setUp();
  const { key4c } = client();
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  hsm.logOut();
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  hsm.logOut();
  const error = await errorOf(key4c.describe("demo"));
  expect(error).toMatchObject({
    kind: "unavailable",
    message: "a token is refused that is not old",
  });
  expect(error?.headline).toContain("ends our session");
  clock.skip(10 * SECOND - 1);
  expect(await kindOf(key4c.describe("demo"))).toBe("unavailable");
  clock.skip(1);
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  expect(hsm.logins).toBe(3);
});

test("the third token in a row that is ended early makes an eviction: the next login waits for a minute", async () => {
  const { clock, hsm, client } = setUp();
  const { key4c } = client();
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  for (let ended = 0; ended < 3; ended++) {
    clock.skip(10 * SECOND);
    hsm.logOut();
    expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  }
  clock.skip(MINUTE - 1);
  hsm.logOut();
  expect((await errorOf(key4c.describe("demo")))?.message).toContain("3 in a row");
  clock.skip(1);
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
});

test("a login in the background that fails is tried again after 10 s, whatever callers do", async () => {
  const { clock, away, client, requests } = setUp({ tokenSeconds: 200 });
  const { key4c } = client();
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  const logins = () => requests.filter((url) => url.endsWith("/token")).length;
  away.login = true;
  clock.skip(180 * SECOND); // it is to be renewed
  const counts: number[] = [];
  for (let tenths = 0; tenths < 100; tenths++) {
    expect(await kindOf(key4c.describe("demo"))).toBe("ok");
    counts.push(logins());
    await clock.pass(SECOND / 10);
  }
  const first = counts[0] ?? 0;
  expect(first).toBeGreaterThan(1);
  expect(new Set(counts).size).toBeLessThanOrEqual(3); // attempts of one login
  const before = logins();
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  expect(logins()).toBe(before + 1);
});

test("nodes that end each other's tokens: each backs off, and says what it is", async () => {
  const { clock, hsm, client } = setUp({ maxTokens: 1 });
  const nodes = [client(), client(), client()].map(({ key4c }) => key4c);
  const messages = new Set<string | undefined>();
  for (; clock.nowMs() < HOUR; clock.skip(5 * SECOND)) {
    for (const key4c of nodes) {
      const error = await errorOf(key4c.describe("demo"));
      messages.add(error?.message);
    }
  }
  expect([...messages].join("\n")).toMatch(/does another login end them\?/);
  expect(hsm.logins).toBeLessThan(3 * 65 + 30); // one a minute and node, and what led to it
});

test("a changed secret makes a new login in the background, and the old token serves until it is there", async () => {
  const { clock, hsm, client } = setUp();
  const { key4c, credentials } = client();
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  clock.skip(MINUTE);
  credentials.apiKey = "a key that the service does not know";
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  expect(hsm.logins).toBe(2);
});

test("neither log nor error shows the token or what it was given for", async () => {
  const { hsm, away, clock, client } = setUp({ tokenSeconds: 300 });
  const { key4c, lines } = client();
  for (const value of Object.values(RIGHT)) {
    secret("a credential", value);
  }
  const errors = [await errorOf(key4c.unwrap("demo", "not JSON", AAD))];
  hsm.logOut();
  away.login = true;
  clock.skip(MINUTE);
  errors.push(await within(clock, 5 * SECOND, errorOf(key4c.describe("demo"))));
  expect(errors.map((error) => error?.kind)).toEqual(["unavailable", "unavailable"]);
  expectNoSecret("log and errors", JSON.stringify(lines) + Bun.inspect(errors));
});

test("a call that carries a secret of the login too does not wait for itself", async () => {
  const headers = {
    ...cloudhsm.headers,
    "X-Api-Key": "{apiKey}",
    "X-User": "{userId}",
    "X-Pin": "{pin}",
  };
  const profile = parseProfile(JSON.stringify({ ...cloudhsm, headers }));
  const { clock, client } = setUp({ profile });
  const { key4c } = client({ ...RIGHT, pin: "no blanks at its ends" });
  expect(await within(clock, 10 * SECOND, kindOf(key4c.describe("demo")))).toBe("denied");
  const right = setUp({ profile, pin: "no blanks" });
  const { key4c: other } = right.client({ ...RIGHT, pin: "no blanks" });
  right.away.login = true;
  const call = kindOf(other.describe("demo", FOR_CALLER));
  await right.clock.pass(SECOND);
  right.away.login = false; // an attempt that follows logs in while the call itself is the trial
  expect(await within(right.clock, 10 * SECOND, call)).toBe("ok");
});
