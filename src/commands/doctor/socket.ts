/** The plugin's socket: who may reach it, and whether a plugin serves both APIs on it. */
import { randomBytes } from "node:crypto";
import { lstatSync, type Stats, statSync } from "node:fs";
import { dirname } from "node:path";
import type { Config } from "../../config/config.ts";
import { KeyManagementService as V1 } from "../../gen/v1beta1/api_pb.ts";
import { KeyManagementService as V2 } from "../../gen/v2/api_pb.ts";
import { base32, keyNameHash, parseKeyId } from "../../keys/key-id.ts";
import { connectTo } from "../../socket/unix-socket.ts";
import { describeError } from "../../system/errors.ts";
import { API_SERVER_TIMEOUT_MS, callPlugin } from "../client.ts";
import { type Check, fail, pass, skip } from "./check.ts";

const DEK_BYTES = 32;

export async function checkSocket(config: Config): Promise<Check[]> {
  const path = config.kmsEndpoint;
  if (path === undefined) {
    return ["directory", "socket"].map((check) => skip(check, "KMS_ENDPOINT is not usable"));
  }
  const answer = await connectTo(path);
  const socket = checkSocketFile(path, answer);
  const places = [checkDirectory(dirname(path)), socket];
  return answer === "connected" ? [...places, ...(await checkPlugin(path, config))] : places;
}

function checkDirectory(directory: string): Check {
  const check = "directory";
  const found = whatIs(() => statSync(directory));
  if (found === undefined) {
    return pass(check, `${directory} is not there: serve makes it, with mode 0700`);
  }
  const mode = `0${(found.mode & 0o7777).toString(8)}`;
  if (!found.isDirectory()) {
    return fail(check, `${directory} is not a directory`, "remove it, or change KMS_ENDPOINT");
  }
  return (found.mode & 0o022) === 0
    ? pass(check, `${directory} ${mode}`)
    : fail(
        check,
        `${directory} ${mode}: others can write to it, bind there first and be given plaintext DEKs`,
        "use a directory of its own with mode 0700, such as /run/key4c-kms",
      );
}

function checkSocketFile(path: string, answer: string): Check {
  const check = "socket";
  const found = whatIs(() => lstatSync(path));
  if (found === undefined) {
    return skip(check, `${path} is not there: no plugin runs yet`);
  }
  if (!found.isSocket()) {
    return fail(check, `${path} is not a socket`, "remove it, or change KMS_ENDPOINT");
  }
  const mode = `0${(found.mode & 0o777).toString(8)}`;
  if ((found.mode & 0o002) !== 0) {
    return fail(
      check,
      `${path} ${mode}: every user of this machine can have DEKs unwrapped`,
      "set KMS_SOCKET_MODE=0600 (systemd: SocketMode=0600)",
    );
  }
  switch (answer) {
    case "connected":
      return pass(check, `${path} ${mode}, uid ${found.uid}, accepts`);
    case "ECONNREFUSED":
      return fail(
        check,
        `${path}: nobody listens; a killed process left it`,
        "start the plugin: it replaces the socket",
      );
    case "EACCES":
      return fail(check, `${path} ${mode}: this user may not connect`, "run the doctor as root");
    default:
      return fail(check, `${path}: ${answer}`, "restart the plugin");
  }
}

/** undefined where there is nothing, or no way to it. */
function whatIs(look: () => Stats): Stats | undefined {
  try {
    return look();
  } catch {
    return undefined;
  }
}

async function checkPlugin(path: string, config: Config): Promise<Check[]> {
  const status = await tried(
    "plugin, Status",
    "see its log: it names cause and remedy",
    async () => {
      const { version, healthz, keyId } = await callPlugin(path, V2.method.status, {});
      if (healthz !== "ok") {
        throw new Error(`healthz is not "ok"`);
      }
      return { keyId, detail: `ok, ${version}, key_id ${keyId}` };
    },
  );
  return [
    status.check,
    checkKeyId(status.value?.keyId, config.kmsKeyId),
    (await tried("plugin, KMS v2", "see its log", () => roundTrip(() => roundTripV2(path)))).check,
    (await tried("plugin, KMS v1", "see its log", () => roundTrip(() => roundTripV1(path)))).check,
    await checkAuthorities(path),
  ];
}

function checkKeyId(keyId: string | undefined, kmsKeyId: string | undefined): Check {
  const check = "plugin, key";
  if (keyId === undefined || kmsKeyId === undefined) {
    return skip(check, "needs Status and KMS_KEY_ID");
  }
  return parseKeyId(keyId)?.hashText === base32(keyNameHash(kmsKeyId))
    ? pass(check, `its key_id stands for ${kmsKeyId}`)
    : fail(
        check,
        `its key_id ${keyId} does not stand for KMS_KEY_ID (${kmsKeyId})`,
        "restart the plugin with this configuration, or give the doctor the plugin's",
      );
}

/** A DEK there and back, and how long that took. */
async function roundTrip(around: () => Promise<readonly [Uint8Array, Uint8Array]>) {
  const startMs = performance.now();
  const [sent, received] = await around();
  const ms = performance.now() - startMs;
  if (Buffer.compare(sent, received) !== 0) {
    throw new Error("what was unwrapped is not what was wrapped");
  }
  return {
    detail: `a DEK there and back in ${ms.toFixed(1)} ms; the API server waits ${API_SERVER_TIMEOUT_MS} ms for each`,
  };
}

async function roundTripV2(path: string) {
  const plaintext = randomBytes(DEK_BYTES);
  const uid = crypto.randomUUID();
  const { ciphertext, keyId, annotations } = await callPlugin(path, V2.method.encrypt, {
    plaintext,
    uid,
  });
  const request = { ciphertext, keyId, annotations, uid };
  return [plaintext, (await callPlugin(path, V2.method.decrypt, request)).plaintext] as const;
}

async function roundTripV1(path: string) {
  const plain = randomBytes(DEK_BYTES);
  const version = "v1beta1";
  const told = await callPlugin(path, V1.method.version, { version });
  if (told.version !== version) {
    throw new Error(`Version says ${told.version}`);
  }
  const { cipher } = await callPlugin(path, V1.method.encrypt, { version, plain });
  return [plain, (await callPlugin(path, V1.method.decrypt, { version, cipher })).plain] as const;
}

/** What API servers send: 1.28 and older, 1.29 and newer, and KMS v2 from 1.32 on. */
async function checkAuthorities(path: string): Promise<Check> {
  const forms = [path, encodeURIComponent(path), "localhost"];
  const remedy =
    "this plugin cannot serve every kube-apiserver: is it another one, or an old version?";
  return (
    await tried("plugin, authorities", remedy, async () => {
      for (const authority of forms) {
        await callPlugin(path, V1.method.version, { version: "v1beta1" }, authority).catch(
          (cause) => {
            throw new Error(`:authority ${authority} is refused`, { cause });
          },
        );
      }
      return { detail: `serves ${forms.join(", ")}` };
    })
  ).check;
}

async function tried<T extends { readonly detail: string }>(
  check: string,
  remedy: string,
  work: () => Promise<T>,
): Promise<{ readonly check: Check; readonly value?: T }> {
  try {
    const value = await work();
    return { check: pass(check, value.detail), value };
  } catch (error) {
    return { check: fail(check, describeError(error), remedy) };
  }
}
