/** Whether Key4C still gives back what it wrapped. */
import type { HeldKeks, Snapshot } from "./held.ts";
import { keyNameHash } from "./key-id.ts";
import { isGivenBack, makeLocalKek } from "./local-kek.ts";
import type { WrappingService } from "./wrapping.ts";

/** Local KEKs that are asked for at once when all of them are. */
const AUDIT_WIDTH = 8;

/**
 * Asks for the current local KEK and the witness, on new connections.
 * @returns those that are not given back
 * @throws PluginError when Key4C says neither
 */
export async function missingKeks(
  service: WrappingService,
  held: HeldKeks,
): Promise<readonly Snapshot[]> {
  const given = await Promise.all(
    held.pinned.map(async (one) => ({
      one,
      isGiven: await isGivenBack(service, one.kmsKeyId, one, { newConnection: true }),
    })),
  );
  return given.filter(({ isGiven }) => !isGiven).map(({ one }) => one);
}

/**
 * The positive control: has Key4C wrap a local KEK under the same key and give it back.
 * @throws PluginError when it does not: then what is missing proves nothing
 */
export async function tryAnother(
  service: WrappingService,
  { kmsKeyId, header }: Snapshot,
): Promise<void> {
  const expected = { version: undefined, kcvHash: header.kcvHash };
  const { localKek } = await makeLocalKek(service, kmsKeyId, expected, { newConnection: true });
  localKek.drop();
}

/** What an audit came to. */
export interface Audit {
  /** How many are new among the orphaned. */
  readonly found: number;
  /** Whether all were asked for. */
  readonly isComplete: boolean;
}

/**
 * Asks for every local KEK that is held for a key. What is not given back is orphaned, what is again is no more.
 * Thousands may be held: it ends where Key4C says neither.
 * @param which only those that are orphaned already, or all
 */
export async function auditKeks(
  service: WrappingService,
  held: HeldKeks,
  kmsKeyId: string,
  which: "orphaned" | "all",
): Promise<Audit> {
  const { cache } = held;
  const asked = which === "all" ? held.ofKey(kmsKeyId) : cache.orphansFor(keyNameHash(kmsKeyId));
  const left = asked.values();
  let found = 0;
  let isComplete = true;
  const askOneAfterTheOther = async () => {
    for (const one of left) {
      const isGiven = await isGivenBack(service, kmsKeyId, one, {}).catch(() => {
        isComplete = false;
      });
      if (isGiven === true) {
        cache.adopt(one.header, held.isPinned(one.header));
      }
      const isLost = isGiven === false && !one.localKek.isDropped;
      found += isLost && cache.orphan(one.header, one.localKek) ? 1 : 0;
      if (!isComplete) {
        return;
      }
    }
  };
  await Promise.all(Array.from({ length: AUDIT_WIDTH }, askOneAfterTheOther));
  return { found, isComplete };
}
