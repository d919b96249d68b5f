/** What `npm run release` makes: complete, summed up, and the same from another directory. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { version } from "../../package.json";
import { release } from "../../src/build/release.ts";
import { run } from "../e2e/process.ts";
import { BINARY, startProcess, temporaryDirectory } from "../support.ts";
import { expectServing } from "./serving.ts";

const ROOT = join(import.meta.dir, "../..");
const scratch = mkdtempSync(join(tmpdir(), "k4c-release-"));
const made = join(scratch, "made");
const name = `key4c-kms-plugin-${version}`;
const PLATFORMS = ["linux-x64", "linux-arm64", "linux-x64-musl", "linux-arm64-musl"];

beforeAll(() => release(made), 300_000);
afterAll(() => rmSync(scratch, { recursive: true }));

test("every file, and its sum", async () => {
  const files = [...PLATFORMS.map((one) => `${name}-${one}`), `${name}.cdx.json`, "SHA256SUMS"];
  expect(readdirSync(made).sort()).toEqual(files.sort());
  await run(["sh", "-ec", `cd ${made} && sha256sum --check --strict SHA256SUMS`], {
    PATH: process.env["PATH"] ?? "",
  });
}, 60_000);

/** ELF: machine (2 bytes at 18), and the loader that the file asks for. */
test("each is an executable for its platform", () => {
  for (const platform of PLATFORMS) {
    const head = readFileSync(join(made, `${name}-${platform}`)).subarray(0, 4096);
    const machine = platform.includes("arm64") ? 183 : 62; // EM_AARCH64, EM_X86_64
    const loader = platform.endsWith("musl") ? "ld-musl-" : "ld-linux-";
    expect([head.toString("latin1", 1, 4), head.readUInt16LE(18), head.includes(loader)]).toEqual([
      "ELF",
      machine,
      true,
    ]);
  }
});

test("what is released for this machine is what `npm run build` makes", () => {
  const own = `${name}-linux-${process.arch}`;
  const sum = (path: string) =>
    new Bun.CryptoHasher("sha256").update(readFileSync(path)).digest("hex");
  expect(sum(join(made, own))).toBe(sum(BINARY));
});

/** The musl ones need libstdc++ built for musl, which Debian does not have: they are not run. */
for (const [machine, platform, emulator, ...flags] of [
  ["an x86-64 of 2008, without AVX", "linux-x64", "qemu-x86_64-static", "-cpu", "Nehalem"],
  ["an arm64", "linux-arm64", "qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"],
] as const) {
  test(`${machine} serves`, async () => {
    const binary = join(made, `${name}-${platform}`);
    const program = [Bun.which(emulator) ?? emulator, ...flags, binary] as const;
    expect(await run([...program, "--version"])).toBe(`key4c-kms-plugin ${version}\n`);
    const socket = join(temporaryDirectory(), "kms.sock");
    const args = ["serve", "--emulator", "--http-address", ""];
    startProcess([...program, ...args], { KMS_ENDPOINT: `unix://${socket}` });
    await expectServing(socket, "60s");
  }, 120_000);
}

/** Runs `npm run release` in another directory, with everything that goes into it. */
function releaseIn(copy: string, packageLock = readFileSync(join(ROOT, "package-lock.json"))) {
  for (const part of ["src", "package.json", "tsconfig.json"]) {
    cpSync(join(ROOT, part), join(copy, part), { recursive: true });
  }
  writeFileSync(join(copy, "package-lock.json"), packageLock);
  // A copy of what is bundled: a link would lead back to the first directory.
  for (const part of ["@grpc", "@bufbuild/protobuf", "@js-sdsl", "yaml"]) {
    cpSync(join(ROOT, "node_modules", part), join(copy, "node_modules", part), { recursive: true });
  }
  const env = { HOME: process.env["HOME"] ?? "", PATH: process.env["PATH"] ?? "" }; // for npm
  return run([process.execPath, "src/build/release.ts"], env, "", copy);
}

test("a second build, in another directory, is the same byte for byte", async () => {
  const copy = join(scratch, "another/place");
  await releaseIn(copy);
  expect(readFileSync(join(copy, "dist/release/SHA256SUMS"), "utf8")).toBe(
    readFileSync(join(made, "SHA256SUMS"), "utf8"),
  );
}, 300_000);

test("a runtime that is not the one of the lock file is refused", async () => {
  const lock = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8"));
  lock.packages["node_modules/@oven/bun-linux-x64"].integrity = `sha512-${"A".repeat(86)}==`;
  const released = releaseIn(join(scratch, "tampered"), Buffer.from(JSON.stringify(lock)));
  await expect(released).rejects.toThrow("is not the one in package-lock.json");
}, 60_000);

interface Component {
  name: string;
  version: string;
  hashes: { content: string }[];
  licenses: object[];
  components?: Component[];
}

test("the bill of materials names what is in the bundle, with versions and hashes of the lock file", () => {
  const bill = JSON.parse(readFileSync(join(made, `${name}.cdx.json`), "utf8")) as {
    bomFormat: string;
    components: Component[];
  };
  const { packages } = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8")) as {
    packages: Record<string, { version: string; integrity: string }>;
  };
  expect(bill.bomFormat).toBe("CycloneDX");
  expect(bill.components.map((one) => one.name)).toEqual([
    "@bufbuild/protobuf",
    "@grpc/grpc-js",
    "@js-sdsl/ordered-map",
    "yaml",
    "bun",
  ]);
  const runtimes = bill.components.flatMap((one) => one.components ?? []);
  expect(runtimes.map((one) => one.name)).toEqual([
    "@oven/bun-linux-x64",
    "@oven/bun-linux-aarch64",
    "@oven/bun-linux-x64-musl",
    "@oven/bun-linux-aarch64-musl",
  ]);
  for (const one of [...bill.components, ...runtimes]) {
    const locked = packages[`node_modules/${one.name}`];
    const sha512 = Buffer.from(one.hashes[0]?.content ?? "", "hex").toString("base64");
    expect([one.version, `sha512-${sha512}`]).toEqual([
      locked?.version ?? "",
      locked?.integrity ?? "",
    ]);
    expect(one.licenses).toHaveLength(1);
  }
});
