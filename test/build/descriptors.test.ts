import { expect, test } from "bun:test";
import { join } from "node:path";
import { create, type DescFile, type DescMessage, toBinary } from "@bufbuild/protobuf";
import { fileDesc } from "@bufbuild/protobuf/codegenv2";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";

const GENERATED = join(import.meta.dir, "../../src/gen");

/** What encoding and decoding go by. */
function facts({ typeName, fields, nestedMessages }: DescMessage): unknown {
  return {
    typeName,
    fields: fields.map((field) => ({
      ...field,
      ...{ message: field.message?.typeName, enum: field.enum?.typeName },
      ...{ oneof: field.oneof?.name, text: `${field}` },
      ...{ proto: undefined, parent: undefined, toString: undefined, getDefaultValue: undefined },
    })),
    nested: nestedMessages.map(facts),
  };
}

function factsOf({ edition, messages, services }: DescFile): unknown {
  const methods = services.flatMap((one) => one.methods);
  return {
    edition,
    messages: messages.map(facts),
    methods: methods.map(({ parent, name, localName, methodKind, input, output }) => ({
      ...{ service: parent.typeName, name, localName, methodKind },
      ...{ input: input.typeName, output: output.typeName },
    })),
  };
}

// protoc-gen-es gives protobuf in base64; src/build/protoc-gen.ts makes objects of it.
for (const path of new Bun.Glob("**/*_pb.ts").scanSync(GENERATED)) {
  test(`${path} describes what its protobuf describes`, async () => {
    const module: Record<string, DescFile> = await import(join(GENERATED, path));
    const file = Object.values(module).find(({ kind }) => kind === "file");
    if (file === undefined) {
      throw new Error("no descriptor");
    }
    const bytes = toBinary(
      FileDescriptorProtoSchema,
      create(FileDescriptorProtoSchema, file.proto),
    );
    expect(factsOf(file)).toEqual(factsOf(fileDesc(Buffer.from(bytes).toString("base64"))));
    expect(file.messages).not.toBeEmpty();
  });
}
