/** The settings that a manifest gives to serve, and where they come from. */
import { createHash } from "node:crypto";
import { dirname, normalize } from "node:path";
import { type CommandLine, type Environment, required } from "../../config/config.ts";
import { proxiesIn, secretsIn } from "../../config/config-file.ts";
import { absolutePath, group } from "../../config/option-types.ts";
import { DEFAULT_PROFILE, parseProfile, sends } from "../../key4c/profile.ts";
import { ExitError } from "../../system/errors.ts";
import { readSmallFile } from "../../system/files.ts";

/** A manifest's own line and the environment it is printed in. */
export interface Order {
  readonly line: CommandLine;
  readonly env: Environment;
}

type Setting = readonly [name: string, text: string];

/** Where the credentials lie when no file is named. */
const SECRETS_DIRECTORY = "/etc/key4c-kms";
export const SECRET_FILES: readonly string[] = [
  "KMS_USER_ID_FILE",
  "KMS_API_KEY_FILE",
  "KMS_PIN_FILE",
];
/** Where Prometheus finds the metrics, unless told otherwise: a flag that is empty means nowhere. */
export const METRICS_ADDRESS = "127.0.0.1:9640";
/** Set in another way, or secret. */
const NOT_SETTINGS = [
  ...["KMS_CONFIG", "KMS_ENDPOINT", "KMS_SOCKET_GROUP"],
  ...["KMS_USER_ID", "KMS_API_KEY", "KMS_PIN"],
];

/**
 * Directories that belong to others. A pod that mounts one sees files that it should not, or hides its own. Mounting a
 * single file does not help: a file that is renewed by a rename would never be seen.
 */
const SHARED_DIRECTORIES = new Set(
  `/ /bin /boot /dev /etc /home /lib /media /mnt /opt /proc /root /run /sbin /srv /sys /tmp /usr /var
  /var/lib /var/run /usr/local /usr/share
  /etc/ssl /etc/ssl/certs /etc/ssl/private /etc/pki /etc/pki/tls /etc/pki/tls/certs
  /etc/kubernetes /etc/kubernetes/pki /etc/kubernetes/manifests /etc/rancher /etc/systemd`.split(
    /\s+/,
  ),
);

/** Enough letters of a SHA-256 to tell a change; nobody is kept from forging it. */
const DIGEST_LETTERS = 16;

export function digestOf(text: string): string {
  return createHash("sha256").update(text).digest("hex").slice(0, DIGEST_LETTERS);
}

/** @throws ExitError 2 for a control character, which no pod, unit or comment could hold */
export function refuseControlCharacters(order: Order): void {
  const bad = toldBy(order).filter((one) => /\p{Cc}/u.test(one));
  if (bad.length > 0) {
    const names = bad.map((one) => one.split(/[= ]/)[0]);
    throw new ExitError(2, names.map((name) => `${name} has a control character`).join("\n"));
  }
}

/** The settings file, which the plugin reads at its start; undefined: there is none. @throws ExitError 2 */
export function configFilePath({ line: { configFile } }: Order): string | undefined {
  return configFile !== undefined && configFile.settings.size > 0
    ? path("KMS_CONFIG", configFile.path)
    : undefined;
}

/** Of its settings but secrets: a digest is read by many, and a PIN is soon guessed. */
export function settingsDigest({ line: { configFile } }: Order): string {
  const settings = configFile?.settings ?? new Map<string, string>();
  const secrets = secretsIn(settings);
  return digestOf(JSON.stringify([...settings].filter(([name]) => !secrets.includes(name))));
}

/** Whether the plugin finds a setting in that file by itself. */
export function isInConfigFile({ line }: Order, name: string): boolean {
  return line.configFile !== undefined && line.origins.get(name) === line.configFile.path;
}

/** The settings of serve, without secrets, files, the group of the socket, and what is in the settings file. */
export function serveSettings(order: Order): readonly Setting[] {
  const { given, config } = order.line;
  const missing = ["KEY4C_URL", "KMS_KEY_ID"].filter(
    (name) => !given.has(name) && !given.has(`${name}_FILE`),
  );
  if (missing.length > 0) {
    throw new ExitError(2, missing.map((name) => `${name} is missing`).join("\n"));
  }
  const settings = new Map([
    ["KMS_HTTP_ADDRESS", METRICS_ADDRESS],
    ...[...given].filter(([name]) => name.startsWith("KMS_") || name === "KEY4C_URL"),
  ]);
  return [
    ["KMS_ENDPOINT", endpointUrl(required(config.kmsEndpoint))],
    ...[...settings].filter(
      ([name, text]) =>
        !NOT_SETTINGS.includes(name) &&
        !isFile(name) &&
        !isInConfigFile(order, name) &&
        text !== "", // an empty one counts as not set
    ),
    ...proxySettings(order.env),
  ];
}

/** @throws ExitError 2 for one with a password: a manifest is read by many */
function proxySettings(env: Environment): Setting[] {
  const settings = proxiesIn(env);
  for (const [name, text] of settings) {
    if (text.includes("@")) {
      throw new ExitError(
        2,
        `${name} has a password, and a manifest is read by many: unset it here, and set it by hand where only root reads it`,
      );
    }
  }
  return settings;
}

/** Files by the option that names them. A secret is always a file: a manifest is read by many. */
export function serveFiles(order: Order): readonly Setting[] {
  const { given } = order.line;
  const files = new Map([...given].filter(([name]) => isFile(name)));
  const isUserIdElsewhere = files.has("KMS_USER_ID_FILE") || isInConfigFile(order, "KMS_USER_ID");
  if (!isUserIdElsewhere && (given.has("KMS_USER_ID") || needsUserId(given))) {
    files.set("KMS_USER_ID_FILE", `${SECRETS_DIRECTORY}/user-id`);
  }
  for (const [name, file] of [
    ["KMS_API_KEY", "api-key"],
    ["KMS_PIN", "pin"],
  ] as const) {
    if (given.has(name) && !isInConfigFile(order, name)) {
      files.set(`${name}_FILE`, `${SECRETS_DIRECTORY}/${file}`);
    }
  }
  return [...files].map(([name, text]) => [name, path(name, text)]);
}

/** Whether the profile sends it; so it seems where the profile is only on the nodes. */
function needsUserId(given: ReadonlyMap<string, string>): boolean {
  const path = given.get("KEY4C_PROFILE");
  try {
    return sends(path ? parseProfile(readSmallFile(path)) : DEFAULT_PROFILE, "userId");
  } catch {
    return true;
  }
}

function isFile(name: string): boolean {
  return name.endsWith("_FILE") || name === "KEY4C_PROFILE";
}

/** The group of the socket as it was given; undefined: none. @throws ExitError 2 */
export function socketGroup({ line: { given } }: Order): string | undefined {
  const text = given.get("KMS_SOCKET_GROUP");
  if (text !== undefined && !/^[0-9A-Za-z_][0-9A-Za-z_.-]*$/.test(text)) {
    throw new ExitError(2, "KMS_SOCKET_GROUP must be the name or the number of a group");
  }
  return text;
}

/** The group as a number, because an image does not know the names of the machine. @throws ExitError 2 */
export function socketGroupId(order: Order): number | undefined {
  const text = socketGroup(order);
  try {
    return text === undefined ? undefined : group(text);
  } catch {
    throw new ExitError(2, `KMS_SOCKET_GROUP: this machine has no group ${text}; give its number`);
  }
}

export function socketPath({ line: { config } }: Order): string {
  return path("KMS_ENDPOINT", required(config.kmsEndpoint));
}

export function endpointUrl(socket: string): string {
  return `unix://${path("KMS_ENDPOINT", socket)}`;
}

/** Whether a directory belongs to others. */
export function isShared(directory: string): boolean {
  return SHARED_DIRECTORIES.has(normalize(directory));
}

/** The directory of a file, which a pod mounts as a whole. @throws ExitError 2 when others use that directory too */
export function directoryFor(name: string, file: string): string {
  const directory = dirname(file);
  if (isShared(directory)) {
    throw new ExitError(
      2,
      `${name} must lie in a directory of its own, not in ${directory}: the pod gets the directory as a whole, so that it sees a renewed file`,
    );
  }
  return directory;
}

/** @throws ExitError 2 */
export function path(name: string, text: string): string {
  try {
    return absolutePath(text);
  } catch (error) {
    throw new ExitError(2, `${name} ${(error as Error).message}`); // absolutePath throws Errors
  }
}

/** What was given, and where; the head of a manifest. Secrets only by name. */
export function toldBy({ line: { sources }, env }: Order): string[] {
  const proxies = proxySettings(env).map(([name, text]) => `${name}=${text} (environment)`);
  return [...sources, ...proxies];
}
