import { expect, test } from "bun:test";
import { statSync } from "node:fs";
import { join } from "node:path";
import { emulator, temporaryDirectory } from "../support.ts";

const USER = { "X-Key4C-User-Id": "u" };

async function answer(
  url: string,
  path: string,
  init: RequestInit = {},
): Promise<[number, unknown]> {
  const response = await fetch(url + path, { headers: USER, ...init });
  return [response.status, await response.json()];
}

test("answers by the contract, errors with code and message", async () => {
  const { url } = emulator();
  expect(await answer(url, "/v1/keys/demo")).toEqual([
    200,
    {
      keyId: "demo",
      label: "demo",
      algorithm: "AES",
      length: 256,
      kcv: expect.stringMatching(/^[0-9A-F]{6}$/),
      version: 1,
      state: "ENABLED",
    },
  ]);
  const post = (body: unknown) => ({ method: "POST", body: JSON.stringify(body) });
  for (const [path, init, status, code] of [
    ["/v1/keys/none", {}, 404, "KEY_NOT_FOUND"],
    ["/v1/keys/demo", { headers: {} }, 401, "DENIED"],
    ["/v1/keys/demo/decrypt", post({ ciphertext: "AAAA" }), 400, "INVALID_CIPHERTEXT"],
    ["/v1/keys/demo/decrypt", post({ ciphertext: "?" }), 400, "INVALID_CIPHERTEXT"],
    ["/v1/keys/demo/encrypt", post({ plaintext: 1 }), 400, "INVALID_REQUEST"],
    ["/v1/keys/demo/encrypt", post({}), 400, "INVALID_REQUEST"],
    ["/v1/keys/demo/encrypt", { method: "POST", body: "{" }, 400, "INVALID_REQUEST"],
    ["/v1/keys/demo/encrypt", {}, 405, "NO_SUCH_METHOD"],
    ["/v2", {}, 404, "NO_SUCH_PATH"],
    ["/v1/keys/%zz", {}, 404, "NO_SUCH_PATH"],
  ] as const) {
    const expected = { code, message: expect.any(String) };
    expect([path, ...(await answer(url, path, init))]).toEqual([path, status, expected]);
  }
});

test("control is off unless asked for", async () => {
  const { url } = emulator({ control: false });
  expect((await answer(url, "/emulator/stats"))[0]).toBe(404);
  expect((await answer(url, "/emulator/keys/demo/rotate", { method: "POST" }))[0]).toBe(404);
  expect(await answer(url, "/v1/keys/demo")).toMatchObject([200, { version: 1 }]);
});

test("control rotates, disables, enables, deletes, slows and counts", async () => {
  const { url, control } = emulator();
  expect(await control("POST", "keys/demo/rotate")).toMatchObject({ version: 2 });
  for (const [action, state] of [
    ["disable", "DISABLED"],
    ["delete", "DELETED"],
    ["enable", "ENABLED"],
  ] as const) {
    expect(await control("POST", `keys/demo/${action}`)).toMatchObject({ state: state as never });
    expect(await answer(url, "/v1/keys/demo")).toMatchObject([200, { state }]);
  }
  expect(await control("PUT", "latency", { ms: 5 })).toEqual({ ms: 5 });
  expect(await control("GET", "stats")).toEqual({
    describe: 3,
    encrypt: 0,
    decrypt: 0,
    refused: 0,
  });
  for (const [method, path] of [
    ["PUT", "latency"],
    ["PUT", "outage"],
    ["POST", "keys/demo/burn"],
    ["POST", "keys/none/rotate"],
  ] as const) {
    expect(control(method, path)).rejects.toThrow();
  }
});

test("control plays an outage, and heals it", async () => {
  const { url, control } = emulator();
  for (const [on, status] of [
    [true, 503],
    [false, 200],
  ] as const) {
    await control("PUT", "outage", { on });
    expect((await answer(url, "/v1/keys/demo"))[0]).toBe(status);
  }
});

test("control replaces the key material behind the same versions, for good", async () => {
  const dataFile = join(temporaryDirectory(), "keys.json");
  const { url, control } = emulator({ dataFile });
  await control("POST", "keys/demo/rotate");
  const body = JSON.stringify({ plaintext: "AAAA" });
  const encrypted = (await answer(url, "/v1/keys/demo/encrypt", { method: "POST", body }))[1];
  const before = (await answer(url, "/v1/keys/demo"))[1] as { kcv: string };
  expect(await control("POST", "keys/demo/replace")).toMatchObject({ version: 2 });
  const again = emulator({ dataFile });
  for (const one of [url, again.url]) {
    const after = (await answer(one, "/v1/keys/demo"))[1] as { kcv: string };
    expect(after.kcv).not.toBe(before.kcv);
    const decrypt = { method: "POST", body: JSON.stringify(encrypted) };
    expect(await answer(one, "/v1/keys/demo/decrypt", decrypt)).toMatchObject([
      400,
      { code: "INVALID_CIPHERTEXT" },
    ]);
  }
});

test("keys and versions are in the data file before the answer, for the owner only", async () => {
  const dataFile = join(temporaryDirectory(), "keys.json");
  const { control } = emulator({ dataFile, keyIds: ["a", "b"] });
  await control("POST", "keys/a/rotate");
  expect(statSync(dataFile).mode & 0o777).toBe(0o600);
  const again = emulator({ dataFile, keyIds: ["a"] });
  expect(await answer(again.url, "/v1/keys/a")).toMatchObject([200, { version: 2 }]);
  expect(await answer(again.url, "/v1/keys/b")).toMatchObject([200, { version: 1 }]);
});

test("a data file that is no regular file is refused, and stays what it is", () => {
  const directory = temporaryDirectory();
  expect(() => emulator({ dataFile: directory })).toThrow("is no regular file");
  expect(statSync(directory).isDirectory()).toBe(true);
});

test("a page in a browser of this machine changes nothing", async () => {
  const { url } = emulator({ control: true });
  const rotate = (headers: Record<string, string>) =>
    answer(url, "/emulator/keys/demo/rotate", { method: "POST", headers });
  const refused: [number, unknown] = [403, { code: "DENIED", message: "not for browsers" }];
  expect(await rotate({ Origin: "https://evil.example" })).toEqual(refused);
  expect(await rotate({ "Sec-Fetch-Site": "cross-site" })).toEqual(refused);
  expect(await rotate({ Host: "evil.example" })).toEqual(refused);
  expect((await rotate({}))[0]).toBe(200);
});
