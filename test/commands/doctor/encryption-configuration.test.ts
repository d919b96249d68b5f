/** The doctor's reading of an EncryptionConfiguration: one fault each, its name and its remedy. */
import { expect, test } from "bun:test";
import { createServer } from "node:net";
import { join } from "node:path";
import {
  checkEncryptionConfiguration,
  type EncryptionConfigurationOptions,
} from "../../../src/commands/doctor/encryption-configuration.ts";
import { manifestCommand } from "../../../src/commands/manifest/manifest.ts";
import { parseCommandLine } from "../../../src/config/config.ts";
import { onTestEnd, temporaryDirectory, temporaryFile } from "../../support.ts";

const SOCKET = "/run/key4c-kms/kms.sock";
const printed = (api: string) =>
  manifestCommand(parseCommandLine(["manifest", "encryption-configuration", "--api", api], {}), {});

const check = async (
  path: string | undefined,
  options: Partial<EncryptionConfigurationOptions> = {},
) => {
  const { checks } = await checkEncryptionConfiguration({
    path,
    socket: SOCKET,
    isMigrated: false,
    server: { hasKmsV1: true, reloads: true },
    toHost: (one) => one,
    ...options,
  });
  return checks;
};

async function faults(text: string, isMigrated = false) {
  const checks = await check(temporaryFile(text), { isMigrated });
  return checks
    .filter(({ result }) => result !== "pass")
    .map(({ check: name, detail, remedy }) => ({ fault: `${name}: ${detail}`, remedy }));
}

test("what `manifest` prints has no fault", async () => {
  expect(await faults(printed("v2"))).toEqual([]);
  expect(await faults(printed("v1"))).toEqual([]);
});

test("without a path it is not checked; one that cannot be read is a fault", async () => {
  expect(await check(undefined)).toMatchObject([{ result: "skip" }]);
  const checks = await check("/nowhere/e.yaml");
  expect(checks).toMatchObject([{ result: "fail", detail: expect.stringContaining("ENOENT") }]);
});

test("a block that was appended a second time is not read, and nobody says so", async () => {
  const one = printed("v2");
  const lines = one.split("\n").length - 1;
  expect(await faults(`${one}---\n${one.replace("- secrets", "- configmaps")}`)).toEqual([
    {
      fault: expect.stringMatching(
        new RegExp(
          `file: .* loads its first document alone.* at line ${firstLineOf(one) + lines + 1}$`,
        ),
      ),
      remedy: expect.stringContaining("move its resources into the first one"),
    },
  ]);
  expect(await faults(`${one}---\n`)).toEqual([]);
  expect(await faults(`${one}---\n# a comment\n...\n`)).toEqual([]);
});

/** Of a YAML text: the first line that is not a comment. */
const firstLineOf = (text: string) => text.split("\n").findIndex((line) => /^\w/.test(line)) + 1;

/** A change of a line of the printed one, the fault that comes of it, and the remedy. */
const BROKEN: readonly (readonly [string, string | RegExp, string, RegExp, RegExp])[] = [
  ["not YAML", "kind:", "kind: [", /refuses it: line \d+: it is not YAML/, /manifest encryption-/],
  [
    "another kind",
    "kind: Encryption",
    "kind: Pod",
    /line \d+, kind: it is not an/,
    /begin it with/,
  ],
  ["an old alpha", "apiVersion: v2", "apiVersion: v2alpha1", /v2alpha1 is not/, /`apiVersion: v2`/],
  ["two slashes", "unix:///run", "unix://run", /no kms provider has/, /three slashes/],
  ["another socket", "kms.sock", "other.sock", /other\.sock/, /give the doctor KMS_ENDPOINT/],
  [
    "cachesize",
    "timeout",
    "cachesize: 1000\n          timeout",
    /KMS v2 has no cachesize/,
    /remove it/,
  ],
  ["no timeout", "timeout: 3s", "timeout: 0s", /"0s" is not a duration/, /timeout: 3s/],
  ["a bare number", "timeout: 3s", "timeout: 3", /a number where a text must be/, /timeout: 3s/],
  ["a colon", 'name: "key4c-kms-plugin"', "name: a:b", /a:b has a colon/, /its own name/],
  ["no name", '          name: "key4c-kms-plugin"\n', "", /needs a name/, /its own name/],
  [
    "no Secrets",
    "- secrets",
    "- configmaps",
    /who writes secrets: nobody: they are stored in clear/,
    /list `secrets`/,
  ],
  ["no identity", "      - identity: {}\n", "", /no identity provider/, /add `- identity: \{\}`/],
  [
    "identity first",
    "    providers:\n",
    "    providers:\n      - identity: {}\n",
    /who writes secrets: identity, in clear \(line \d+, resources\[0\]\.providers\[0\]\)/,
    /put this plugin's provider first/,
  ],
  [
    "another one first",
    "    providers:\n",
    `    providers:\n      - aescbc: { keys: [{ name: k, secret: ${"A".repeat(43)}= }] }\n`,
    /who writes secrets: aescbc \(line/,
    /first, once every API server has it/,
  ],
  [
    "another plugin that is gone",
    "      - identity",
    "      - kms: { apiVersion: v2, name: vendor, endpoint: unix:///nowhere/kms.sock }\n      - identity",
    /provider vendor: unix:\/\/\/nowhere\/kms\.sock: absent/,
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
      fault: expect.stringContaining("not the only one of this name"),
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
  const [first, ...others] = await faults(vendors);
  expect(first).toEqual({
    fault: expect.stringContaining("line 7, resources[0].providers[0].apiVersion: there is no"),
    remedy: "indent apiVersion by two more than `kms:`",
  });
  expect(others).toHaveLength(4);
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

const two = (first: string, second: string) => `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [${first}]
  providers:
  - identity: {}
- resources: [${second}]
  providers:
  - kms: { apiVersion: v2, name: key4c, endpoint: "unix://${SOCKET}" }
  - identity: {}
`;

test.each([
  ["secrets", "secrets"],
  ["secrets", "'*.*'"],
  ["secrets.", "'*.'"],
])("Secrets are written by the first provider of %p, whatever %p says", async (first, second) => {
  const found = await faults(two(first, second));
  expect(found).toContainEqual({
    fault: expect.stringContaining("who writes secrets: identity, in clear (line 6, "),
    remedy: expect.stringContaining("the providers of all groups"),
  });
});

test("all groups that name Secrets read them, not only the first", async () => {
  const text = printed("v2").replace(
    "      - identity: {}\n",
    "  - resources: [secrets]\n    providers:\n      - identity: {}\n",
  );
  expect(text).not.toBe(printed("v2"));
  expect(await faults(text)).toEqual([]);
});

test("a note where an endpoint is spelled in another way and reaches the same socket", async () => {
  const text = printed("v2").replace(`unix://${SOCKET}`, `unix:///run//x/../key4c-kms/kms.sock`);
  expect(await check(temporaryFile(text))).toContainEqual(
    expect.objectContaining({
      result: "pass",
      detail: expect.stringContaining("/x/../key4c-kms/kms.sock, the same socket"),
    }),
  );
});

test("KMS v1 is a warning, and a fault where the API server is known not to have it", async () => {
  const file = temporaryFile(printed("v1"));
  const resultOf = async (server: object) =>
    (await check(file, { server })).map(({ result }) => result);
  expect(await resultOf({})).toContain("warn");
  expect(await resultOf({ hasKmsV1: false })).toEqual(["fail"]);
  expect(await resultOf({ hasKmsV1: true })).not.toContain("warn");
});

test("what cannot be judged is a warning", async () => {
  const [only] = await check(temporaryFile(`%TAG ! tag:x,2000:\n---\n${printed("v2")}`));
  expect(only).toMatchObject({ result: "warn", detail: expect.stringContaining("directives") });
});

test.each([
  ["brackets without end", `resources: ${"[".repeat(100_000)}`],
  ["braces without end", `{"resources": ${'{"a":'.repeat(100_000)}`],
  ["nested braces", `{"resources": ${'{"a":'.repeat(20_000)}1${"}".repeat(20_001)}`],
  ["nested lists", `resources: ${"- ".repeat(20_000)}x`],
  [
    "aliases of aliases",
    Array.from({ length: 40 }, (_, i) => `a${i}: &a${i} [${`*a${i - 1},`.repeat(i && 9)} x]`).join(
      "\n",
    ),
  ],
])(
  "a hostile file is judged or not, and ends: %s",
  async (_, text) => {
    const checks = await check(temporaryFile(text));
    expect(checks.every(({ result }) => result === "warn" || result === "fail")).toBe(true);
  },
  60_000,
);

test("no secret of a key is in what is said of it", async () => {
  const secret = "c2VjcmV0c2VjcmV0c2VjcmV0";
  for (const line of [
    `secret: ${secret}x`,
    `secret: "${secret}`,
    `secret: [${secret}]`,
    "secret: 1234567",
  ]) {
    const text = printed("v2").replace(
      "      - identity",
      `      - aescbc:\n          keys:\n            - name: k\n              ${line}\n      - identity`,
    );
    const said = JSON.stringify(await check(temporaryFile(text)));
    expect(said).toMatch(/"result":"(fail|warn)"/);
    expect(said).not.toMatch(/c2VjcmV0|1234567/);
  }
});
