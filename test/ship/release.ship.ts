/** What `npm run release` makes: complete, signed, unpacked and run, and the same from another directory. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import {
  appendFileSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { version } from "../../package.json";
import { changesOf } from "../../src/build/notes.ts";
import { imageArchive } from "../../src/build/oci.ts";
import { commandsOf } from "../documents/blocks.ts";
import { run } from "../e2e/process.ts";
import { BINARY, onTestEnd, startProcess, temporaryDirectory } from "../support.ts";
import {
  BOTH_BASES,
  buildBothBases,
  podman,
  settings,
  setUpContainers,
  tearDownContainers,
} from "./podman.ts";
import {
  DOCUMENTS,
  environment,
  makeKey,
  pathWithoutBuildah,
  ROOT,
  releaseIn,
  releaseScript,
} from "./releases.ts";
import { expectServing } from "./serving.ts";

const scratch = mkdtempSync(join(tmpdir(), "k4c-release-"));
const made = join(scratch, "made");
const unpacked = join(scratch, "unpacked");
const name = `key4c-kms-plugin-${version}`;
const PLATFORMS = ["linux-x64", "linux-arm64", "linux-x64-musl", "linux-arm64-musl"];
const ARCHIVES = PLATFORMS.map((one) => `${name}-${one}.tar.gz`);
const IMAGE = `${name}-image.oci.tar`;
const SUMMED = [...ARCHIVES, IMAGE, `${name}-image.digest`, `${name}.cdx.json`];

const read = (file: string) => readFileSync(join(made, file), "utf8");
const key = join(scratch, "key.pem");
let output = "";

beforeAll(async () => {
  await setUpContainers();
  await buildBothBases();
  await makeKey(key);
  const flags = ["--output", made, "--sign-key", key, "--base", BOTH_BASES];
  output = await run(releaseScript(ROOT, ...flags), environment, "", ROOT);
  mkdirSync(unpacked);
  for (const archive of ARCHIVES) {
    await run(["tar", "-xzf", join(made, archive), "-C", unpacked], environment);
  }
}, 600_000);
afterAll(async () => {
  await tearDownContainers();
  rmSync(scratch, { recursive: true });
}, 60_000);

const binaryOf = (platform: string) => join(unpacked, `${name}-${platform}`, "key4c-kms-plugin");

test("every file, and its sum", () => {
  const others = ["RELEASE-NOTES.md", "SHA256SUMS", "SHA256SUMS.pub", "SHA256SUMS.sig"];
  expect(readdirSync(made).sort()).toEqual([...SUMMED, ...others].sort());
  const summed = read("SHA256SUMS").trim().split("\n");
  expect(summed.map((line) => line.split("  ")[1] ?? "").sort()).toEqual([...SUMMED].sort());
});

/** The command that is printed at the end, run in a directory by a plain shell. */
function verify(directory: string): Promise<string> {
  const [, command = ""] = output.match(/^ {2}(openssl dgst .*)$/m) ?? [];
  const { PATH } = settings;
  return run(["sh", "-c", `exec 2>&1; ${command}`], { PATH, LC_ALL: "C" }, "", directory);
}

test("the printed command verifies all of it, and notes and install.md have the same one", async () => {
  const lines = (await verify(made)).trim().split("\n");
  expect(lines).toEqual(["Verified OK", ...SUMMED.map((file) => `${file}: OK`)]);
  const [, command = ""] = output.match(/^ {2}(openssl dgst .*)$/m) ?? [];
  expect(read("RELEASE-NOTES.md")).toContain(`\`\`\`sh\n${command}\n\`\`\``);
  expect(commandsOf("docs/install.md", "Verify the release")[0]).toBe(`${command}\n`);
  const [, fingerprint = ""] = output.match(/SHA-256 of the public key: (\w{64})/) ?? [];
  expect(read("RELEASE-NOTES.md")).toContain(`\n${fingerprint}\n`);
  const told = "openssl pkey -pubin -in SHA256SUMS.pub -outform DER | sha256sum";
  expect(await run(["sh", "-c", told], environment, "", made)).toBe(`${fingerprint}  -\n`);
});

test("a changed sum, a changed file and the signature of another key are refused", async () => {
  const refusal = async (change: (directory: string) => Promise<unknown> | unknown) => {
    const directory = temporaryDirectory();
    for (const file of ["SHA256SUMS", "SHA256SUMS.sig", "SHA256SUMS.pub", `${name}.cdx.json`]) {
      copyFileSync(join(made, file), join(directory, file));
    }
    await verify(directory);
    await change(directory);
    return expect(verify(directory)).rejects;
  };
  const changed = await refusal((directory) => appendFileSync(join(directory, "SHA256SUMS"), "\n"));
  await changed.toThrow("Verification failure");
  const file = await refusal((directory) =>
    appendFileSync(join(directory, `${name}.cdx.json`), " "),
  );
  await file.toThrow(`${name}.cdx.json: FAILED`);
  const forged = await refusal(async (directory) => {
    const other = join(directory, "other.pem");
    await makeKey(other);
    const signing = ["dgst", "-sha256", "-sign", other, "-out", join(directory, "SHA256SUMS.sig")];
    await run(["openssl", ...signing, join(directory, "SHA256SUMS")], environment);
  });
  await forged.toThrow("Verification failure");
});

test("an archive has one directory: binary, licences, documents, and nothing of the machine", async () => {
  const docs = readdirSync(join(ROOT, "docs"), { recursive: true, withFileTypes: true }).map(
    (entry) =>
      `${relative(ROOT, join(entry.parentPath, entry.name))}${entry.isDirectory() ? "/" : ""}`,
  );
  const own = ["LICENSE", "THIRD-PARTY-LICENSES.txt", "key4c-kms-plugin", "docs/"];
  const files = [...own, ...DOCUMENTS, ...docs].sort();
  for (const platform of PLATFORMS) {
    const archive = join(made, `${name}-${platform}.tar.gz`);
    const listed = await run(["tar", "-tvzf", archive], { ...environment, TZ: "UTC" });
    const top = `${name}-${platform}`;
    const expected = ["", ...files].map((file) => {
      const isDirectory = file === "" || file.endsWith("/");
      const mode = isDirectory
        ? "drwxr-xr-x"
        : `-rw${file === "key4c-kms-plugin" ? "xr-xr-x" : "-r--r--"}`;
      return `${mode} 0/0 1970-01-01 00:00 ${top}/${file}`;
    });
    expect(
      listed
        .trim()
        .split("\n")
        .map((line) => line.replace(/(0\/0) +\d+ /, "$1 ")),
    ).toEqual(expected);
  }
  const [directory = ""] = [join(unpacked, `${name}-linux-x64`)];
  const licences = await run([binaryOf("linux-x64"), "version", "--licenses"]);
  expect(readFileSync(join(directory, "THIRD-PARTY-LICENSES.txt"), "utf8")).toBe(licences);
  expect(readFileSync(join(directory, "LICENSE"), "utf8")).toContain("Apache License");
});

/** ELF: machine (2 bytes at 18), and the loader that the file asks for. */
test("each binary is an executable for its platform", () => {
  for (const platform of PLATFORMS) {
    const head = readFileSync(binaryOf(platform)).subarray(0, 4096);
    const machine = platform.includes("arm64") ? 183 : 62; // EM_AARCH64, EM_X86_64
    const loader = platform.endsWith("musl") ? "ld-musl-" : "ld-linux-";
    expect([head.toString("latin1", 1, 4), head.readUInt16LE(18), head.includes(loader)]).toEqual([
      "ELF",
      machine,
      true,
    ]);
  }
});

test("what is released for this machine is what `npm run build` makes", async () => {
  expect(await run(["cmp", binaryOf(`linux-${process.arch}`), BINARY])).toBe("");
});

/** The musl ones need libstdc++ built for musl, which Debian does not have: they are not run. */
for (const [machine, platform, emulator, ...flags] of [
  ["an x86-64 of 2008, without AVX", "linux-x64", "qemu-x86_64-static", "-cpu", "Nehalem"],
  ["an arm64", "linux-arm64", "qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"],
] as const) {
  test(`${machine} serves`, async () => {
    const program = [Bun.which(emulator) ?? emulator, ...flags, binaryOf(platform)] as const;
    expect(await run([...program, "--version"])).toStartWith(`key4c-kms-plugin ${version}+`);
    const socket = join(temporaryDirectory(), "kms.sock");
    const args = ["serve", "--emulator", "--http-address", ""];
    startProcess([...program, ...args], { KMS_ENDPOINT: `unix://${socket}` });
    await expectServing(socket, "60s");
  }, 120_000);
}

test("the notes have the changes of this version, the digest and the sums", () => {
  const notes = read("RELEASE-NOTES.md");
  const changes = changesOf(readFileSync(join(ROOT, "CHANGELOG.md"), "utf8"));
  expect(changes.text.split("\n").length).toBeGreaterThan(10);
  for (const part of [changes.text, read("SHA256SUMS"), read(`${name}-image.digest`).trim()]) {
    expect(notes).toContain(part);
  }
  expect(notes.includes("**Not released**")).toBe(!changes.isReleased);
  expect(notes).not.toContain("UNSIGNED");
});

test("the image's archive holds both processors under the digest that is told", async () => {
  const layout = join(scratch, "layout");
  mkdirSync(layout);
  await run(["tar", "-xf", join(made, IMAGE), "-C", layout], environment);
  const blob = (digest: string) => readFileSync(join(layout, "blobs", digest.replace(":", "/")));
  const index = JSON.parse(readFileSync(join(layout, "index.json"), "utf8"));
  const told = read(`${name}-image.digest`).trim();
  expect(index.manifests.map((one: { digest: string }) => one.digest)).toEqual([told]);
  expect(`sha256:${createHash("sha256").update(blob(told)).digest("hex")}`).toBe(told);
  const { manifests } = JSON.parse(blob(told).toString());
  const platforms = manifests.map((one: { platform: object }) => one.platform);
  expect(platforms).toEqual([
    expect.objectContaining({ os: "linux", architecture: "amd64" }),
    expect.objectContaining({ os: "linux", architecture: "arm64" }),
  ]);
  expect(output).toContain(told);
});

/** As a container should be run. */
const CONFINED = ["--network", "host", "--read-only", "--cap-drop=ALL"];

test("loaded by podman, this machine's image serves and tells its licences", async () => {
  await podman("load", "--quiet", "--input", join(made, IMAGE));
  const image = `localhost/key4c-kms-plugin:${version}`;
  const licences = await podman("run", "--rm", ...CONFINED, image, "version", "--licenses");
  expect(licences).toContain("===== @grpc/grpc-js ");
  const directory = temporaryDirectory();
  onTestEnd(() => podman("rm", "--force", "--time", "1", "released").catch(() => {}));
  await podman(
    ...["run", "--detach", "--name", "released", ...CONFINED, "--volume", `${directory}:/tmp`],
    ...[image, "serve", "--emulator", "--http-address", ""],
  );
  await expectServing(join(directory, "kms.sock"));
}, 120_000);

test("the other image has arm64's binary, which runs", async () => {
  const pulled = await podman(
    "pull",
    "--quiet",
    "--arch",
    "arm64",
    `oci-archive:${join(made, IMAGE)}`,
  );
  const image = pulled.trim();
  const format = "{{.Os}}/{{.Architecture}}";
  expect((await podman("image", "inspect", image, "--format", format)).trim()).toBe("linux/arm64");
  const qemu = [
    "--volume",
    `${Bun.which("qemu-aarch64-static")}:/qemu:ro`,
    "--entrypoint",
    "/qemu",
  ];
  const command = ["/usr/local/bin/key4c-kms-plugin", "--version"];
  const told = await podman("run", "--rm", ...CONFINED, ...qemu, image, ...command);
  expect(told).toStartWith(`key4c-kms-plugin ${version}+`);
}, 120_000);

test("a second build, in another directory and without key and buildah, is the same byte for byte", async () => {
  const copy = join(scratch, "another/place");
  const told = await releaseIn(copy, { answers: [1], PATH: pathWithoutBuildah() });
  const withoutImage = (sums: string) =>
    sums.split("\n").filter((line) => !line.includes(`${name}-image.`));
  const other = (file: string) => readFileSync(join(copy, "dist/release", file), "utf8");
  expect(other("SHA256SUMS").split("\n")).toEqual(withoutImage(read("SHA256SUMS")));
  const notes = other("RELEASE-NOTES.md");
  for (const [printed, noted] of [
    ["UNSIGNED", "**UNSIGNED.**"],
    ["NO IMAGE", "**This release has no image.**"],
  ] as const) {
    expect(told).toContain(printed);
    expect(notes).toContain(noted);
  }
  expect(readdirSync(join(copy, "dist/release"))).not.toContain("SHA256SUMS.sig");
}, 600_000);

test("the image's archive, made again elsewhere, is the same byte for byte", async () => {
  const place = temporaryDirectory();
  const binaries = { amd64: "linux-x64", arm64: "linux-arm64" };
  for (const platform of Object.values(binaries)) {
    copyFileSync(binaryOf(platform), join(place, platform));
  }
  const again = join(place, "again.oci.tar");
  const options = { context: place, binaries, base: BOTH_BASES, key4cUrl: undefined };
  await imageArchive(again, options, join(place, "layout"));
  expect(await run(["cmp", again, join(made, IMAGE)])).toBe("");
}, 120_000);

test("a key that openssl dgst cannot use, and a directory with files, are refused at once", async () => {
  const ed25519 = join(scratch, "ed25519.pem");
  await run(["openssl", "genpkey", "-algorithm", "ED25519", "-out", ed25519], environment);
  const attempt = (...flags: string[]) =>
    expect(run(releaseScript(ROOT, ...flags), environment, "", ROOT)).rejects;
  const output = ["--output", join(scratch, "unused")];
  await (await attempt(...output, "--sign-key", ed25519)).toThrow("EC (P-256) or RSA is needed");
  await (await attempt(...output, "--sign-key", "/etc/hostname")).toThrow("no private key in PEM");
  const pem = readFileSync(ed25519, "utf8");
  const told = await run(releaseScript(ROOT, `--sign-key=${pem}`), environment, "", ROOT).catch(
    String,
  );
  expect(told).toContain("the file of --sign-key cannot be read");
  expect(told.split(pem.split("\n")[1] ?? "?").length).toBe(2); // once, in the command that `run` names
  const weak = join(scratch, "weak.pem");
  const bits = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"];
  await run(["openssl", "genpkey", ...bits, "-out", weak], environment);
  await (await attempt(...output, "--sign-key", weak)).toThrow("RSA of 2048 bits or more");
  await (await attempt("K")).toThrow("Unexpected argument"); // the value of a flag that npm took for itself
  await (await attempt("--output", made)).toThrow("is not empty");
}, 60_000);

test("a runtime that is not the one of the lock file is refused", async () => {
  const lock = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8"));
  lock.packages["node_modules/@oven/bun-linux-x64"].integrity = `sha512-${"A".repeat(86)}==`;
  const tampered = Buffer.from(JSON.stringify(lock));
  const released = releaseIn(join(scratch, "tampered"), { lock: tampered });
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
  const bill = JSON.parse(read(`${name}.cdx.json`)) as {
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
