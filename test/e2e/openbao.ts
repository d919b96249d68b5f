/** A real OpenBao with a transit engine: HashiCorp Vault's API, served by others' code. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { freePort } from "../ports.ts";
import { secret } from "../secrets.ts";
import { type Running, startProcess, temporaryDirectory } from "../support.ts";
import { fetchedOpenBao } from "./build.ts";
import { eventually } from "./process.ts";

/** Here, not in a test: the first download takes longer than any test may. */
const BAO = await fetchedOpenBao();
/** An election of one, on a busy machine. */
const ACTIVE_WITHIN_MS = 60_000;

export class OpenBao {
  readonly url: string;
  readonly #command: [string, ...string[]];
  #process: Running | undefined;
  #token = "";
  #unsealKey = "";

  private constructor() {
    const port = freePort();
    const directory = temporaryDirectory();
    this.url = `http://127.0.0.1:${port}`;
    // Raft on a disk, not the dev mode's memory: its keys outlive the process, as a service's do.
    mkdirSync(join(directory, "raft"));
    const config = join(directory, "config.json");
    const listener = { address: `127.0.0.1:${port}`, cluster_address: `127.0.0.1:${freePort()}` };
    writeFileSync(
      config,
      JSON.stringify({
        storage: { raft: { path: join(directory, "raft"), node_id: "one" } },
        listener: { tcp: { ...listener, tls_disable: true } },
        api_addr: this.url,
        cluster_addr: `http://${listener.cluster_address}`,
        log_level: "warn",
      }),
    );
    this.#command = [BAO, "server", `-config=${config}`];
  }

  /** Initialised, unsealed, with a transit engine and one key in it. */
  static async start(keyId: string): Promise<OpenBao> {
    const openbao = new OpenBao();
    await openbao.#launch();
    // One share of one opens it.
    const shares = { secret_shares: 1, secret_threshold: 1 };
    const { root_token, keys } = (await openbao.#call("POST", "sys/init", shares)) as {
      root_token: string;
      keys: [string];
    };
    openbao.#token = root_token;
    openbao.#unsealKey = keys[0];
    secret("OpenBao's token", root_token);
    secret("OpenBao's unseal key", keys[0]);
    await openbao.unseal();
    await openbao.#call("POST", "sys/mounts/transit", { type: "transit" });
    await openbao.createKey(keyId);
    return openbao;
  }

  /** For KMS_API_KEY. */
  get token(): string {
    return this.#token;
  }

  /** A token of its own with what the plugin needs, and no more. @param ttl such as `5s` */
  async issueToken(keyId: string, ttl: string): Promise<string> {
    const may = (path: string, capability: string) =>
      `path "transit/${path}/${keyId}" { capabilities = ["${capability}"] }`;
    const policy = [may("keys", "read"), may("encrypt", "update"), may("decrypt", "update")];
    await this.#call("POST", "sys/policies/acl/plugin", { policy: policy.join("\n") });
    const { auth } = (await this.#call("POST", "auth/token/create", {
      policies: ["plugin"],
      ttl,
      renewable: false,
    })) as { auth: { client_token: string } };
    secret("OpenBao's token", auth.client_token);
    return auth.client_token;
  }

  /** A role for the plugin, with what {@link issueToken} grants. @param ttl of its tokens, such as `5s` */
  async makeRole(keyId: string, ttl: string): Promise<{ roleId: string; secretId: string }> {
    await this.issueToken(keyId, ttl); // writes the policy
    await this.#call("POST", "sys/auth/approle", { type: "approle" });
    const role = "auth/approle/role/plugin";
    await this.#call("POST", role, {
      token_policies: ["plugin"],
      token_ttl: ttl,
      token_max_ttl: ttl,
    });
    const { data: told } = (await this.#call("GET", `${role}/role-id`)) as {
      data: { role_id: string };
    };
    const secretId = await this.newSecretId();
    return { roleId: told.role_id, secretId };
  }

  /** Another secret of that role; the former ones stay valid. */
  async newSecretId(): Promise<string> {
    const { data } = (await this.#call("POST", "auth/approle/role/plugin/secret-id", {})) as {
      data: { secret_id: string };
    };
    secret("OpenBao's secret ID", data.secret_id);
    return data.secret_id;
  }

  /** For good. */
  async destroySecretId(secretId: string): Promise<void> {
    const body = { secret_id: secretId };
    await this.#call("POST", "auth/approle/role/plugin/secret-id/destroy", body);
  }

  async createKey(keyId: string): Promise<void> {
    await this.#call("POST", `transit/keys/${keyId}`, {});
  }

  async rotateKey(keyId: string): Promise<void> {
    await this.#call("POST", `transit/keys/${keyId}/rotate`, {});
  }

  /** Older versions no longer decrypt: Vault's way to retire them. */
  async setMinDecryptionVersion(keyId: string, version: number): Promise<void> {
    await this.#call("POST", `transit/keys/${keyId}/config`, { min_decryption_version: version });
  }

  /** For good: Vault wants to be told twice. */
  async deleteKey(keyId: string): Promise<void> {
    await this.#call("POST", `transit/keys/${keyId}/config`, { deletion_allowed: true });
    await this.#call("DELETE", `transit/keys/${keyId}`);
  }

  /** Everything but the unsealing is answered with 503 from now on. */
  async seal(): Promise<void> {
    await this.#call("POST", "sys/seal", {});
  }

  /** Returns when it serves again: unsealed, it first elects itself. */
  async unseal(): Promise<void> {
    await this.#call("POST", "sys/unseal", { key: this.#unsealKey });
    await eventually(
      "OpenBao is active",
      ACTIVE_WITHIN_MS,
      async () => (await fetch(`${this.url}/v1/sys/health`)).status === 200,
      () => this.output(),
    );
  }

  /** Ends the process; its keys stay on disk. */
  async stop(signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
    await this.#process?.stop(signal);
  }

  /** After a stop: as a service comes back, on the same address, and sealed. */
  async restart(): Promise<void> {
    await this.#launch();
  }

  output(): string {
    return this.#process?.output() ?? "";
  }

  async #launch(): Promise<void> {
    const running = startProcess(this.#command);
    this.#process = running;
    // 501 not initialised, 503 sealed: any answer will do.
    await eventually(
      "OpenBao answers",
      30_000,
      async () => (await fetch(`${this.url}/v1/sys/health`)).status > 0,
      running.output,
    );
  }

  async #call(method: string, path: string, body?: object): Promise<unknown> {
    const response = await fetch(`${this.url}/v1/${path}`, {
      method,
      headers: { "X-Vault-Token": this.#token },
      keepalive: false, // the process is restarted under the same address
      ...(body && { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    if (!response.ok) {
      throw new Error(`OpenBao ${method} ${path}: ${response.status} ${text}`);
    }
    return text === "" ? undefined : JSON.parse(text);
  }
}
