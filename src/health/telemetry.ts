import { readdirSync, statSync } from "node:fs";
import { formatKeyId, keyNameHash } from "../keys/key-id.ts";
import type { Keyring } from "../keys/keyring.ts";
import { stderr } from "../system/stderr.ts";
import { type Health, STATES } from "./health.ts";
import type { Metrics } from "./metrics.ts";

export interface TelemetrySources {
  readonly version: string;
  readonly keyring: Keyring;
  readonly health: Health;
  readonly connections: () => number;
  /** Whether the path of the socket leads here. */
  readonly live: () => boolean;
  readonly kmsKeyIds: readonly string[];
  /** By the name of their option. */
  readonly secretFiles: Readonly<Record<string, string | undefined>>;
}

/** Adds every metric that is read from the state of the plugin; RPCs and calls record themselves. */
export function addStateMetrics(metrics: Metrics, sources: TelemetrySources): void {
  const { version, keyring, health, connections, live, kmsKeyIds, secretFiles } = sources;
  metrics.gauge("key4c_kms_build_info", "The version of the plugin; always 1.", () => ({
    labels: { version },
    value: 1,
  }));
  metrics.gauge("key4c_kms_state", "1 for the state that the plugin is in.", () =>
    STATES.map((state) => ({ labels: { state }, value: state === health.state ? 1 : 0 })),
  );
  metrics.gauge(
    "key4c_kms_key4c_last_contact_timestamp_seconds",
    "When the last probe of Key4C succeeded.",
    () => seconds(health.lastContact?.getTime()),
  );
  metrics.gauge("key4c_kms_key_info", "The key_id that Encrypt uses now; always 1.", () => {
    const keyId = keyring.snapshot?.keyId;
    return keyId === undefined ? [] : { labels: { key_id: keyId }, value: 1 };
  });
  metrics.gauge(
    "key4c_kms_key_version",
    "Version of the Key4C key that Encrypt uses now.",
    () => keyring.snapshot?.header.keyVersion,
  );
  metrics.gauge("key4c_kms_key_revoked", "1 for a key whose local KEKs were dropped.", () =>
    kmsKeyIds.map((id) => ({
      labels: { key: formatKeyId(keyNameHash(id), 0) },
      value: keyring.isRevoked(id) ? 1 : 0,
    })),
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
    () => keyring.unwrapsUnderWay,
  );
  metrics.gauge("key4c_kms_connections", "Open connections on the socket.", connections);
  metrics.gauge("key4c_kms_socket_live", "1 while the path of the socket leads to it.", () =>
    live() ? 1 : 0,
  );
  metrics.counter(
    "key4c_kms_log_lines_dropped_total",
    "Lines of the log that standard error did not take.",
    () => stderr.droppedLines,
  );
  metrics.gauge(
    "key4c_kms_secret_file_age_seconds",
    "Time since a secret file was last written.",
    () =>
      Object.entries(secretFiles).flatMap(([option, path]) => {
        const age = path === undefined ? undefined : fileAgeSeconds(path);
        return age === undefined ? [] : [{ labels: { option }, value: age }];
      }),
  );
  addProcessMetrics(metrics);
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

function fileAgeSeconds(path: string): number | undefined {
  try {
    return Math.max(0, (Date.now() - statSync(path).mtimeMs) / 1000);
  } catch {
    return undefined;
  }
}
