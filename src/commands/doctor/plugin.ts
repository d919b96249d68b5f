/** Checks what answers on the socket: whether it is this plugin, has this key, and serves both APIs. */
import { randomBytes } from "node:crypto";
import { type Config, keyIdOf } from "../../config/config.ts";
import { KeyManagementService as V1 } from "../../gen/v1beta1/api_pb.ts";
import { KeyManagementService as V2 } from "../../gen/v2/api_pb.ts";
import { readBody } from "../../key4c/body.ts";
import { standsFor } from "../../keys/key-id.ts";
import { describeError } from "../../system/errors.ts";
import { BUILD_VERSION } from "../../system/version.ts";
import { CallError } from "../call-error.ts";
import { API_SERVER_TIMEOUT_MS, callPlugin, runtimeVersion, SLOW_MS } from "../client.ts";
import type { Unanswered } from "../unanswered.ts";
import { type Check, fail, pass, skip, warn } from "./check.ts";

const DEK_BYTES = 32;

/**
 * What it answers; or why it does not.
 * @param freshKeyId the key_id that a wrap by Key4C gives now; undefined when there was none
 */
export async function checkPlugin(
  path: string,
  config: Config,
  freshKeyId: string | undefined,
): Promise<Check[] | Unanswered> {
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
  if (status.unanswered !== undefined) {
    return status.unanswered;
  }
  return [
    status.check,
    ...(await checkState(config)),
    await checkVersion(path),
    checkKeyId(status.value?.keyId, keyIdOf(config)),
    ...checkFreshKeyId(status.value?.keyId, freshKeyId, keyIdOf(config)),
    await checkRoundTrip("plugin, KMS v2", () => roundTripV2(path)),
    await checkRoundTrip("plugin, KMS v1", () => roundTripV1(path)),
    await checkAuthorities(path),
  ];
}

const STATE_TIMEOUT_MS = 2_000;

/** What its /readyz says: the state in a sentence. */
async function checkState({ httpAddress }: Config): Promise<Check[]> {
  const check = "plugin, state";
  if (httpAddress === undefined || httpAddress.port === 0) {
    return [];
  }
  const { host, port } = httpAddress;
  const url = `http://${host.includes(":") ? `[${host}]` : host}:${port}/readyz`;
  try {
    const response = await fetch(url, {
      signal: AbortSignal.timeout(STATE_TIMEOUT_MS),
      redirect: "manual",
    });
    const body = (await readBody(response)) ?? "";
    const [state = ""] = body.slice(0, MAX_STATE_LENGTH).split("\n");
    return [
      response.status === 200 && /^ok\b/.test(state)
        ? pass(check, state)
        : warn(check, state, "its log names cause and remedy; what worked continues to work"),
    ];
  } catch {
    return [skip(check, `nothing at ${url}`)];
  }
}

/** The plugin's sentence is shorter; another server at this address may answer more. */
const MAX_STATE_LENGTH = 300;

async function checkVersion(path: string): Promise<Check> {
  const check = "plugin, version";
  const version = await runtimeVersion(path).catch(() => undefined);
  if (version === undefined) {
    return skip(check, "the plugin does not say");
  }
  return version === BUILD_VERSION
    ? pass(check, version)
    : warn(
        check,
        `${version}, and this doctor is ${BUILD_VERSION}`,
        "use the doctor of the plugin's version",
      );
}

function checkKeyId(keyId: string | undefined, kmsKeyId: string | undefined): Check {
  const check = "plugin, key";
  if (keyId === undefined || kmsKeyId === undefined) {
    return skip(check, "needs Status and KMS_KEY_ID");
  }
  return standsFor(keyId, kmsKeyId)
    ? pass(check, `its key_id stands for ${kmsKeyId}`)
    : fail(
        check,
        `its key_id ${keyId} does not stand for KMS_KEY_ID (${kmsKeyId})`,
        "give the doctor the plugin's settings (/etc/key4c-kms/config, or --config); only if the plugin's own is wrong, and Key4C answers, restart it with this one",
      );
}

/** They differ after a rotation until the plugin's next probe, and when other key material has the same ID. */
function checkFreshKeyId(
  keyId: string | undefined,
  freshKeyId: string | undefined,
  kmsKeyId: string | undefined,
): Check[] {
  if (keyId === undefined || freshKeyId === undefined || kmsKeyId === undefined) {
    return [];
  }
  if (!standsFor(keyId, kmsKeyId)) {
    return []; // checkKeyId has reported it
  }
  const check = "plugin, key_id";
  return keyId === freshKeyId
    ? [pass(check, "Key4C wraps under the same key_id now")]
    : [
        fail(
          check,
          `its key_id is ${keyId}, and Key4C wraps under ${freshKeyId} now`,
          "after a rotation ask again in a minute; otherwise the key was replaced or restored: restart nothing, follow docs/runbooks/mismatch.md, and compare the key check value",
        ),
      ];
}

/** A DEK there and back, and how long that took. */
async function checkRoundTrip(
  check: string,
  around: () => Promise<readonly [Uint8Array, Uint8Array]>,
): Promise<Check> {
  const startMs = performance.now();
  const { check: failed, value } = await tried(check, "see its log", async () => {
    const [sent, received] = await around();
    if (Buffer.compare(sent, received) !== 0) {
      throw new Error("what was unwrapped is not what was wrapped");
    }
    const ms = performance.now() - startMs;
    const detail = `wrapped and unwrapped a DEK in ${ms.toFixed(1)} ms; the API server waits ${API_SERVER_TIMEOUT_MS} ms for each call`;
    return { ms, detail };
  });
  return value !== undefined && value.ms >= SLOW_MS
    ? warn(check, value.detail, "find out what makes the plugin slow: this machine's load, Key4C")
    : failed;
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
            const why = cause instanceof CallError ? cause.what : describeError(cause);
            throw new Error(`:authority ${authority} is refused: ${why}`);
          },
        );
      }
      return { detail: `serves ${forms.join(", ")}` };
    })
  ).check;
}

interface Tried<T> {
  readonly check: Check;
  readonly value?: T;
  readonly unanswered?: Unanswered | undefined;
}

async function tried<T extends { readonly detail: string }>(
  check: string,
  remedy: string,
  work: () => Promise<T>,
): Promise<Tried<T>> {
  try {
    const value = await work();
    return { check: pass(check, value.detail), value };
  } catch (error) {
    return error instanceof CallError
      ? { check: fail(check, error.what, error.remedy), unanswered: error.unanswered }
      : { check: fail(check, describeError(error), remedy) };
  }
}
