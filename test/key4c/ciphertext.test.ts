import { expect, test } from "bun:test";
import type { PluginError } from "../../src/failures/plugin-error.ts";
import { hintOfMembers, readCiphertext, storedCiphertext } from "../../src/key4c/ciphertext.ts";
import { parseProfile } from "../../src/key4c/profile.ts";
import { fakeServer, key4cClient } from "../support.ts";

const MEMBERS = { tag: "/out/tag", data: "/out/data", iv: "{sent:iv}" };
const AAD = Buffer.from("aad");
const LOCAL_KEK = Buffer.alloc(32, 7);

function failureOf(work: () => unknown): PluginError {
  try {
    work();
  } catch (error) {
    return error as PluginError; // nothing else is thrown here
  }
  throw new Error("it did not fail");
}

test("members are stored in the order of their names, so that equal ones make equal texts", () => {
  const answer = { out: { tag: "t", data: "d" } };
  const stored = '{"data":"d","iv":"i","tag":"t"}';
  expect(readCiphertext(answer, { iv: "i" }, MEMBERS)).toBe(stored);
  expect(storedCiphertext(stored, MEMBERS)).toEqual({ data: "d", iv: "i", tag: "t" });
});

test.each([
  ["one that is not there", { out: { data: "d" } }, "/out/tag is not a text"],
  ["one that is no text", { out: { data: "d", tag: 7 } }, "/out/tag is not a text"],
  ["one that is empty", { out: { data: "", tag: "t" } }, "/out/data is not a text"],
  [
    "all of them together too large",
    { out: { data: "d".repeat(9_000), tag: "t".repeat(9_000) } },
    "its members together are larger than 16384 bytes",
  ],
])("refuses %s", (_, answer, message) => {
  const failure = failureOf(() => readCiphertext(answer, { iv: "i" }, MEMBERS));
  expect(failure.kind).toBe("unavailable");
  expect(failure.message).toContain(message);
});

test.each([
  ["of one text", "vault:v1:AAAA", "has no members, and the profile's decrypt needs tag, data, iv"],
  ["a list", '["a"]', "has no members"],
  ["a number among them", '{"tag":1,"data":"d","iv":"i"}', "has no members"],
  ["without one", '{"data":"d","iv":"i"}', "has data, iv, and the profile's decrypt needs tag"],
  ["named as every object has", '{"toString":"x"}', "needs tag, data, iv"],
])(
  "a local KEK %s was wrapped under another profile, and is not called invalid",
  (_, stored, text) => {
    const failure = failureOf(() => storedCiphertext(stored, MEMBERS));
    expect(failure).toMatchObject({ kind: "unavailable", isByContract: false, isUnlisted: true });
    expect(failure.message).toContain(text);
  },
);

test("a member that a newer profile has more is no fault", () => {
  const stored = '{"data":"d","extra":"e","iv":"i","tag":"t"}';
  expect(storedCiphertext(stored, MEMBERS)).toMatchObject({ data: "d", tag: "t" });
});

test("a profile of one text says of members what they are", () => {
  expect(hintOfMembers('{"data":"d","iv":"i"}', "/c")).toBe(
    "; the wrapped local KEK has the members data, iv: it was wrapped under another profile",
  );
  expect(hintOfMembers("vault:v1:AAAA", "/c")).toBe("");
  expect(hintOfMembers('{"data":"d","iv":"i"}', MEMBERS)).toBe("");
});

test("an IV that the caller must send: a new one for each attempt, and the one of the attempt that succeeded is stored", async () => {
  const profile = parseProfile(
    JSON.stringify({
      encrypt: {
        method: "POST",
        path: "/e",
        body: { params: { iv: "{random:12:hex}" }, data: "{plaintext}", aad: "{aad}" },
        result: { ciphertext: { iv: "{sent:params/iv}", data: "/data", tag: "/tag" } },
      },
      decrypt: {
        method: "POST",
        path: "/d",
        body: {
          params: { iv: "{ciphertext.iv}", tag: "{ciphertext.tag}" },
          data: "{ciphertext.data}",
          aad: "{aad}",
        },
        result: { plaintext: "/data" },
      },
    }),
  );
  const ivs: string[] = [];
  let failures = 2;
  const server = fakeServer((request, body) => {
    const { params, data } = JSON.parse(body);
    if (request.url.endsWith("/d")) {
      expect(params).toEqual({ iv: ivs.at(-1), tag: "tag" });
      return Response.json({ data });
    }
    ivs.push(params.iv);
    return failures-- > 0 ? new Response("", { status: 503 }) : Response.json({ data, tag: "tag" });
  });
  const key4c = key4cClient({ url: server.url, profile });
  const options = { isForCaller: true };
  const { ciphertext } = await key4c.wrap("demo", LOCAL_KEK, AAD, options);
  expect(new Set(ivs).size).toBe(3);
  expect(ivs[2]).toMatch(/^[0-9a-f]{24}$/);
  expect(JSON.parse(ciphertext).iv).toBe(ivs[2]);
  expect(await key4c.unwrap("demo", ciphertext, AAD)).toEqual(LOCAL_KEK);
});

test("a downgrade to a profile of one text says what it meets", async () => {
  const server = fakeServer(() => Response.json({ code: "INVALID_CIPHERTEXT" }, { status: 400 }));
  const key4c = key4cClient({ url: server.url });
  const failure = await key4c
    .unwrap("demo", '{"data":"d","iv":"i"}', AAD)
    .catch((error: PluginError) => error);
  expect(failure).toMatchObject({ kind: "unavailable", isByContract: false, isUnlisted: true });
  expect((failure as PluginError).message).toBe(
    "Key4C answered decrypt with HTTP status 400 INVALID_CIPHERTEXT; the wrapped local KEK has the members data, iv: it was wrapped under another profile",
  );
});
