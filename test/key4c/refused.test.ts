import { expect, test } from "bun:test";
import type { ErrorKind } from "../../src/failures/kinds.ts";
import { PluginError } from "../../src/failures/plugin-error.ts";
import defaultProfile from "../../src/key4c/key4c.profile.json";
import { parseProfile } from "../../src/key4c/profile.ts";
import { RefusedSecrets } from "../../src/key4c/refused.ts";
import { turn } from "../clock.ts";
import { fakeServer, key4cClient, kindOf } from "../support.ts";

type Answer = ErrorKind | "ok" | "code" | "page";

/** A guard under a clock that the test sets, and a Key4C whose answers it gives one by one. */
function guarded() {
  const now = { ms: 0 };
  const secrets = new RefusedSecrets({
    nowMs: () => now.ms,
    after: () => () => {},
    random: () => 0,
  });
  const asked: string[] = [];
  const answers: ((answer: Answer) => void)[] = [];
  const send = async (what: string) => {
    asked.push(what);
    const { promise, resolve } = Promise.withResolvers<Answer>();
    answers.push(resolve);
    const answer = await promise;
    if (answer !== "ok") {
      const isDenied = answer === "code" || answer === "page" || answer === "denied";
      const isByContract = answer !== "page" && answer !== "unavailable";
      throw new PluginError(isDenied ? "denied" : answer, "as the test says", { isByContract });
    }
  };
  /** @param place such as `decrypt a` */
  const call = async (place: string, { secret, pin, revision }: Given) => {
    const [operation = "", keyId = ""] = place.split(" ");
    const presented = {
      operation,
      keyId,
      secret: JSON.stringify([secret, pin]),
      ...(pin !== undefined && { pin: { digest: pin, revision } }),
      isBehindLogin: false,
      repeat: () => send(`${place} again`),
    };
    try {
      await secrets.guard(presented, () => send(place));
      return "ok";
    } catch (error) {
      const { kind, about } = error as PluginError; // the guard throws nothing else
      return about === undefined ? kind : `denied ${about}`;
    }
  };
  /** Answers what is asked now, in its order. */
  const answer = async (...with_: Answer[]) => {
    await turn();
    for (const one of with_) {
      answers.shift()?.(one);
      await turn();
    }
  };
  /** A call, and the answers to what it sends. */
  const asks = async (place: string, given: Given, ...with_: Answer[]) => {
    const outcome = call(place, given);
    await answer(...with_);
    return outcome;
  };
  return { now, asked, call, answer, asks };
}

interface Given {
  readonly secret: string;
  readonly pin?: string;
  readonly revision?: number;
}
const TOKEN = { secret: "k" };
const PIN = { secret: "u", pin: "1234" };
const SECOND = 1_000;
const HOUR = 3_600_000;

test("an unproven secret that is refused is presented every 30 s, over all keys and operations", async () => {
  const { now, asked, asks } = guarded();
  expect(await asks("describe a", TOKEN, "denied")).toBe("denied secret");
  expect(await asks("decrypt a", TOKEN, "ok")).toBe("denied secret");
  expect(await asks("describe b", TOKEN, "ok")).toBe("denied secret");
  expect(await asks("describe a", { secret: "new" }, "denied")).toBe("denied secret");
  now.ms = 30 * SECOND - 1;
  expect(await asks("describe a", TOKEN, "ok")).toBe("denied secret");
  now.ms = 30 * SECOND;
  expect(await asks("describe b", TOKEN, "ok")).toBe("ok");
  expect(await asks("describe a", TOKEN, "ok")).toBe("ok");
  expect(asked).toEqual(["describe a", "describe a", "describe b", "describe a"]);
});

test("a PIN that a code refuses is presented once until it changes, for whatever key, in a year", async () => {
  const { now, asked, asks } = guarded();
  expect(await asks("describe a", PIN, "code")).toBe("denied secret");
  now.ms = 365 * 24 * HOUR;
  expect(await asks("describe a", PIN, "ok")).toBe("denied secret");
  expect(await asks("decrypt b", { ...PIN, revision: 2 }, "ok")).toBe("denied secret");
  expect(await asks("describe a", { ...PIN, pin: "5678" }, "ok")).toBe("ok");
  expect(asked).toEqual(["describe a", "describe a"]);
});

test("one that a page refuses is presented after 30 s, 5 minutes and an hour, and then when its file is written", async () => {
  const { now, asked, asks } = guarded();
  const first = { ...PIN, revision: 1 };
  const sentAtMs: number[] = [];
  for (; now.ms < 24 * HOUR; now.ms += 10 * SECOND) {
    const before = asked.length;
    expect(await asks(now.ms % 20_000 === 0 ? "describe a" : "decrypt b", first, "page")).toBe(
      "denied secret",
    );
    sentAtMs.push(...(asked.length > before ? [now.ms / SECOND] : []));
  }
  expect(sentAtMs).toEqual([0, 30, 330, 3_930]);
  expect(await asks("describe a", { ...PIN, revision: 2 }, "page")).toBe("denied secret");
  now.ms += 30 * SECOND;
  expect(await asks("describe a", { ...PIN, revision: 2 }, "ok")).toBe("ok");
  expect(asked.length).toBe(6);
});

test("a renewed token beside a wrong PIN does not present it more often", async () => {
  const { now, asked, asks } = guarded();
  for (let minute = 0; minute < 24 * 60; minute++) {
    expect(await asks("describe a", { ...PIN, secret: `token ${minute}` }, "code")).toBe(
      "denied secret",
    );
    now.ms += 60 * SECOND;
  }
  expect(asked.length).toBe(4);
});

test("many calls at once present a wrong secret once", async () => {
  for (const secret of [TOKEN, PIN]) {
    const { asked, call, answer } = guarded();
    const all = ["describe a", "describe a", "decrypt b", "encrypt c"].map((place) =>
      call(place, secret),
    );
    await answer("denied");
    expect(new Set(await Promise.all(all))).toEqual(new Set(["denied secret"]));
    expect(asked).toEqual(["describe a"]);
  }
});

test("once a secret is accepted, calls go side by side", async () => {
  const { asked, call, answer } = guarded();
  const all = ["describe a", "decrypt b", "decrypt c"].map((place) => call(place, PIN));
  await answer("ok");
  expect(asked).toEqual(["describe a", "decrypt b", "decrypt c"]);
  await answer("ok", "ok");
  expect(await Promise.all(all)).toEqual(["ok", "ok", "ok"]);
});

test("an outage at the first call is one for those who wait with the same operation; others go on", async () => {
  const { asked, call, answer } = guarded();
  const all = ["encrypt a", "encrypt b", "decrypt a", "decrypt b"].map((place) => call(place, PIN));
  await answer("unavailable", "ok", "ok");
  expect(await Promise.all(all)).toEqual(["unavailable", "unavailable", "ok", "ok"]);
  expect(asked).toEqual(["encrypt a", "decrypt a", "decrypt b"]);
});

test("what the first call hears of a ciphertext or a key is nothing for those who wait", async () => {
  for (const kind of ["invalid", "keyUnusable", "keyNotFound"] as const) {
    const { call, answer } = guarded();
    const [first, second] = ["decrypt a", "decrypt a"].map((place) => call(place, PIN));
    await answer(kind, "ok");
    expect([await first, await second]).toEqual([kind, "ok"]);
  }
});

test("a secret that works elsewhere: only this key and operation pause, for 30 s", async () => {
  for (const secret of [TOKEN, PIN]) {
    const { now, asked, asks } = guarded();
    expect(await asks("describe a", secret, "ok")).toBe("ok");
    expect(await asks("decrypt b", secret, "code", "ok")).toBe("denied call");
    expect(await asks("decrypt b", secret)).toBe("denied call");
    expect(await asks("describe b", secret, "ok")).toBe("ok");
    expect(await asks("decrypt a", secret, "ok")).toBe("ok");
    now.ms = 30 * SECOND;
    expect(await asks("decrypt b", secret, "ok")).toBe("ok");
    expect(asked).toEqual([
      "describe a",
      "decrypt b",
      "describe a again",
      "describe b",
      "decrypt a",
      "decrypt b",
    ]);
  }
});

test("an operation that is refused for a day stops no other, and costs a call and a control each 30 s", async () => {
  const { now, asked, asks } = guarded();
  for (let second = 0; second < 24 * 3_600; second += 10) {
    now.ms = second * SECOND;
    expect(await asks("describe a", PIN, "ok")).toBe("ok");
    expect(await asks("encrypt a", PIN, "code", "ok")).toBe("denied call");
    expect(await asks("decrypt a", PIN, "ok")).toBe("ok");
  }
  const refused = asked.filter((one) => one === "encrypt a").length;
  expect(refused).toBe((24 * 3_600) / 30);
  expect(asked.filter((one) => one.endsWith("again")).length).toBe(refused);
});

test("a secret that worked and is refused twice is refused everywhere; it is presented twice", async () => {
  const { now, asked, asks } = guarded();
  expect(await asks("describe a", PIN, "ok")).toBe("ok");
  expect(await asks("decrypt a", PIN, "code", "code")).toBe("denied secret");
  now.ms = 365 * 24 * HOUR;
  expect(await asks("describe a", PIN)).toBe("denied secret");
  expect(await asks("decrypt b", PIN)).toBe("denied secret");
  expect(asked).toEqual(["describe a", "decrypt a", "describe a again"]);
});

test("a right that is withdrawn from the operation that was accepted last: the control is another one", async () => {
  const { asked, asks } = guarded();
  expect(await asks("describe a", PIN, "ok")).toBe("ok");
  expect(await asks("decrypt a", PIN, "ok")).toBe("ok");
  expect(await asks("decrypt a", PIN, "code", "ok")).toBe("denied call");
  expect(asked.at(-1)).toBe("describe a again");
});

test("calls that are refused at the same time make one control, and others wait for it", async () => {
  const { asked, asks, call, answer } = guarded();
  expect(await asks("describe a", PIN, "ok")).toBe("ok");
  const refused = ["decrypt a", "decrypt a", "decrypt b"].map((place) => call(place, PIN));
  await answer("code", "code", "code");
  const waits = call("describe b", PIN);
  await answer("code");
  expect(new Set(await Promise.all([...refused, waits]))).toEqual(new Set(["denied secret"]));
  expect(asked).toEqual(["describe a", "decrypt a", "decrypt a", "decrypt b", "describe a again"]);
});

test("a control that is not answered does not give up a PIN for good", async () => {
  const { now, asked, asks } = guarded();
  expect(await asks("describe a", PIN, "ok")).toBe("ok");
  expect(await asks("decrypt b", PIN, "code", "unavailable")).toBe("denied secret");
  now.ms = 30 * SECOND;
  expect(await asks("describe a", PIN, "ok")).toBe("ok");
  expect(asked).toEqual(["describe a", "decrypt b", "describe a again", "describe a"]);
});

test("a control whose key is disabled by now is accepted: the service says so of the key", async () => {
  const { asks } = guarded();
  expect(await asks("describe a", PIN, "ok")).toBe("ok");
  expect(await asks("decrypt b", PIN, "code", "keyUnusable")).toBe("denied call");
});

test("a secret comes back: a call that has worked goes first, so that one that never will does not stop the others", async () => {
  const { now, asked, asks } = guarded();
  expect(await asks("decrypt a", TOKEN, "ok")).toBe("ok");
  expect(await asks("describe a", TOKEN, "ok")).toBe("ok");
  expect(await asks("encrypt b", TOKEN, "page", "page")).toBe("denied secret");
  now.ms = 30 * SECOND;
  expect(await asks("encrypt b", TOKEN, "ok", "code", "ok")).toBe("denied call");
  expect(await asks("describe a", TOKEN, "ok")).toBe("ok");
  expect(asked.slice(4)).toEqual(["decrypt a again", "encrypt b", "decrypt a again", "describe a"]);
});

test("a right that is missing from the start: at the next turn another call that waits goes first, once", async () => {
  const { now, asked, asks } = guarded();
  expect(await asks("describe a", TOKEN, "denied")).toBe("denied secret");
  expect(await asks("decrypt a", TOKEN)).toBe("denied secret");
  now.ms = 30 * SECOND;
  expect(await asks("describe a", TOKEN, "ok", "denied", "ok")).toBe("denied call");
  expect(await asks("decrypt a", TOKEN, "ok")).toBe("ok");
  const ofOnePlace = ["decrypt a again", "describe a", "decrypt a again"];
  expect(asked).toEqual(["describe a", ...ofOnePlace, "decrypt a"]);
});

test("where the call that waits is refused too, turns are taken, and each presents the secret once", async () => {
  const { now, asked, asks } = guarded();
  for (const ms of [0, 30, 60, 90].map((seconds) => seconds * SECOND)) {
    now.ms = ms;
    for (const place of ["describe a", "decrypt a"]) {
      expect(await asks(place, TOKEN, "denied")).toBe("denied secret");
    }
  }
  expect(asked).toEqual(["describe a", "decrypt a again", "describe a", "decrypt a again"]);
});

test("a new PIN does not wait for the old one's call, nor fail with it", async () => {
  const { asked, call, answer } = guarded();
  const old = call("describe a", PIN);
  const renewed = call("describe a", { ...PIN, pin: "5678" });
  await turn();
  expect(asked).toEqual(["describe a", "describe a"]);
  await answer("code", "ok");
  expect([await old, await renewed]).toEqual(["denied secret", "ok"]);
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
