/** What KMS_PERSISTENT_CACHE needs of a pod and of systemd. */
import { credentialName } from "../../config/config.ts";
import { ExitError } from "../../system/errors.ts";
import { directoryFor, type Order, path } from "./settings.ts";
import { fill } from "./template.ts";
import persistentCacheKey from "./templates/persistent-cache-key.txt";

const KEY_FILE = "KMS_PERSISTENT_CACHE_KEY_FILE";
/** What `systemd-creds encrypt` wrote. */
const SEALED_KEY = "/etc/key4c-kms/persistent-cache-key.cred";
const KEY_UNIT = "key4c-kms-cache-key.service";

/** What the unit of the service has for it. @throws ExitError 2 for a directory that systemd cannot give to the service */
export function unitLines({ line: { given, config } }: Order) {
  const { persistentCache: directory, environmentFile } = config;
  const keyFile = given.get(KEY_FILE);
  if (directory === undefined) {
    return { unit: [], directory: [], credential: [] };
  }
  const [, root, name] = /^\/(run|var\/lib)\/([^/]+)$/.exec(directory) ?? [];
  if (name === undefined) {
    const places = "/run/NAME (in memory) or /var/lib/NAME (sealed)";
    throw new ExitError(
      2,
      `KMS_PERSISTENT_CACHE must be ${places} for a service with a user of its own`,
    );
  }
  if (keyFile !== undefined && environmentFile !== undefined) {
    throw new ExitError(
      2,
      `${KEY_FILE} needs LoadCredential= of systemd 247: without it nobody but root could keep that key`,
    );
  }
  return {
    unit: keyFile === undefined ? [] : [`Wants=${KEY_UNIT}`, `After=${KEY_UNIT}`],
    directory: [
      "# What the next process is to have, so that a restart comes up while Key4C is unreachable.",
      ...(root === "run"
        ? [`RuntimeDirectory=${name}`, "RuntimeDirectoryMode=0700", "RuntimeDirectoryPreserve=yes"]
        : [`StateDirectory=${name}`, "StateDirectoryMode=0700"]),
    ],
    // Without the file the service starts with what is no key, and keeps nothing.
    credential: keyFile === undefined ? [] : [`SetCredential=${credentialName(KEY_FILE)}:none`],
  };
}

/** The unit that opens the sealing key. */
export function persistentCacheKeyText({ line: { config, given } }: Order): string {
  const key = given.get(KEY_FILE) ?? "/run/key4c-kms-cache-key/key";
  return fill(persistentCacheKey, {
    directory: config.persistentCache ?? "/var/lib/key4c-kms-cache",
    credential: credentialName(KEY_FILE),
    sealed: SEALED_KEY,
    key: path(KEY_FILE, key),
    keyDirectory: directoryFor(KEY_FILE, key),
  });
}
