/** The one way in which the binary is compiled. `npm run build` runs this file. */
import { join } from "node:path";
import { commitOf } from "./commit.ts";
import { ROOT } from "./root.ts";

export { ROOT } from "./root.ts";
export const NAME = "key4c-kms-plugin";
/** Generated, and committed: the sources run without a build. */
export const LICENCES = join(ROOT, "src/commands/licences.txt");

/** Reached by channelz and ORCA only, which we do not have: a third of the bundle. */
export const EXTERNAL = "@grpc/proto-loader";

const FLAGS = [
  "--compile",
  "--minify",
  "--bytecode",
  // What is loaded with import() is not read before.
  ...["--format=esm", "--splitting"],
  // Else the binary would obey .env and bunfig.toml, and run what `preload` names, in the directory of its start.
  "--no-compile-autoload-dotenv",
  "--no-compile-autoload-bunfig",
  // Else it would trust what Mozilla trusted when Bun was made, and nothing that this machine was told to trust.
  "--compile-exec-argv=--use-system-ca",
  ...["--external", EXTERNAL],
  // Else the bundle would hold the path of the checkout: no two would be equal.
  ...["--define", `__dirname="/"`],
  ...["--define", `__filename="/"`],
];

export interface Platform {
  /** As Bun names it, such as `bun-linux-arm64-musl`. */
  readonly target: string;
  /** The Bun executable for it. */
  readonly runtime: string;
}

/**
 * The name of `outfile`, without its directory, is in the binary too.
 * @param options.platform undefined: this machine
 * @param options.source the benchmarks compile another in the same way
 * @throws Error with what the compiler printed
 */
export async function compile(
  outfile: string,
  { platform, source = "src/main.ts" }: { platform?: Platform; source?: string } = {},
): Promise<void> {
  const { target, runtime } = platform ?? {};
  const child = Bun.spawn(
    [
      process.execPath,
      "build",
      ...FLAGS,
      ...["--define", `BUILD_COMMIT=${JSON.stringify(await commitOf())}`],
      ...(target === undefined ? [] : [`--target=${target}`]),
      ...(runtime === undefined ? [] : [`--compile-executable-path=${runtime}`]),
      ...["--outfile", outfile],
      source,
    ],
    { cwd: ROOT, stdout: "pipe", stderr: "pipe" },
  );
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  if ((await child.exited) !== 0) {
    throw new Error(`bun build for ${target ?? "this machine"} failed\n${stdout}${stderr}`);
  }
}

if (import.meta.main) {
  await compile(join(ROOT, "dist", NAME));
}
