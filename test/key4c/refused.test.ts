import { expect, test } from "bun:test";
import type { ErrorKind } from "../../src/failures/kinds.ts";
import { PluginError } from "../../src/failures/plugin-error.ts";
import defaultProfile from "../../src/key4c/key4c.profile.json";
import { parseProfile } from "../../src/key4c/profile.ts";
import { type Credentials, RefusedSecrets } from "../../src/key4c/refused.ts";
import { fakeServer, key4cClient, kindOf } from "../support.ts";

/** A guard under a clock that the test sets, and a Key4C whose answers it gives one by one. */
function guarded() {
  const now = { ms: 0 };
  const secrets = new RefusedSecrets({
    nowMs: () => now.ms,
    after: () => () => {},
    random: () => 0,
  });
  const asked: string[] = [];
  const answers: ((kind: ErrorKind | "ok") => void)[] = [];
  const call = (keyId: string, credentials: Credentials) =>
    kindOf(
      secrets.guard(keyId, credentials, async () => {
        asked.push(keyId);
        const { promise, resolve } = Promise.withResolvers<ErrorKind | "ok">();
        answers.push(resolve);
        const kind = await promise;
        if (kind !== "ok") {
          throw new PluginError(kind, "as the test says");
        }
      }),
    );
  /** Answers what is asked now. */
  const answer = async (kind: ErrorKind | "ok") => {
    await Bun.sleep(0);
    for (const one of answers.splice(0)) {
      one(kind);
    }
    await Bun.sleep(0);
  };
  /** A call and its answer. */
  const asks = async (keyId: string, credentials: Credentials, kind: ErrorKind | "ok") => {
    const outcome = call(keyId, credentials);
    await answer(kind);
    return outcome;
  };
  return { now, asked, call, answer, asks };
}

const TOKEN = { userId: "u", apiKey: "k" };
const PIN = { userId: "u", pin: "1234" };

test("a refused token is tried again after 30 s, or at once when it has changed; for another key at once", async () => {
  const { now, asked, asks } = guarded();
  expect(await asks("a", TOKEN, "denied")).toBe("denied");
  expect(await asks("a", TOKEN, "ok")).toBe("denied");
  expect(await asks("b", TOKEN, "ok")).toBe("ok");
  expect(await asks("a", { ...TOKEN, apiKey: "new" }, "denied")).toBe("denied");
  now.ms = 29_999;
  expect(await asks("a", { ...TOKEN, apiKey: "new" }, "ok")).toBe("denied");
  now.ms = 30_000;
  expect(await asks("a", { ...TOKEN, apiKey: "new" }, "ok")).toBe("ok");
  expect(asked).toEqual(["a", "b", "a", "a"]);
});

test("a refused PIN is tried once until it changes, for whatever key", async () => {
  const { now, asked, asks } = guarded();
  expect(await asks("a", PIN, "denied")).toBe("denied");
  now.ms = 365 * 24 * 3_600_000;
  expect(await asks("a", PIN, "ok")).toBe("denied");
  expect(await asks("b", PIN, "ok")).toBe("denied");
  expect(await asks("a", { ...PIN, pin: "5678" }, "ok")).toBe("ok");
  expect(await asks("b", { ...PIN, pin: "5678" }, "ok")).toBe("ok");
  expect(asked).toEqual(["a", "a", "b"]);
});

test("many calls at once try a wrong PIN once", async () => {
  const { asked, call, answer } = guarded();
  const all = ["a", "a", "b", "c"].map((keyId) => call(keyId, PIN));
  await answer("denied");
  expect(await Promise.all(all)).toEqual(["denied", "denied", "denied", "denied"]);
  expect(asked).toEqual(["a"]);
});

test("once a PIN is accepted, calls go side by side", async () => {
  const { asked, call, answer } = guarded();
  const all = ["a", "b", "c"].map((keyId) => call(keyId, PIN));
  await answer("ok");
  expect(asked).toEqual(["a", "b", "c"]);
  await answer("ok");
  expect(await Promise.all(all)).toEqual(["ok", "ok", "ok"]);
});

test("an outage at the first call is one for those who wait for it; what it says of a ciphertext is not", async () => {
  const away = guarded();
  const all = ["a", "b"].map((keyId) => away.call(keyId, PIN));
  await away.answer("unavailable");
  expect(await Promise.all(all)).toEqual(["unavailable", "unavailable"]);
  expect(away.asked).toEqual(["a"]);
  expect(await away.asks("a", PIN, "ok")).toBe("ok");

  const invalid = guarded();
  const [first, second] = ["a", "a"].map((keyId) => invalid.call(keyId, PIN));
  await invalid.answer("invalid");
  await invalid.answer("ok");
  expect([await first, await second]).toEqual(["invalid", "ok"]);
});

test("a PIN that works for one key, and never did for others, is blocked for those only", async () => {
  const { now, asked, asks } = guarded();
  expect(await asks("a", PIN, "ok")).toBe("ok");
  expect(await asks("b", PIN, "denied")).toBe("denied");
  expect(await asks("c", PIN, "denied")).toBe("denied");
  expect(await asks("a", PIN, "ok")).toBe("ok"); // so it was not the PIN
  expect(await asks("b", PIN, "ok")).toBe("denied");
  now.ms = 30_000;
  expect(await asks("b", PIN, "ok")).toBe("ok");
  expect(asked).toEqual(["a", "b", "c", "a", "b"]);
});

test("a PIN that worked for a key and is refused for it is refused for all", async () => {
  const { now, asked, asks } = guarded();
  expect(await asks("a", PIN, "ok")).toBe("ok");
  expect(await asks("a", PIN, "denied")).toBe("denied");
  now.ms = 365 * 24 * 3_600_000;
  expect(await asks("a", PIN, "ok")).toBe("denied");
  expect(await asks("b", PIN, "ok")).toBe("denied");
  expect(asked).toEqual(["a", "a"]);
});

test("a new PIN does not wait for the old one's call, nor fail with it", async () => {
  const { asked, call, answer } = guarded();
  const old = call("a", PIN);
  const renewed = call("a", { ...PIN, pin: "5678" });
  await Bun.sleep(0);
  expect(asked).toEqual(["a", "a"]);
  await answer("ok");
  expect([await old, await renewed]).toEqual(["ok", "ok"]);
});

test("the client sends a PIN, and a wrong one once", async () => {
  const pins: (string | null)[] = [];
  const server = fakeServer((request) => {
    const pin = request.headers.get("X-Pin");
    pins.push(pin);
    return pin === "right-pin"
      ? Response.json({ version: "7", state: "ENABLED" })
      : Response.json({ code: 401 }, { status: 401 });
  });
  const credentials = { userId: "u", pin: "wrong-pin" };
  const profile = parseProfile(
    JSON.stringify({
      ...defaultProfile,
      headers: { "X-Pin": "{pin}" },
      errors: { code: "/code", codes: { "401": "denied" } },
    }),
  );
  const key4c = key4cClient({ url: server.url, profile, credentials: () => ({ ...credentials }) });
  const many = Array.from({ length: 8 }, () => kindOf(key4c.describe("demo")));
  expect(new Set(await Promise.all(many))).toEqual(new Set(["denied"]));
  expect(await kindOf(key4c.describe("other"))).toBe("denied");
  expect(pins).toEqual(["wrong-pin"]);
  credentials.pin = "right-pin";
  expect(await key4c.describe("demo")).toMatchObject({ version: 7 });
});
