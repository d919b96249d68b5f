/** What kube-apiserver takes a scalar for: `on` is a boolean, `1_000` is a number. */
export type ScalarNode = { readonly line: number } & (
  | { readonly kind: "string" | "boolean"; readonly text: string }
  /** NaN for a number that no field accepts. */
  | { readonly kind: "number"; readonly text: string; readonly value: number }
  | { readonly kind: "null" }
);

export function jsonScalar(text: string, line: number): ScalarNode {
  if (text === "null") {
    return { kind: "null", line };
  }
  if (text === "true" || text === "false") {
    return { kind: "boolean", text, line };
  }
  // An integer's field takes no other form from JSON.
  const value = /^-?\d+$/.test(text) ? Number(text) : Number.NaN;
  return { kind: "number", text, value, line };
}

const NULL = /^(~|null|Null|NULL|)$/;
const BOOLEAN =
  /^(y|Y|yes|Yes|YES|true|True|TRUE|on|On|ON|n|N|no|No|NO|false|False|FALSE|off|Off|OFF)$/;
const NOT_FINITE = /^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$/;
/** With a prefix, of base 8 by a leading zero, or decimal. */
const INTEGER = /^([-+]?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO][0-7]+|0[0-7]*|[1-9]\d*)$/;
const FLOAT = /^[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$/;

/** What a plain scalar is, by resolve.go of go.yaml.in/yaml/v2: YAML 1.1 without base 60. */
export function yamlScalar(text: string, line: number): ScalarNode {
  if (NULL.test(text)) {
    return { kind: "null", line };
  }
  if (BOOLEAN.test(text)) {
    return { kind: "boolean", text, line };
  }
  if (NOT_FINITE.test(text)) {
    return { kind: "number", text, value: Number.NaN, line };
  }
  if (!/^[-+.\d]/.test(text)) {
    return { kind: "string", text, line };
  }
  const plain = text.startsWith(".") ? text : text.replaceAll("_", "");
  const [, sign, digits] = INTEGER.exec(plain) ?? [];
  if (digits !== undefined) {
    const octal = /^0[0-7]+$/.test(digits) ? `0o${digits}` : digits;
    const magnitude = BigInt(octal.toLowerCase());
    const isInRange = magnitude <= (sign === "-" ? 2n ** 63n : 2n ** 64n - 1n);
    if (isInRange) {
      return {
        kind: "number",
        text,
        value: Number(`${sign === "-" ? "-" : ""}${magnitude}`),
        line,
      };
    }
  }
  if (FLOAT.test(plain) && Number.isFinite(Number(plain))) {
    return { kind: "number", text, value: Number(plain), line };
  }
  return { kind: "string", text, line };
}
