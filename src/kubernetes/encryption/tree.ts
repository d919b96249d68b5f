/**
 * A file as kube-apiserver's decoder sees it: JSON if it begins with a brace, else the first document of
 * YAML with the scalars of go.yaml.in/yaml/v2. Every node knows its line.
 */
import { isUtf8 } from "node:buffer";
import {
  type Document,
  isAlias,
  isMap,
  isNode,
  isScalar,
  isSeq,
  LineCounter,
  type Pair,
  parseAllDocuments,
  type Scalar,
  type Node as YamlNode,
} from "yaml";
import { jsonScalar, type ScalarNode, yamlScalar } from "./scalar.ts";

export type Node =
  | ScalarNode
  | { readonly kind: "map"; readonly line: number; readonly entries: readonly Entry[] }
  | { readonly kind: "list"; readonly line: number; readonly items: readonly Node[] };

/** A mapping may have the same key twice. */
export interface Entry {
  readonly key: string;
  /** Of the key. */
  readonly line: number;
  readonly node: Node;
}

/** kube-apiserver refuses the file. */
export class Refused extends Error {
  readonly line: number;

  constructor(line: number, message: string) {
    super(message);
    this.line = line;
  }
}

/** We do not know what kube-apiserver's decoder makes of the file. */
export class Unclear extends Error {}

/** No real configuration has so many nodes, but aliases can expand a few lines into any number. */
export const MAX_NODES = 10_000;

export interface Tree {
  readonly root: Node;
  /** Line of a second document, which kube-apiserver does not read; undefined without one. */
  readonly unreadFromLine?: number;
}

/** @throws Refused or Unclear; RangeError where it is nested too deeply for our stack */
export function readTree(bytes: Uint8Array): Tree {
  if (/^(\xff\xfe|\xfe\xff)/.test(Buffer.from(bytes.subarray(0, 2)).toString("latin1"))) {
    throw new Unclear("it is UTF-16");
  }
  const whole = Buffer.from(bytes).toString("utf8");
  const isJson = /^(?!\ufeff)\s*\{/.test(whole);
  // What breaks a line in YAML 1.1.
  const text = isJson
    ? whole
    : whole.replace(/^\ufeff/, "").replace(/\r\n|[\r\u0085\u2028\u2029]/g, "\n");
  if (isJson) {
    checkJson(text);
  }
  const lines = new LineCounter();
  const documents: readonly Document[] = [
    ...parseAllDocuments(text, {
      version: "1.1",
      schema: "failsafe", // every scalar as it is written; scalar.ts says what it is
      merge: false,
      uniqueKeys: false,
      lineCounter: lines,
      logLevel: "silent",
    }),
  ];
  const document = documents[0];
  if (!isJson) {
    checkCharacters(bytes, text, documents.length > 1);
    checkYaml(text, document);
  } else if (document === undefined || document.errors.length > 0) {
    throw new Unclear("it is JSON that cannot be read as YAML");
  }
  const others = isJson ? [] : documents.slice(1).map(({ contents }) => contents?.range);
  const [at] = others.find((range) => range && range[0] < range[1]) ?? []; // the first that has something in it
  return {
    root: new TreeReader(text, lines, isJson).read(document?.contents),
    ...(at !== undefined && { unreadFromLine: lines.linePos(at).line }),
  };
}

function checkJson(text: string): void {
  try {
    JSON.parse(text);
  } catch (error) {
    if (error instanceof RangeError) {
      throw error;
    }
    throw new Refused(1, "it begins with a brace, so it must be JSON, and it is not");
  }
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const CONTROL_CHARACTER = /[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]/;
/** A tab after the first words of a line acts like a space. */
const HARMLESS_TAB = /^ *(- +)*[\w.'"#][^\t]*\t/;

function checkCharacters(bytes: Uint8Array, text: string, isFirstOfSeveral: boolean): void {
  const at = text.search(CONTROL_CHARACTER);
  if (at < 0 && isUtf8(bytes)) {
    return;
  }
  if (isFirstOfSeveral) {
    // We do not know how far kube-apiserver reads beyond the first document.
    throw new Unclear("there are control characters in it, or bytes that are not UTF-8");
  }
  const line = at < 0 ? 1 : text.slice(0, at).split("\n").length;
  throw new Refused(line, at < 0 ? "it is not UTF-8" : "there is a control character");
}

function checkYaml(text: string, document: Document | undefined): void {
  const [directive] = text.match(/^%.*/m) ?? [];
  if (directive !== undefined && !/^%YAML +1\.1 *$/.test(directive)) {
    throw new Unclear("there are directives (%) in it");
  }
  const error = document?.errors[0];
  const hasTab = text.split("\n").some((one) => one.includes("\t") && !HARMLESS_TAB.test(one));
  if (hasTab && error?.code !== "TAB_AS_INDENT") {
    throw new Unclear("there are tabs in it");
  }
  if (error !== undefined) {
    const [place] = error.linePos ?? [];
    const root = document?.contents;
    const endOfRoot = isMap(root) && root.flow === true ? root.range?.[1] : undefined;
    const marker = text.search(/^\.\.\.\s/m);
    if (error.pos[0] >= (endOfRoot ?? (marker < 0 ? text.length + 1 : marker))) {
      throw new Unclear("something is wrong after its end");
    }
    // libyaml lets them continue at any indentation, as long as they end somewhere.
    const [, bracket, quote] =
      /^Flow .* (?:indented|end with a ([\]}]))|^Missing closing (["'])/.exec(error.message) ?? [];
    const isOfIndentation = error.message.startsWith("Flow ") || quote !== undefined;
    if (isOfIndentation && text.includes(bracket ?? quote ?? "", error.pos[0])) {
      throw new Unclear(
        `brackets or quotes of line ${place?.line ?? 1} continue further left, or do not end`,
      );
    }
    if (error.code === "RESOURCE_EXHAUSTION") {
      throw new RangeError(error.message);
    }
    // Not the message of the error: it quotes the text, which may be the secret of a key.
    const what = error.code.toLowerCase().replaceAll("_", " ");
    throw new Refused(place?.line ?? 1, `it is not YAML: ${what}`);
  }
}

class TreeReader {
  readonly #text: string;
  readonly #lines: LineCounter;
  readonly #isJson: boolean;
  /** The newest one of each name, up to where we are. */
  readonly #anchors = new Map<string, YamlNode>();
  readonly #open = new Set<YamlNode>();
  #count = 0;
  /** Above 0 while an alias is followed: its value is old, so its anchors must not replace newer ones. */
  #aliasDepth = 0;

  constructor(text: string, lines: LineCounter, isJson: boolean) {
    this.#text = text;
    this.#lines = lines;
    this.#isJson = isJson;
  }

  read(node: unknown): Node {
    this.#count += 1;
    if (this.#count > MAX_NODES) {
      throw new Unclear(`it has more than ${MAX_NODES} nodes`);
    }
    const line = this.#lineOf(node);
    if (isAlias(node)) {
      return this.#aliased(node.source, line);
    }
    if (isNode(node) && node.anchor !== undefined) {
      this.#anchor(node.anchor, node, line);
    }
    if (isScalar(node)) {
      return this.#scalar(node, line);
    }
    if (!isMap(node) && !isSeq(node)) {
      return { kind: "null", line };
    }
    if (this.#open.has(node)) {
      throw new Refused(line, "an anchor's value contains itself");
    }
    if (node.tag !== undefined && !/^tag:yaml\.org,2002:(map|seq)$/.test(node.tag)) {
      throw new Unclear(`there is a tag in line ${line}`);
    }
    const isFlow = node.flow === true && !this.#isJson;
    if (isFlow && this.#text.slice(node.range?.[0], node.range?.[1]).includes("?")) {
      throw new Unclear(`there is a question mark between brackets in line ${line}`);
    }
    this.#open.add(node);
    const read: Node = isSeq(node)
      ? { kind: "list", line, items: node.items.map((item) => this.read(item)) }
      : { kind: "map", line, entries: node.items.flatMap((pair) => this.#entries(pair)) };
    this.#open.delete(node);
    return read;
  }

  #anchor(name: string, node: YamlNode, line: number): void {
    if (!/^[\w-]+$/.test(name)) {
      throw new Refused(line, "an anchor has letters, digits, _ and - only");
    }
    if (this.#aliasDepth === 0) {
      this.#anchors.set(name, node);
    }
  }

  #aliased(name: string, line: number): Node {
    const target = this.#anchors.get(name);
    if (target === undefined) {
      throw new Refused(line, "there is no anchor for this alias");
    }
    this.#aliasDepth += 1;
    const read = this.read(target);
    this.#aliasDepth -= 1;
    return read;
  }

  #entries({ key, value }: Pair): Entry[] {
    const line = this.#lineOf(key);
    if (isScalar(key) && key.type === "PLAIN" && key.source === "<<") {
      const merged = isSeq(value) ? value.items : [value];
      return merged.flatMap((one) => this.#merged(one, line));
    }
    const read = this.read(key);
    const text = "text" in read ? read.text : `(${read.kind})`;
    return [{ key: text, line, node: this.read(value) }];
  }

  #merged(value: unknown, line: number): readonly Entry[] {
    const read = this.read(value);
    if (read.kind !== "map") {
      throw new Refused(line, "what `<<` merges must be a mapping, or a list of mappings");
    }
    return read.entries;
  }

  #scalar({ tag, type, value, source, range }: Scalar, line: number): Node {
    const text = typeof value === "string" ? value : (source ?? "");
    if (tag !== undefined && tag !== "tag:yaml.org,2002:str") {
      throw new Unclear(`there is a tag in line ${line}`);
    }
    if (type === "QUOTE_DOUBLE" && !this.#isJson) {
      const raw = this.#text.slice(range?.[0], range?.[1]);
      if (raw.replaceAll("\\\\", "").includes("\\/")) {
        throw new Refused(line, "it is not YAML 1.1: \\/ escapes nothing");
      }
    }
    return type !== "PLAIN" || tag !== undefined
      ? { kind: "string", text, line }
      : this.#isJson
        ? jsonScalar(text, line)
        : yamlScalar(text, line);
  }

  #lineOf(node: unknown): number {
    const range = isNode(node) ? node.range : null;
    return range ? this.#lines.linePos(range[0]).line : 1;
  }
}
