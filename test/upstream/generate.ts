/**
 * Makes a Go module of upstream's own tests for one release of Kubernetes, out of Go's module cache and into
 * ours, and builds its test binaries. Nothing of Kubernetes is in the repository.
 */
import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { cached, versionIn } from "../cache.ts";
import { CLIENT_EDITS, type Edit, INTEGRATION_EDITS } from "./edits.ts";

const HARNESS = join(import.meta.dir, "harness");

/** The release that the e2e tests run, `1.37.2`: its one place is their go.mod. */
export const NEWEST = versionIn(
  join(import.meta.dir, "../e2e/apiserver/go.mod"),
  "k8s.io/kubernetes ",
).slice(1);
/** The last with KMS v1 by default, and one between. */
export const OLDER = ["1.30.14", "1.28.15"] as const;

interface Package {
  readonly module: string;
  readonly path: string;
}

const INTEGRATION: Readonly<Record<string, Package>> = {
  transformation: {
    module: "k8s.io/kubernetes",
    path: "test/integration/controlplane/transformation",
  },
};
const CLIENTS: Readonly<Record<string, Package>> = {
  tracing: { module: "k8s.io/kubernetes", path: "test/integration/apiserver/tracing" },
  envelope: { module: "k8s.io/apiserver", path: "pkg/storage/value/encrypt/envelope" },
  kmsv2: { module: "k8s.io/apiserver", path: "pkg/storage/value/encrypt/envelope/kmsv2" },
  encryptionconfig: { module: "k8s.io/apiserver", path: "pkg/server/options/encryptionconfig" },
  service: { module: "k8s.io/kms", path: "pkg/service" },
};

export interface Suite {
  /** Its Go package in the generated module. */
  readonly name: string;
  readonly binary: string;
  /** Where its test data are. */
  readonly directory: string;
  /** The tests in which the plugin has a part, in the order of the sources. */
  readonly tests: readonly string[];
}

/** @param release such as 1.37.2; the newest also has the tests of the clients alone */
export async function upstreamSuites(release: string): Promise<Suite[]> {
  const packages = release === NEWEST ? { ...INTEGRATION, ...CLIENTS } : INTEGRATION;
  const edits = release === NEWEST ? [...INTEGRATION_EDITS, ...CLIENT_EDITS] : INTEGRATION_EDITS;
  const madeFrom = [join(import.meta.dir, "generate.ts"), join(import.meta.dir, "edits.ts")];
  const harness = readdirSync(HARNESS, { recursive: true, encoding: "utf8" }).sort();
  madeFrom.push(
    ...harness.filter((file) => file.endsWith(".go")).map((file) => join(HARNESS, file)),
  );
  const root = await cached(`upstream-${release}`, madeFrom, async (directory) => {
    await generate(directory, release, packages, edits);
    const sources = Object.keys(packages).map((name) => `./${name}`);
    mkdirSync(join(directory, "bin"));
    // Without -trimpath the tests look for their files where upstream's CI has them.
    await go(directory, ["test", "-c", "-trimpath", "-ldflags=-s -w", "-o", "bin/", ...sources]);
  });
  return Object.keys(packages).map((name) => {
    const directory = join(root, name);
    return {
      name,
      directory,
      binary: join(root, "bin", `${name}.test`),
      tests: testsIn(directory),
    };
  });
}

async function generate(
  directory: string,
  release: string,
  packages: Readonly<Record<string, Package>>,
  edits: readonly Edit[],
): Promise<void> {
  const modules = await download(release);
  const kubernetes = modules["k8s.io/kubernetes"] ?? "";
  writeFileSync(
    join(directory, "go.mod"),
    moduleFile(readFileSync(join(kubernetes, "go.mod"), "utf8"), release),
  );
  copyFile(join(kubernetes, "go.sum"), join(directory, "go.sum"));
  cpSync(HARNESS, join(directory, "harness"), { recursive: true });
  for (const [name, { module, path }] of Object.entries(packages)) {
    copyPackage(join(modules[module] ?? "", path), join(directory, name));
  }
  for (const edit of edits) {
    applyEdit(edit, directory, release);
  }
}

/** Where Go keeps the modules that have upstream's tests. */
async function download(release: string): Promise<Record<string, string>> {
  const versions = {
    "k8s.io/kubernetes": `v${release}`,
    "k8s.io/apiserver": libraryVersion(release),
    "k8s.io/kms": libraryVersion(release),
  };
  const names = Object.entries(versions).map(([name, version]) => `${name}@${version}`);
  const output = await go("/", ["mod", "download", "-json", ...names]);
  const rows = output.split(/(?<=^\})\n/m).filter((text) => text.trim() !== "");
  return Object.fromEntries(
    rows.map((row) => {
      const { Path, Dir } = JSON.parse(row) as { Path: string; Dir: string };
      return [Path, Dir];
    }),
  );
}

/** Kubernetes 1.37.2 is made of k8s.io/api v0.37.2 and so on. */
const libraryVersion = (release: string) => `v0.${release.slice("1.".length)}`;

/** Upstream's own go.mod, and so the versions that upstream tests with; its libraries as they are published. */
function moduleFile(upstream: string, release: string): string {
  const text = upstream
    .replace(/^module .*$/m, "module key4c-kms-plugin/test/upstream")
    .replace(/^\tk8s\.io\/sample-.*\n/gm, "") // no test needs them, and not all of their versions are published
    .replace(/=> \.\/staging\/src\/(\S+)/g, `=> $1 ${libraryVersion(release)}`);
  return `${text}\nrequire k8s.io/kubernetes v${release}\n`;
}

/** The files of one Go package, without the packages below it. */
function copyPackage(from: string, to: string): void {
  for (const entry of readdirSync(from, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name).slice(from.length + 1);
    if (entry.isFile() && (!path.includes("/") || path.startsWith("testdata/"))) {
      copyFile(join(from, path), join(to, path));
    }
  }
}

/** A file of Go's module cache is read-only; the copy is not. */
function copyFile(from: string, to: string): void {
  mkdirSync(dirname(to), { recursive: true });
  writeFileSync(to, readFileSync(from));
}

/** @throws Error when upstream's text is no longer what the edit was made for */
export function applyEdit(
  { files, find, replace, since = 0, until = Number.POSITIVE_INFINITY }: Edit,
  directory: string,
  release: string,
): void {
  const minor = Number(release.split(".")[1]);
  if (minor < since || minor > until) {
    return;
  }
  for (const file of files) {
    const path = join(directory, file);
    const before = readFileSync(path, "utf8");
    const pattern = new RegExp(
      typeof find === "string" ? RegExp.escape(find) : find.source,
      typeof find === "string" ? "g" : `${find.flags}g`,
    );
    const after = before.replace(pattern, replace);
    if (!pattern.test(before)) {
      throw new Error(
        `Kubernetes ${release}: ${basename(dirname(path))}/${basename(path)} no longer has\n  ${find}\n` +
          "Upstream changed its tests: look at what they now want, and change test/upstream/edits.ts.",
      );
    }
    writeFileSync(path, after);
  }
}

/** Upstream's mocks: the constructor that is ours here, and the types that have our plugin under them. */
const MOCK = /\b(?:NewBase64Plugin|testEnvelopeService|testKMSv2EnvelopeService)\b/;

/** Tests that make a mock, by themselves or through a function that they name. */
export function testsIn(directory: string): string[] {
  const functions = new Map<string, string>();
  for (const file of readdirSync(directory).sort()) {
    if (file.endsWith("_test.go")) {
      for (const part of readFileSync(join(directory, file), "utf8").split(/^func /m)) {
        const [, name, body = ""] = part.match(/^(\w+)([\s\S]*?)(?:^\}|$(?![\s\S]))/m) ?? [];
        if (name !== undefined) {
          functions.set(name, body);
        }
      }
    }
  }
  const taking = new Set<string>();
  for (let before = -1; before !== taking.size; ) {
    before = taking.size;
    for (const [name, body] of functions) {
      const words: string[] = body.match(/\w+/g) ?? [];
      if (MOCK.test(body) || words.some((word) => taking.has(word))) {
        taking.add(name);
      }
    }
  }
  return [...functions.keys()].filter((name) => /^Test./.test(name) && taking.has(name));
}

async function go(cwd: string, args: readonly string[]): Promise<string> {
  const child = Bun.spawn(["nice", "-n", "10", "go", ...args], {
    cwd,
    // mod: the hashes of Kubernetes' own libraries are not in its go.sum; the checksum database has them.
    env: {
      ...process.env,
      GOWORK: "off",
      GOFLAGS: `${process.env["GOFLAGS"] ?? ""} -mod=mod`.trim(),
    },
    stdout: "pipe",
    stderr: "inherit",
  });
  const output = await child.stdout.text();
  if ((await child.exited) !== 0) {
    throw new Error(`go ${args.join(" ")} failed in ${cwd}\n${output}`);
  }
  return output;
}
