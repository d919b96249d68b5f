import { parseGroupResource } from "./go.ts";
import type { Group, Provider } from "./load.ts";

/**
 * The providers of a resource as kube-apiserver orders them: those of every group that names it, one group
 * after the other; where none does, of those with its group's wildcard, else with `*.*`. The first one
 * writes, all read. Empty: it is stored in clear.
 * @param resource as in the file: `secrets`, `deployments.apps`
 */
export function providersOf(groups: readonly Group[], resource: string): readonly Provider[] {
  const { group, name } = parseGroupResource(resource);
  for (const key of [`${name}.${group}`, `*.${group}`, "*.*"]) {
    const naming = groups.filter(({ resources }) =>
      resources.map(parseGroupResource).some((one) => `${one.name}.${one.group}` === key),
    );
    if (naming.length > 0) {
      return naming.flatMap(({ providers }) => providers);
    }
  }
  return [];
}

/** What stands before every value that a provider has encrypted; empty for plaintext. */
export function storedPrefix(provider: Provider | undefined): string {
  if (provider === undefined || provider.kind === "identity") {
    return "";
  }
  const { kind, kms, keyName } = provider;
  return kms === undefined
    ? `k8s:enc:${kind}:v1:${keyName}:`
    : `k8s:enc:kms:${kms.apiVersion}:${kms.name}:`;
}
