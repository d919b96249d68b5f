/** What is wrong with an EncryptionConfiguration before kube-apiserver says so, or does not say so. */

import { connectTo } from "../../socket/unix-socket.ts";
import { readSmallFile } from "../../system/files.ts";
import { type Check, fail, pass, skip } from "./check.ts";

/** A provider's fields, and where it stands: `resources[0].providers[1]`. */
interface Provider {
  readonly at: string;
  /** `kms`, `identity`, `aescbc` … */
  readonly kind: string;
  readonly fields: Readonly<Record<string, unknown>>;
}

interface Group {
  readonly resources: readonly string[];
  readonly providers: readonly Provider[];
}

/** The checks in their order; each `EncryptionConfiguration: …`. */
export async function checkEncryptionConfiguration(
  path: string | undefined,
  socket: string | undefined,
  isMigrated = false,
): Promise<Check[]> {
  if (path === undefined) {
    return [skip(named("file"), "give its path with --encryption-configuration")];
  }
  let document: unknown;
  try {
    document = Bun.YAML.parse(readSmallFile(path));
  } catch (error) {
    return [
      fail(
        named("file"),
        error instanceof Error && error.name === "SyntaxError" ? "is not YAML" : String(error),
        "correct it; `manifest encryption-configuration` prints one to start with",
      ),
    ];
  }
  const file = checkHead(document, path);
  if (file.result === "fail") {
    return [file];
  }
  const groups = readGroups(document);
  const nesting = checkNesting(groups);
  if (nesting.result === "fail") {
    return [file, nesting];
  }
  const endpoint = `unix://${socket ?? ""}`;
  const isOurs = ({ fields }: Provider) => fields["endpoint"] === endpoint;
  const kms = groups.flatMap(({ providers }) => providers.filter(({ kind }) => kind === "kms"));
  const ours = kms.filter(isOurs);
  const found = checkEndpoint(kms, ours, endpoint);
  const others = kms.filter((one) => !isOurs(one));
  if (ours.length === 0) {
    return [file, nesting, found];
  }
  const own = groups.filter(({ providers }) => providers.some(isOurs));
  return [
    file,
    nesting,
    found,
    checkApi(ours),
    checkCachesize(kms),
    checkTimeout(kms),
    checkNames(kms),
    checkResources(own),
    ...own.flatMap((group) => [checkOrder(group, isOurs), checkIdentity(group, isMigrated)]),
    ...(await Promise.all(others.map(checkOther))),
  ];
}

function named(what: string): string {
  return `EncryptionConfiguration: ${what}`;
}

function checkHead(document: unknown, path: string): Check {
  const { apiVersion, kind, resources } = recordOf(document);
  const remedy =
    "begin it with `apiVersion: apiserver.config.k8s.io/v1`, `kind: EncryptionConfiguration` and a list `resources`";
  return apiVersion === "apiserver.config.k8s.io/v1" &&
    kind === "EncryptionConfiguration" &&
    Array.isArray(resources)
    ? pass(named("file"), path)
    : fail(named("file"), `${path} is not an EncryptionConfiguration`, remedy);
}

function readGroups(document: unknown): Group[] {
  return listOf(recordOf(document)["resources"]).map((group, index) => {
    const { resources, providers } = recordOf(group);
    return {
      resources: listOf(resources).map(String),
      providers: listOf(providers).map((provider, at) => {
        const members = recordOf(provider);
        const kind = Object.keys(members)[0] ?? "";
        return {
          at: `resources[${index}].providers[${at}]`,
          // Fields that stand beside their provider instead of under it belong to nobody.
          kind: Object.keys(members).length === 1 ? kind : "",
          fields: recordOf(members[kind]),
        };
      }),
    };
  });
}

function checkNesting(groups: readonly Group[]): Check {
  const providers = groups.flatMap((group) => group.providers);
  const wrong = providers.find(
    ({ kind, fields }) => kind === "" || (kind === "kms" && Object.keys(fields).length === 0),
  );
  return wrong === undefined
    ? pass(named("nesting"), `${providers.length} providers`)
    : fail(
        named("nesting"),
        `${wrong.at}: the fields do not stand under the name of one provider`,
        "indent apiVersion, name, endpoint and timeout by two more than `kms:`",
      );
}

function checkEndpoint(
  kms: readonly Provider[],
  ours: readonly Provider[],
  endpoint: string,
): Check {
  if (ours.length > 0) {
    return pass(named("endpoint"), endpoint);
  }
  const there = kms.map(({ at, fields }) => `${at} has ${String(fields["endpoint"])}`);
  return fail(
    named("endpoint"),
    `no kms provider has ${endpoint}${there.length > 0 ? `: ${there.join(", ")}` : ""}`,
    `write \`endpoint: ${endpoint}\` (three slashes), or give the doctor KMS_ENDPOINT`,
  );
}

function checkApi(ours: readonly Provider[]): Check {
  const remedy =
    "write `apiVersion: v2` (Kubernetes 1.27 and newer): without it KMS v1 is meant, which is off by default from 1.29 on";
  const wrong = ours.find(({ fields }) => !["v1", "v2"].includes(String(fields["apiVersion"])));
  return wrong === undefined
    ? pass(named("apiVersion"), ours.map(({ fields }) => String(fields["apiVersion"])).join(", "))
    : fail(
        named("apiVersion"),
        `${wrong.at}: apiVersion is ${String(wrong.fields["apiVersion"] ?? "missing")}`,
        remedy,
      );
}

function checkCachesize(kms: readonly Provider[]): Check {
  const wrong = kms.find(({ fields: { apiVersion, cachesize } }) =>
    apiVersion === "v2" ? cachesize !== undefined : cachesize === 0,
  );
  return wrong === undefined
    ? pass(named("cachesize"), "as the API wants it")
    : fail(
        named("cachesize"),
        `${wrong.at}: ${wrong.fields["apiVersion"] === "v2" ? "KMS v2 has no cachesize" : "0 is refused"}`,
        "remove it",
      );
}

/** Go's durations, as far as anyone writes them here. */
const DURATION_PATTERN = /^(\d+(\.\d+)?(ms|s|m))+$/;

function checkTimeout(kms: readonly Provider[]): Check {
  const wrong = kms.find(({ fields: { timeout } }) => {
    const text = String(timeout ?? "3s");
    return !DURATION_PATTERN.test(text) || !/[1-9]/.test(text);
  });
  return wrong === undefined
    ? pass(named("timeout"), "well-formed")
    : fail(
        named("timeout"),
        `${wrong.at}: ${String(wrong.fields["timeout"])} is not a duration above zero`,
        "write `timeout: 3s`",
      );
}

function checkNames(kms: readonly Provider[]): Check {
  const remedy = "give each its own name, without a colon; never change one under which data are";
  const names = kms.map(({ fields }) => fields["name"]);
  const wrong = kms.find(
    ({ fields: { name } }, index) =>
      typeof name !== "string" || !/^[^:\s]+$/.test(name) || names.indexOf(name) !== index,
  );
  return wrong === undefined
    ? pass(named("names"), names.join(", "))
    : fail(
        named("names"),
        `${wrong.at}: ${String(wrong.fields["name"] ?? "no name")} is no name, or not the only one`,
        remedy,
      );
}

function checkResources(own: readonly Group[]): Check {
  const resources = own.flatMap((group) => group.resources);
  const covers = ["secrets", "*.", "*.*"].some((one) => resources.includes(one));
  return covers
    ? pass(named("resources"), resources.join(", "))
    : fail(
        named("resources"),
        `Secrets are not encrypted: ${resources.join(", ") || "no resources"}`,
        "list `secrets` under `resources` of this provider",
      );
}

/** The first provider writes, all read. */
function checkOrder({ providers }: Group, isOurs: (one: Provider) => boolean): Check {
  const first = providers[0];
  if (first === undefined || isOurs(first)) {
    return pass(named("order"), "Key4C writes");
  }
  const who = first.kind === "identity" ? "identity writes, in clear" : `${first.kind} writes`;
  return fail(
    named("order"),
    `${first.at}: ${who}: new data do not go to Key4C`,
    "put this plugin's provider first, once every API server has it in its list",
  );
}

/** It reads what is not encrypted: needed while there is such data, a way to forge data afterwards. */
function checkIdentity({ providers }: Group, isMigrated: boolean): Check {
  const check = named("identity");
  const isThere = providers.some(({ kind }) => kind === "identity");
  if (isThere === !isMigrated) {
    return pass(check, isThere ? "what is not encrypted yet stays readable" : "not there any more");
  }
  return isThere
    ? fail(
        check,
        "whoever writes to etcd can put plaintext in an object's place",
        "remove `- identity: {}` on every API server",
      )
    : fail(
        check,
        "no identity provider: what is not encrypted yet cannot be read",
        "add `- identity: {}` as the last one; where `inspect` finds no plaintext, tell the doctor --migrated",
      );
}

/** A KMS provider of another plugin is there because data need it. */
async function checkOther({ fields: { name, endpoint } }: Provider): Promise<Check> {
  const check = named(`provider ${String(name)}`);
  const socket = /^unix:\/\/(\/.*)$/.exec(String(endpoint))?.[1];
  const answer = socket === undefined ? "not a unix socket" : await connectTo(socket);
  return answer === "connected"
    ? pass(check, `${String(endpoint)} accepts: keep it until nothing is under it (inspect)`)
    : fail(
        check,
        `${String(endpoint)}: ${answer}: what is under it cannot be read`,
        "start that plugin; remove the provider only when `inspect` finds nothing of it",
      );
}

function recordOf(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>) // an object, just checked
    : {};
}

function listOf(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}
