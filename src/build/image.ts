/**
 * `npm run image -- [--tag NAME] [--base IMAGE] [--key4c-url URL] [--arch amd64|arm64] [--binary FILE]`: builds the image
 * of Containerfile with buildah or podman. FILE is below dist/; with ARCH it is the one that `npm run release` made.
 */
import { parseArgs } from "node:util";
import { version } from "../../package.json";
import { NAME, ROOT } from "./compile.ts";

const { values } = parseArgs({
  options: {
    tag: { type: "string", default: `${NAME}:${version}` },
    base: { type: "string" },
    "key4c-url": { type: "string" },
    binary: { type: "string" },
    arch: { type: "string" },
  },
});

const builder = ["buildah", "podman"].find((one) => Bun.which(one) !== null);
if (builder === undefined) {
  console.error("neither buildah nor podman is installed");
  process.exit(1);
}
const buildArguments = {
  VERSION: version,
  BASE: values.base,
  KEY4C_URL: values["key4c-url"],
  BINARY: values.binary ?? releasedFor(values.arch),
};
const child = Bun.spawn(
  [
    builder,
    "build",
    ...["--file", "Containerfile", "--tag", values.tag],
    ...(values.arch === undefined ? [] : ["--arch", values.arch]),
    // Equal inputs, equal layers.
    ...["--timestamp", "0"],
    ...Object.entries(buildArguments).flatMap(([name, value]) =>
      value === undefined ? [] : ["--build-arg", `${name}=${value}`],
    ),
    "dist",
  ],
  { cwd: ROOT, stdout: "inherit", stderr: "inherit" },
);
process.exit(await child.exited);

/** An image that says arm64 must not get this machine's binary. */
function releasedFor(arch: string | undefined): string | undefined {
  return arch && `release/${NAME}-${version}-linux-${arch === "amd64" ? "x64" : arch}`;
}
