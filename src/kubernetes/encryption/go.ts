/** How Go reads the texts of an EncryptionConfiguration. */

const UNITS_NS: Readonly<Record<string, number>> = {
  ns: 1,
  us: 1e3,
  µs: 1e3,
  μs: 1e3,
  ms: 1e6,
  s: 1e9,
  m: 60e9,
  h: 3600e9,
};
const PART = /(?=\.?\d)(\d*)(\.\d*)?(ns|us|µs|μs|ms|s|m|h)/gy;
/** Go keeps a duration in 63 bits. */
const MAX_NS = 2n ** 63n - 1n;

/** time.ParseDuration, in nanoseconds; undefined for a text that is not a duration. */
export function parseDuration(text: string): number | undefined {
  const [, sign, rest = ""] = /^([-+]?)(.*)$/s.exec(text) ?? [];
  if (rest === "0") {
    return 0;
  }
  let ns = 0n;
  let length = 0;
  for (const [part, whole = "", fraction = "", unit = ""] of rest.matchAll(PART)) {
    const unitNs = UNITS_NS[unit] ?? 0;
    ns += BigInt(whole) * BigInt(unitNs) + BigInt(Math.trunc(Number(`0${fraction}`) * unitNs));
    length += part.length;
  }
  if (length === 0 || length !== rest.length || ns > MAX_NS) {
    return undefined;
  }
  return Number(sign === "-" ? -ns : ns);
}

/** The length of what base64.StdEncoding decodes, in bytes; undefined for what it refuses. */
export function base64Length(text: string): number | undefined {
  const joined = text.replace(/[\r\n]/g, "");
  return /^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(joined)
    ? Buffer.from(joined, "base64").length
    : undefined;
}

/** url.Parse refuses them. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const CONTROL_CHARACTER = /[\0-\x1f\x7f]/;

/** What url.Parse makes of an endpoint. */
export type Endpoint =
  /** The path that is connected to; empty for `unix:name`. */
  | { readonly path: string }
  | { readonly fault: string }
  /** Go reads a host by rules that are not repeated here. */
  | { readonly unclear: string };

/** url.Parse, and ParseEndpoint of k8s.io/kms. */
export function parseEndpoint(text: string): Endpoint {
  if (CONTROL_CHARACTER.test(text)) {
    return { fault: "control characters" };
  }
  const [beforeFragment = "", ...fragment] = text.split("#");
  const [, scheme, afterScheme] = /^([A-Za-z][A-Za-z0-9+.-]*):(.*)$/s.exec(beforeFragment) ?? [];
  if (scheme?.toLowerCase() !== "unix" || afterScheme === undefined) {
    return { fault: "not unix://" };
  }
  const [rest = ""] = afterScheme.split("?");
  if (!rest.startsWith("/")) {
    return isEscaped(fragment.join("#")) ? { path: "" } : { fault: "a % that escapes nothing" };
  }
  const [, host, path = ""] = /^\/\/([^/]*)(.*)$/s.exec(rest) ?? ["", "", rest];
  if (host !== "" && !/^[A-Za-z0-9._~-]*$/.test(host ?? "")) {
    return { unclear: `the host "${host}"` };
  }
  if (!isEscaped(path) || !isEscaped(fragment.join("#"))) {
    return { fault: "a % that escapes nothing" };
  }
  let decoded: string;
  try {
    decoded = decodeURIComponent(path);
  } catch {
    return { unclear: "a path that is not UTF-8" };
  }
  // grpc-go parses it as a URL a second time.
  if (CONTROL_CHARACTER.test(decoded) || !isEscaped(decoded)) {
    return { fault: "not a path after decoding" };
  }
  return { path: decoded.replace(/^\/@/, "@") };
}

function isEscaped(text: string): boolean {
  return !/%(?![0-9A-Fa-f]{2})/.test(text);
}

/** schema.ParseGroupResource: `*.` is every resource of the core group, `secrets.` is `secrets`. */
export function parseGroupResource(text: string): {
  readonly group: string;
  readonly name: string;
} {
  const dot = text.indexOf(".");
  return dot < 0
    ? { group: "", name: text }
    : { group: text.slice(dot + 1), name: text.slice(0, dot) };
}
