import type { CommandLine, Config } from "../../config/config.ts";
import { Metrics } from "../../health/metrics.ts";
import { Keyring } from "../../keys/keyring.ts";
import { type Group, loadConfiguration } from "../../kubernetes/encryption/load.ts";
import { secretAsJson } from "../../kubernetes/etcd-value.ts";
import { type EtcdPair, etcdctlLine, parseEtcdctlJson } from "../../kubernetes/etcdctl.ts";
import { describeError, ExitError } from "../../system/errors.ts";
import { readSmallBytes } from "../../system/files.ts";
import type { Log } from "../../system/log.ts";
import { print } from "../../system/process.ts";
import { stderr } from "../../system/stderr.ts";
import { fetchStatus, readStdin } from "../cli.ts";
import { configuredKeys, key4cClient } from "../configured.ts";
import { printable, printableJson } from "../printable.ts";
import { decryptValue, inspect, reportLine } from "./inspect.ts";
import { summarize } from "./summary.ts";
import { verifiedLine, verify } from "./verify.ts";

/** A large cluster's Secrets, in the base64 of etcdctl. */
const MAX_INSPECT_BYTES = 1024 ** 3;
/** As many local KEKs as a cluster makes in years. */
const INSPECT_CACHE_SIZE = 16_384;

/**
 * Reads values of etcd on stdin and says which key each is under. With --decrypt it shows what they hold, with --verify
 * it says whether Key4C can still open them. For its exit codes see {@link summarize} and {@link verify}.
 */
export async function inspectCommand(line: CommandLine, log: Log): Promise<void> {
  const { config } = line;
  const groups = configuredGroups(config.encryptionConfiguration);
  const input = await readStdin(MAX_INSPECT_BYTES);
  const single = config.etcdKey;
  const pairs =
    single === undefined
      ? parseEtcdctlJson(
          Buffer.from(input).toString(),
          etcdctlLine(line.configFile?.settings ?? new Map(), "ETCDCTL_ENDPOINTS" in process.env),
        )
      : [{ key: single, value: input }];
  if (config.decrypt === true) {
    return decryptPairs(pairs, config, log);
  }
  const lines = <T>(all: readonly T[], line: (one: T) => string) =>
    print(all.map((one) => `${config.json === true ? printableJson(one) : line(one)}\n`).join(""));
  if (config.verify === true) {
    const { localKeks, text, exitCode } = await verify(pairs, keyringOf(config, log));
    const isShown = ({ verdict }: (typeof localKeks)[number]) =>
      config.stale !== true || verdict !== "unwrapped";
    await lines(localKeks.filter(isShown), verifiedLine);
    stderr.write(text);
    process.exitCode = exitCode;
    return;
  }
  const current = config.current ?? (await currentKeyId(line));
  const all = pairs.map((pair) => inspect(pair, current));
  const shown = config.stale === true ? all.filter(({ verdict }) => verdict !== "current") : all;
  await lines(shown, reportLine);
  const { text, exitCode } = summarize(all, current, groups);
  stderr.write(text);
  process.exitCode = exitCode;
}

/** @throws ExitError 1 for a file that kube-apiserver would not take */
function configuredGroups(path: string | undefined): readonly Group[] | undefined {
  if (path === undefined) {
    return undefined;
  }
  const { faults, unclear, groups } = loadConfiguration(readSmallBytes(path));
  const wrong = faults[0] === undefined ? unclear[0] : `${faults[0].where}: ${faults[0].what}`;
  if (wrong !== undefined) {
    throw new ExitError(1, printable(`${path}: ${wrong}; \`doctor\` says more`));
  }
  return groups;
}

/** What a running plugin's Status tells; undefined when none answers, and then standard error says why. */
async function currentKeyId(line: CommandLine): Promise<string | undefined> {
  try {
    return (await fetchStatus(line)).keyId;
  } catch (error) {
    stderr.write(`${describeError(error)}\n`);
    return undefined;
  }
}

/** A new keyring knows no local KEK, so it asks Key4C for each. */
function keyringOf(config: Config, log: Log): Keyring {
  return new Keyring({
    service: key4cClient(config, undefined, log, new Metrics()),
    configured: configuredKeys(config),
    limits: { outageGraceMs: undefined, revocationGraceMs: 0 },
    maxUses: 1,
    maxAgeMs: Number.POSITIVE_INFINITY,
    cacheSize: INSPECT_CACHE_SIZE,
    log,
  });
}

async function decryptPairs(pairs: readonly EtcdPair[], config: Config, log: Log): Promise<void> {
  stderr.write("WARNING: what follows on standard output are secrets in clear text\n");
  const keyring = keyringOf(config, log);
  let failed = 0;
  for (const pair of pairs) {
    try {
      const bytes = await decryptValue(pair, keyring);
      const object = secretAsJson(bytes) ?? bytes;
      const isAlone = config.etcdKey !== undefined;
      const isRaw = isAlone && Buffer.isBuffer(object);
      if (isRaw && process.stdout.isTTY) {
        throw new Error("its bytes are not for a terminal: send standard output to a file");
      }
      await print(isRaw ? object : `${decryptedLine(pair.key, object, isAlone)}\n`);
    } catch (error) {
      failed += 1;
      stderr.write(`${printable(`${pair.key}: ${describeError(error)}`)}\n`);
    }
  }
  if (failed > 0) {
    throw new ExitError(1, `${failed} of ${pairs.length} values could not be decrypted`);
  }
}

/** A Secret's JSON, other objects in base64, beside their etcd key unless they are alone. */
function decryptedLine(key: string, object: object | Buffer, isAlone: boolean): string {
  if (Buffer.isBuffer(object)) {
    return printableJson({ key, raw: object.toString("base64") });
  }
  return printableJson(isAlone ? object : { key, object });
}
