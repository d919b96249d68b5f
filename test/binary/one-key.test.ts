/** What is known of one key or one operation stops no call of another: one case for each kind, on the compiled binary. */
import { expect } from "bun:test";
import { renameSync, writeFileSync } from "node:fs";
import { status } from "@grpc/grpc-js";
import defaultProfile from "../../src/key4c/key4c.profile.json";
import { Sightings } from "../faults/callers.ts";
import type { Wrapped } from "../faults/material.ts";
import { emulator, temporaryFile } from "../support.ts";
import {
  type Asked,
  bendKey4C,
  eventually,
  launch,
  launchOk,
  type Plugin,
  rpcs,
  says,
  unwrap,
  wrap,
} from "./bent-key4c.ts";
import { sideBySide } from "./side-by-side.ts";

const TIMEOUT_MS = 180_000;
const ENV = { KMS_PROBE_INTERVAL: "500ms", KMS_REVOCATION_GRACE: "1s" };
const { NOT_FOUND, FAILED_PRECONDITION, UNAVAILABLE, OK } = status;
const DENIED = says(403, { code: "DENIED" });
const DOWN = says(503, { code: "HSM_DOWN" });

/** An emulator with two keys, and objects of each that no plugin of the test has seen. */
async function twoKeys() {
  const emulated = emulator({ keyIds: ["demo", "old"] });
  const objectOf = async (keyId: string) => {
    const plugin = await launchOk(emulated.url, { ...ENV, KMS_KEY_ID: keyId });
    const wrapped = await wrap(plugin);
    await plugin.stop();
    return wrapped;
  };
  return { emulated, key4c: bendKey4C(emulated.url), objectOf };
}

const operationOf = ({ path }: Asked) => path.split("/")[4] ?? "describe";
const isOf = (keyId: string, { path }: Asked) => path.split("/")[3] === keyId;

/** What the two APIs answer to a Decrypt, each once. */
async function answers(plugin: Plugin, wrapped: Wrapped) {
  const seen = new Sightings();
  await seen.see("known", () => rpcs.decrypt1(plugin.client, wrapped));
  await seen.see("unseen", () => rpcs.decrypt2(plugin.client, wrapped));
  return [...seen.codesOf("known"), ...seen.codesOf("unseen")];
}

function replace(file: string, text: string): void {
  writeFileSync(`${file}.new`, text);
  renameSync(`${file}.new`, file);
}

const OPERATIONS = {
  "encrypt fails at a restart: reads are served": async () => {
    const { key4c, objectOf } = await twoKeys();
    const object = await objectOf("demo");
    key4c.behaviour = (asked) => (operationOf(asked) === "encrypt" ? DOWN(asked) : asked.honest());
    const plugin = await launch(key4c.url, ENV);
    await unwrap(plugin, object);
    expect(await plugin.state()).toBe("starting");
    key4c.behaviour = undefined;
    await plugin.untilState("ok");
  },
  "a key that may only decrypt: reads are served, and wraps are few": async () => {
    const { key4c, objectOf } = await twoKeys();
    const object = await objectOf("demo");
    key4c.behaviour = (asked) =>
      operationOf(asked) === "encrypt" ? DENIED(asked) : asked.honest();
    const plugin = await launch(key4c.url, ENV);
    await unwrap(plugin, object);
    await Bun.sleep(4_000);
    const wraps = key4c.requests.filter(({ operation }) => operation === "encrypt").length;
    expect(wraps).toBeLessThanOrEqual(2);
  },
  "a grant that is missing on the new key: the old one's data are read": async () => {
    const { key4c, objectOf } = await twoKeys();
    const object = await objectOf("old");
    key4c.behaviour = (asked) =>
      isOf("demo", asked) && operationOf(asked) !== "describe" ? DENIED(asked) : asked.honest();
    const plugin = await launch(key4c.url, { ...ENV, KMS_PREVIOUS_KEY_IDS: "old" });
    await unwrap(plugin, object);
    expect(await plugin.state()).toBe("starting");
  },
  "describe is refused: encrypt and decrypt continue": async () => {
    const { key4c, objectOf } = await twoKeys();
    const object = await objectOf("demo");
    const plugin = await launchOk(key4c.url, ENV);
    key4c.behaviour = (asked) =>
      operationOf(asked) === "describe" ? DENIED(asked) : asked.honest();
    await plugin.untilState("degraded");
    await unwrap(plugin, object);
    await unwrap(plugin, await wrap(plugin));
  },
};

const KEYS = {
  "the current key fails, the previous one is deleted: its data are refused": async () => {
    const { emulated, key4c, objectOf } = await twoKeys();
    const object = await objectOf("old");
    const plugin = await launchOk(key4c.url, { ...ENV, KMS_PREVIOUS_KEY_IDS: "old" });
    await unwrap(plugin, object);
    key4c.behaviour = (asked) => (isOf("demo", asked) ? DOWN(asked) : asked.honest());
    await emulated.control("POST", "keys/old/delete");
    await plugin.untilLogged(/a previous key is revoked: its local KEKs are dropped/);
    expect(await answers(plugin, object)).toEqual([FAILED_PRECONDITION, FAILED_PRECONDITION]);
    expect(await plugin.state()).toBe("degraded");
  },
  "a key that leaves the list is refused by both APIs, and back in it is read": async () => {
    const { emulated, objectOf } = await twoKeys();
    const object = await objectOf("old");
    const file = temporaryFile("old\n");
    const plugin = await launchOk(emulated.url, { ...ENV, KMS_PREVIOUS_KEY_IDS_FILE: file });
    expect(await answers(plugin, object)).toEqual([OK, OK]);
    replace(file, "another\n");
    await eventually("refused", async () => (await answers(plugin, object))[0] === NOT_FOUND);
    expect(await answers(plugin, object)).toEqual([NOT_FOUND, NOT_FOUND]);
    replace(file, "old\n");
    await eventually("read again", async () => (await answers(plugin, object))[0] === OK);
    expect(await answers(plugin, object)).toEqual([OK, OK]);
  },
  "Retry-After 300 of the current key: a change to another key does not wait": async () => {
    const { key4c } = await twoKeys();
    const file = temporaryFile("demo\n");
    const env = { ...ENV, KMS_KEY_ID: "", KMS_KEY_ID_FILE: file };
    const plugin = await launchOk(key4c.url, env);
    const throttled = says(429, { code: "THROTTLED" }, { "Retry-After": "300" });
    key4c.behaviour = (asked) => (isOf("demo", asked) ? throttled(asked) : asked.honest());
    await plugin.untilState("degraded");
    replace(file, "old\n");
    await plugin.untilState("ok");
    expect(plugin.output()).toContain("another key wraps from now on");
  },
};

const MATERIAL = {
  "a key check value and no version: a rotation is noticed": async () => {
    const { version: _, ...result } = defaultProfile.describe.result;
    const { encrypt } = defaultProfile;
    const profile = {
      ...defaultProfile,
      describe: { ...defaultProfile.describe, result },
      encrypt: { ...encrypt, result: { ciphertext: encrypt.result.ciphertext } },
    };
    const env = { ...ENV, KEY4C_PROFILE: temporaryFile(JSON.stringify(profile)) };
    const { key4c } = await twoKeys();
    let kcv = "A1B2C3";
    key4c.behaviour = async (asked) =>
      operationOf(asked) === "describe"
        ? Response.json({ kcv, state: "ENABLED", algorithm: "AES" })
        : asked.honest();
    const plugin = await launchOk(key4c.url, env);
    const before = await wrap(plugin);
    kcv = "99FF00";
    const keyId = async () => (await rpcs.status(plugin.client)).keyId;
    await eventually("another key_id", async () => (await keyId()) !== before.v2.keyId);
    const fresh = await launchOk(key4c.url, env);
    expect((await rpcs.status(fresh.client)).keyId).toBe(await keyId());
    await unwrap(plugin, before);
  },
  "a replica that lags: an honest object of another node is not called invalid": async () => {
    const { emulated, key4c, objectOf } = await twoKeys();
    const plugin = await launchOk(key4c.url, ENV);
    let isLagging = true;
    key4c.behaviour = async (asked) => {
      const operation = operationOf(asked);
      if (!isLagging || operation === "encrypt") {
        return asked.honest();
      }
      const answer = await asked.honest();
      if (operation === "describe") {
        return Response.json({ ...((await answer.json()) as object), version: 1 });
      }
      const { ciphertext } = JSON.parse(asked.body) as { ciphertext: string };
      const version = Buffer.from(ciphertext, "base64").readUInt32BE();
      return version > 1 ? Response.json({ code: "INVALID_CIPHERTEXT" }, { status: 400 }) : answer;
    };
    await emulated.control("POST", "keys/demo/rotate");
    const object = await objectOf("demo");
    expect(await answers(plugin, object)).toEqual([UNAVAILABLE, UNAVAILABLE]);
    isLagging = false;
    await eventually("read", async () => (await answers(plugin, object))[0] === OK);
  },
};

sideBySide({ "one operation": OPERATIONS, "one key": KEYS, "the material": MATERIAL }, TIMEOUT_MS);
