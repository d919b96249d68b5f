/** The real kube-apiserver, called over plain HTTPS with a client certificate. */
import { renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { freePort } from "../ports.ts";
import { type Running, startProcess } from "../support.ts";
import type { Servers } from "./build.ts";
import type { Pki } from "./pki.ts";
import { eventually } from "./process.ts";

/** One entry of `providers` in the EncryptionConfiguration. */
export type Provider =
  | {
      readonly kms: {
        readonly apiVersion: "v1" | "v2";
        readonly name: string;
        readonly endpoint: string;
        readonly timeout: string;
        readonly cachesize?: number;
      };
    }
  | {
      readonly aescbc: {
        readonly keys: readonly { readonly name: string; readonly secret: string }[];
      };
    }
  | { readonly identity: Record<string, never> };

export const identity: Provider = { identity: {} };

export function kms(apiVersion: "v1" | "v2", name: string, socket: string): Provider {
  return { kms: { apiVersion, name, endpoint: `unix://${socket}`, timeout: "3s" } };
}

export interface Secret {
  readonly metadata: { readonly name: string };
  readonly data: { readonly value: string };
}

/** An answer of the API that is not a success. */
export class ApiError extends Error {
  readonly status: number;

  constructor(status: number, text: string) {
    super(`${status} ${text.slice(0, 1_000)}`);
    this.status = status;
  }
}

const SECRETS = "/api/v1/namespaces/default/secrets";
/** Secrets written at the same time when there are many. */
const WRITERS = 16;

export interface ApiServerOptions {
  readonly servers: Servers;
  readonly pki: Pki;
  readonly etcdUrl: string;
  readonly encryptionConfig: string;
  readonly directory: string;
  readonly featureGates: string;
}

export class ApiServer {
  readonly #url: string;
  readonly #pki: Pki;
  readonly #process: Running;

  /** Starts it and does not wait: not in every scenario can it become ready. */
  constructor({ servers, pki, directory, featureGates, ...options }: ApiServerOptions) {
    const port = freePort();
    this.#url = `https://127.0.0.1:${port}`;
    this.#pki = pki;
    this.#process = startProcess([
      servers.kubeApiserver,
      ...["--etcd-servers", options.etcdUrl],
      ...["--bind-address", "127.0.0.1", "--secure-port", `${port}`],
      // No default route is needed then, and no Endpoints object, which a loopback address may not have.
      ...["--advertise-address", "192.0.2.1", "--endpoint-reconciler-type", "none"],
      ...["--tls-cert-file", pki.serverCert, "--tls-private-key-file", pki.serverKey],
      ...["--client-ca-file", pki.ca, "--authorization-mode", "RBAC", "--anonymous-auth=false"],
      ...["--service-account-issuer", "https://kubernetes.default.svc"],
      ...["--service-account-key-file", pki.serviceAccountKey],
      ...["--service-account-signing-key-file", pki.serviceAccountKey],
      ...["--service-cluster-ip-range", "10.0.0.0/24", "--cert-dir", join(directory, "certs")],
      ...["--encryption-provider-config", options.encryptionConfig],
      "--encryption-provider-config-automatic-reload=true",
      ...(featureGates === "" ? [] : ["--feature-gates", featureGates]),
    ]);
  }

  /** Waits until /readyz is ok and the namespace of the Secrets is there. */
  async ready(withinMs = 90_000): Promise<void> {
    const ended = this.#process.exited.then((code) => {
      throw new Error(`kube-apiserver ended with ${code}\n${this.output().slice(-4_000)}`);
    });
    const ready = eventually(
      "kube-apiserver is ready",
      withinMs,
      () => this.request("GET", "/readyz"),
      () => this.output(),
    );
    await Promise.race([ready, ended]);
    await eventually("the namespace default", 20_000, () =>
      this.request("GET", "/api/v1/namespaces/default"),
    );
  }

  async create(name: string, value: string): Promise<void> {
    const body = { metadata: { name }, data: { value: btoa(value) } };
    await this.request("POST", SECRETS, body);
  }

  async createAll(values: ReadonlyMap<string, string>): Promise<void> {
    await inParallel([...values], ([name, value]) => this.create(name, value));
  }

  async read(name: string): Promise<string> {
    return atob((JSON.parse(await this.request("GET", `${SECRETS}/${name}`)) as Secret).data.value);
  }

  async list(): Promise<Secret[]> {
    return (JSON.parse(await this.request("GET", SECRETS)) as { items: Secret[] }).items;
  }

  /** Values by name of all Secrets. */
  async values(): Promise<Map<string, string>> {
    return new Map(
      (await this.list()).map(({ metadata, data }) => [metadata.name, atob(data.value)]),
    );
  }

  /** `kubectl get secrets -o json | kubectl replace -f -`: each written as it was read. */
  async rewriteAll(): Promise<void> {
    await inParallel(await this.list(), (secret) =>
      this.request("PUT", `${SECRETS}/${secret.metadata.name}`, secret),
    );
  }

  async metrics(): Promise<string> {
    return this.request("GET", "/metrics");
  }

  output(): string {
    return this.#process.output();
  }

  stop(): Promise<number> {
    return this.#process.stop("SIGTERM");
  }

  /** The text of a successful answer. @throws ApiError */
  async request(method: string, path: string, body?: object): Promise<string> {
    const response = await fetch(`${this.#url}${path}`, {
      method,
      tls: { ca: this.#pki.caText, cert: this.#pki.client.cert, key: this.#pki.client.key },
      headers: { "content-type": "application/json" },
      signal: AbortSignal.timeout(35_000),
      ...(body && { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    if (!response.ok) {
      throw new ApiError(response.status, text);
    }
    return text;
  }
}

/** Replaces the file in one step: kube-apiserver must not read half of it. */
export function writeEncryptionConfig(path: string, providers: readonly Provider[]): void {
  const configuration = {
    apiVersion: "apiserver.config.k8s.io/v1",
    kind: "EncryptionConfiguration",
    resources: [{ resources: ["secrets"], providers }],
  };
  writeFileSync(`${path}.new`, JSON.stringify(configuration, undefined, 2)); // JSON is YAML
  renameSync(`${path}.new`, path);
}

/** How often kube-apiserver has taken a changed EncryptionConfiguration. */
export function reloads(metrics: string): number {
  const pattern =
    /^apiserver_encryption_config_controller_automatic_reloads_total\{[^}]*status="success"[^}]*\} (\d+)/m;
  return Number(metrics.match(pattern)?.[1] ?? 0);
}

async function inParallel<T>(items: readonly T[], work: (item: T) => Promise<unknown>) {
  const rest = [...items];
  await Promise.all(
    Array.from({ length: WRITERS }, async () => {
      for (let item = rest.pop(); item !== undefined; item = rest.pop()) {
        await work(item);
      }
    }),
  );
}
