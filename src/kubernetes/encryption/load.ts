/**
 * Reads an EncryptionConfiguration as kube-apiserver does: it decodes, validates and builds like LoadEncryptionConfig of
 * k8s.io/apiserver 0.37. test/interop compares the two.
 */
import { Decoder, type Fault, type Place } from "./decode.ts";
import { base64Length } from "./go.ts";
import { type Kms, KmsReader, type Server } from "./kms.ts";
import { checkMasked, checkOverlap, checkResource } from "./resources.ts";
import { type Node, Refused, readTree, type Tree, Unclear } from "./tree.ts";

export interface Provider {
  /** `line 7, resources[0].providers[1]` */
  readonly where: string;
  readonly kind: ProviderKind;
  readonly kms?: Kms;
  /** Of aescbc, aesgcm and secretbox: the key that writes. */
  readonly keyName?: string;
}

export interface Group {
  readonly resources: readonly string[];
  readonly providers: readonly Provider[];
}

/** Faults, or groups. `unclear` says why there is neither, or why there may be more faults. */
export interface Loaded {
  readonly faults: readonly Fault[];
  readonly unclear: readonly string[];
  readonly groups: readonly Group[];
  /** Line of a second YAML document, which kube-apiserver does not read; undefined without one. */
  readonly unreadFromLine?: number | undefined;
}

/** @param server what is known of it: the rest counts as on, with which most is taken */
export function loadConfiguration(bytes: Uint8Array, server: Partial<Server> = {}): Loaded {
  const none = { faults: [], unclear: [], groups: [] };
  let tree: Tree;
  try {
    tree = readTree(bytes);
  } catch (error) {
    if (error instanceof Refused) {
      const remedy = "correct it; `manifest encryption-configuration` prints one to start with";
      return { ...none, faults: [{ where: `line ${error.line}`, what: error.message, remedy }] };
    }
    if (error instanceof Unclear) {
      return { ...none, unclear: [error.message] };
    }
    if (error instanceof RangeError) {
      return { ...none, unclear: ["it is nested too deeply"] };
    }
    throw error;
  }
  return {
    ...new Loader({ hasKmsV1: true, reloads: true, ...server }).load(tree.root),
    unreadFromLine: tree.unreadFromLine,
  };
}

const PROVIDER_KINDS = ["kms", "identity", "aescbc", "aesgcm", "secretbox"] as const;
export type ProviderKind = (typeof PROVIDER_KINDS)[number];

/** Allowed lengths of a provider's keys, in bytes. */
const KEY_LENGTHS = { aescbc: [16, 24, 32], aesgcm: [16, 24, 32], secretbox: [32] } as const;

class Loader {
  readonly #decoder = new Decoder();
  readonly #kms: KmsReader;

  constructor(server: Server) {
    this.#kms = new KmsReader(this.#decoder, server);
  }

  load(node: Node): Loaded {
    const root = { node, path: "" };
    const { apiVersion, kind, resources } = this.#decoder.struct(root, [
      "apiVersion",
      "kind",
      "resources",
    ]);
    this.#head(apiVersion, kind);
    const groups = this.#decoder.list(resources).map((group) => this.#group(group));
    if (groups.length === 0) {
      this.#decoder.fault(
        resources,
        "there are no resources",
        "list groups of resources and providers",
      );
    }
    checkMasked(this.#decoder, groups);
    return {
      faults: this.#decoder.faults,
      unclear: this.#kms.unclear,
      groups: groups.map(({ resources: names, providers }) => ({
        resources: names.map(({ text }) => text),
        providers,
      })),
    };
  }

  #head(apiVersion: Place, kind: Place): void {
    const head = [this.#decoder.text(apiVersion), this.#decoder.text(kind)];
    const isKnown = [
      "apiserver.config.k8s.io/v1 EncryptionConfiguration",
      "v1 EncryptionConfig", // the old form, which kube-apiserver still reads
    ].includes(head.join(" "));
    if (!isKnown && !head.includes(undefined)) {
      this.#decoder.fault(
        kind,
        "it is not an EncryptionConfiguration",
        "begin it with `apiVersion: apiserver.config.k8s.io/v1` and `kind: EncryptionConfiguration`",
      );
    }
  }

  #group(place: Place) {
    const fields = this.#decoder.struct(place, ["resources", "providers"]);
    const resources = this.#decoder.list(fields.resources).map((one) => ({
      place: one,
      text: this.#decoder.text(one) ?? "",
    }));
    if (resources.length === 0) {
      this.#decoder.fault(
        fields.resources,
        "there are no resources",
        "list some, such as `- secrets`",
      );
    }
    for (const one of resources) {
      checkResource(this.#decoder, one);
    }
    checkOverlap(
      this.#decoder,
      fields.resources,
      resources.map(({ text }) => text),
    );
    const places = this.#decoder.list(fields.providers);
    const providers = places.flatMap((one) => this.#provider(one));
    if (places.length === 0) {
      this.#decoder.fault(
        fields.providers,
        "there are no providers",
        "list them, the one that writes first",
      );
    }
    return { resources, providers };
  }

  #provider(place: Place): Provider[] {
    const fields = this.#decoder.struct(place, PROVIDER_KINDS);
    const there = PROVIDER_KINDS.filter((kind) => fields[kind].node.kind !== "null");
    const [kind] = there;
    const { node, path } = place;
    const where = `line ${node.line}, ${path}`;
    if (kind === undefined || there.length > 1) {
      const kinds: readonly string[] = PROVIDER_KINDS;
      const isNamed = node.kind === "map" && node.entries.some(({ key }) => kinds.includes(key));
      const remedy = isNamed
        ? "indent the provider's fields by two more than its name; for identity write `identity: {}`"
        : `write one of ${PROVIDER_KINDS.join(", ")}`;
      this.#decoder.fault(
        place,
        kind === undefined ? "it has no provider" : `${there.join(" and ")} in one element`,
        kind === undefined ? remedy : "give each provider a `- ` of its own",
      );
    }
    const providers = there.map((one): Provider => {
      switch (one) {
        case "kms":
          return { where, kind: one, kms: this.#kms.read(fields.kms) };
        case "identity":
          this.#decoder.struct(fields.identity, []);
          return { where, kind: one };
        default:
          return { where, kind: one, keyName: this.#keys(fields[one], KEY_LENGTHS[one]) };
      }
    });
    return providers.slice(0, 1);
  }

  /** The name of the first key. */
  #keys(place: Place, lengths: readonly number[]): string {
    const { keys } = this.#decoder.struct(place, ["keys"]);
    const names = this.#decoder.list(keys).map((one) => {
      const { name, secret } = this.#decoder.struct(one, ["name", "secret"]);
      const keyName = this.#decoder.text(name);
      if (keyName === "") {
        this.#decoder.fault(name, "a key needs a name", "give it one, and never change it");
      }
      const base64 = this.#decoder.text(secret);
      const length = base64Length(base64 ?? "");
      if (base64 !== undefined && (length === undefined || !lengths.includes(length))) {
        this.#decoder.fault(
          secret,
          length === undefined ? "the secret is not base64" : `the secret has ${length} bytes`,
          `write the base64, with its padding, of ${lengths.join(" or ")} random bytes`,
        );
      }
      return keyName ?? "";
    });
    if (names.length === 0) {
      this.#decoder.fault(keys, "there are no keys", "list keys, each with name and secret");
    }
    return names[0] ?? "";
  }
}
