/** What the documents tell readers to type is what tests type. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { COMMANDS } from "../../src/config/commands.ts";
import { parseCommandLine } from "../../src/config/config.ts";
import { blocksOf, DOCUMENTS, ROOT } from "./blocks.ts";
import { translations } from "./translated.ts";

/** The tests that type the blocks of shell below a heading, in their order; `*.long.ts` only with `-- --all`. */
const TYPED_BY: Readonly<Record<string, Readonly<Record<string, readonly string[]>>>> = {
  "README.md": {
    "Install it": ["hosts/runbook.ts"],
    "Try it": ["documents/documents.test.ts", "documents/documents.test.ts"],
  },
  "docs/install.md": {
    "Verify the release": ["ship/release.ship.ts"],
    "Install with one command": ["hosts/runbook.ts", "hosts/runbook.ts", "hosts/runbook.ts"],
    Verify: ["hosts/cluster.long.ts"],
  },
  "docs/install-by-hand.md": {
    "Binary, credential, settings": ["hosts/runbook.ts", "hosts/runbook.ts"],
    "As a static pod (kubeadm)": ["hosts/kubelet.hosts.ts"],
    "A new cluster": ["hosts/cluster.ts"],
    "A cluster that exists": ["hosts/cluster.ts", "hosts/cluster.ts"],
    "As a systemd service (bare metal, k3s, RKE2)": ["hosts/systemd.hosts.ts"],
  },
  "docs/install-special.md": {
    "Without root in the pod": ["hosts/kubelet.hosts.ts"],
    "systemd below 247": ["hosts/systemd.hosts.ts"],
    "Make the image yourself": ["ship/image.ship.ts"],
  },
  "docs/upgrade.md": {
    Upgrade: ["hosts/systemd.hosts.ts"],
    Uninstall: [
      "hosts/cluster.long.ts",
      "hosts/cluster.long.ts",
      "hosts/cluster.long.ts",
      "hosts/systemd.hosts.ts",
      "hosts/cluster.long.ts",
      "hosts/cluster.long.ts",
    ],
  },
  "docs/monitor.md": {
    Scrape: ["binary/scrape.test.ts", "binary/scrape.test.ts"],
    "Alerts and dashboard": ["binary/scrape.test.ts"],
  },
  "docs/move.md": {
    "Put the plugin first": ["hosts/cluster.ts"],
    Rewrite: ["hosts/cluster.ts"],
    Prove: ["hosts/cluster.ts"],
  },
  "docs/keys.md": {
    "The decryption check": ["hosts/cluster.long.ts"],
    "Change to another key": [
      "hosts/cluster.long.ts",
      "hosts/cluster.long.ts",
      "hosts/cluster.long.ts",
    ],
  },
  "docs/restart.md": {
    "In memory": ["hosts/persistent-cache.hosts.ts"],
    Sealed: ["hosts/persistent-cache.hosts.ts", "hosts/persistent-cache.hosts.ts"],
    "Turn it off": ["hosts/persistent-cache.hosts.ts"],
  },
  "docs/restore.md": { "Restore etcd on a new machine": ["hosts/cluster.long.ts"] },
  "docs/runbooks/undecryptable.md": { "Do now": ["hosts/cluster.long.ts"] },
  "docs/VENDOR-PLUGIN.md": { "The move": ["hosts/kubelet.hosts.ts", "hosts/cluster.long.ts"] },
  "docs/PROFILES.md": {
    "How to work": ["binary/profile-check.test.ts"],
  },
  "docs/profile-services.md": {
    "If only an access token is missing": ["binary/services.test.ts"],
  },
};

// Those of a Korean page are those of the English one (korean.test.ts).
const TRANSLATED = new Set(translations().map(({ path }) => path));
const ENGLISH = DOCUMENTS.filter((path) => !TRANSLATED.has(path));

test.each(ENGLISH)("%s: a test types each block of shell as it stands", (document) => {
  const counted: Record<string, number> = {};
  for (const { heading } of blocksOf(document)) {
    counted[heading] = (counted[heading] ?? 0) + 1;
  }
  const named = Object.entries(TYPED_BY[document] ?? {});
  expect(counted).toEqual(
    Object.fromEntries(named.map(([heading, files]) => [heading, files.length])),
  );
  for (const [heading, files] of named) {
    const call = `commandsOf("${document}", "${heading}"`;
    for (const file of files) {
      // As Biome breaks a long line.
      const source = readFileSync(join(import.meta.dir, "..", file), "utf8").replaceAll(
        /\(\s+/g,
        "(",
      );
      const calls = source.replaceAll(/,\s+/g, ", ").includes(call);
      expect([file, heading, calls]).toEqual([file, heading, true]);
    }
  }
});

test.each(DOCUMENTS)("%s: the plugin takes each command line", (document) => {
  for (const argv of commandLines(document)) {
    expect([argv.join(" "), verdict(argv)]).toEqual([argv.join(" "), "ok"]);
  }
});

test("command lines are found", () => {
  expect(DOCUMENTS.flatMap(commandLines).length).toBeGreaterThan(30);
  expect(verdict(["inspect", "--nonsense"])).toContain("--nonsense");
});

test.each(DOCUMENTS)("%s: there is each script of npm", (document) => {
  const { scripts } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8"));
  const text = readFileSync(join(ROOT, document), "utf8");
  const named = [...text.matchAll(/npm run ([a-z][a-z0-9:-]*)/g)].map(([, name = ""]) => name);
  expect(named.filter((name) => !Object.hasOwn(scripts, name))).toEqual([]);
});

/** In blocks and in the text; what is no command is prose. */
function commandLines(document: string): string[][] {
  const text = readFileSync(join(ROOT, document), "utf8")
    .replaceAll(/\\\n\s*|\d>/g, " ")
    .replaceAll("REGISTRY/", "registry.example/"); // which the reader replaces
  return [...text.matchAll(/(?<![\w.:/-])key4c-kms-plugin ([^|&;<>#`\n)]*)/g)]
    .map(([, words = ""]) => words.split(/\s+/).filter((word) => word !== "" && word !== "…"))
    .filter(([command]) => COMMANDS.some((one) => one === command));
}

function verdict(argv: readonly string[]): string {
  const env = { KEY4C_URL: "https://key4c.example", KMS_KEY_ID: "demo", KMS_USER_ID: "token" };
  try {
    return parseCommandLine(argv, env).problems[0] ?? "ok";
  } catch (error) {
    return String(error);
  }
}
