/** Key4C (the emulator, as an https process of its own) and the plugin. */

import { freePort } from "../ports.ts";
import { BINARY, type Running, startProcess } from "../support.ts";
import type { Pki } from "./pki.ts";
import { eventually, run } from "./process.ts";

/** The binary under test. */
const PLUGIN = process.env["KEY4C_KMS_PLUGIN"] ?? BINARY;

export interface Stats {
  readonly describe: number;
  readonly encrypt: number;
  readonly decrypt: number;
}

/** Key4C as the vendor would run it: its keys outlive the process. */
export class Key4C {
  readonly url: string;
  readonly #pki: Pki;
  readonly #command: [string, ...string[]];
  #process: Running | undefined;

  constructor(pki: Pki, dataFile: string) {
    const port = freePort();
    this.url = `https://localhost:${port}`;
    this.#pki = pki;
    this.#command = [
      PLUGIN,
      ...["emulator", "--listen", `127.0.0.1:${port}`, "--control"],
      ...["--key-id", "demo,next", "--data", dataFile],
      ...["--tls-cert-file", pki.serverCert, "--tls-key-file", pki.serverKey],
    ];
  }

  async start(): Promise<void> {
    const emulator = startProcess(this.#command);
    this.#process = emulator;
    await eventually("Key4C answers", 60_000, () => this.stats(), emulator.output);
  }

  async stop(): Promise<void> {
    await this.#process?.stop("SIGKILL");
  }

  /** It accepts connections, and answers none. */
  hang(): void {
    process.kill(this.#process?.pid ?? Number.NaN, "SIGSTOP");
  }

  continue(): void {
    process.kill(this.#process?.pid ?? Number.NaN, "SIGCONT");
  }

  stats(): Promise<Stats> {
    return this.#control("GET", "stats");
  }

  async setLatency(ms: number): Promise<void> {
    await this.#control("PUT", "latency", { ms });
  }

  async key(id: string, action: "rotate" | "disable" | "enable"): Promise<void> {
    await this.#control("POST", `keys/${id}/${action}`);
  }

  async #control(method: string, path: string, body?: object): Promise<Stats> {
    const response = await fetch(`${this.url}/emulator/${path}`, {
      method,
      tls: { ca: this.#pki.caText },
      keepalive: false, // the process is restarted under the same address
      ...(body && { body: JSON.stringify(body) }),
    });
    if (!response.ok) {
      throw new Error(`emulator ${method} ${path}: ${response.status}`);
    }
    return (await response.json()) as Stats;
  }
}

export class StatusError extends Error {}

export interface PluginOptions {
  readonly key4c: Key4C;
  readonly pki: Pki;
  readonly socket: string;
  readonly env?: Record<string, string>;
}

export class Plugin {
  readonly socket: string;
  readonly #process: Running;
  readonly #httpPort: number;
  readonly #env: Record<string, string>;

  /** Starts it and does not wait: not every scenario has a Key4C that makes it ok. */
  constructor({ key4c, pki, socket, env = {} }: PluginOptions) {
    this.socket = socket;
    this.#httpPort = freePort();
    this.#env = {
      KMS_ENDPOINT: `unix://${socket}`,
      KEY4C_URL: key4c.url,
      KEY4C_CA_FILE: pki.ca,
      KMS_KEY_ID: "demo",
      KMS_USER_ID: `user-${crypto.randomUUID()}`,
      KMS_PROBE_INTERVAL: "1s",
      KMS_HTTP_ADDRESS: `127.0.0.1:${this.#httpPort}`,
      ...env,
    };
    this.#process = startProcess([PLUGIN, "serve"], this.#env);
  }

  static async start(options: PluginOptions): Promise<Plugin> {
    const plugin = new Plugin(options);
    await plugin.ok();
    return plugin;
  }

  /** Waits for Status ok, as an operator does, and returns its key_id. */
  async ok(withinMs = 60_000): Promise<string> {
    try {
      const wait = `${Math.ceil(withinMs / 1_000)}s`;
      return this.#keyIdIn(await run([PLUGIN, "status", ...this.#endpoint(), "--wait", wait]));
    } catch (error) {
      throw new Error(`${error}\n${this.output().slice(-4_000)}`);
    }
  }

  /** The key_id of Status now. @throws StatusError when the plugin says that it is not ok */
  async keyId(): Promise<string> {
    try {
      return this.#keyIdIn(await run([PLUGIN, "status", ...this.#endpoint()]));
    } catch (error) {
      // In the plugin's own words: that nobody listens at the socket is another failure.
      throw /(UNAVAILABLE|FAILED_PRECONDITION): .*Key4C/.test(String(error))
        ? new StatusError(String(error))
        : error;
    }
  }

  /** The plugin's own /readyz: HTTP status and body. */
  async readyz(): Promise<{ status: number; body: string }> {
    const response = await fetch(`http://127.0.0.1:${this.#httpPort}/readyz`, { keepalive: false });
    return { status: response.status, body: await response.text() };
  }

  /** Lines of `inspect` of what etcdctl printed, against this plugin's Status; 3 is an answer too. */
  async inspect(etcdctlJson: string, ...flags: string[]): Promise<string[]> {
    const command = [PLUGIN, "inspect", ...this.#endpoint(), ...flags] as const;
    const lines = await run(command, this.#env, etcdctlJson, "/", [0, 3]);
    return lines.split("\n").filter(Boolean);
  }

  output(): string {
    return this.#process.output();
  }

  stop(signal: NodeJS.Signals = "SIGTERM"): Promise<number> {
    return this.#process.stop(signal);
  }

  #endpoint(): string[] {
    return ["--endpoint", `unix://${this.socket}`];
  }

  #keyIdIn(status: string): string {
    return (JSON.parse(status) as { keyId: string }).keyId;
  }
}
