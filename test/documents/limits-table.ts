/** The table of REFERENCE.md of every size, count and time that bounds the plugin, made from the constants. */
import * as cli from "../../src/commands/cli.ts";
import { OPTION_LIST } from "../../src/config/config.ts";
import * as http from "../../src/health/http.ts";
import * as sparingListener from "../../src/health/sparing-listener.ts";
import * as body from "../../src/key4c/body.ts";
import * as calls from "../../src/key4c/calls.ts";
import * as refusedPins from "../../src/key4c/refused-pins.ts";
import * as envelope from "../../src/keys/envelope.ts";
import * as keyHealth from "../../src/keys/key-health.ts";
import * as keySet from "../../src/keys/key-set.ts";
import * as keyring from "../../src/keys/keyring.ts";
import * as lookThrough from "../../src/keys/look-through.ts";
import * as material from "../../src/keys/material.ts";
import * as pace from "../../src/keys/pace.ts";
import * as refusals from "../../src/keys/refusals.ts";
import * as renewals from "../../src/keys/renewals.ts";
import * as unwraps from "../../src/keys/unwraps.ts";
import * as wrapping from "../../src/keys/wrapping.ts";
import * as tree from "../../src/kubernetes/encryption/tree.ts";
import * as connection from "../../src/socket/connection.ts";
import * as listen from "../../src/socket/listen.ts";
import * as rpc from "../../src/socket/rpc.ts";
import * as files from "../../src/system/files.ts";
import * as stderr from "../../src/system/stderr.ts";
import { table } from "./markdown.ts";

/** A value as it is shown, and where it comes from. */
type Limit = readonly [value: string, from: string];

const MIB = 1024 ** 2;

/** `{ file }` is a module under the name of its file; a constant's name ends with its unit. */
function constant<M extends object>(
  file: Readonly<Record<string, M>>,
  name: keyof M & string,
): Limit {
  const [[named = "", module] = []] = Object.entries(file);
  const value = Number(module?.[name]);
  const fileName = named.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
  return [shown(value, name), `${fileName}.ts ${name}`];
}

/** The default of an option. */
function option(env: string): Limit {
  const text = OPTION_LIST.find(([, one]) => one.env === env)?.[1].default ?? "?";
  const [, count, unit] = /^(\d+)([a-z]*)$/.exec(text) ?? [];
  return [unit === "" ? shown(Number(count), "") : `${count} ${unit}`, env];
}

function shown(value: number, name: string): string {
  if (name.endsWith("_MS")) {
    return value < 100 ? `${value} ms` : `${value / 1_000} s`;
  }
  if (name.endsWith("_BYTES")) {
    const [unit, bytes] = value >= MIB ? ["MiB", MIB] : value >= 1024 ? ["KiB", 1024] : ["B", 1];
    return `${value / Number(bytes)} ${unit}`;
  }
  return value >= 2 ** 20 ? `2^${Math.log2(value)}` : `${value}`;
}

const LIMITS: readonly (readonly [limit: string, value: Limit, why: string])[] = [
  [
    "uses of a local KEK",
    option("KMS_LOCAL_KEK_MAX_USES"),
    "the arithmetic of IVs (audit.md); the reach of a theft",
  ],
  ["age of a local KEK", option("KMS_LOCAL_KEK_MAX_AGE"), "the same"],
  [
    "uses of a local KEK, in an outage too",
    constant({ keyring }, "MAX_USES_EVER"),
    "SP 800-38D §8.3",
  ],
  [
    "wait of an Encrypt for a new local KEK",
    constant({ renewals }, "MAX_RENEWAL_WAIT_MS"),
    "below the API server's timeout of 3 s",
  ],
  ["renewals at once", constant({ renewals }, "MAX_CONCURRENT_RENEWALS"), "do not flood an HSM"],
  [
    "wait of Status for the first probe",
    constant({ keyring }, "MAX_FIRST_PROBE_WAIT_MS"),
    "below the API server's timeout of 3 s",
  ],
  [
    "unwrapped local KEKs kept",
    option("KMS_LOCAL_KEK_CACHE_SIZE"),
    "enough for years of restarts; 0 keeps none",
  ],
  ["plaintext", constant({ envelope }, "MAX_PLAINTEXT_BYTES"), "a DEK has 32 bytes"],
  [
    "wrapped local KEK",
    constant({ wrapping }, "MAX_WRAPPED_KEK_BYTES"),
    "RSA or PQC wraps fit, floods do not",
  ],
  ["an RPC message", constant({ rpc }, "MAX_MESSAGE_BYTES"), "the largest v1 cipher fits"],
  [
    "fields of an RPC message, those of its annotations included",
    constant({ rpc }, "MAX_FIELDS"),
    "an honest one has a handful; thousands would hold up the other callers",
  ],
  [
    "calls at once on a connection",
    constant({ rpc }, "MAX_CONCURRENT_STREAMS"),
    "memory, when a client reads nothing",
  ],
  [
    "connections",
    constant({ listen }, "MAX_CONNECTIONS"),
    "descriptors; above it the plugin closes the connection that was silent longest",
  ],
  [
    "answers a client leaves unread",
    constant({ connection }, "MAX_UNSENT_BYTES"),
    "memory, when a client reads nothing",
  ],
  [
    "unwraps by Key4C at once",
    constant({ unwraps }, "MAX_CONCURRENT_UNWRAPS"),
    "do not flood an HSM",
  ],
  [
    "calls that wait for such an unwrap",
    constant({ unwraps }, "MAX_WAITING_UNWRAPS"),
    "refuse a flood, do not remember it",
  ],
  [
    "one attempt of a call to Key4C",
    constant({ calls }, "ATTEMPT_TIMEOUT_MS"),
    "a caller may see a second attempt",
  ],
  ["all attempts of a call", constant({ calls }, "CALL_BUDGET_MS"), "the result fills the cache"],
  [
    "an answer of Key4C",
    constant({ body }, "MAX_RESPONSE_BYTES"),
    "the largest honest answer carries 16 KiB",
  ],
  [
    "a refused wrapped local KEK is remembered",
    constant({ refusals }, "INVALID_MS"),
    "garbage must not cause a storm of calls",
  ],
  [
    "so many are remembered; above it, unknown ones are asked for one by one",
    constant({ refusals }, "MAX_REFUSALS"),
    "invented ones must not load the HSM; honest ones still come through",
  ],
  [
    "time between two that are asked for one by one",
    constant({ refusals }, "FLOODED_INTERVAL_MS"),
    "the same",
  ],
  [
    "a refused secret, or a refused call, is tried again after (a PIN: [later](#profiles))",
    constant({ refusedPins }, "PAUSE_MS"),
    "tokens of HSMs lock",
  ],
  [
    "a Retry-After is obeyed up to",
    constant({ pace }, "MAX_RETRY_AFTER_MS"),
    "a mistake of Key4C must not last for a day",
  ],
  [
    "a Retry-After without a local KEK is obeyed up to",
    constant({ pace }, "MAX_RETRY_AFTER_WITHOUT_KEK_MS"),
    "nothing works until then",
  ],
  [
    "HTTP connections, at once and before a pause",
    constant({ sparingListener }, "MAX_HTTP_CONNECTIONS"),
    "descriptors and time are for the API server",
  ],
  [
    "that pause",
    constant({ sparingListener }, "PAUSE_MS"),
    "at most 80 connections a second cost anything",
  ],
  [
    "an HTTP request",
    constant({ http }, "MAX_REQUEST_BYTES"),
    "a scraper's has a few hundred bytes",
  ],
  ["an HTTP connection", constant({ http }, "MAX_CONNECTION_MS"), "nobody holds one of the 8"],
  [
    "metrics are made at most once in",
    constant({ http }, "METRICS_INTERVAL_MS"),
    "a request before that waits",
  ],
  [
    "log lines that wait for their reader",
    constant({ stderr }, "MAX_WAITING_BYTES"),
    "a stuck reader costs lines, not memory",
  ],
  [
    "`status --live`",
    constant({ cli }, "LIVE_TIMEOUT_MS"),
    "with the start of the process at most 2 s",
  ],
  [
    "nodes of an EncryptionConfiguration, for `doctor`",
    constant({ tree }, "MAX_NODES"),
    "YAML aliases expand a few lines into very many nodes",
  ],
  ["a configured file", constant({ files }, "MAX_FILE_BYTES"), "a larger file is the wrong file"],
  [
    "equal answers that lead to revoked or mismatch",
    constant({ keyHealth }, "FINDING_ANSWERS"),
    "an outage is not a revocation",
  ],
  ["answers that revoke, over at least", option("KMS_REVOCATION_GRACE"), "the same"],
  [
    "answers that make a mismatch, over at least",
    constant({ keyHealth }, "MISMATCH_MS"),
    "a replica may lag",
  ],
  [
    "the same, while Key4C reports an older version, or an object claims a newer one",
    constant({ material }, "LAG_MS"),
    "a replica may lag for longer",
  ],
  [
    "local KEKs that are checked with Key4C at once, after a mismatch or a rotation",
    constant({ lookThrough }, "BATCH"),
    "with the next row 50 calls a second: an HSM must have time for others",
  ],
  ["time between two such", constant({ lookThrough }, "BATCH_INTERVAL_MS"), "the same"],
  [
    "local KEKs of a key that left the configuration are wiped after Key4C has answered for",
    constant({ keySet }, "WITHHELD_MS"),
    "it may have been a mistake",
  ],
];

export const limitsTable = (): string =>
  table(
    ["limit", "value", "constant", "why"],
    LIMITS.map(([limit, [value, from], why]) => [limit, value, `\`${from}\``, why]),
  );
