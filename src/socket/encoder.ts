import type { DescField, DescMessage, MessageInitShape } from "@bufbuild/protobuf";
import { create, ScalarType, toBinary } from "@bufbuild/protobuf";
import { bytesField, joined } from "../system/protobuf.ts";

const NO_BYTES = new Uint8Array(0);

/**
 * An encoder of answers. It gives what `toBinary` gives, as the Buffer that grpc-js wants.
 *
 * protobuf writes the fields one after the other, by their numbers. In an answer with a DEK the first one is bytes,
 * always others, and the rest is the same as in the answer before: it is encoded again only when it differs. Of
 * objects only a frozen one can be known to be the same. The caller must not write to the Buffer.
 */
export function encoderOf<S extends DescMessage>(
  schema: S,
): (answer: MessageInitShape<S>) => Buffer {
  const first = schema.fields.find((field) => field.number === 1 && isBytes(field))?.localName;
  const rest = schema.fields.map(({ localName }) => localName).filter((name) => name !== first);
  let former: Record<string, unknown> | undefined;
  let formerRest = Buffer.alloc(0);
  return (answer) => {
    const fields = answer as Record<string, unknown>; // whose names are those of the schema
    if (former === undefined || !rest.every((name) => isSame(former?.[name], fields[name]))) {
      former = Object.fromEntries(rest.map((name) => [name, fields[name]]));
      const message = create(schema, former as MessageInitShape<S>); // a part of what fits it
      formerRest = Buffer.from(toBinary(schema, message));
    }
    if (first === undefined) {
      return formerRest;
    }
    const value = (fields[first] ?? NO_BYTES) as Uint8Array; // see isBytes
    return joined(...bytesField(1, value), formerRest);
  };
}

function isBytes(field: DescField): boolean {
  return field.fieldKind === "scalar" && field.scalar === ScalarType.BYTES && !field.oneof;
}

function isSame(former: unknown, now: unknown): boolean {
  return former === now && (typeof now !== "object" || Object.isFrozen(now));
}
