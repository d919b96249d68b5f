import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { DEFAULT_PROFILE, parseProfile } from "../../src/key4c/profile.ts";
import type { ErrorKind } from "../../src/system/errors.ts";
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
  expect(await key4c.describe("demo")).toEqual({ version: 1, algorithm: "AES" });
  expect(await kindOf(key4c.unwrap("demo", wrapped.ciphertext, Buffer.from("x")))).toBe("invalid");
  expect(await kindOf(key4c.unwrap("demo", "AAAA", AAD))).toBe("invalid");
});

test("a rotated key has a higher version and unwraps what older ones wrapped", async () => {
  const { url, control } = emulator();
  const key4c = key4cClient({ url });
  const { ciphertext } = await key4c.wrap("demo", LOCAL_KEK, AAD);
  await control("POST", "keys/demo/rotate");
  expect(await key4c.describe("demo")).toEqual({ version: 2, algorithm: "AES" });
  expect(await key4c.wrap("demo", LOCAL_KEK, AAD)).toMatchObject({ version: 2 });
  expect(await key4c.unwrap("demo", ciphertext, AAD)).toEqual(LOCAL_KEK);
});

test("a key that is disabled, deleted or missing is unusable", async () => {
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
  expect(await kindOf(key4c.describe("other"))).toBe("keyUnusable");
});

test("sends the headers of the contract, and no Authorization without an API key", async () => {
  const server = fakeServer(() => Response.json({ plaintext: LOCAL_KEK.toString("base64") }));
  const plain = key4cClient({ url: server.url });
  await plain.unwrap("a/b", "c", AAD, "0f3b1c6e-0000-4000-8000-000000000000");
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

const html = "<html>Forbidden</html>";
const ANSWERS: [string, () => Response, ErrorKind][] = [
  ["401", () => Response.json({ code: "DENIED" }, { status: 401 }), "denied"],
  ["403", () => Response.json({ code: "DENIED" }, { status: 403 }), "denied"],
  ["a gateway's 403", () => new Response(html, { status: 403 }), "denied"],
  ["404", () => Response.json({ code: "KEY_NOT_FOUND" }, { status: 404 }), "keyUnusable"],
  ["409", () => Response.json({ code: "KEY_DISABLED" }, { status: 409 }), "keyUnusable"],
  [
    "a code that outranks its status",
    () => Response.json({ code: "KEY_DELETED" }, { status: 400 }),
    "keyUnusable",
  ],
  ["400", () => Response.json({ code: "INVALID_CIPHERTEXT" }, { status: 400 }), "invalid"],
  ["422", () => Response.json({ code: "WHATEVER" }, { status: 422 }), "invalid"],
  [
    "a code named like a method of objects",
    () => Response.json({ code: "constructor" }, { status: 422 }),
    "invalid",
  ],
];

test.each(ANSWERS)(
  "an answer is told by its kind and not tried again: %s",
  async (_, answer, kind) => {
    const server = fakeServer(answer);
    const key4c = key4cClient({ url: server.url });
    expect(await kindOf(key4c.unwrap("demo", "c", AAD))).toBe(kind);
    expect(server.requests.length).toBe(1);
  },
);

/** Fails twice, then works: what is unavailable is tried again inside the budget. */
const FAILURES: [string, () => Response][] = [
  ["500", () => Response.json({ code: "OOPS" }, { status: 500 })],
  ["503", () => new Response("", { status: 503 })],
  ["418", () => new Response("", { status: 418 })],
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
  [
    "429",
    () => Response.json({ code: "THROTTLED" }, { status: 429, headers: { "Retry-After": "0" } }),
  ],
];

test("what makes no sense is tried again", async () => {
  await Promise.all(
    FAILURES.map(async ([name, failure]) => {
      let left = 2;
      const server = fakeServer(() =>
        left-- > 0 ? failure() : Response.json({ plaintext: LOCAL_KEK.toString("base64") }),
      );
      const key4c = key4cClient({ url: server.url });
      const kind = await kindOf(key4c.unwrap("demo", "c", AAD));
      expect([name, kind, server.requests.length]).toEqual([name, "ok", 3]);
    }),
  );
});

test("a 429 waits as long as Retry-After says, and fails when that does not fit", async () => {
  const server = fakeServer(
    () => new Response("", { status: 429, headers: { "Retry-After": "60" } }),
  );
  const key4c = key4cClient({ url: server.url });
  expect(await kindOf(key4c.unwrap("demo", "c", AAD))).toBe("throttled");
  expect(server.requests.length).toBe(1);
});

test("a Retry-After of nothing, or of the past, is no leave to ask without a pause", async () => {
  const values = ["0", "-5", "5.5", "Wed, 21 Oct 2015 07:28:00 GMT"];
  await Promise.all(
    values.map(async (value) => {
      let throttles = true;
      const server = fakeServer(() =>
        throttles
          ? new Response("", { status: 429, headers: { "Retry-After": value } })
          : Response.json({ plaintext: RIGHT }),
      );
      const unwrapping = kindOf(key4cClient({ url: server.url }).unwrap("demo", "c", AAD));
      await Bun.sleep(1_000);
      expect(server.requests.length).toBeLessThan(20); // it would be thousands
      throttles = false;
      expect(await unwrapping).toBe("ok");
    }),
  );
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
  const wrap = () => kindOf(key4c.wrap("demo", LOCAL_KEK, AAD));
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

test.each([0, -1, 1.5, "3", null, 2 ** 32])("a version of %p is refused", async (version) => {
  const server = fakeServer(() => Response.json({ version, ciphertext: "c", state: "ENABLED" }));
  const key4c = key4cClient({ url: server.url });
  expect(await kindOf(key4c.describe("demo"))).toBe("unavailable");
  expect(await kindOf(key4c.wrap("demo", LOCAL_KEK, AAD))).toBe("unavailable");
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

test("where encrypt tells no version, a rotation in its midst is noticed", async () => {
  const { encrypt, ...rest } = DEFAULT_PROFILE;
  const profile = { ...rest, encrypt: { ...encrypt, result: { ciphertext: "/ciphertext" } } };
  let version = 1;
  const server = fakeServer((request) =>
    Response.json(
      request.method === "GET" ? { version: version++, state: "ENABLED" } : { ciphertext: "c" },
    ),
  );
  const key4c = key4cClient({ url: server.url, profile });
  expect(await kindOf(key4c.wrap("demo", LOCAL_KEK, AAD))).toBe("unavailable");
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
