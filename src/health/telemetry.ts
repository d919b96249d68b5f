import { X509Certificate } from "node:crypto";
import { readdirSync, statSync } from "node:fs";
import type { PersistentCache } from "../cache/persistent-cache.ts";
import { KINDS } from "../failures/kinds.ts";
import { STATES } from "../keys/key-health.ts";
import { formatKeyId, keyNameHash, NO_KCV } from "../keys/key-id.ts";
import type { Keyring } from "../keys/keyring.ts";
import type { Fault } from "../system/files.ts";
import { stderr } from "../system/stderr.ts";
import type { Health } from "./health.ts";
import type { Metrics } from "./metrics.ts";

export interface TelemetrySources {
  readonly version: string;
  readonly keyring: Keyring;
  readonly health: Health;
  /** undefined: KMS_PERSISTENT_CACHE is not set. */
  readonly cache: Pick<PersistentCache, "outlook"> | undefined;
  readonly connections: () => number;
  /** Whether the path of the socket leads here. */
  readonly live: () => boolean;
  /** Paths, by the name of their option. */
  readonly secretFiles: ByOption<string>;
  /** What is read again while the plugin runs, by the name of its option. */
  readonly watchedFiles: ReadonlyMap<string, { readonly fault: Fault }>;
  /** When what is in use expires ({@link expiryOf}), by the name of its option. */
  readonly certificateFiles: ByOption<() => number | undefined>;
}

/** What no value was given for is undefined. */
type ByOption<T> = Readonly<Record<string, T | undefined>>;

/** Counts the RPCs that are answered. @returns what records one, in seconds */
export function rpcDurations(metrics: Metrics) {
  return metrics.histogram(
    "key4c_kms_rpc_duration_seconds",
    "RPCs answered, by API, method and gRPC status code.",
    ["api", "method", "code"],
  );
}

/** Counts the calls to Key4C. @returns what records one, in seconds */
export function key4cCallDurations(metrics: Metrics) {
  return metrics.histogram(
    "key4c_kms_key4c_call_duration_seconds",
    "Calls to Key4C, by operation and outcome.",
    ["operation", "kind"],
  );
}

/** Adds every metric that is read from the state of the plugin; RPCs and calls record themselves. */
export function addStateMetrics(metrics: Metrics, sources: TelemetrySources): void {
  const { version, keyring, health, cache, connections, live } = sources;
  const { secretFiles, certificateFiles, watchedFiles } = sources;
  metrics.gauge(
    "key4c_kms_build_info",
    "The version of the plugin; always 1.",
    () => ({ labels: { version }, value: 1 }),
    ["version"],
  );
  metrics.gauge(
    "key4c_kms_state",
    "1 for the state that the plugin is in, 0 for all others.",
    () => STATES.map((state) => ({ labels: { state }, value: state === health.state ? 1 : 0 })),
    ["state"],
  );
  metrics.gauge(
    "key4c_kms_failure",
    "1 for the kind of failure that the last probe met, 0 for all others; all are 0 while it succeeds.",
    () => {
      const failed = health.failure?.kind;
      return Object.keys(KINDS).map((kind) => ({
        labels: { kind },
        value: kind === failed ? 1 : 0,
      }));
    },
    ["kind"],
  );
  metrics.gauge(
    "key4c_kms_key4c_last_contact_timestamp_seconds",
    "When the last probe of Key4C succeeded.",
    () => seconds(health.lastContact?.getTime()),
  );
  metrics.gauge(
    "key4c_kms_key_info",
    "The key_id that Encrypt uses now; always 1. A rotation changes its label.",
    () => {
      const keyId = keyring.snapshot?.keyId;
      return keyId === undefined ? [] : { labels: { key_id: keyId }, value: 1 };
    },
    ["key_id"],
  );
  metrics.gauge(
    "key4c_kms_key_version",
    "Version of the Key4C key that Encrypt uses now.",
    () => keyring.snapshot?.header.keyVersion,
  );
  metrics.gauge(
    "key4c_kms_key_revoked",
    "1 for a key whose local KEKs were dropped, because Key4C says that it is disabled or deleted.",
    () =>
      keyring.keys.members.map(({ key }) => ({
        labels: { key: keyName(key.kmsKeyId) },
        value: key.health.revocation !== undefined && key.hasDropped ? 1 : 0,
      })),
    ["key"],
  );
  metrics.gauge(
    "key4c_kms_key_change_failed",
    "1 while the key that is configured does not become current.",
    () => {
      const unusable = watchedFiles.get("KMS_KEY_ID_FILE")?.fault.text;
      return health.keyChangeFailure === undefined && unusable === undefined ? 0 : 1;
    },
  );
  metrics.gauge(
    "key4c_kms_local_keks_orphaned",
    "Local KEKs that Key4C does not unwrap any more; only this process can read what they wrapped.",
    () => {
      const counts = keyring.keys.members.map(({ key }) => key.orphans.length);
      return counts.reduce((sum, count) => sum + count, 0);
    },
  );
  metrics.counter(
    "key4c_kms_local_keks_of_current_key_refused_total",
    "Local KEKs of the current key and version that Key4C refused to callers.",
    () => keyring.keys.current.key.asked.refused,
  );
  metrics.counter(
    "key4c_kms_encrypts_over_limit_total",
    "Encrypts above KMS_LOCAL_KEK_MAX_USES, because there was no new local KEK.",
    () => keyring.overLimit,
  );
  metrics.gauge("key4c_kms_local_kek_age_seconds", "Age of the current local KEK.", () =>
    seconds(keyring.ageMs),
  );
  metrics.gauge(
    "key4c_kms_local_kek_uses",
    "DEKs wrapped under the current local KEK.",
    () => keyring.snapshot?.localKek.uses,
  );
  metrics.gauge(
    "key4c_kms_local_kek_cache_entries",
    "Unwrapped local KEKs in memory, beside the current one.",
    () => keyring.cache.size,
  );
  metrics.counter(
    "key4c_kms_local_kek_cache_hits_total",
    "Decrypts that found their local KEK in the cache.",
    () => keyring.cache.hits,
  );
  metrics.counter(
    "key4c_kms_local_kek_cache_misses_total",
    "Decrypts that did not find their local KEK in the cache.",
    () => keyring.cache.misses,
  );
  metrics.gauge(
    "key4c_kms_local_kek_unwraps_under_way",
    "Local KEKs that Key4C is just unwrapping for callers.",
    () => keyring.unwraps.underWay,
  );
  const outlook = () => cache?.outlook(keyring.keys.current.key.kmsKeyId);
  metrics.gauge(
    "key4c_kms_persistent_cache_ready",
    "1 while a restart would come up without Key4C. Only where KMS_PERSISTENT_CACHE is set, as the next two.",
    () => cache && (outlook()?.isComplete === true ? 1 : 0),
  );
  metrics.gauge(
    "key4c_kms_persistent_cache_local_keks",
    "Local KEKs of the current key that a restart would have.",
    () => cache && (outlook()?.kekCount ?? 0),
  );
  metrics.gauge(
    "key4c_kms_persistent_cache_expiry_timestamp_seconds",
    "Until when a restart would have them, unless Key4C confirms them again.",
    () => seconds(outlook()?.untilMs),
  );
  metrics.gauge("key4c_kms_connections", "Open connections on the socket.", connections);
  metrics.gauge(
    "key4c_kms_socket_live",
    "1 while the path of the socket leads to this process.",
    () => (live() ? 1 : 0),
  );
  metrics.counter(
    "key4c_kms_log_lines_dropped_total",
    "Lines of the log that standard error did not take.",
    () => stderr.droppedLines,
  );
  metrics.gauge(
    "key4c_kms_secret_file_modified_timestamp_seconds",
    "When a file with a secret was last written. Under systemd that is the copy made at the start.",
    () => byOption(secretFiles, modifiedSeconds),
    ["option"],
  );
  metrics.gauge(
    "key4c_kms_file_unusable",
    "1 while a file that an option names cannot be used, and its last good content stays in use.",
    () =>
      [...watchedFiles].map(([option, { fault }]) => ({
        labels: { option },
        value: fault.text === undefined ? 0 : 1,
      })),
    ["option"],
  );
  metrics.gauge(
    "key4c_kms_certificate_expiry_timestamp_seconds",
    "When the first of the certificates in a file expires; they are those in use.",
    () => byOption(certificateFiles, (expiry) => expiry()),
    ["option"],
  );
  addProcessMetrics(metrics);
}

/** The part of a key_id that stays the same over versions. */
function keyName(kmsKeyId: string): string {
  return formatKeyId({ keyNameHash: keyNameHash(kmsKeyId), keyVersion: 0, kcvHash: NO_KCV });
}

/** The figures that Prometheus' own client libraries give for every process. */
function addProcessMetrics(metrics: Metrics): void {
  const startSeconds = Date.now() / 1000 - process.uptime();
  metrics.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", () =>
    process.memoryUsage.rss(),
  );
  metrics.counter("process_cpu_seconds_total", "Total user and system CPU time in seconds.", () => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1e6;
  });
  metrics.gauge(
    "process_start_time_seconds",
    "Start time of the process since the Unix epoch in seconds.",
    () => startSeconds,
  );
  metrics.gauge("process_open_fds", "Number of open file descriptors.", () => {
    try {
      return readdirSync("/proc/self/fd").length;
    } catch {
      return undefined;
    }
  });
}

function seconds(ms: number | undefined): number | undefined {
  return ms === undefined ? undefined : ms / 1000;
}

/** One sample for each option that has a value. */
function byOption<T>(values: ByOption<T>, read: (value: T) => number | undefined) {
  return Object.entries(values).flatMap(([option, one]) => {
    const value = one === undefined ? undefined : read(one);
    return value === undefined ? [] : [{ labels: { option }, value }];
  });
}

function modifiedSeconds(path: string): number | undefined {
  try {
    return statSync(path).mtimeMs / 1000;
  } catch {
    return undefined;
  }
}

const CERTIFICATE = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g;

/**
 * When the first certificate of a PEM text expires, in seconds since the epoch; undefined where none can be read.
 * Parsed again only when the text is another one: 150 CAs take milliseconds.
 */
export function expiryOf(pemNow: () => string): () => number | undefined {
  let read: string | undefined;
  let expiry: number | undefined;
  return () => {
    const pem = pemNow();
    if (pem !== read) {
      read = pem;
      const times = (pem.match(CERTIFICATE) ?? []).map(notAfterSeconds);
      const earliest = Math.min(...times.filter((one) => !Number.isNaN(one)));
      expiry = Number.isFinite(earliest) ? earliest : undefined;
    }
    return expiry;
  };
}

/** NaN for what is no certificate. */
function notAfterSeconds(pem: string): number {
  try {
    return Date.parse(new X509Certificate(pem).validTo) / 1000;
  } catch {
    return Number.NaN;
  }
}
