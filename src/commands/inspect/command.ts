import type { Config } from "../../config/config.ts";
import { Metrics } from "../../health/metrics.ts";
import { Keyring } from "../../keys/keyring.ts";
import { Standings } from "../../keys/standing.ts";
import { describeError, ExitError } from "../../system/errors.ts";
import type { Log } from "../../system/log.ts";
import { print } from "../../system/process.ts";
import { stderr } from "../../system/stderr.ts";
import { fetchStatus, readStdin } from "../cli.ts";
import { configuredKeys, key4cClient } from "../configured.ts";
import {
  decryptValue,
  type EtcdPair,
  type Inspected,
  inspect,
  parseEtcdctlJson,
  reportLine,
  showObject,
  summary,
} from "./inspect.ts";

/** A large cluster's Secrets, in the base64 of etcdctl. */
const MAX_INSPECT_BYTES = 1024 ** 3;
/** As many as a cluster had in years. */
const INSPECT_CACHE_SIZE = 16_384;

/** Reads values of etcd on stdin and tells, or with --decrypt shows, what they hold. */
export async function inspectCommand(config: Config, log: Log): Promise<void> {
  const input = await readStdin(MAX_INSPECT_BYTES);
  const single = config.etcdKey;
  const pairs =
    single === undefined
      ? parseEtcdctlJson(Buffer.from(input).toString())
      : [{ key: single, value: input }];
  if (config.decrypt === true) {
    return decryptPairs(pairs, config, log);
  }
  const current = config.current ?? (await currentKeyId(config));
  const all = pairs.map((pair) => inspect(pair, current));
  const shown = config.stale === true ? all.filter(({ verdict }) => verdict !== "current") : all;
  const line = config.json === true ? (one: Inspected) => JSON.stringify(one) : reportLine;
  await print(shown.map((one) => `${line(one)}\n`).join(""));
  stderr.write(summary(all, current));
}

/** What a running plugin's Status tells; undefined when none answers. */
async function currentKeyId(config: Config): Promise<string | undefined> {
  return fetchStatus(config).then(
    ({ keyId }) => keyId,
    () => undefined,
  );
}

async function decryptPairs(pairs: readonly EtcdPair[], config: Config, log: Log): Promise<void> {
  stderr.write("WARNING: what follows on standard output are secrets in clear text\n");
  const keyring = new Keyring({
    service: key4cClient(config, undefined, log, new Metrics()),
    keys: configuredKeys(config),
    standings: new Standings({ outageGraceMs: undefined, revocationGraceMs: 0 }),
    maxUses: 1,
    maxAgeMs: Number.POSITIVE_INFINITY,
    cacheSize: INSPECT_CACHE_SIZE,
    log,
  });
  let failed = 0;
  for (const pair of pairs) {
    try {
      const object = showObject(await decryptValue(pair, keyring));
      const isAlone = config.etcdKey !== undefined;
      await print(isAlone ? object : `${decryptedLine(pair.key, object)}\n`);
    } catch (error) {
      failed += 1;
      stderr.write(`${pair.key}: ${describeError(error)}\n`);
    }
  }
  if (failed > 0) {
    throw new ExitError(1, `${failed} of ${pairs.length} values could not be decrypted`);
  }
}

/** A Secret's JSON as it is, other objects in base64, beside their etcd key. */
function decryptedLine(key: string, object: string | Buffer): string {
  return typeof object === "string"
    ? `{"key":${JSON.stringify(key)},"object":${object.trim()}}`
    : JSON.stringify({ key, raw: object.toString("base64") });
}
