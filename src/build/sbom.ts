/** The bill of materials: what is really in the binary, which is less than what npm installs. */
import { join } from "node:path";
import manifest from "../../package.json";
import { EXTERNAL, ROOT } from "./compile.ts";
import { locked } from "./lock.ts";

/**
 * CycloneDX 1.6. The same for the same sources: neither a time nor a random serial number.
 * @param runtimes the packages with Bun's executables, one for each platform
 */
export async function sbom(runtimes: readonly string[]): Promise<object> {
  const bun = {
    ...component("bun"),
    type: "platform",
    description: "the runtime, whose executable of the platform is the binary",
    components: runtimes.map(component),
  };
  const components = [...(await bundledPackages()).map(component), bun];
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

function component(name: string) {
  const { version, license, integrity } = locked(name);
  const purl = purlOf(name, version);
  const base64 = integrity.replace("sha512-", "");
  return {
    type: "library",
    "bom-ref": purl,
    name,
    version,
    purl,
    ...(license && { licenses: [licenseOf(license)] }),
    hashes: [{ alg: "SHA-512", content: Buffer.from(base64, "base64").toString("hex") }],
  };
}

function purlOf(name: string, version: string): string {
  return `pkg:npm/${name.replace("@", "%40")}@${version}`;
}

/** An identifier of SPDX, or an expression of several. */
function licenseOf(text: string) {
  return text.includes(" ") ? { expression: text } : { license: { id: text } };
}

/** The names of the packages of which the bundler takes at least one file. */
export async function bundledPackages(): Promise<string[]> {
  const built = await Bun.build({
    entrypoints: [join(ROOT, "src/main.ts")],
    target: "bun",
    external: [EXTERNAL],
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
