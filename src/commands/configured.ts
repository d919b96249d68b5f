import { version as VERSION } from "../../package.json";
import { type Config, keyIdOf, previousKeyIdsOf, required } from "../config/config.ts";
import type { Metrics } from "../health/metrics.ts";
import { key4cCallDurations } from "../health/telemetry.ts";
import type { Key4COptions } from "../key4c/calls.ts";
import { Key4C } from "../key4c/client.ts";
import { DEFAULT_PROFILE } from "../key4c/profile.ts";
import type { ConfiguredKeys } from "../keys/key-set.ts";
import type { Log } from "../system/log.ts";

/** The configured keys. @param fallback the ID when none is set */
export function configuredKeys(config: Config, fallback?: string): ConfiguredKeys {
  return {
    kmsKeyId: () => required(keyIdOf(config) ?? fallback),
    previousIds: () => previousKeyIdsOf(config),
  };
}

/**
 * How this process comes by another credential, for its log: what its operator reads at night must be true where it
 * runs. Only what is configured is named.
 * @param credentials the directory in which systemd has copies of files; undefined: none
 */
export function renewalOf(config: Config, credentials: string | undefined): string {
  const secrets = [
    { name: "KMS_USER_ID", text: config.kmsUserId, path: config.kmsUserIdFile?.path },
    { name: "KMS_API_KEY", text: config.kmsApiKey, path: config.kmsApiKeyFile?.path },
    { name: "KMS_PIN", text: config.kmsPin, path: config.kmsPinFile?.path },
  ].filter(({ text, path }) => text !== undefined || path !== undefined);
  const names = secrets.map(({ name }) => name).join(" and ");
  const isCopy = (path = "") => credentials !== undefined && path.startsWith(`${credentials}/`);
  if (secrets.every(({ path }) => path !== undefined && !isCopy(path))) {
    return `renew ${names} in ${secrets.map(({ path }) => path).join(" and ")}: the plugin reads it again, without a restart`;
  }
  const has = secrets.some(({ path }) => isCopy(path))
    ? "a copy that systemd made at its start"
    : "it from its environment or its settings";
  return `renew ${names}; this process has ${has}, so restart it when doctor says that the new one is accepted`;
}

/** The client of the configured Key4C, or of the emulator at `emulatorUrl`. */
export function key4cClient(
  config: Config,
  emulatorUrl: string | undefined,
  log: Log,
  metrics: Metrics,
): Key4C {
  return new Key4C({
    ...key4cOptions(config, emulatorUrl, log),
    record: key4cCallDurations(metrics),
  });
}

/** The options of that client, for callers that make their own. */
export function key4cOptions(
  config: Config,
  emulatorUrl: string | undefined,
  log: Log,
): Key4COptions {
  return {
    url: emulatorUrl ?? config.key4cUrl ?? "",
    profile: config.profile ?? DEFAULT_PROFILE,
    credentials: () => ({
      userId: config.kmsUserId ?? config.kmsUserIdFile?.current ?? (emulatorUrl && "emulator"),
      apiKey: config.kmsApiKey ?? config.kmsApiKeyFile?.current,
      pin: config.kmsPin ?? config.kmsPinFile?.current,
      pinRevision: config.kmsPinFile?.revision,
    }),
    tls: () => ({ ca: config.caFile?.current, ...config.clientCertificate?.current }),
    userAgent: `key4c-kms-plugin/${VERSION}`,
    log,
  };
}
