/** The bill of materials: what is really in the binary, which is less than what npm installs. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import manifest from "../package.json";
import { ROOT } from "./compile.ts";

interface Locked {
  readonly version: string;
  readonly license?: string;
  readonly integrity?: string;
}

/** CycloneDX 1.6. The same for the same sources: neither a time nor a random serial number. */
export async function sbom(): Promise<object> {
  const lock = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8")) as {
    packages: Record<string, Locked>;
  };
  const component = (name: string, extra: object = {}) => {
    const locked = lock.packages[`node_modules/${name}`];
    if (locked === undefined) {
      throw new Error(`${name} is in the bundle and not in package-lock.json`);
    }
    const purl = purlOf(name, locked.version);
    return {
      type: "library",
      "bom-ref": purl,
      name,
      version: locked.version,
      purl,
      ...(locked.license && { licenses: [licenseOf(locked.license)] }),
      ...(locked.integrity && { hashes: [hashOf(locked.integrity)] }),
      ...extra,
    };
  };
  const components = [
    ...(await bundledPackages()).map((name) => component(name)),
    component("bun", {
      type: "platform",
      description: "the runtime, whose executable is the binary",
    }),
  ];
  const self = purlOf(manifest.name, manifest.version);
  return {
    bomFormat: "CycloneDX",
    specVersion: "1.6",
    version: 1,
    metadata: {
      component: {
        type: "application",
        "bom-ref": self,
        name: manifest.name,
        version: manifest.version,
        purl: self,
        licenses: [{ license: { id: manifest.license } }],
      },
    },
    components,
    dependencies: [{ ref: self, dependsOn: components.map((one) => one["bom-ref"]) }],
  };
}

function purlOf(name: string, version: string): string {
  return `pkg:npm/${name.replace("@", "%40")}@${version}`;
}

/** An identifier of SPDX, or an expression of several. */
function licenseOf(text: string) {
  return text.includes(" ") ? { expression: text } : { license: { id: text } };
}

/** npm's `sha512-BASE64` in CycloneDX's form. */
function hashOf(integrity: string) {
  return {
    alg: "SHA-512",
    content: Buffer.from(integrity.replace("sha512-", ""), "base64").toString("hex"),
  };
}

/** The names of the packages of which the bundler takes at least one file. */
async function bundledPackages(): Promise<string[]> {
  const built = await Bun.build({
    entrypoints: [join(ROOT, "src/main.ts")],
    target: "bun",
    external: ["@grpc/proto-loader"],
    metafile: true,
  });
  const inputs = Object.keys(built.metafile?.inputs ?? {});
  const names = inputs.flatMap((path) => {
    const name = path
      .split("node_modules/")
      .at(-1)
      ?.match(/^(@[^/]+\/)?[^/]+/)?.[0];
    return path.includes("node_modules/") && name !== undefined ? [name] : [];
  });
  if (names.length === 0) {
    throw new Error("the bundler names no package");
  }
  return [...new Set(names)].sort();
}
