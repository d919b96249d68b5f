/**
 * What the doctor says of every file of a directory, for the test that asks kube-apiserver's own code the
 * same: a line of JSON for each.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { loadConfiguration, type Provider } from "../../src/kubernetes/encryption/load.ts";
import { providersOf } from "../../src/kubernetes/encryption/providers.ts";

const directory = process.argv[2] ?? "";
for (const file of readdirSync(directory)) {
  const bytes = readFileSync(join(directory, file));
  const server = { reloads: true, hasKmsV1: true };
  const { faults, unclear, groups } = loadConfiguration(bytes, server);
  const verdict = faults.length > 0 ? "refused" : unclear.length > 0 ? "unclear" : "loads";
  const writes = Object.fromEntries(
    ["secrets", "configmaps", "deployments.apps"].map((resource) => [
      resource,
      storedPrefix(providersOf(groups, resource)[0]),
    ]),
  );
  const why = [...faults.map(({ where, what }) => `${where}: ${what}`), ...unclear].join("; ");
  console.log(JSON.stringify({ file, verdict, writes, why }));
}

/** The prefix of every value that a provider has encrypted; empty for plaintext. */
function storedPrefix(provider: Provider | undefined): string {
  if (provider === undefined || provider.kind === "identity") {
    return "";
  }
  const { kind, kms, keyName } = provider;
  return kms === undefined
    ? `k8s:enc:${kind}:v1:${keyName}:`
    : `k8s:enc:kms:${kms.apiVersion}:${kms.name}:`;
}
