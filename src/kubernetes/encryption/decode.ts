import type { Entry, Node } from "./tree.ts";

/** Why kube-apiserver refuses the file. */
export interface Fault {
  /** `line 7, resources[0].providers[1].kms.name` */
  readonly where: string;
  readonly what: string;
  readonly remedy: string;
}

/** A field's value and place. */
export interface Place {
  readonly node: Node;
  readonly path: string;
}

/** Decodes as strictly as kube-apiserver, field by field, and collects what is wrong. */
export class Decoder {
  readonly faults: Fault[] = [];

  fault({ node, path }: Place, what: string, remedy: string): void {
    const where = [`line ${node.line}`, path].filter(Boolean).join(", ");
    this.faults.push({ where, what, remedy });
  }

  /** The fields of a mapping. An absent field is a null at the place of the mapping; so is every field of a null. */
  struct<F extends string>(place: Place, fields: readonly F[]): Record<F, Place> {
    const { node, path } = place;
    const found = new Map<string, Place>();
    if (node.kind === "map") {
      for (const entry of node.entries) {
        const inside = { node: { ...entry.node, line: entry.line }, path: under(path, entry.key) };
        const isKnown = fields.some((field) => field === entry.key);
        if (!isKnown) {
          this.fault(
            inside,
            "there is no such field",
            remedyOfUnknown(entry, node.entries, fields),
          );
        } else if (found.has(entry.key)) {
          this.fault(inside, "the key is there twice", "keep one of the two");
        } else {
          found.set(entry.key, { node: entry.node, path: inside.path });
        }
      }
    } else if (node.kind !== "null") {
      this.fault(place, `${told(node)} where fields must be`, `write ${fields.join(", ")} below`);
    }
    const absent: Node = { kind: "null", line: node.line };
    const all = fields.map((field) => [
      field,
      found.get(field) ?? { node: absent, path: under(path, field) },
    ]);
    return Object.fromEntries(all) as Record<F, Place>; // one of each field
  }

  list(place: Place): Place[] {
    const { node, path } = place;
    if (node.kind === "list") {
      return node.items.map((item, index) => ({ node: item, path: `${path}[${index}]` }));
    }
    if (node.kind !== "null") {
      this.fault(place, `${told(node)} where a list must be`, "write a line with `- ` for each");
    }
    return [];
  }

  /** "" for a null; undefined for what is not a text, which becomes a fault. */
  text(place: Place, remedy = "write it in quotes"): string | undefined {
    const { node } = place;
    if (node.kind === "string") {
      return node.text;
    }
    if (node.kind === "null") {
      return "";
    }
    this.fault(place, `${told(node)} where a text must be`, remedy);
    return undefined;
  }
}

function under(path: string, field: string): string {
  return path === "" ? field : `${path}.${field}`;
}

function told({ kind }: Node): string {
  return kind === "map" ? "a mapping" : kind === "string" ? "a text" : `a ${kind}`;
}

function remedyOfUnknown(
  { key }: Entry,
  siblings: readonly Entry[],
  fields: readonly string[],
): string {
  const meant = fields.find((field) => field.toLowerCase() === key.toLowerCase());
  if (meant !== undefined) {
    return `write \`${meant}\``;
  }
  // A sibling without a value is often the parent under which this field was meant to be indented.
  const parent = siblings.find(
    ({ node, key: name }) => node.kind === "null" && fields.includes(name),
  );
  return parent === undefined
    ? `remove it; the fields here are ${fields.join(", ") || "none"}`
    : `indent ${key} by two more than \`${parent.key}:\``;
}
