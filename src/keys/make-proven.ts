import { toPluginError } from "../failures/plugin-error.ts";
import type { Kept } from "./kek-cache.ts";
import type { Key } from "./key.ts";
import { formatKeyId } from "./key-id.ts";
import { makeLocalKek, NotUnwrapped } from "./local-kek.ts";
import type { Material } from "./material.ts";
import type { WrappingService } from "./wrapping.ts";

/**
 * Makes a local KEK that Key4C has wrapped and unwrapped again. All wraps come this way, and keep encrypt's circuit.
 * @throws PluginError
 */
export async function makeProven(
  service: WrappingService,
  key: Key,
  told: Material,
): Promise<Kept> {
  const { circuits } = key;
  const { refusalToWrap } = circuits;
  if (refusalToWrap !== undefined) {
    throw refusalToWrap;
  }
  try {
    const made = await makeTwice(service, key, told);
    circuits.recordWrap(undefined);
    circuits.recordUnwrap(undefined); // it was unwrapped again
    circuits.isUnwrapDoubtful = false;
    return made;
  } catch (error) {
    const failure = toPluginError(error);
    const wasWrapped = error instanceof NotUnwrapped || failure.kind === "olderVersion";
    circuits.recordWrap(wasWrapped ? undefined : failure);
    circuits.isUnwrapDoubtful ||= error instanceof NotUnwrapped;
    throw error;
  }
}

/** Where describe tells no version, a new one counts only if two encrypts tell the same. */
async function makeTwice(
  service: WrappingService,
  { kmsKeyId, current }: Key,
  told: Material,
): Promise<Kept> {
  const made = await makeLocalKek(service, kmsKeyId, told);
  const { keyVersion } = made.header;
  const isKnown = keyVersion === 0 || current?.keyId === formatKeyId(made.header);
  if (told.version !== undefined || isKnown) {
    return made;
  }
  try {
    const again = await makeLocalKek(service, kmsKeyId, { ...told, version: keyVersion });
    again.localKek.drop();
    return made;
  } catch (error) {
    made.localKek.drop();
    throw error;
  }
}
