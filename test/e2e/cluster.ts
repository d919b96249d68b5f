/** A control plane of one: etcd, Key4C, the plugin and kube-apiserver, each to be restarted on its own. */

import { expect } from "bun:test";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { temporaryDirectory } from "../support.ts";
import { ApiServer, kms, type Provider, reloads, writeEncryptionConfig } from "./apiserver.ts";
import { builtServers } from "./build.ts";
import { type Etcd, SECRETS_PREFIX, startEtcd, storedUnder } from "./etcd.ts";
import { Key4C, Plugin } from "./key4c.ts";
import { makePki, type Pki } from "./pki.ts";
import { eventually, seconds } from "./process.ts";

/** Here, not in a test: a first build takes longer than any test may. */
export const servers = await builtServers();

export interface ClusterOptions {
  /** Made from the path of the plugin's socket; v2 by default, and nothing but it. */
  readonly providers?: (socket: string) => Provider[];
  readonly featureGates?: string;
  readonly pluginEnv?: Record<string, string>;
  /** Whose Key4C and PKI to use instead of new ones. */
  readonly key4cOf?: Cluster;
  /** etcd's data directory, if it exists already. */
  readonly etcdData?: string;
  /** False starts etcd and Key4C only. */
  readonly start?: boolean;
}

export class Cluster {
  readonly directory: string;
  readonly pki: Pki;
  readonly key4c: Key4C;
  readonly etcd: Etcd;
  readonly socket: string;
  readonly #options: ClusterOptions;
  readonly #encryptionConfig: string;
  #plugin: Plugin | undefined;
  #api: ApiServer | undefined;

  private constructor(
    directory: string,
    parts: { pki: Pki; key4c: Key4C; etcd: Etcd },
    options: ClusterOptions,
  ) {
    this.directory = directory;
    this.pki = parts.pki;
    this.key4c = parts.key4c;
    this.etcd = parts.etcd;
    this.socket = join(directory, "run", "kms.sock"); // the plugin makes the directory
    this.#options = options;
    this.#encryptionConfig = join(directory, "encryption.yaml");
  }

  static async start(options: ClusterOptions = {}): Promise<Cluster> {
    const directory = temporaryDirectory();
    let { pki, key4c } = options.key4cOf ?? {};
    if (pki === undefined || key4c === undefined) {
      const elsewhere = temporaryDirectory(); // what survives the loss of the cluster's machine
      pki = await makePki(elsewhere);
      key4c = new Key4C(pki, join(elsewhere, "key4c.json"));
      await key4c.start();
    }
    const etcd = await startEtcd(servers, options.etcdData ?? join(directory, "etcd"));
    const cluster = new Cluster(directory, { pki, key4c, etcd }, options);
    const providers = options.providers ?? ((socket) => [kms("v2", "key4c", socket)]);
    writeEncryptionConfig(cluster.#encryptionConfig, providers(cluster.socket));
    if (options.start !== false) {
      await cluster.startPlugin();
      await cluster.startApi();
    }
    return cluster;
  }

  get plugin(): Plugin {
    return present(this.#plugin);
  }

  get api(): ApiServer {
    return present(this.#api);
  }

  /** Starts a plugin on the cluster's socket; does not wait until it is ok. */
  launchPlugin(env: Record<string, string> = {}): Plugin {
    const { key4c, pki, socket } = this;
    const merged = { ...this.#options.pluginEnv, ...env };
    this.#plugin = new Plugin({ key4c, pki, socket, env: merged });
    return this.#plugin;
  }

  async startPlugin(env: Record<string, string> = {}): Promise<void> {
    await this.launchPlugin(env).ok();
  }

  async restartPlugin(env: Record<string, string> = {}): Promise<void> {
    await this.plugin.stop();
    await this.startPlugin(env);
  }

  /** Starts kube-apiserver; does not wait until it is ready. */
  launchApi(): ApiServer {
    const directory = join(this.directory, "apiserver");
    mkdirSync(directory, { recursive: true });
    this.#api = new ApiServer({
      servers,
      pki: this.pki,
      etcdUrl: this.etcd.url,
      encryptionConfig: this.#encryptionConfig,
      directory,
      featureGates: this.#options.featureGates ?? "",
    });
    return this.#api;
  }

  /** Seconds until it was ready. */
  async startApi(): Promise<number> {
    return seconds(() => this.launchApi().ready());
  }

  /** Seconds until it was ready again. */
  async restartApi(): Promise<number> {
    await this.api.stop();
    return this.startApi();
  }

  /** Writes another EncryptionConfiguration and waits until kube-apiserver has taken it. */
  async reconfigure(providers: readonly Provider[]): Promise<void> {
    const before = reloads(await this.api.metrics());
    writeEncryptionConfig(this.#encryptionConfig, providers);
    await eventually(
      "kube-apiserver took the new EncryptionConfiguration",
      45_000,
      async () => reloads(await this.api.metrics()) > before,
      () => this.api.output(),
    );
  }

  /** What etcd holds of all Secrets: the value by the Secret's name. */
  async stored(): Promise<Map<string, Buffer>> {
    const values = await this.etcd.values(SECRETS_PREFIX);
    return new Map([...values].map(([key, value]) => [key.split("/").at(-1) ?? "", value]));
  }

  /** Every Secret is in etcd under that provider, and, for v2, that key_id; none of `values` in the clear. */
  async expectStoredUnder(
    values: ReadonlyMap<string, string>,
    provider: string,
    keyId?: string,
  ): Promise<void> {
    const stored = await this.stored();
    expect([...stored.keys()].sort()).toEqual([...values.keys()].sort());
    for (const [name, value] of values) {
      const bytes = present(stored.get(name));
      const expected = keyId === undefined ? { provider } : { provider, keyId };
      expect({ name, ...storedUnder(bytes) }).toMatchObject({ name, ...expected });
      expect({ name, isClear: bytes.includes(value) || bytes.includes(btoa(value)) }).toEqual({
        name,
        isClear: provider === "plain",
      });
    }
  }
}

/** Values that can be found in a dump, by names of Secrets. */
export function someSecrets(count: number, prefix = "s"): Map<string, string> {
  return new Map(
    Array.from({ length: count }, (_, index) => {
      const name = `${prefix}-${String(index).padStart(4, "0")}`;
      return [name, `plaintext of ${name} ${crypto.randomUUID()}`];
    }),
  );
}

function present<T>(value: T | undefined): T {
  if (value === undefined) {
    throw new Error("not started, or not stored");
  }
  return value;
}
