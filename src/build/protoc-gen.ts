/**
 * protoc-gen-es, for buf.gen.yaml. What it generates has each descriptor as protobuf, in base64; to read that, the plugin
 * would build the descriptors of descriptor.proto at every start, which take longer than all of ours. Here they are
 * objects, as they are after reading.
 */
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { fileDesc } from "@bufbuild/protobuf/codegenv2";
import { CodeGeneratorResponseSchema } from "@bufbuild/protobuf/wkt";

const IMPORTS = `import { createFileRegistry } from "@bufbuild/protobuf";
import type { FileDescriptorProto } from "@bufbuild/protobuf/wkt";`;

const { stdout, exitCode } = Bun.spawnSync(["protoc-gen-es"], {
  stdin: await Bun.stdin.bytes(),
  stderr: "inherit",
});
if (exitCode !== 0) {
  process.exit(exitCode);
}
const response = fromBinary(CodeGeneratorResponseSchema, stdout);
for (const file of response.file) {
  file.content = file.content
    .replace(/fileDesc\("([^"]+)"\)/, (_, base64: string) => registry(base64))
    .replace(/^import \{ fileDesc, (.*)$/m, `${IMPORTS}\nimport { $1`);
  if (file.content.includes("fileDesc")) {
    throw new Error(`${file.name}: a file that imports others is not provided for`);
  }
}
await Bun.write(Bun.stdout, toBinary(CodeGeneratorResponseSchema, response));

/** Code that makes the same file of its descriptor. */
function registry(base64: string): string {
  const { proto } = fileDesc(base64);
  const text = JSON.stringify(proto, (name, value) => (name === "$unknown" ? undefined : value));
  return `createFileRegistry(${text} as unknown as FileDescriptorProto, () => undefined).getFile(${JSON.stringify(proto.name)}) as GenFile`;
}
