import type { Decoder, Place } from "./decode.ts";
import { parseDuration, parseEndpoint } from "./go.ts";

export interface Kms {
  readonly apiVersion: "v1" | "v2";
  readonly name: string;
  readonly endpoint: string;
  /** The socket's path; undefined when we do not know how Go reads the endpoint. */
  readonly path: string | undefined;
}

/** The settings of an API server that decide whether it accepts a kms provider. */
export interface Server {
  /** --encryption-provider-config-automatic-reload: names of KMS v1 must be unique too. */
  readonly reloads: boolean;
  /** --feature-gates=KMSv1=true, without which 1.29 and newer refuse KMS v1. */
  readonly hasKmsV1: boolean;
}

const FIELDS = ["apiVersion", "name", "cachesize", "endpoint", "timeout"] as const;
const INT32_LIMIT = 2 ** 31;

/** Reads the kms providers of one file, whose names must differ. */
export class KmsReader {
  /** Reasons why there may be more faults than those found. */
  readonly unclear: string[] = [];
  readonly #decoder: Decoder;
  readonly #server: Server;
  readonly #names = new Set<string>();

  constructor(decoder: Decoder, server: Server) {
    this.#decoder = decoder;
    this.#server = server;
  }

  read(place: Place): Kms {
    const fields = this.#decoder.struct(place, FIELDS);
    const apiVersion = this.#apiVersion(fields.apiVersion);
    this.#cachesize(fields.cachesize, apiVersion);
    const { endpoint, path } = this.#endpoint(fields.endpoint);
    const name = this.#name(fields.name, apiVersion);
    this.#timeout(fields.timeout);
    return { apiVersion, name, endpoint, path };
  }

  #apiVersion(place: Place): "v1" | "v2" {
    const text = this.#decoder.text(place);
    if (text === "v2") {
      return "v2";
    }
    if (text === undefined) {
      return "v1";
    }
    const missing =
      text === "" ? "there is no apiVersion, which means v1" : `${text} is not v1 or v2`;
    if ((text !== "" && text !== "v1") || !this.#server.hasKmsV1) {
      this.#decoder.fault(
        place,
        text === "v1" ? "KMS v1 is off by default from Kubernetes 1.29 on" : missing,
        "write `apiVersion: v2`; or, for data of KMS v1, start kube-apiserver with --feature-gates=KMSv1=true",
      );
    }
    return "v1";
  }

  #cachesize(place: Place, apiVersion: "v1" | "v2"): void {
    const { node } = place;
    if (node.kind === "null") {
      return;
    }
    const value = node.kind === "number" ? node.value : Number.NaN;
    if (apiVersion === "v2") {
      this.#decoder.fault(place, "KMS v2 has no cachesize", "remove it");
    } else if (!Number.isInteger(value) || value < -INT32_LIMIT || value >= INT32_LIMIT) {
      this.#decoder.fault(
        place,
        "cachesize is not a whole number",
        "write `cachesize: 1000`, or remove it",
      );
    } else if (value === 0) {
      this.#decoder.fault(place, "cachesize is 0", "write a number above it, or remove it");
    }
  }

  #timeout(place: Place): void {
    if (place.node.kind === "null") {
      return; // 3s
    }
    const remedy = "write `timeout: 3s`";
    const text = this.#decoder.text(place, remedy);
    const ns = parseDuration(text ?? "");
    if (text !== undefined && (ns === undefined || ns <= 0)) {
      this.#decoder.fault(place, `"${text}" is not a duration above zero`, remedy);
    }
  }

  #endpoint(place: Place): { readonly endpoint: string; readonly path: string | undefined } {
    const endpoint = this.#decoder.text(place);
    if (endpoint === undefined) {
      return { endpoint: "", path: undefined };
    }
    const parsed = parseEndpoint(endpoint);
    if ("fault" in parsed) {
      const remedy = "write `endpoint: unix:///PATH`, with three slashes";
      this.#decoder.fault(place, `"${endpoint}" is not an endpoint: ${parsed.fault}`, remedy);
    } else if ("unclear" in parsed) {
      this.unclear.push(`line ${place.node.line}, ${place.path}: ${parsed.unclear}`);
    }
    return { endpoint, path: "path" in parsed ? parsed.path : undefined };
  }

  #name(place: Place, apiVersion: "v1" | "v2"): string {
    const name = this.#decoder.text(place);
    if (name === undefined) {
      return "";
    }
    const remedy = "give each provider its own name, and never change a name that stored data have";
    if (name === "") {
      this.#decoder.fault(place, "a kms provider needs a name", remedy);
    } else if (apiVersion === "v2" && name.includes(":")) {
      this.#decoder.fault(place, `${name} has a colon`, remedy);
    }
    if (this.#names.has(name) && (apiVersion === "v2" || this.#server.reloads)) {
      this.#decoder.fault(place, `${name} is not the only one of this name`, remedy);
    }
    this.#names.add(name);
    return name;
  }
}
