import { expect, test } from "bun:test";
import { join } from "node:path";
import { EXTERNAL, ROOT } from "../../src/build/compile.ts";

test("what commands need besides serve is not loaded at the start", async () => {
  const { metafile } = await Bun.build({
    entrypoints: [join(ROOT, "src/main.ts")],
    target: "bun",
    splitting: true,
    external: [EXTERNAL],
    metafile: true,
  });
  const outputs = metafile?.outputs ?? {};
  const loaded = new Set<string>();
  const load = (name: string) => {
    if (!loaded.has(name)) {
      loaded.add(name);
      for (const { path, kind } of outputs[name]?.imports ?? []) {
        kind !== "dynamic-import" && load(path);
      }
    }
  };
  load(Object.keys(outputs).find((name) => outputs[name]?.entryPoint?.endsWith("main.ts")) ?? "");
  const inputs = [...loaded].flatMap((name) => Object.keys(outputs[name]?.inputs ?? {}));
  expect(inputs).toContain("src/keys/keyring.ts");
  const needless = /^src\/(commands|kubernetes|emulator|gen\/kubernetes)\/|node_modules\/yaml\//;
  expect(inputs.filter((path) => needless.test(path))).toEqual(["src/commands/configured.ts"]);
  expect(inputs.filter((path) => path.endsWith("descriptor_pb.js"))).toEqual([]);
});
