/** `npm run image`: builds the image of Containerfile with buildah or podman, for this machine's processor. */
import { join } from "node:path";
import { version } from "../../package.json";
import { fill } from "../commands/manifest/template.ts";
import { compile, NAME, ROOT } from "./compile.ts";
import usage from "./image-usage.txt";
import { scriptArguments } from "./usage.ts";

export interface ImageOptions {
  readonly tag: string;
  /** undefined: that of Containerfile. */
  readonly base: string | undefined;
  /** KEY4C_URL in the image. */
  readonly key4cUrl: string | undefined;
  /** undefined: this machine's. */
  readonly arch?: string;
  /** A directory; nothing but the binary is taken from it. */
  readonly context: string;
  /** Its path in the context. */
  readonly binary: string;
}

/** What buildah or podman is given, after its name. Equal inputs, equal layers. */
export function buildCommand(options: ImageOptions): string[] {
  const { tag, base, key4cUrl, arch, context, binary } = options;
  const buildArguments = { VERSION: version, BASE: base, KEY4C_URL: key4cUrl, BINARY: binary };
  return [
    "build",
    ...["--file", join(ROOT, "Containerfile"), "--tag", tag],
    ...(arch === undefined ? [] : ["--arch", arch]),
    ...["--timestamp", "0"],
    ...Object.entries(buildArguments).flatMap(([name, value]) =>
      value === undefined ? [] : ["--build-arg", `${name}=${value}`],
    ),
    context,
  ];
}

const TAG = `${NAME}:${version}`;

async function main(): Promise<number> {
  const { values } = scriptArguments(fill(usage, { tag: TAG }), {
    tag: { type: "string", default: TAG },
    base: { type: "string" },
    "key4c-url": { type: "string" },
    binary: { type: "string" },
  });
  const builder = ["buildah", "podman"].find((one) => Bun.which(one) !== null);
  if (builder === undefined) {
    console.error("neither buildah nor podman is installed");
    return 1;
  }
  if (values.binary === undefined) {
    console.log("building the binary");
    await compile(join(ROOT, "dist", NAME));
  }
  console.log(`building the image ${values.tag} with ${builder}`);
  const command = buildCommand({
    tag: values.tag,
    base: values.base,
    key4cUrl: values["key4c-url"],
    context: join(ROOT, "dist"),
    binary: values.binary ?? NAME,
  });
  const child = Bun.spawn([builder, ...command], { stdout: "inherit", stderr: "inherit" });
  return child.exited;
}

if (import.meta.main) {
  process.exit(await main());
}
