import { parseGroupResource } from "./go.ts";
import type { Group, Provider } from "./load.ts";

/**
 * The providers of a resource, in kube-apiserver's order: those of every group that names the resource. If no group does,
 * those with the wildcard of its API group; else those with `*.*`. The first one writes, all of them read. If there is
 * none, the resource is stored in clear.
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
