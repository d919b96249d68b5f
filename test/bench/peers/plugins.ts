/** How each plugin is started against the fake KMS: its own options, as its documents have them. */
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { dependencies } from "../../../package.json";
import { makePki } from "../../e2e/pki.ts";
import { freePort } from "../../ports.ts";
import { BINARY, freeSocket, scratch, startServer, type Target } from "../servers.ts";
import type { Kms } from "./fake.ts";

/** Those that `npm run bench -- peers` takes the path of. */
export const PEERS = ["aws", "azure", "gcp", "vault", "ovh"] as const;
export type Peer = (typeof PEERS)[number];

/** What the liveness probe of its own manifest asks; a kubelet restarts it after so many failures in a row. */
export interface Probe {
  readonly isAlive: () => Promise<boolean>;
  readonly failures: number;
}

/** One process of a plugin. */
export interface Instance extends Target {
  /** Undefined where its documents have no manifest with one. */
  readonly probe: Probe | undefined;
  readonly kms: Kms;
}

export interface Plugin {
  readonly name: string;
  readonly binary: string;
  /** A server without a KMS, as a yardstick. */
  readonly isBare?: boolean;
  readonly hasV1: boolean;
  /** The API matters to GCP's only, which serves either one. */
  readonly invocation: (kms: Kms, socket: string, api: Api) => Invocation;
}

type Api = "v1" | "v2";

export interface Invocation {
  readonly words: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  readonly probe?: Probe;
}

const PROBE_TIMEOUT_MS = 1_000; // of those below: the default of a kubelet

function httpProbe(port: number, path: string, failures: number): Probe {
  const ask = async () => {
    const signal = AbortSignal.timeout(PROBE_TIMEOUT_MS);
    return (await fetch(`http://127.0.0.1:${port}${path}`, { signal, keepalive: false })).ok;
  };
  return { isAlive: () => ask().catch(() => false), failures };
}

export const OURS: Plugin = {
  name: "key4c-kms-plugin",
  binary: BINARY,
  hasV1: true,
  invocation: ({ port }, socket) => {
    const endpoint = ["--endpoint", `unix://${socket}`];
    const isAlive = async () => {
      const env = { KMS_CONFIG: "/dev/null" };
      return (await Bun.spawn([BINARY, "status", "--live", ...endpoint], { env }).exited) === 0;
    };
    return {
      words: ["serve", ...endpoint],
      env: {
        KEY4C_URL: `http://127.0.0.1:${port}`,
        KMS_USER_ID: "bench",
        KMS_KEY_ID: "key-1",
        KMS_HTTP_ADDRESS: "",
      },
      probe: { isAlive, failures: 5 },
    };
  },
};

type OfPeer = Pick<Plugin, "hasV1" | "invocation">;

const MAKE: Readonly<Record<Peer, () => OfPeer | Promise<OfPeer>>> = {
  aws: () => ({
    hasV1: true,
    invocation: ({ port }, socket) => {
      const health = freePort();
      return {
        words: [
          "--key=arn:aws:kms:us-east-1:1:key/k",
          "--region=us-east-1",
          `--listen=${socket}`,
          `--kms-endpoint=http://127.0.0.1:${port}`,
          `--health-port=127.0.0.1:${health}`,
          "--health-kms-version=v2",
        ],
        env: { AWS_ACCESS_KEY_ID: "bench", AWS_SECRET_ACCESS_KEY: "bench" },
        probe: httpProbe(health, "/healthz", 3),
      };
    },
  }),
  azure: () => {
    const config = join(scratch, "azure.yaml");
    writeFileSync(config, "{tenantId: t, aadClientId: bench, aadClientSecret: bench}\n");
    return {
      hasV1: true,
      invocation: ({ port }, socket) => {
        const health = freePort();
        return {
          words: [
            `--listen-addr=unix://${socket}`,
            ...["--keyvault-name=testvault", "--key-name=k", "--key-version=v"],
            `--config-file-path=${config}`,
            ...["--proxy-mode", "--proxy-address=127.0.0.1", `--proxy-port=${port}`],
            ...[`--healthz-port=${health}`, `--metrics-addr=${freePort()}`],
          ],
          probe: httpProbe(health, "/healthz", 2),
        };
      },
    };
  },
  gcp: () => ({
    hasV1: true,
    invocation: ({ port }, socket, api) => ({
      words: [
        ...["--logtostderr", "--integration-test=true", `--fake-kms-port=${port}`],
        `--kms=${api}`,
        "--key-uri=projects/p/locations/l/keyRings/r/cryptoKeys/k",
        `--path-to-unix-socket=${socket}`,
        ...[`--healthz-port=${freePort()}`, `--metrics-port=${freePort()}`],
      ],
    }),
  }),
  vault: () => ({
    hasV1: true,
    invocation: ({ port }, socket) => {
      const health = freePort();
      return {
        words: [
          `-vault-address=http://127.0.0.1:${port}`,
          ...["-auth-method=token", "-token=bench", "-token-refresh-interval=1h"],
          ...[`-socket=unix://${socket}`, "-force-socket-overwrite", `-health-port=${health}`],
        ],
        probe: httpProbe(health, "/health", 3),
      };
    },
  }),
  ovh: async () => {
    const { clientCertFile, clientKeyFile } = await makePki(scratch);
    return {
      hasV1: false,
      invocation: ({ port }, socket) => ({
        words: [
          ...["--protocol", "rest", "--serv-addr", `http://127.0.0.1:${port}`],
          ...["--okms-id", "11111111-1111-4111-8111-111111111111"],
          ...["--encryption-key-id", "22222222-2222-4222-8222-222222222222"],
          ...["--client-cert", clientCertFile, "--client-key", clientKeyFile, "--sock", socket],
        ],
      }),
    };
  },
};

/** A server that does no more than answer. @param words before its socket */
export function bare(name: string, binary: string, words: readonly string[]): Plugin {
  const invocation = (_: Kms, socket: string) => ({ words: [...words, socket] });
  return { name, binary, isBare: true, hasV1: false, invocation };
}

/** grpc-go that asks its KMS for every DEK, and nothing else (each/main.go). */
export function eachDek(binary: string): Plugin {
  const invocation = ({ port }: Kms, socket: string) => ({
    words: [socket, `http://127.0.0.1:${port}`],
  });
  return { name: "each", binary, hasV1: true, invocation };
}

/** Those whose binaries the caller has. @throws Error for a path without a file */
export async function given(paths: Readonly<Partial<Record<Peer, string>>>): Promise<Plugin[]> {
  const plugins: Plugin[] = [];
  for (const peer of PEERS) {
    const binary = paths[peer];
    if (binary !== undefined && !existsSync(binary)) {
      throw new Error(`--${peer} ${binary}: there is no such file`);
    }
    if (binary !== undefined) {
      plugins.push({ name: peer, binary, ...(await MAKE[peer]()) });
    }
  }
  return plugins;
}

/** Starts one; whoever needs its answers waits for them. */
export function startInstance(plugin: Plugin, kms: Kms, api: Api = "v2"): Instance {
  const socket = freeSocket();
  const { words, env, probe } = plugin.invocation(kms, socket, api);
  return { ...startServer(plugin.name, socket, [plugin.binary, ...words], env), kms, probe };
}

/** The version of a peer, as its binary in Go has it; of a bare server, that of its gRPC. */
export function versionOf({ name, binary }: Plugin): string {
  if (name === "floor") {
    return dependencies["@grpc/grpc-js"];
  }
  const told = Bun.spawnSync(["go", "version", "-m", binary]).stdout.toString();
  const of = (pattern: RegExp) => pattern.exec(told)?.[1];
  return name === "grpc-go" || name === "each"
    ? (of(/^\tdep\tgoogle\.golang\.org\/grpc\t(\S+)/m) ?? "unknown")
    : (of(/^\tbuild\tvcs\.revision=(\w{12})/m) ?? of(/^\tmod\t\S+\t(\S+)/m) ?? "unknown");
}
