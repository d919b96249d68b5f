/** What `npm run release` makes: complete, summed up, and the same from another directory. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { release } from "../../build/release.ts";
import { version } from "../../package.json";
import { run } from "../e2e/process.ts";

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
});

/** ELF: machine (2 bytes at 18), and the loader that the file asks for. */
test("each is an executable for its platform; this machine's runs", async () => {
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
  const own = `${name}-linux-${process.arch === "arm64" ? "arm64" : "x64"}`;
  expect(await run([join(made, own), "--version"])).toBe(`key4c-kms-plugin ${version}\n`);
});

test("a second build, in another directory, is the same byte for byte", async () => {
  const copy = join(scratch, "another/place");
  for (const part of ["src", "build", "package.json", "package-lock.json", "tsconfig.json"]) {
    cpSync(join(ROOT, part), join(copy, part), { recursive: true });
  }
  // A copy of what is bundled: a link would lead back to the first directory.
  for (const part of ["@grpc", "@bufbuild/protobuf", "@js-sdsl"]) {
    cpSync(join(ROOT, "node_modules", part), join(copy, "node_modules", part), { recursive: true });
  }
  symlinkSync(join(ROOT, "node_modules/bun"), join(copy, "node_modules/bun"));
  await run([process.execPath, "build/release.ts"], { HOME: process.env["HOME"] ?? "" }, "", copy);
  expect(readFileSync(join(copy, "dist/release/SHA256SUMS"), "utf8")).toBe(
    readFileSync(join(made, "SHA256SUMS"), "utf8"),
  );
}, 300_000);

test("the bill of materials names what is in the bundle, with versions and hashes of the lock file", () => {
  const bill = JSON.parse(readFileSync(join(made, `${name}.cdx.json`), "utf8")) as {
    bomFormat: string;
    components: {
      name: string;
      version: string;
      hashes: { content: string }[];
      licenses: object[];
    }[];
  };
  const { packages } = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8")) as {
    packages: Record<string, { version: string; integrity: string }>;
  };
  expect(bill.bomFormat).toBe("CycloneDX");
  expect(bill.components.map((one) => one.name)).toEqual([
    "@bufbuild/protobuf",
    "@grpc/grpc-js",
    "@js-sdsl/ordered-map",
    "bun",
  ]);
  for (const one of bill.components) {
    const locked = packages[`node_modules/${one.name}`];
    const sha512 = Buffer.from(one.hashes[0]?.content ?? "", "hex").toString("base64");
    expect([one.version, `sha512-${sha512}`]).toEqual([
      locked?.version ?? "",
      locked?.integrity ?? "",
    ]);
    expect(one.licenses).toHaveLength(1);
  }
});
