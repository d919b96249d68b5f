/** Checks an EncryptionConfiguration: what kube-apiserver would refuse, and what it would load and should not. */

import type { Kms, Server } from "../../kubernetes/encryption/kms.ts";
import { type Group, loadConfiguration, type Provider } from "../../kubernetes/encryption/load.ts";
import { providersOf } from "../../kubernetes/encryption/providers.ts";
import { describeError } from "../../system/errors.ts";
import { readSmallBytes } from "../../system/files.ts";
import { unansweredAt } from "../unanswered.ts";
import { type Check, fail, pass, skip, warn } from "./check.ts";
import { leadsTo } from "./paths.ts";

export interface EncryptionConfigurationOptions {
  readonly path: string | undefined;
  /** Path of the plugin's socket. */
  readonly socket: string | undefined;
  /** Nothing in etcd is plaintext any more. */
  readonly isMigrated: boolean;
  /** What is known of the API server that reads it. */
  readonly server: Partial<Server>;
  /** Translates a path of the API server's container to that of this host. */
  readonly toHost: (path: string) => string;
}

/** What was found of an EncryptionConfiguration. */
interface Found {
  /** In their order; each `EncryptionConfiguration: …`. */
  readonly checks: readonly Check[];
  /** Whether kube-apiserver looks for the plugin's socket. */
  readonly namesSocket: boolean;
}

export async function checkEncryptionConfiguration({
  path,
  socket,
  isMigrated,
  server,
  toHost,
}: EncryptionConfigurationOptions): Promise<Found> {
  const only = (...checks: Check[]): Found => ({ checks, namesSocket: false });
  if (path === undefined) {
    return only(skip(named("file"), "give its path with --encryption-configuration"));
  }
  let bytes: Uint8Array;
  try {
    bytes = readSmallBytes(path);
  } catch (error) {
    const remedy = "give the right path with --encryption-configuration";
    return only(fail(named("file"), describeError(error), remedy));
  }
  // What is not known counts as on: checkApi reports KMS v1, and the kube-apiserver checks advise to reload.
  const loaded = loadConfiguration(bytes, server);
  const { faults, unclear, groups, unreadFromLine } = loaded;
  if (faults.length > 0) {
    return only(
      ...faults.map(({ where, what, remedy }) =>
        fail(named("file"), `kube-apiserver refuses it: ${where}: ${what}`, remedy),
      ),
    );
  }
  if (unclear.length > 0) {
    const remedy = "write it more simply, as `manifest encryption-configuration` prints it";
    return only(...unclear.map((why) => warn(named("file"), `cannot be judged: ${why}`, remedy)));
  }
  const isOurs = ({ kms }: Provider) =>
    socket !== undefined && kms?.path !== undefined && leadsTo(toHost(kms.path), socket);
  const providers = groups.flatMap((group) => group.providers);
  const ours = providers.filter(isOurs);
  const others = providers.flatMap((one) =>
    one.kms === undefined || isOurs(one) ? [] : [[one.where, one.kms] as const],
  );
  const loads =
    unreadFromLine === undefined
      ? pass(named("file"), `${path}: kube-apiserver loads it`)
      : warn(
          named("file"),
          `${path}: kube-apiserver loads its first document alone, and not a word is said of the one at line ${unreadFromLine}`,
          "move its resources into the first one, and remove the line `---` between them",
        );
  const endpoint = checkEndpoint(ours, others, socket);
  if (ours.length === 0) {
    return only(loads, endpoint);
  }
  const checks = [
    loads,
    endpoint,
    checkApi(ours, server),
    ...checkWriters(groups, isOurs),
    ...checkIdentity(providersOf(groups, "secrets"), isMigrated),
    ...(await Promise.all(others.map(([, kms]) => checkOther(kms, toHost)))),
  ];
  return { checks, namesSocket: true };
}

function named(what: string): string {
  return `EncryptionConfiguration: ${what}`;
}

function checkEndpoint(
  ours: readonly Provider[],
  others: readonly (readonly [where: string, kms: Kms])[],
  socket: string | undefined,
): Check {
  const endpoint = `unix://${socket ?? ""}`;
  if (ours.length > 0) {
    const spelled = ours.flatMap(({ where, kms }) =>
      kms === undefined || kms.endpoint === endpoint
        ? []
        : [`; ${where} spells it ${kms.endpoint}, the same socket`],
    );
    return pass(named("endpoint"), endpoint + spelled.join(""));
  }
  const there = others.map(([where, kms]) => `${where} has ${kms.endpoint}`);
  return fail(
    named("endpoint"),
    `no kms provider has ${endpoint}${there.length > 0 ? `: ${there.join(", ")}` : ""}`,
    `add an entry with \`endpoint: ${endpoint}\` (three slashes), or give the doctor KMS_ENDPOINT${there.length > 0 ? "; never turn the entry of another plugin into this one's: its data would be unreadable" : ""}`,
  );
}

function checkApi(ours: readonly Provider[], { hasKmsV1 }: Partial<Server>): Check {
  const v1 = ours.find(({ kms }) => kms?.apiVersion === "v1");
  return v1 === undefined || hasKmsV1 === true
    ? pass(named("apiVersion"), ours.map(({ kms }) => kms?.apiVersion).join(", "))
    : warn(
        named("apiVersion"),
        `${v1.where}: KMS v1, which Kubernetes 1.29 and newer refuse without a feature gate`,
        "write `apiVersion: v2`; or, for data of KMS v1, start kube-apiserver with --feature-gates=KMSv1=true",
      );
}

/** Who writes each resource whose groups have our provider, and who writes Secrets in any case. */
function checkWriters(groups: readonly Group[], isOurs: (one: Provider) => boolean): Check[] {
  const meant = groups.flatMap(({ resources, providers }) =>
    providers.some(isOurs) ? resources : [],
  );
  const resources = [
    ...new Set(["secrets", ...meant.map((one) => one.replace(/^([^*]+)\.$/, "$1"))]),
  ];
  return resources.map((resource) => {
    const [writer] = providersOf(groups, resource);
    const check = named(`who writes ${resource}`);
    if (writer === undefined) {
      return fail(
        check,
        "nobody: they are stored in clear",
        `list \`${resource}\` under \`resources\` of this plugin's provider`,
      );
    }
    if (isOurs(writer)) {
      return pass(check, "Key4C");
    }
    const who =
      writer.kind === "identity" ? "identity, in clear" : (writer.kms?.name ?? writer.kind);
    return fail(
      check,
      `${who} (${writer.where}): new data do not go to Key4C`,
      "put this plugin's provider first, once every API server has it in its list; the providers of all groups that name a resource count, in their order",
    );
  });
}

/** identity reads what is not encrypted: needed while there is such data, and afterwards a way to forge data. */
function checkIdentity(providers: readonly Provider[], isMigrated: boolean): Check[] {
  if (providers.length === 0) {
    return []; // checkWriters has reported that nobody writes them
  }
  const check = named("identity");
  const found = providers.find(({ kind }) => kind === "identity");
  if ((found !== undefined) === !isMigrated) {
    const isThere = "what is not encrypted yet stays readable";
    return [pass(check, found === undefined ? "not there any more" : isThere)];
  }
  const [detail, remedy] =
    found !== undefined
      ? [
          `${found.where}: whoever writes to etcd can put plaintext in an object's place`,
          "remove `- identity: {}` on every API server",
        ]
      : [
          "no identity provider for Secrets: what is not encrypted yet cannot be read",
          "add `- identity: {}` as the last one; if `inspect` finds no plaintext, run doctor with --migrated",
        ];
  return [fail(check, detail, remedy)];
}

/** A KMS provider of another plugin: some data may still need it. */
async function checkOther(
  { name, endpoint, path }: Kms,
  toHost: (path: string) => string,
): Promise<Check> {
  const check = named(`provider ${name}`);
  const why = path === undefined ? "not a path" : (await unansweredAt(toHost(path)))?.reason;
  return why === undefined
    ? pass(
        check,
        `${endpoint} accepts connections: keep it until no data is under it (see inspect)`,
      )
    : fail(
        check,
        `${endpoint}: ${why}: what is under it cannot be read`,
        "start that plugin; remove the provider only when `inspect` finds nothing of it",
      );
}
