/** `npm run image`: builds the image of Containerfile with buildah or podman. */
import { join } from "node:path";
import { version } from "../../package.json";
import { compile, NAME, ROOT } from "./compile.ts";
import { scriptArguments } from "./usage.ts";

const USAGE = `npm run image -- [OPTION…]: builds the binary, and an image of nothing else on a base, with buildah or podman.
Takes half a minute, and as long as the base takes to be pulled.

  --tag NAME           name of the image (default: ${NAME}:${version})
  --base IMAGE         base with glibc and CA certificates (default: that of Containerfile; pin it by digest)
  --key4c-url URL      KEY4C_URL in the image
  --arch amd64|arm64   for this processor, from what \`npm run release\` made
  --binary FILE        a binary below dist/, instead of a new one
`;
const { values } = scriptArguments(USAGE, {
  tag: { type: "string", default: `${NAME}:${version}` },
  base: { type: "string" },
  "key4c-url": { type: "string" },
  binary: { type: "string" },
  arch: { type: "string" },
});

const builder = ["buildah", "podman"].find((one) => Bun.which(one) !== null);
if (builder === undefined) {
  console.error("neither buildah nor podman is installed");
  process.exit(1);
}
if (values.binary === undefined && values.arch === undefined) {
  console.log("building the binary");
  await compile(join(ROOT, "dist", NAME));
}
console.log(`building the image ${values.tag} with ${builder}`);
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
