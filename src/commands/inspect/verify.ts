import type { ErrorKind } from "../../failures/kinds.ts";
import { PluginError, toPluginError } from "../../failures/plugin-error.ts";
import type { Keyring } from "../../keys/keyring.ts";
import { type OurObject, parseEtcdValue } from "../../kubernetes/etcd-value.ts";
import type { EtcdPair } from "../../kubernetes/etcdctl.ts";
import { describeError } from "../../system/errors.ts";
import { counted, printable } from "../printable.ts";

/** Enough to hide the latency to Key4C, and few for its HSM, which serves others too. */
const MAX_CALLS_AT_ONCE = 8;

/** One local KEK, and what Key4C says of it. */
export interface Verified {
  /** As in the log. */
  readonly fingerprint: string;
  readonly keyId: string;
  /** How many values in etcd need it. */
  readonly objects: number;
  /** `unknown`: Key4C did not answer. */
  readonly verdict: "unwrapped" | "refused" | "unknown";
  /** Of the failure, where there is one. */
  readonly kind?: ErrorKind;
  readonly why?: string;
}

export interface Verification {
  readonly localKeks: readonly Verified[];
  readonly text: string;
  /** 0: all are unwrapped; 3: one is not, or a value is broken; 4: Key4C did not answer; 1: the input proves nothing. */
  readonly exitCode: 0 | 1 | 3 | 4;
}

/**
 * Has Key4C unwrap each local KEK once, and opens a DEK under it.
 * @param keyring a fresh one, which knows none
 */
export async function verify(
  pairs: readonly EtcdPair[],
  keyring: Pick<Keyring, "unwrap">,
): Promise<Verification> {
  const found = new Map<string, { readonly object: OurObject; objects: number }>();
  const others = new Map<string, number>();
  for (const { value } of pairs) {
    const parsed = parseEtcdValue(value);
    if (parsed.kind !== "ours") {
      others.set(parsed.kind, (others.get(parsed.kind) ?? 0) + 1);
      continue;
    }
    const { object } = parsed;
    const name = `${object.keyId} ${object.fingerprint}`;
    const known = found.get(name);
    if (known === undefined) {
      found.set(name, { object, objects: 1 });
    } else {
      known.objects += 1;
    }
  }
  const waiting = [...found.values()];
  const localKeks: Verified[] = [];
  const work = async () => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      localKeks.push(await verifyOne(next.object, next.objects, keyring));
    }
  };
  await Promise.all(Array.from({ length: MAX_CALLS_AT_ONCE }, work));
  return conclude(localKeks, others);
}

async function verifyOne(
  { fingerprint, keyId, envelope }: OurObject,
  objects: number,
  keyring: Pick<Keyring, "unwrap">,
): Promise<Verified> {
  try {
    (await keyring.unwrap(envelope)).fill(0);
    return { fingerprint, keyId, objects, verdict: "unwrapped" };
  } catch (error) {
    const failure = toPluginError(error);
    // What a running plugin takes for the lag of a replica is here the answer that was asked for.
    const { kind } = failure.cause instanceof PluginError ? failure.cause : failure;
    const hasNoAnswer = kind === "unavailable" || kind === "throttled";
    const verdict = hasNoAnswer ? "unknown" : "refused";
    return { fingerprint, keyId, objects, verdict, kind, why: describeError(error) };
  }
}

function conclude(
  localKeks: readonly Verified[],
  others: ReadonlyMap<string, number>,
): Verification {
  const of = (verdict: Verified["verdict"]) => localKeks.filter((one) => one.verdict === verdict);
  const [refused, unanswered] = [of("refused"), of("unknown")];
  const broken = others.get("broken") ?? 0;
  const unknown = others.get("unknown") ?? 0;
  const isOfEtcd = localKeks.length > 0 && unknown === 0;
  const exitCode = refused.length + broken > 0 ? 3 : !isOfEtcd ? 1 : unanswered.length > 0 ? 4 : 0;
  const lines = [
    `${counted(localKeks.length, "local KEK")}: ${of("unwrapped").length} unwrapped, ${refused.length} refused, ${unanswered.length} unknown because Key4C did not answer`,
    ...[...others].map(
      ([kind, count]) => `  ${counted(count, "value")} ${kind}: no local KEK to unwrap`,
    ),
    exitCode === 0 && "Key4C unwraps every local KEK in the input",
    ...refusals(refused),
    unanswered.length > 0 &&
      "ask again when Key4C answers: until then nothing is proven about these",
    unknown > 0 && "some values are no objects of Kubernetes, so the input gives no answer",
    localKeks.length === 0 &&
      broken === 0 &&
      "the input has no local KEK of this plugin, so it gives no answer",
    "",
  ].filter((line) => line !== false);
  return { localKeks, text: lines.join("\n"), exitCode };
}

/** What is wrong with the key or with this shell, and not with the local KEK. */
const REMEDIES: { readonly [K in ErrorKind]?: string } = {
  unknownKey:
    "under a key that is neither KMS_KEY_ID nor one of KMS_PREVIOUS_KEY_IDS here: are these the plugin's settings (/etc/key4c-kms/config)? Name the key and ask again, or rewrite the objects before that key is abandoned",
  keyUnusable: "under a key that is disabled or deleted: enable it in Key4C, then ask again",
  keyNotFound:
    "under a key that Key4C does not know here: check KEY4C_URL, KMS_USER_ID (another tenant?) and KMS_KEY_ID, then ask again",
  denied: "not verified, because Key4C refuses the credential: renew it, then ask again",
};
const UNTIL_THEN = "until then restart no plugin and no API server, and disable no key";
const LOST =
  "readable only while a plugin that knows their local KEKs runs, if at all: rewrite them now, or restore the key's material in Key4C";

function refusals(refused: readonly Verified[]): string[] {
  const objects = new Map<string, number>();
  for (const one of refused) {
    const remedy = (one.kind && REMEDIES[one.kind]) ?? LOST;
    objects.set(remedy, (objects.get(remedy) ?? 0) + one.objects);
  }
  return [
    ...[...objects].map(([remedy, count]) => `${counted(count, "object")}: ${remedy}`),
    ...(refused.length > 0 ? [UNTIL_THEN] : []),
  ];
}

/** Tab-separated. */
export function verifiedLine({ fingerprint, keyId, objects, verdict, why = "" }: Verified): string {
  return [keyId, fingerprint, String(objects), verdict, why].map(printable).join("\t");
}
