/** The summary of an inspect: counts, and what to do. */
import type { Group } from "../../kubernetes/encryption/load.ts";
import { counted as plural, printable } from "../printable.ts";
import type { Inspected } from "./inspect.ts";

export interface Summary {
  readonly text: string;
  /** 0: everything is under the current key; 3: something is not; 1: the input proves nothing. */
  readonly exitCode: 0 | 1 | 3;
}

/**
 * @param current the key_id that counts as current; undefined when it is not known
 * @param groups of the EncryptionConfiguration; undefined: none was given
 */
export function summarize(
  all: readonly Inspected[],
  current: string | undefined,
  groups: readonly Group[] | undefined,
): Summary {
  const localKeks = new Set(all.map(({ fingerprint }) => fingerprint).filter((one) => one !== "-"));
  const resources = counted(all, ({ etcdKey }) => resourceOf(etcdKey));
  const providers = counted(all, ({ provider }) => provider);
  providers.delete("-");
  const lines = [
    `${plural(all.length, "object")} (${[...resources].map(([name, count]) => `${count} ${name}`).join(", ")}), ${plural(localKeks.size, "local KEK")}, current key_id ${current ?? "unknown"}`,
    ...counts(
      counted(all, ({ keyId, verdict }) => `${keyId === "-" ? "" : `${keyId} `}${verdict}`),
    ),
    ...counts(providers).map((line) => `${line} (provider)`),
  ];
  const strangers = groups === undefined ? [] : strangersOf(all, groups);
  const verdicts = counted(all, ({ verdict }) => verdict);
  const of = (verdict: Inspected["verdict"]) => verdicts.get(verdict) ?? 0;
  const others = of("stale") + of("foreign") + of("plaintext");
  const advice = [
    of("unknown") > 0 &&
      `${of("unknown")} are no objects of Kubernetes, so the input gives no answer. Give whole values (not --keys-only, not -w fields), under the keys of objects`,
    current === undefined
      ? "the current key_id is not known: give --current, or --endpoint of a running plugin"
      : others > 0 &&
        `${others} not under the current key: rewrite them (${rewrite(resources)}) before you disable a previous key, then run inspect again`,
    of("broken") > 0 &&
      `${of("broken")} broken: no key opens them, and a rewrite fails on them. Restore them from a backup, or delete them and create them again; until then, listing their resource fails`,
    ...strangers.map(
      (name) =>
        `the EncryptionConfiguration has no provider "${name}": what is under it cannot be read. Add it again under this name, rewrite, and only then remove it`,
    ),
    groups === undefined && severalNames(all),
  ];
  const isAnswer = of("unknown") === 0 && current !== undefined && all.length > 0;
  const isDone = others + of("broken") + strangers.length === 0;
  const exitCode = !isAnswer ? 1 : isDone ? 0 : 3;
  const text = [
    ...lines,
    exitCode === 0 && "everything in the input is under the current key",
    ...advice,
    "",
  ].filter((line) => line !== false);
  return { text: text.map(printable).join("\n"), exitCode };
}

function counted(all: readonly Inspected[], name: (one: Inspected) => string): Map<string, number> {
  return new Map([...Map.groupBy(all, name)].map(([of, those]) => [of, those.length]));
}

function counts(found: ReadonlyMap<string, number>): string[] {
  return [...found].map(([name, count]) => `  ${count} ${name}`);
}

/** `/registry/secrets/default/db` → `secrets`, `/registry/stable.example/pandas/x` → `pandas.stable.example`. */
function resourceOf(etcdKey: string): string {
  const [, , first = "?", second = "?"] = etcdKey.split("/");
  return first.includes(".") ? `${second}.${first}` : first;
}

function rewrite(resources: ReadonlyMap<string, number>): string {
  return `kubectl get ${[...resources.keys()].join(",")} -A -o json | kubectl replace -f -`;
}

/** kms providers by name. The name is part of each stored value. */
function kmsNames(all: readonly Inspected[]): Set<string> {
  return new Set(
    all
      .filter(({ fingerprint }) => fingerprint !== "-")
      .map(({ api, provider }) => `${api}:${provider}`),
  );
}

function severalNames(all: readonly Inspected[]): string | false {
  const names = kmsNames(all);
  return (
    names.size > 1 &&
    `WARNING: objects are under several providers (${[...names].join(", ")}): each name must stay in the EncryptionConfiguration as long as data have it; --encryption-configuration compares them`
  );
}

/** Providers of data of ours that an EncryptionConfiguration does not have. */
function strangersOf(all: readonly Inspected[], groups: readonly Group[]): string[] {
  const known = new Set(
    groups.flatMap(({ providers }) =>
      providers.flatMap(({ kms }) => (kms === undefined ? [] : [`${kms.apiVersion}:${kms.name}`])),
    ),
  );
  return [...kmsNames(all)].filter((name) => !known.has(name));
}
