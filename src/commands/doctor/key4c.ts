/** Checks Key4C: the way to it, the credential, the key, and a real wrap and unwrap. */
import { type Config, keyIdOf, previousKeyIdsOf } from "../../config/config.ts";
import { KINDS } from "../../failures/kinds.ts";
import { type PluginError, toPluginError } from "../../failures/plugin-error.ts";
import { Metrics } from "../../health/metrics.ts";
import type { Key4C } from "../../key4c/client.ts";
import { formatKeyId } from "../../keys/key-id.ts";
import { makeLocalKek } from "../../keys/local-kek.ts";
import { materialOf } from "../../keys/material.ts";
import type { KeyDescription } from "../../keys/wrapping.ts";
import { describeError } from "../../system/errors.ts";
import { silentLog } from "../../system/log.ts";
import { API_SERVER_TIMEOUT_MS, SLOW_MS } from "../client.ts";
import { key4cClient } from "../configured.ts";
import { type Check, fail, pass, skip, warn } from "./check.ts";
import { checkClientCertificate, checkWay } from "./way.ts";

const KEY4C_CHECKS = ["name", "connection", "credential", "key", "wrap and unwrap"] as const;

const SLOW = "find out what makes Key4C slow: network, proxy, HSM";

export interface Key4CChecks {
  readonly checks: readonly Check[];
  /** The key_id that a wrap gives now; undefined when there was none. */
  readonly keyId: string | undefined;
}

/** @param isUsable whether serve would accept the configuration */
export async function checkKey4C(config: Config, isUsable: boolean): Promise<Key4CChecks> {
  const kmsKeyId = keyIdOf(config);
  if (!isUsable || config.key4cUrl === undefined || kmsKeyId === undefined) {
    const why = "not checked: correct the configuration first";
    return { checks: KEY4C_CHECKS.map((check) => skip(check, why)), keyId: undefined };
  }
  const certificate = checkClientCertificate(config);
  const way = isFailed(certificate) ? [] : await checkWay(new URL(config.key4cUrl), config);
  const before = [...certificate, ...way];
  if (isFailed(before)) {
    const rest = KEY4C_CHECKS.slice(way.length);
    const checks = [...before, ...rest.map((check) => skip(check, "Key4C cannot be reached"))];
    return { checks, keyId: undefined };
  }
  const key4c = key4cClient(config, undefined, silentLog, new Metrics());
  const key = await checkKey(key4c, kmsKeyId);
  if (isFailed(key)) {
    const checks = [...before, ...key, skip("wrap and unwrap", "the key is not usable")];
    return { checks, keyId: undefined };
  }
  const { check, keyId } = await checkWrap(key4c, kmsKeyId);
  const checks = [...before, ...key, check, ...(await checkPreviousKeys(key4c, config))];
  return { checks, keyId };
}

function isFailed(checks: readonly Check[]): boolean {
  return checks.some(({ result }) => result === "fail");
}

async function checkKey(key4c: Key4C, kmsKeyId: string): Promise<Check[]> {
  if (!key4c.canDescribe) {
    const why = "the profile has no describe: see wrap and unwrap";
    return [skip("credential", why), skip("key", why)];
  }
  const startMs = performance.now();
  try {
    const description = await key4c.describe(kmsKeyId);
    return keyChecks(kmsKeyId, description, performance.now() - startMs);
  } catch (error) {
    return refusalChecks(toPluginError(error), performance.now() - startMs);
  }
}

function keyChecks(
  kmsKeyId: string,
  { version, algorithm, kcv }: KeyDescription,
  ms: number,
): Check[] {
  const told = [
    `${kmsKeyId}: ${algorithm ?? "algorithm unknown"}, version ${version ?? "unknown"}`,
    // For comparison with Key4C's console: another value there means another key under the same ID.
    ...(kcv === undefined ? [] : [`key check value ${kcv} (Key4C's console must show the same)`]),
  ].join(", ");
  const credential =
    version === undefined && algorithm === undefined
      ? skip("credential", "the answer says nothing about the key: see wrap and unwrap")
      : pass("credential", "accepted");
  if (algorithm !== undefined && !/^AES/i.test(algorithm)) {
    return [credential, fail("key", told, "let KMS_KEY_ID name an AES key")];
  }
  return [
    credential,
    ms < SLOW_MS
      ? pass("key", told)
      : warn("key", `${told}; the answer took ${ms.toFixed(0)} ms`, SLOW),
  ];
}

function refusalChecks(failure: PluginError, ms: number): Check[] {
  const { kind, isByContract } = failure;
  const detail = describeError(failure);
  const remedy = failure.remedy ?? KINDS[kind].remedy;
  if (kind === "denied") {
    const maybe = isByContract ? "" : "; or correct KEY4C_URL: is it the service?";
    return [fail("credential", detail, remedy + maybe), skip("key", "the credential is refused")];
  }
  if (isByContract && kind === "keyNotFound") {
    const why = 'not known: Key4C may say "no such key" to another tenant\'s credential too';
    return [skip("credential", why), fail("key", detail, remedy)];
  }
  if (isByContract) {
    const other = "; for a new installation name another one in KMS_KEY_ID";
    return [pass("credential", "accepted"), fail("key", detail, remedy + other)];
  }
  return [
    skip("credential", "not known without an answer"),
    ms < SLOW_MS
      ? fail("key", detail, `${remedy}; is KEY4C_PROFILE that of the service?`)
      : fail("key", `no answer in ${(ms / 1000).toFixed(1)} s (${detail})`, `${SLOW}; ${remedy}`),
  ];
}

/** Makes a local KEK in the way of serve, and throws it away. */
async function checkWrap(
  key4c: Key4C,
  kmsKeyId: string,
): Promise<{ readonly check: Check; readonly keyId?: string }> {
  const check = "wrap and unwrap";
  const startMs = performance.now();
  try {
    const told = materialOf(kmsKeyId, await key4c.describe(kmsKeyId));
    const { header, localKek } = await makeLocalKek(key4c, kmsKeyId, told);
    localKek.drop();
    const keyId = formatKeyId(header);
    const ms = performance.now() - startMs;
    const detail = `${ms.toFixed(0)} ms for both, of the ${API_SERVER_TIMEOUT_MS} ms that the API server waits; key_id ${keyId}`;
    return { check: judgeTime(ms, check, detail, SLOW), keyId };
  } catch (error) {
    const ms = performance.now() - startMs;
    const detail = describeError(error);
    return {
      check: fail(
        check,
        ms < SLOW_MS
          ? detail
          : `no result in ${(ms / 1000).toFixed(1)} s: Key4C is slow (${detail})`,
        "check that the key may wrap and unwrap, and that KEY4C_PROFILE fits the service",
      ),
    };
  }
}

function judgeTime(ms: number, check: string, detail: string, remedy: string): Check {
  if (ms < SLOW_MS) {
    return pass(check, detail);
  }
  return ms < API_SERVER_TIMEOUT_MS ? warn(check, detail, remedy) : fail(check, detail, remedy);
}

async function checkPreviousKeys(key4c: Key4C, config: Config): Promise<Check[]> {
  return Promise.all(
    previousKeyIdsOf(config).map(async (keyId) => {
      try {
        await key4c.describe(keyId);
        return pass("previous key", keyId);
      } catch (error) {
        const remedy = "enable it, or remove it from KMS_PREVIOUS_KEY_IDS when no data is under it";
        return fail("previous key", `${keyId}: ${describeError(error)}`, remedy);
      }
    }),
  );
}
