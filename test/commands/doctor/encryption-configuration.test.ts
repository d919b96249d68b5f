/** The doctor's reading of an EncryptionConfiguration: one fault each, its name and its remedy. */
import { expect, test } from "bun:test";
import { createServer } from "node:net";
import { join } from "node:path";
import { checkEncryptionConfiguration } from "../../../src/commands/doctor/encryption-configuration.ts";
import { manifestCommand } from "../../../src/commands/manifest/manifest.ts";
import { parseCommandLine } from "../../../src/config/config.ts";
import { onTestEnd, temporaryDirectory, temporaryFile } from "../../support.ts";

const SOCKET = "/run/key4c-kms/kms.sock";
const printed = (api: string) =>
  manifestCommand(parseCommandLine(["manifest", "encryption-configuration", "--api", api], {}));

async function faults(text: string, isMigrated = false) {
  const checks = await checkEncryptionConfiguration(temporaryFile(text), SOCKET, isMigrated);
  return checks
    .filter(({ result }) => result === "fail")
    .map(({ check, detail, remedy }) => ({ fault: `${check}: ${detail}`, remedy }));
}

test("what `manifest` prints has no fault", async () => {
  expect(await faults(printed("v2"))).toEqual([]);
  expect(await faults(printed("v1"))).toEqual([]);
});

test("without a path it is not checked; one that cannot be read is a fault", async () => {
  expect(await checkEncryptionConfiguration(undefined, SOCKET)).toMatchObject([{ result: "skip" }]);
  const checks = await checkEncryptionConfiguration("/nowhere/e.yaml", SOCKET);
  expect(checks).toMatchObject([{ result: "fail", detail: expect.stringContaining("ENOENT") }]);
});

/** A change of a line of the printed one, the fault that comes of it, and the remedy. */
const BROKEN: readonly (readonly [string, string | RegExp, string, RegExp, RegExp])[] = [
  ["not YAML", "kind:", "kind: [", /file: is not YAML/, /manifest encryption-configuration/],
  ["another kind", "kind: Encryption", "kind: Pod", /file: .* is not an/, /begin it with/],
  [
    "no apiVersion",
    "          apiVersion: v2\n",
    "",
    /apiVersion is missing/,
    /write `apiVersion: v2`/,
  ],
  [
    "an old alpha",
    "apiVersion: v2",
    "apiVersion: v2alpha1",
    /is v2alpha1/,
    /write `apiVersion: v2`/,
  ],
  ["two slashes", "unix:///run", "unix://run", /no kms provider has/, /three slashes/],
  ["another socket", "kms.sock", "other.sock", /other\.sock/, /give the doctor KMS_ENDPOINT/],
  [
    "cachesize",
    "timeout",
    "cachesize: 1000\n          timeout",
    /KMS v2 has no cachesize/,
    /remove it/,
  ],
  ["no timeout", "timeout: 3s", "timeout: 0s", /0s is not a duration/, /timeout: 3s/],
  ["a bare number", "timeout: 3s", "timeout: 3", /3 is not a duration/, /timeout: 3s/],
  ["a colon", "name: key4c-kms-plugin", "name: a:b", /a:b is no name/, /without a colon/],
  ["no name", "          name: key4c-kms-plugin\n", "", /no name is no name/, /its own name/],
  [
    "no Secrets",
    "- secrets",
    "- configmaps",
    /Secrets are not encrypted: configmaps/,
    /list `secrets`/,
  ],
  ["no identity", "      - identity: {}\n", "", /no identity provider/, /add `- identity: \{\}`/],
  [
    "identity first",
    "    providers:\n",
    "    providers:\n      - identity: {}\n",
    /order: resources\[0\]\.providers\[0\]: identity writes, in clear/,
    /put this plugin's provider first/,
  ],
  [
    "another one first",
    "    providers:\n",
    "    providers:\n      - aescbc: { keys: [] }\n",
    /order: .*aescbc writes/,
    /first, once every API server has it/,
  ],
  [
    "another plugin that is gone",
    "      - identity",
    "      - kms: { apiVersion: v2, name: vendor, endpoint: unix:///nowhere/kms.sock }\n      - identity",
    /provider vendor: unix:\/\/\/nowhere\/kms\.sock: ENOENT/,
    /start that plugin/,
  ],
];

for (const [what, from, to, fault, remedy] of BROKEN) {
  test(`a fault: ${what}`, async () => {
    const text = printed("v2");
    const broken = text.replace(from, to);
    expect(broken).not.toBe(text);
    expect(await faults(broken)).toEqual([
      { fault: expect.stringMatching(fault), remedy: expect.stringMatching(remedy) },
    ]);
  });
}

test("two providers of one name", async () => {
  const second = `      - kms: { apiVersion: v2, name: key4c-kms-plugin, endpoint: "unix://${SOCKET}" }\n`;
  const text = printed("v2").replace("      - identity", `${second}      - identity`);
  expect(await faults(text)).toEqual([
    {
      fault: expect.stringContaining("not the only one"),
      remedy: expect.stringContaining("its own name"),
    },
  ]);
});

test("another plugin that still answers is no fault", async () => {
  const socket = join(temporaryDirectory(), "vendor.sock");
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(socket, resolve));
  onTestEnd(() => server.close());
  const other = `      - kms: { apiVersion: v2, name: vendor, endpoint: "unix://${socket}" }\n`;
  expect(
    await faults(printed("v2").replace("      - identity", `${other}      - identity`)),
  ).toEqual([]);
});

test("the configurations of the vendor's guide: nothing is nested, nothing is kept", async () => {
  const vendors = `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - kms:
    apiVersion: v2
    name: key4c-kms-plugin
    endpoint: unix://${SOCKET}
    timeout: 3s
`;
  expect(await faults(vendors)).toEqual([
    {
      fault: expect.stringContaining("nesting: resources[0].providers[0]"),
      remedy: expect.stringContaining("indent"),
    },
  ]);
  const nested = vendors.replace(/^ {4}(apiVersion|name|endpoint|timeout)/gm, "      $1");
  expect(await faults(nested)).toEqual([
    {
      fault: expect.stringContaining("no identity provider"),
      remedy: expect.stringContaining("identity"),
    },
  ]);
});

test("when all is migrated, identity is the fault and its absence is none", async () => {
  expect(await faults(printed("v2"), true)).toEqual([
    {
      fault: expect.stringContaining("can put plaintext in an object's place"),
      remedy: expect.stringContaining("remove"),
    },
  ]);
  expect(await faults(printed("v2").replace("      - identity: {}\n", ""), true)).toEqual([]);
});
