/** Whether Key4C still gives back what it wrapped. */
import type { HeldKeks, Snapshot } from "./held.ts";
import { keyNameHash } from "./key-id.ts";
import { isGivenBack, makeLocalKek } from "./local-kek.ts";
import type { WrappingService } from "./wrapping.ts";

/** How many local KEKs an audit asks for at once. */
const AUDIT_WIDTH = 8;

/**
 * Asks for the current local KEK and the witness, on new connections.
 * @returns those that Key4C does not give back
 * @throws PluginError when its answer says neither
 */
export async function missingKeks(
  service: WrappingService,
  held: HeldKeks,
): Promise<readonly Snapshot[]> {
  const given = await Promise.all(
    held.pinned.map(async (one) => ({
      one,
      isGiven: await isGivenBack(service, one.kmsKeyId, one),
    })),
  );
  return given.filter(({ isGiven }) => !isGiven).map(({ one }) => one);
}

/**
 * The control of the experiment: has Key4C wrap a new local KEK under the same key and give it back.
 * @throws PluginError when it does not. Then the missing ones do not prove a mismatch
 */
export async function tryAnother(
  service: WrappingService,
  { kmsKeyId, header }: Snapshot,
): Promise<void> {
  const expected = { version: undefined, kcvHash: header.kcvHash };
  const { localKek } = await makeLocalKek(service, kmsKeyId, expected);
  localKek.drop();
}

/** The result of an audit. */
export interface Audit {
  /** How many became orphaned. */
  readonly found: number;
  /** Whether all were asked for. */
  readonly isComplete: boolean;
}

/**
 * Asks Key4C for every local KEK that is held for a key. Those that it does not give back become orphaned, and orphaned
 * ones that it gives back cease to be. Thousands may be held, so the audit ends at the first answer that says neither.
 * @param which all, or only those that are orphaned already
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
      const isGiven = await isGivenBack(service, kmsKeyId, one).catch(() => {
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
