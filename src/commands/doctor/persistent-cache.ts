/** Whether a plugin that restarted now, while Key4C is unreachable, would come up; and until when. */
import { statSync } from "node:fs";
import { join } from "node:path";
import { ageOf, readMoment } from "../../cache/age.ts";
import { decodeStored } from "../../cache/form.ts";
import { fileName } from "../../cache/key-file.ts";
import { readSealingKey } from "../../cache/persistent-cache.ts";
import { judgePlace } from "../../cache/place.ts";
import { readStored } from "../../cache/store.ts";
import { type Config, keyIdOf, previousKeyIdsOf, required } from "../../config/config.ts";
import { keyNameHash } from "../../keys/key-id.ts";
import { describeError } from "../../system/errors.ts";
import { type Check, fail, pass, skip, warn } from "./check.ts";

const CHECK = "persistent cache";

export async function checkPersistentCache(config: Config): Promise<Check[]> {
  const { persistentCache: directory, persistentCacheKeyFile: keyFile, kmsEndpoint } = config;
  const kmsKeyId = keyIdOf(config);
  if (directory === undefined || kmsEndpoint === undefined || kmsKeyId === undefined) {
    return [
      skip(
        CHECK,
        "KMS_PERSISTENT_CACHE is not set: no restart comes up while Key4C is unreachable",
      ),
    ];
  }
  try {
    const own = judgePlace({ directory, socket: kmsEndpoint, isSealed: keyFile !== undefined });
    const sealingKey = keyFile === undefined ? undefined : readSealingKey(keyFile);
    const keys = [kmsKeyId, ...previousKeyIdsOf(config)];
    return await Promise.all(keys.map((id) => checkKey(own, id, sealingKey, config)));
  } catch (error) {
    const remedy = "serve runs without it until that is set right, and says so in its log";
    return [fail(CHECK, describeError(error), remedy)];
  }
}

async function checkKey(
  own: string,
  kmsKeyId: string,
  sealingKey: Uint8Array | undefined,
  config: Config,
): Promise<Check> {
  const path = join(own, fileName(kmsKeyId));
  try {
    const bytes = await readStored(path);
    if (bytes === undefined) {
      const detail = `nothing is kept of ${kmsKeyId}: a restart now would not come up without Key4C`;
      return warn(
        CHECK,
        detail,
        "start the plugin while Key4C answers; its log says what is wrong",
      );
    }
    const now = readMoment();
    const { keks, confirmed } = decodeStored(bytes, keyNameHash(kmsKeyId), sealingKey, now.bootId);
    const age = ageOf(confirmed, now, required(config.persistentCacheMaxAge));
    const at = new Date(confirmed.wallMs).toISOString();
    const count = keks.length === 1 ? "1 local KEK" : `${keks.length} local KEKs`;
    const kept = `${count} of ${kmsKeyId}, ${sealingKey === undefined ? "in memory" : "sealed"}, for user ${statSync(path).uid} alone, confirmed at ${at}`;
    if (age === undefined) {
      const detail = `${kept}: longer ago than KMS_PERSISTENT_CACHE_MAX_AGE, so a restart now would not come up without Key4C`;
      return fail(CHECK, detail, "do not restart the plugin before Key4C answers");
    }
    const until = new Date(age.untilMs).toISOString();
    return pass(CHECK, `${kept}: a restart now comes up without Key4C, until ${until}`);
  } catch (error) {
    const detail = `${path} ${describeError(error)}: a restart now would not come up without Key4C`;
    return fail(
      CHECK,
      detail,
      "run the doctor as root; else a plugin that Key4C answers writes it again",
    );
  }
}
