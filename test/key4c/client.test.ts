import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { brotliCompressSync, gzipSync } from "node:zlib";
import type { ErrorKind } from "../../src/failures/kinds.ts";
import { PluginError } from "../../src/failures/plugin-error.ts";
import defaultProfile from "../../src/key4c/key4c.profile.json";
import { DEFAULT_PROFILE, parseProfile } from "../../src/key4c/profile.ts";
import { TestClock, within } from "../clock.ts";
import { emulator, fakeServer, key4cClient, kindOf, onTestEnd, recordingLog } from "../support.ts";

const LOCAL_KEK = randomBytes(32);
const RIGHT = LOCAL_KEK.toString("base64");
const AAD = Buffer.from("aad");

test("wraps, unwraps and describes by the contract", async () => {
  const { url } = emulator();
  const key4c = key4cClient({ url });
  const wrapped = await key4c.wrap("demo", LOCAL_KEK, AAD);
  expect(wrapped).toMatchObject({ version: 1, aadSent: true });
  expect(await key4c.unwrap("demo", wrapped.ciphertext, AAD)).toEqual(LOCAL_KEK);
  const kcv = expect.stringMatching(/^[0-9A-F]{6}$/);
  expect(await key4c.describe("demo")).toEqual({ version: 1, kcv, algorithm: "AES" });
  expect(await kindOf(key4c.unwrap("demo", wrapped.ciphertext, Buffer.from("x")))).toBe("invalid");
  expect(await kindOf(key4c.unwrap("demo", "AAAA", AAD))).toBe("invalid");
});

test("a rotated key has a higher version and unwraps what older ones wrapped", async () => {
  const { url, control } = emulator();
  const key4c = key4cClient({ url });
  const { ciphertext } = await key4c.wrap("demo", LOCAL_KEK, AAD);
  const { kcv } = await key4c.describe("demo");
  await control("POST", "keys/demo/rotate");
  const rotated = await key4c.describe("demo");
  expect(rotated.version).toBe(2);
  expect(rotated.kcv).not.toBe(kcv);
  expect(await key4c.wrap("demo", LOCAL_KEK, AAD)).toMatchObject({ version: 2 });
  expect(await key4c.unwrap("demo", ciphertext, AAD)).toEqual(LOCAL_KEK);
});

test("a key that is disabled or deleted is unusable, one that is missing is not found", async () => {
  const { url, control } = emulator();
  const key4c = key4cClient({ url });
  const { ciphertext } = await key4c.wrap("demo", LOCAL_KEK, AAD);
  for (const action of ["disable", "delete"]) {
    await control("POST", `keys/demo/${action}`);
    expect(await kindOf(key4c.describe("demo"))).toBe("keyUnusable");
    expect(await kindOf(key4c.wrap("demo", LOCAL_KEK, AAD))).toBe("keyUnusable");
    expect(await kindOf(key4c.unwrap("demo", ciphertext, AAD))).toBe("keyUnusable");
  }
  await control("POST", "keys/demo/enable");
  expect(await key4c.unwrap("demo", ciphertext, AAD)).toEqual(LOCAL_KEK);
  for (const call of [
    () => key4c.describe("other"),
    () => key4c.unwrap("other", ciphertext, AAD),
  ]) {
    expect(await failureOf(call())).toMatchObject({ kind: "keyNotFound", isByContract: true });
  }
});

test("sends the headers of the contract, and no Authorization without an API key", async () => {
  const server = fakeServer(() => Response.json({ plaintext: LOCAL_KEK.toString("base64") }));
  const plain = key4cClient({ url: server.url });
  await plain.unwrap("a/b", "c", AAD, { requestId: "0f3b1c6e-0000-4000-8000-000000000000" });
  const first = server.requests[0]?.request;
  expect(new URL(first?.url ?? "").pathname).toBe("/v1/keys/a%2Fb/decrypt");
  expect(first?.headers.get("X-Key4C-User-Id")).toBe("test-user");
  expect(first?.headers.get("X-Request-Id")).toBe("0f3b1c6e-0000-4000-8000-000000000000");
  expect(first?.headers.get("User-Agent")).toBe("key4c-kms-plugin/test");
  expect(first?.headers.get("Authorization")).toBeNull();
  expect(JSON.parse(server.requests[0]?.body ?? "")).toEqual({
    ciphertext: "c",
    aad: AAD.toString("base64"),
  });

  const credentials = () => ({ userId: "u", apiKey: "k" });
  await key4cClient({ url: server.url, credentials }).unwrap("demo", "c", undefined);
  const second = server.requests[1];
  expect(second?.request.headers.get("Authorization")).toBe("Bearer k");
  expect(second?.request.headers.get("X-Request-Id")).toMatch(/^[0-9a-f-]{36}$/);
  expect(JSON.parse(second?.body ?? "")).toEqual({ ciphertext: "c" });
});

/** The error with which a promise fails. */
async function failureOf(promise: Promise<unknown>): Promise<PluginError> {
  const error = await promise.then(
    () => new Error("it did not fail"),
    (reason: unknown) => reason,
  );
  if (error instanceof PluginError) {
    return error;
  }
  throw error;
}

const FOR_CALLER = { isForCaller: true };
const html = "<html>Forbidden</html>";
const json = (code: unknown, status: number) => () => Response.json({ code }, { status });
const page = (status: number) => () => new Response(html, { status });

/** What is final; only a code of the contract is a verdict. */
const ANSWERS: [string, () => Response, ErrorKind, boolean][] = [
  ["401", json("DENIED", 401), "denied", true],
  ["403", json("DENIED", 403), "denied", true],
  ["a gateway's 401", page(401), "denied", false],
  ["a gateway's 403", page(403), "denied", false],
  ["a gateway's JSON 403", json("waf-block", 403), "denied", false],
  ["404", json("KEY_NOT_FOUND", 404), "keyNotFound", true],
  ["409", json("KEY_DISABLED", 409), "keyUnusable", true],
  ["a code that outranks its status", json("KEY_DELETED", 401), "keyUnusable", true],
  ["400", json("INVALID_CIPHERTEXT", 400), "invalid", true],
  ["422", json("INVALID_CIPHERTEXT", 422), "invalid", true],
  ["429", json("THROTTLED", 429), "throttled", true],
  ["a gateway's 429", page(429), "throttled", false],
];

test.each(ANSWERS)(
  "an answer is told by its kind and not tried again: %s",
  async (_, answer, kind, isByContract) => {
    const server = fakeServer(answer);
    const key4c = key4cClient({ url: server.url });
    const failure = await failureOf(key4c.unwrap("demo", "c", AAD, FOR_CALLER));
    expect([failure.kind, failure.isByContract]).toEqual([kind, isByContract]);
    expect(server.requests.length).toBe(1);
  },
);

/** Fails twice, then works: what is unavailable is tried again inside the budget. */
const FAILURES: [string, () => Response][] = [
  ["500", json("OOPS", 500)],
  ["503", () => new Response("", { status: 503 })],
  ["503 in JSON", json("SEALED", 503)],
  ["418", () => new Response("", { status: 418 })],
  ["a gateway's 400", page(400)],
  ["a gateway's 404", page(404)],
  ["a 404 of another server", () => Response.json({ error: "no route" }, { status: 404 })],
  ["409 without a code", () => Response.json({}, { status: 409 })],
  ["a code that is no text", json(["KEY_DELETED"], 409)],
  ["a redirect", () => Response.redirect("http://127.0.0.1:9/", 302)],
  ["not JSON", () => new Response(html)],
  ["JSON without the result", () => Response.json({})],
  ["a result that is no text", () => Response.json({ plaintext: 7 })],
  ["no base64", () => Response.json({ plaintext: "?" })],
  ["31 bytes", () => Response.json({ plaintext: randomBytes(31).toString("base64") })],
  ["unpadded base64", () => Response.json({ plaintext: LOCAL_KEK.toString("base64url") })],
  [
    "64 KiB and more",
    () => new Response(`${JSON.stringify({ plaintext: RIGHT })}${" ".repeat(65_536)}`),
  ],
];

test("what makes no sense is tried again, and no verdict", async () => {
  await Promise.all(
    FAILURES.map(async ([name, failure]) => {
      let left = 2;
      const server = fakeServer(() =>
        left-- > 0 ? failure() : Response.json({ plaintext: LOCAL_KEK.toString("base64") }),
      );
      const key4c = key4cClient({ url: server.url });
      const kind = await kindOf(key4c.unwrap("demo", "c", AAD, FOR_CALLER));
      expect([name, kind, server.requests.length]).toEqual([name, "ok", 3]);
      const broken = key4cClient({ url: fakeServer(failure).url });
      const { kind: told, isByContract } = await failureOf(broken.unwrap("demo", "c", AAD));
      expect([name, told, isByContract]).toEqual([name, "unavailable", false]);
    }),
  );
});

const ANSWER = JSON.stringify({ plaintext: RIGHT });
const encoded = (body: Buffer | string, encoding: string) => () =>
  new Response(body, { headers: { "Content-Encoding": encoding } });

test("gzip that nobody asked for, and a mark of byte order, are read", async () => {
  for (const answer of [
    encoded(gzipSync(ANSWER), "gzip"),
    encoded(gzipSync(ANSWER), "X-Gzip"),
    () => new Response(`\ufeff${ANSWER}`),
  ]) {
    const key4c = key4cClient({ url: fakeServer(answer).url });
    expect(await key4c.unwrap("demo", "c", AAD)).toEqual(LOCAL_KEK);
  }
});

test("an answer that is not JSON is called what it is", async () => {
  for (const [answer, cause] of [
    [() => new Response(null, { status: 204 }), /empty, with HTTP status 204$/],
    [() => new Response(" "), /empty, with HTTP status 200$/],
    [() => new Response(html), /a page \(HTML or XML\)/],
    [() => new Response(Buffer.from(`\ufeff${ANSWER}`, "utf16le")), /UTF-16/],
    [() => new Response(Buffer.from(ANSWER, "utf16le")), /UTF-16/],
    [
      encoded(brotliCompressSync(ANSWER), "br"),
      /compressed \(Content-Encoding: br\), which nobody/,
    ],
    [encoded(html, "identity"), /a page \(HTML or XML\)/],
    [encoded(ANSWER.slice(0, 20), "gzip"), /compressed \(Content-Encoding: gzip\)/],
    [encoded(gzipSync(html), "gzip"), /a page \(HTML or XML\)|compressed/],
    [encoded(gzipSync(Buffer.alloc(1024 * 1024, " ")), "gzip"), /larger than allowed$/],
    [() => new Response("plaintext=AAAA"), /not JSON$/],
  ] as const) {
    const key4c = key4cClient({ url: fakeServer(answer).url });
    const failure = await failureOf(key4c.unwrap("demo", "c", AAD, { newConnection: true }));
    expect(failure.message).toMatch(cause);
    expect(failure.remedy).toMatch(/KEY4C_PROFILE.*do not restart/);
  }
});

/** Codes that the profile does not list. Those of a 4xx would be the same at the next try. */
const UNLISTED: [unknown, number, boolean][] = [
  ["WHATEVER", 400, true],
  ["WHATEVER", 422, true],
  ["400", 400, true], // a status is no code
  [404, 404, true],
  ["constructor", 422, true], // nor is a method of objects
  ["WHATEVER", 408, false],
  ["WHATEVER", 425, false],
  ["WHATEVER", 500, false],
  ["WHATEVER", 503, false],
];

test.each(UNLISTED)(
  "a code that is not listed, %p with status %p, is an outage, and final with a 4xx",
  async (code, status, isFinal) => {
    let left = 2;
    const server = fakeServer(() =>
      left-- > 0 ? json(code, status)() : Response.json({ plaintext: RIGHT }),
    );
    const key4c = key4cClient({ url: server.url });
    if (!isFinal) {
      expect(await key4c.unwrap("demo", "c", AAD, FOR_CALLER)).toEqual(LOCAL_KEK);
      expect(server.requests.length).toBe(3);
      return;
    }
    for (const call of [
      () => key4c.unwrap("demo", "c", AAD, FOR_CALLER),
      () => key4c.describe("demo"),
    ]) {
      const failure = await failureOf(call());
      expect(failure).toMatchObject({ kind: "unavailable", isByContract: false, isUnlisted: true });
    }
    expect(server.requests.length).toBe(2);
  },
);

test("only a decrypt can be invalid: to a describe and an encrypt it is a failure of Key4C", async () => {
  const server = fakeServer(json("INVALID_CIPHERTEXT", 400));
  const key4c = key4cClient({ url: server.url });
  for (const call of [() => key4c.describe("demo"), () => key4c.wrap("demo", LOCAL_KEK, AAD)]) {
    expect(await failureOf(call())).toMatchObject({ kind: "unavailable", isByContract: false });
  }
});

test("a state of describe is a verdict, as a code is", async () => {
  for (const state of ["DISABLED", "DELETED"]) {
    const server = fakeServer(() => Response.json({ version: 1, state }));
    const failure = await failureOf(key4cClient({ url: server.url }).describe("demo"));
    expect(failure).toMatchObject({ kind: "keyUnusable", isByContract: true });
    expect(server.requests.length).toBe(1);
  }
});

test("a status that a profile maps is no verdict, and nothing at all on a gateway's page", async () => {
  const statuses = { "404": "keyUnusable", "400": "invalid" } as const;
  const profile = { ...DEFAULT_PROFILE, errors: { codes: {}, statuses } };
  const kindAndVerdict = async (answer: () => Response) => {
    const key4c = key4cClient({ url: fakeServer(answer).url, profile });
    const { kind, isByContract } = await failureOf(key4c.unwrap("demo", "c", AAD));
    return [kind, isByContract];
  };
  expect(await kindAndVerdict(json("X", 404))).toEqual(["keyUnusable", false]);
  expect(await kindAndVerdict(json("X", 400))).toEqual(["invalid", false]);
  expect(await kindAndVerdict(page(404))).toEqual(["unavailable", false]);
  expect(await kindAndVerdict(page(400))).toEqual(["unavailable", false]);
});

test("a Retry-After is told in milliseconds, whatever its form", async () => {
  const inAnHour = new Date(Date.now() + 3_600_000).toUTCString();
  for (const [value, minMs, maxMs] of [
    ["60", 60_000, 60_000],
    ["0", 0, 0],
    [inAnHour, 3_500_000, 3_600_000],
    ["Wed, 21 Oct 2015 07:28:00 GMT", 0, 0],
  ] as const) {
    const headers = { "Retry-After": value };
    const server = fakeServer(() => new Response("", { status: 429, headers }));
    const { retryAfterMs } = await failureOf(key4cClient({ url: server.url }).describe("demo"));
    expect(retryAfterMs).toBeGreaterThanOrEqual(minMs);
    expect(retryAfterMs).toBeLessThanOrEqual(maxMs);
  }
  const none = fakeServer(page(429));
  const failure = await failureOf(key4cClient({ url: none.url }).describe("demo"));
  expect(failure.retryAfterMs).toBeUndefined();
});

/** A client on a clock of the test, and the attempts that its network saw. */
function onTestClock(answer: (attempt: number) => Response | Promise<Response>) {
  const clock = new TestClock();
  const attempts: { readonly atMs: number; readonly init: BunFetchRequestInit }[] = [];
  const credentials = { userId: "first" };
  const key4c = key4cClient({
    url: "http://key4c",
    clock,
    credentials: () => credentials,
    async fetch(_, init) {
      attempts.push({ atMs: clock.nowMs(), init });
      return answer(attempts.length);
    },
  });
  return { key4c, clock, attempts, credentials };
}

test("for a caller it is tried again for up to ten seconds, each time on a new connection", async () => {
  const { key4c, clock, attempts } = onTestClock(() => new Response("", { status: 503 }));
  let failedAttempts = 0;
  const onFailedAttempt = () => {
    failedAttempts += 1;
  };
  const call = kindOf(key4c.unwrap("demo", "c", AAD, { ...FOR_CALLER, onFailedAttempt }));
  expect(await within(clock, 10_000, call)).toBe("unavailable");
  const pausesMs = attempts.slice(1).map(({ atMs }, at) => atMs - (attempts[at]?.atMs ?? 0));
  expect(pausesMs.slice(0, 6)).toEqual([50, 100, 200, 250, 250, 250]); // a half of 100, 200, 400, 500, …
  expect(attempts.at(-1)?.atMs).toBeGreaterThan(9_000);
  expect(failedAttempts).toBe(attempts.length - 1); // one that nothing follows is told by the error
  expect(attempts.map(({ init }) => init.keepalive)).toEqual([
    true,
    ...Array(attempts.length - 1).fill(false),
  ]);
  expect(clock.timers).toBe(0);
});

test.each([
  ["nobody", {}, [true, false]],
  ["nobody, on a new connection", { newConnection: true }, [false]],
])("for %s it is tried no longer than a dead connection needs", async (_, options, keepalive) => {
  const { key4c, clock, attempts } = onTestClock(() => new Response("", { status: 503 }));
  for (const call of [
    () => key4c.describe("demo", options),
    () => key4c.wrap("demo", LOCAL_KEK, AAD, options),
    () => key4c.unwrap("demo", "c", AAD, options),
  ]) {
    attempts.length = 0;
    expect(await within(clock, 1_000, kindOf(call()))).toBe("unavailable");
    expect(attempts.map(({ init }) => init.keepalive as unknown)).toEqual(keepalive);
  }
});

test("attempts that hang end after 2.5 s each, and all of them after ten", async () => {
  const hang = ({ signal }: BunFetchRequestInit) =>
    new Promise<Response>((_, reject) => {
      signal?.addEventListener("abort", () => reject(signal.reason));
    });
  const clock = new TestClock();
  const endsMs: number[] = [];
  const key4c = key4cClient({
    url: "http://key4c",
    clock,
    fetch: (_, init) => hang(init).finally(() => endsMs.push(clock.nowMs())),
  });
  expect(await within(clock, 6_000, kindOf(key4c.describe("demo")))).toBe("unavailable");
  expect(endsMs).toEqual([2_500, 5_050]);
  const startMs = clock.nowMs();
  endsMs.length = 0;
  const call = kindOf(key4c.unwrap("demo", "c", AAD, FOR_CALLER));
  expect(await within(clock, 11_000, call)).toBe("unavailable");
  expect(endsMs.map((ms) => ms - startMs)).toEqual([2_500, 5_050, 7_650, 10_000]);
  expect(clock.timers).toBe(0);
});

test("a secret that Key4C refused is not tried for 30 s, for any key; a changed one at once", async () => {
  let isDenied = true;
  const { key4c, clock, attempts, credentials } = onTestClock(() =>
    isDenied
      ? Response.json({ code: "DENIED" }, { status: 401 })
      : Response.json({ plaintext: RIGHT, version: 1 }),
  );
  const unwrap = (keyId: string) => kindOf(key4c.unwrap(keyId, "c", AAD, FOR_CALLER));
  const first = await failureOf(key4c.describe("demo"));
  for (let second = 0; second < 29; second++) {
    await clock.pass(1_000);
    expect([await unwrap("demo"), await kindOf(key4c.describe("demo"))]).toEqual([
      "denied",
      "denied",
    ]);
  }
  expect(attempts.length).toBe(1);
  expect(await failureOf(key4c.describe("demo"))).toBe(first); // as Key4C said it
  expect(first.about).toBe("secret");
  expect(await unwrap("other")).toBe("denied");
  expect(attempts.length).toBe(1);
  await clock.pass(1_000);
  expect(await unwrap("demo")).toBe("denied");
  expect(attempts.length).toBe(2);

  isDenied = false;
  expect(await unwrap("demo")).toBe("denied"); // nobody knows yet
  credentials.userId = "second";
  expect(await unwrap("demo")).toBe("ok");
  credentials.userId = "first";
  expect([await unwrap("demo"), await unwrap("other")]).toEqual(["denied", "denied"]); // it is that secret
  await clock.pass(30_000);
  expect([await unwrap("demo"), await unwrap("other")]).toEqual(["ok", "ok"]);
});

test("a right that is missing on one key: that call pauses, after one control that shows nothing of the local KEK", async () => {
  const { clock, attempts, key4c } = onTestClock((attempt) =>
    attempt === 2
      ? json("DENIED", 403)()
      : Response.json({ plaintext: RIGHT, version: 1, ciphertext: "c", state: "ENABLED" }),
  );
  expect(await kindOf(key4c.wrap("demo", LOCAL_KEK, AAD))).toBe("ok");
  const refused = await failureOf(key4c.unwrap("other", "c", AAD, FOR_CALLER));
  expect(refused).toMatchObject({ kind: "denied", isByContract: true, about: "call" });
  expect(refused.message).toBe(
    "Key4C answered decrypt with HTTP status 403 DENIED; the same credential is accepted for encrypt",
  );
  const control = JSON.parse(String(attempts[2]?.init.body));
  expect(Buffer.from(control.plaintext, "base64").length).toBe(32);
  expect(control.plaintext).not.toBe(RIGHT);
  expect(attempts[2]?.init.keepalive).toBe(false);
  expect(await kindOf(key4c.unwrap("demo", "c", AAD))).toBe("ok");
  expect(await kindOf(key4c.unwrap("other", "c", AAD))).toBe("denied");
  expect(attempts.length).toBe(4);
  await clock.pass(30_000);
  expect(await kindOf(key4c.unwrap("other", "c", AAD))).toBe("ok");
});

test("a control that does not reach Key4C is an outage, for the call that waits for it too", async () => {
  let isAway = false;
  const { key4c, clock, attempts } = onTestClock((attempt) => {
    if (isAway) {
      throw Object.assign(new Error("refused"), { code: "ECONNREFUSED" });
    }
    return attempt === 3 || attempt === 4
      ? json("DENIED", 401)()
      : Response.json({ plaintext: RIGHT, version: 1, ciphertext: "c", state: "ENABLED" });
  });
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  expect(await kindOf(key4c.unwrap("demo", "c", AAD))).toBe("ok");
  expect(await kindOf(key4c.wrap("demo", LOCAL_KEK, AAD))).toBe("denied"); // and so is the control
  isAway = true;
  await clock.pass(30_000);
  const failure = await failureOf(key4c.wrap("demo", LOCAL_KEK, AAD));
  expect(failure.message).toBe("describe did not reach Key4C: nobody listens there (ECONNREFUSED)");
  expect([failure.kind, attempts.length]).toEqual(["unavailable", 5]);
});

test("what an accepted call did not carry is not proven by it", async () => {
  const pins: string[] = [];
  const decrypt = { ...defaultProfile.decrypt, headers: { "X-Pin": "{pin}" } };
  const profile = parseProfile(JSON.stringify({ ...defaultProfile, decrypt }));
  const server = fakeServer((request) => {
    const pin = request.headers.get("X-Pin");
    if (pin !== null) {
      pins.push(pin);
      return json("DENIED", 401)();
    }
    return Response.json({ version: 1, state: "ENABLED" });
  });
  const credentials = () => ({ userId: "u", apiKey: "k", pin: "wrong" });
  const key4c = key4cClient({ url: server.url, profile, credentials });
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  const failure = await failureOf(key4c.unwrap("demo", "c", AAD, FOR_CALLER));
  expect(failure).toMatchObject({ kind: "denied", about: "secret" });
  expect(failure.message).toEndWith("this PIN is not presented again before it changes");
  expect(await kindOf(key4c.unwrap("other", "c", AAD, FOR_CALLER))).toBe("denied");
  expect(await kindOf(key4c.describe("demo"))).toBe("ok");
  expect(pins).toEqual(["wrong"]);
});

test("a key check value is hexadecimal, in capitals; what has another form is taken for none", async () => {
  for (const [kcv, expected] of [
    ["a1b2c3", "A1B2C3"],
    ["A1B2", "A1B2"],
    ["0".repeat(64), "0".repeat(64)],
    ["A1B", undefined],
    ["0".repeat(65), undefined],
    ["A1B2CG", undefined],
    ["A1:B2:C3", undefined],
    [123456, undefined],
    [null, undefined],
  ]) {
    const server = fakeServer(() => Response.json({ version: 1, kcv }));
    const told = await key4cClient({ url: server.url }).describe("demo");
    expect([kcv, told.kcv]).toEqual([kcv, expected as never]);
  }
});

test("a retry takes a new connection: where one kept one is dead, the others are", async () => {
  const answer = JSON.stringify({ version: 1, ciphertext: "c" });
  const gate = Promise.withResolvers<void>();
  const server = Bun.listen<{ used: boolean }>({
    hostname: "127.0.0.1",
    port: 0,
    socket: {
      open(socket) {
        socket.data = { used: false };
      },
      async data(socket) {
        if (socket.data.used) {
          socket.terminate(); // as what lies between does with what it has forgotten
          return;
        }
        socket.data.used = true;
        await gate.promise;
        socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${answer.length}\r\n\r\n${answer}`);
      },
    },
  });
  onTestEnd(() => server.stop(true));
  const key4c = key4cClient({ url: `http://127.0.0.1:${server.port}` });
  const wrap = () => kindOf(key4c.wrap("demo", LOCAL_KEK, AAD)); // twice, and the second on a new one
  const many = Array.from({ length: 8 }, wrap);
  setTimeout(gate.resolve, 100);
  expect(new Set(await Promise.all(many))).toEqual(new Set(["ok"]));
  expect(await wrap()).toBe("ok");
});

test("an attempt that hangs ends in time for another", async () => {
  let hang = true;
  const server = fakeServer(() => {
    const answer = hang ? new Promise<Response>(() => {}) : Response.json({ plaintext: RIGHT });
    hang = false;
    return answer;
  });
  expect(await key4cClient({ url: server.url }).unwrap("demo", "c", AAD)).toEqual(LOCAL_KEK);
  expect(server.requests.length).toBe(2);
});

test("what the probe asks is asked twice, and a 400 to it is no fault of a ciphertext", async () => {
  const server = fakeServer(() => new Response("", { status: 400 }));
  const key4c = key4cClient({ url: server.url });
  expect(await kindOf(key4c.describe("demo"))).toBe("unavailable");
  expect(await kindOf(key4c.wrap("demo", LOCAL_KEK, AAD))).toBe("unavailable");
  expect(server.requests.length).toBe(4);
});

const NO_VERSIONS = [0, -1, 1.5, null, 2 ** 32, "0", "3 ", "3.0", "0x3", "", "4294967296"];
test.each(NO_VERSIONS)("a version of %p is refused", async (version) => {
  const server = fakeServer(() => Response.json({ version, ciphertext: "c", state: "ENABLED" }));
  const key4c = key4cClient({ url: server.url });
  expect(await kindOf(key4c.describe("demo"))).toBe("unavailable");
  expect(await kindOf(key4c.wrap("demo", LOCAL_KEK, AAD))).toBe("unavailable");
});

test.each([3, "3"])("a version of %p is 3", async (version) => {
  const server = fakeServer(() => Response.json({ version, ciphertext: "c", state: "ENABLED" }));
  const key4c = key4cClient({ url: server.url });
  expect(await key4c.describe("demo")).toMatchObject({ version: 3 });
  expect(await key4c.wrap("demo", LOCAL_KEK, AAD)).toMatchObject({ version: 3 });
});

test.each(["", "\ud800", "x".repeat(16 * 1024 + 1), 7, null])(
  "a wrapped KEK of %p is refused",
  async (ciphertext) => {
    const server = fakeServer(() => Response.json({ version: 1, ciphertext }));
    const key4c = key4cClient({ url: server.url });
    expect(await kindOf(key4c.wrap("demo", LOCAL_KEK, AAD))).toBe("unavailable");
  },
);

test("AAD that was sent with a local KEK is not left out in silence", async () => {
  const profile = parseProfile(
    JSON.stringify({
      encrypt: { method: "POST", path: "/e", body: "{plaintext}", result: { ciphertext: "/c" } },
      decrypt: { method: "POST", path: "/d", body: "{ciphertext}", result: { plaintext: "/p" } },
    }),
  );
  const server = fakeServer(() => Response.json({}));
  expect(await kindOf(key4cClient({ url: server.url, profile }).unwrap("demo", "c", AAD))).toBe(
    "invalid",
  );
  expect(server.requests.length).toBe(0);
});

test("neither log nor error shows a credential, a key or an answer", async () => {
  const { log, lines } = recordingLog();
  const secret = "s3cr3t-token";
  const server = fakeServer(() =>
    Response.json({ code: `${secret} !`, message: secret }, { status: 403 }),
  );
  const credentials = () => ({ userId: secret, apiKey: secret });
  const key4c = key4cClient({ url: server.url, log, credentials });
  const error = await key4c.wrap("demo", LOCAL_KEK, AAD).catch((reason) => reason);
  const shown = JSON.stringify(lines) + Bun.inspect(error);
  expect(lines.length).toBeGreaterThan(0);
  expect(shown).not.toContain(secret);
  expect(shown).not.toContain(LOCAL_KEK.toString("base64"));
});

test("a URL with a credential in its path is not shown when the answer is no HTTP", async () => {
  const secret = "secret-app-key";
  const server = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: { data: (socket) => void socket.end("garbage\r\n\r\n") },
  });
  onTestEnd(() => server.stop(true));
  const path = "/{userId}/d";
  const profile = { ...DEFAULT_PROFILE, decrypt: { ...DEFAULT_PROFILE.decrypt, path } };
  const { log, lines } = recordingLog();
  const key4c = key4cClient({
    url: `http://127.0.0.1:${server.port}`,
    profile: { ...profile, encrypt: { ...DEFAULT_PROFILE.encrypt, path } },
    credentials: () => ({ userId: secret }),
    log,
  });
  const error = await key4c.wrap("demo", LOCAL_KEK, AAD).catch((reason) => reason);
  expect(error.message).toStartWith("encrypt did not reach Key4C: ");
  expect(JSON.stringify(lines) + error.message).not.toContain(secret);
});

/** What describe tells with a version found so. */
async function versionOf(source: object, version: unknown) {
  const describe = { ...defaultProfile.describe, result: { version: source, state: "/state" } };
  const profile = parseProfile(JSON.stringify({ ...defaultProfile, describe }));
  const server = fakeServer(() => Response.json({ version, state: "ENABLED" }));
  return key4cClient({ url: server.url, profile })
    .describe("demo")
    .then(
      (told) => told.version,
      (error: PluginError) => error.message,
    );
}

test("versions that begin at 0, and those within a text", async () => {
  const at = { pointer: "/version" };
  expect(await versionOf({ ...at, first: 0 }, 0)).toBe(1);
  expect(await versionOf({ ...at, first: 0 }, "7")).toBe(8);
  expect(await versionOf({ ...at, first: 0 }, 2 ** 32 - 2)).toBe(2 ** 32 - 1);
  expect(await versionOf({ ...at, first: 0 }, -1)).toBe(
    "Key4C's answer to describe: -1 at /version is not a version of 0 or more",
  );
  expect(await versionOf({ ...at, first: 0 }, 2 ** 32 - 1)).toContain("is not a version");
  const within = { ...at, after: "ncpkms:v", before: ":" };
  expect(await versionOf(within, "ncpkms:v12:AA:v3:")).toBe(12);
  expect(await versionOf({ ...at, after: "/cryptoKeyVersions/" }, "k/cryptoKeyVersions/3")).toBe(3);
  expect(await versionOf({ ...at, before: "." }, "3.AAAA")).toBe(3);
  for (const text of ["ncpkms:v12", "v12:", "ncpkms:v:", "ncpkms:v1 :", "ncpkms:v0x1:", ""]) {
    expect(await versionOf(within, text)).toMatch(
      /^Key4C's answer to describe: "[^"]*" at \/version is not a version of 1 or more$/,
    );
  }
});

test("a version may have leading zeros: rev-0009 is followed by rev-0010", async () => {
  const at = { pointer: "/version", after: "rev-", first: 0 };
  const versions = ["rev-0000", "rev-0009", "rev-0010", "rev-10000"].map((text) =>
    versionOf(at, text),
  );
  expect(await Promise.all(versions)).toEqual([1, 10, 11, 10_001]);
});

test.each([
  [{ pointer: "/kcv", encoding: "base64url" }, "_2dpSQ", "FF676949"],
  ["/kcv", "8f3a2", "8F3A2"],
  [{ pointer: "/kcv", encoding: "base64" }, "_2dpSQ", undefined],
])("a key check value at %p: %s is %s", async (kcv, told, wanted) => {
  const result = { version: "/version", state: "/state", kcv };
  const describe = { ...defaultProfile.describe, result };
  const profile = parseProfile(JSON.stringify({ ...defaultProfile, describe }));
  const server = fakeServer(() => Response.json({ version: 1, state: "ENABLED", kcv: told }));
  expect((await key4cClient({ url: server.url, profile }).describe("demo")).kcv).toBe(wanted);
});

test("of several places for a code the first that finds one counts", async () => {
  const errors = {
    code: ["/error/code", "/code", "/rc"],
    codes: { A: "denied", "7": "throttled" },
  };
  const profile = parseProfile(JSON.stringify({ ...defaultProfile, errors }));
  for (const [answer, kind] of [
    [{ code: "A" }, "denied"],
    [{ error: { code: "A" }, code: "B" }, "denied"],
    [{ error: { code: null }, code: "A" }, "denied"],
    [{ error: { code: "" }, rc: 7 }, "throttled"],
    [{ error: { code: "B" }, code: "A" }, "unavailable"],
  ] as const) {
    const server = fakeServer(() => Response.json(answer, { status: 400 }));
    const key4c = key4cClient({ url: server.url, profile });
    expect([answer, await kindOf(key4c.describe("demo"))]).toEqual([answer, kind]);
  }
});

test("a form login at its own address, and a content type of the profile", async () => {
  const login = fakeServer((_, body) =>
    body === "grant_type=client_credentials&client_id=u&client_secret=k+%26%3D%25%2B"
      ? Response.json({ access_token: "the-token", expires_in: 300 })
      : Response.json({ error: "invalid_client" }, { status: 401 }),
  );
  const profile = parseProfile(
    JSON.stringify({
      ...defaultProfile,
      login: {
        method: "POST",
        url: login.url,
        path: "/oauth2/token",
        as: "form",
        body: {
          grant_type: "client_credentials",
          client_id: "{userId}",
          client_secret: "{apiKey}",
        },
        result: { token: "/access_token", expiresInSeconds: "/expires_in" },
      },
      headers: { Authorization: "Bearer {token}", "Content-Type": "application/vnd.x+json" },
    }),
  );
  const service = fakeServer(() => Response.json({ ciphertext: "c", version: 1 }));
  const credentials = () => ({ userId: "u", apiKey: "k &=%+" });
  const key4c = key4cClient({ url: service.url, profile, credentials });
  expect(await kindOf(key4c.wrap("demo", LOCAL_KEK, AAD))).toBe("ok");
  const asked = login.requests[0]?.request.headers;
  expect(asked?.get("Content-Type")).toBe("application/x-www-form-urlencoded");
  expect(asked?.get("Authorization")).toBeNull();
  const sent = service.requests[0]?.request.headers;
  expect(sent?.get("Content-Type")).toBe("application/vnd.x+json");
  expect(sent?.get("Authorization")).toBe("Bearer the-token");
});

test("a PIN that a header would cut is not sent", async () => {
  const decrypt = { ...defaultProfile.decrypt, headers: { "X-Pin": "{pin}" } };
  const profile = parseProfile(JSON.stringify({ ...defaultProfile, decrypt }));
  const server = fakeServer(() => Response.json({ plaintext: RIGHT }));
  for (const pin of [" 123456 7", "123456 7 "]) {
    const credentials = () => ({ userId: "u", pin });
    const key4c = key4cClient({ url: server.url, profile, credentials });
    const failure = await failureOf(key4c.unwrap("demo", "c", AAD, FOR_CALLER));
    expect(failure).toMatchObject({ kind: "denied", about: "secret" });
    expect(failure.message).toBe("the header X-Pin would begin or end with a blank");
  }
  expect(server.requests.length).toBe(0);
  const key4c = key4cClient({
    url: server.url,
    profile,
    credentials: () => ({ userId: "u", pin: "12 34" }),
  });
  expect(await kindOf(key4c.unwrap("demo", "c", AAD))).toBe("ok");
  expect(server.requests[0]?.request.headers.get("X-Pin")).toBe("12 34");
});
