import { isatty } from "node:tty";
import { version as VERSION } from "../package.json";
import { PersistentCache } from "./cache/persistent-cache.ts";
import { configuredKeys, key4cClient, renewalOf } from "./commands/configured.ts";
import { type Config, parseCommandLine, required } from "./config/config.ts";
import { DEFAULT_CONFIG_FILE, proxiesOf } from "./config/config-file.ts";
import { type WatchedFiles, watchedFiles } from "./config/watched-files.ts";
import { PluginError } from "./failures/plugin-error.ts";
import { KeyManagementService as KmsV1 } from "./gen/v1beta1/api_pb.ts";
import { KeyManagementService as KmsV2 } from "./gen/v2/api_pb.ts";
import { Health } from "./health/health.ts";
import { serveHttp } from "./health/http.ts";
import { Metrics } from "./health/metrics.ts";
import { addStateMetrics, expiryOf, rpcDurations } from "./health/telemetry.ts";
import { headline } from "./health/words.ts";
import { annotationsOf, wrappedKekOf } from "./keys/annotations.ts";
import { decodeEnvelope, encodeEnvelope } from "./keys/envelope.ts";
import { formatKeyId, parseKeyId } from "./keys/key-id.ts";
import { Keyring } from "./keys/keyring.ts";
import { soon } from "./keys/soon.ts";
import { type Listener, listen, type Place } from "./socket/listen.ts";
import {
  addService,
  type Handlers,
  MAX_CONCURRENT_STREAMS,
  MAX_MESSAGE_BYTES,
} from "./socket/rpc.ts";
import { UnaryServer } from "./socket/unary-server.ts";
import { describeError, ExitError } from "./system/errors.ts";
import { checkLimits } from "./system/limits.ts";
import { createLog, type Log } from "./system/log.ts";
import { endOnSignal, hardenProcess, print, untilSignal } from "./system/process.ts";
import { stderr } from "./system/stderr.ts";
import { inheritedSocket, supervisor } from "./system/systemd.ts";
import { BUILD_VERSION } from "./system/version.ts";

/** KMS v1: the whole envelope is the cipher. */
export function kmsV1(keyring: Keyring): Handlers<typeof KmsV1> {
  return {
    version: () => ({
      version: "v1beta1",
      runtimeName: "key4c-kms-plugin",
      runtimeVersion: BUILD_VERSION,
    }),
    encrypt: ({ plain }, call) =>
      soon(keyring.wrap(plain, call), ({ envelope }) => ({
        cipher: encodeEnvelope(envelope, true),
      })),
    decrypt: ({ cipher }, call) =>
      soon(keyring.unwrap(decodeEnvelope(cipher), call), (plain) => ({ plain })),
  };
}

/** KMS v2: the wrapped local KEK, which may be large, travels in an annotation. */
export function kmsV2(keyring: Keyring): Handlers<typeof KmsV2> {
  return {
    status: (_, call) =>
      soon(keyring.status(), ({ keyId }) => ({
        version: statusVersion(call.userAgent()),
        healthz: "ok",
        keyId,
      })),
    encrypt: ({ plaintext }, call) =>
      soon(keyring.wrap(plaintext, call), ({ envelope, keyId }) => ({
        ciphertext: encodeEnvelope(envelope, false),
        keyId,
        annotations: annotationsOf(envelope.header),
      })),
    decrypt({ ciphertext, keyId, annotations }, call) {
      const named = parseKeyId(keyId);
      if (named === undefined || !keyring.knows(named.hashText)) {
        throw keyId === ""
          ? new PluginError("noKeyId", "key_id is missing")
          : new PluginError("unknownKey", "key_id names no configured key");
      }
      const envelope = decodeEnvelope(ciphertext, wrappedKekOf(annotations));
      if (formatKeyId(envelope.header) !== keyId) {
        throw new PluginError("invalid", "key_id is not that of the ciphertext");
      }
      return soon(keyring.unwrap(envelope, call), (plaintext) => ({ plaintext }));
    },
  };
}

/**
 * kube-apiserver 1.27 and 1.28 take nothing but `v2beta1` and are known by their grpc-go, which is older
 * than 1.57. Newer ones take either, as long as it never changes.
 */
function statusVersion(userAgent: string): "v2" | "v2beta1" {
  const minor = /grpc-go\/1\.(\d+)\./.exec(userAgent)?.[1];
  return minor !== undefined && Number(minor) < 57 ? "v2beta1" : "v2";
}

/** Starts the plugin, and ends it after a signal. */
async function serve(config: Config, log: Log): Promise<void> {
  checkLimits(log);
  const signalled = untilSignal();
  const metrics = new Metrics();
  const emulator =
    config.emulator === true
      ? (await import("./commands/emulator.ts")).emulatorInside(config, log)
      : undefined;
  const cache = persistentCache(config, log);
  const configured = configuredKeys(config, emulator?.keyId);
  const { clientCertificate, caFile } = config;
  const files = watchedFiles(config);
  logFaults(files, log);
  const keyring = new Keyring({
    service: key4cClient(config, emulator?.url, log, metrics),
    configured,
    limits: {
      outageGraceMs: config.outageGrace,
      revocationGraceMs: required(config.revocationGrace),
    },
    maxUses: required(config.localKekMaxUses),
    maxAgeMs: required(config.localKekMaxAge),
    cacheSize: required(config.localKekCacheSize),
    keeper: cache && ((kmsKeyId, holding) => cache.keeper(kmsKeyId, holding)),
    log,
  });
  cache?.start();
  const health = new Health({
    keyring,
    intervalMs: required(config.probeInterval),
    log,
    renewal: renewalOf(config, process.env["CREDENTIALS_DIRECTORY"]),
  });

  const grpc = new UnaryServer({
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_concurrent_streams": MAX_CONCURRENT_STREAMS,
    "grpc.enable_channelz": 0,
  });
  const record = rpcDurations(metrics);
  addService(grpc, KmsV1, kmsV1(keyring), { api: "v1", log, record });
  addService(grpc, KmsV2, kmsV2(keyring), { api: "v2", log, record });
  const listener = await listen(grpc, place(config, log), log);
  const systemd = supervisor(process.env, process.pid, {
    // No restart of the service gives systemd's socket its path back; it would only lose the local KEKs.
    isLive: () => listener.isHeld || listener.isOurs(),
    status: () => (listener.isOurs() ? "serving" : "the path of the socket is lost: see the log"),
    log,
  });
  addStateMetrics(metrics, {
    version: BUILD_VERSION,
    keyring,
    health,
    cache,
    connections: () => listener.connections,
    live: () => listener.isOurs(),
    secretFiles: {
      KMS_USER_ID_FILE: config.kmsUserIdFile?.path,
      KMS_API_KEY_FILE: config.kmsApiKeyFile?.path,
      KMS_PIN_FILE: config.kmsPinFile?.path,
    },
    watchedFiles: files,
    certificateFiles: {
      KEY4C_CERT_FILE: clientCertificate && expiryOf(() => clientCertificate.current.cert),
      KEY4C_CA_FILE: caFile && expiryOf(() => caFile.current),
    },
  });
  const http =
    config.httpAddress &&
    serveHttp({
      ...config.httpAddress,
      live: () => listener.isOurs(),
      ready: () => readiness(keyring, health),
      metrics: () => metrics.text(),
      log,
    });
  health.start();
  const endpoint = `unix://${required(config.kmsEndpoint)}`;
  log.info("serving", { version: BUILD_VERSION, endpoint, kmsKeyId: configured.kmsKeyId() });
  systemd.ready();
  if (emulator !== undefined) {
    process.stdout.write(emulator.nextSteps(endpoint, http?.url));
  }

  const signal = await Promise.race([signalled, untilReplaced(listener)]);
  log.info("stopping", { signal });
  systemd.stopping();
  health.stop();
  http?.stop();
  await listener.close();
  await cache?.stop();
  await emulator?.stop();
}

/** One line at the first sight of what cannot be used, and one when it can be used again. */
function logFaults(files: WatchedFiles, log: Log): void {
  for (const [option, { fault }] of files) {
    fault.watch((cause) =>
      cause === undefined
        ? log.info("a file can be used again", { option })
        : log.warn("a file cannot be used: its last good content stays in use", { option, cause }),
    );
  }
}

function persistentCache(config: Config, log: Log): PersistentCache | undefined {
  const { persistentCache: directory, persistentCacheKeyFile: keyFile, kmsEndpoint } = config;
  const maxAgeMs = required(config.persistentCacheMaxAge);
  return directory === undefined
    ? undefined
    : new PersistentCache({ directory, keyFile, maxAgeMs, socket: required(kmsEndpoint), log });
}

/** systemd's socket when it passed one, else a path of our own. */
function place(config: Config, log: Log): Place {
  const held = inheritedSocket(process.env, process.pid);
  if (held !== undefined) {
    log.info("listening on the socket that systemd passed", { path: held.path });
    return held;
  }
  const { kmsEndpoint, socketMode, socketGroup } = config;
  return { path: required(kmsEndpoint), mode: required(socketMode), gid: socketGroup };
}

/** Ready exactly when Status is ok. */
function readiness(
  keyring: Keyring,
  { state, cause, since }: Health,
): { ok: boolean; text: string } {
  const why = cause && `: ${cause.kind}: ${headline(state, cause)}`;
  const { takenOver } = keyring.keys.current.key;
  const until = takenOver && new Date(takenOver.untilMs).toISOString();
  const kept =
    until && `; under what the previous process kept, which another restart has until ${until}`;
  const text = `${state} since ${since.toISOString()}${why ?? ""}${kept ?? ""}`;
  return { ok: keyring.isReady, text };
}

/** How long after the start another one at the same moment may have renamed its socket over ours. */
const START_RACE_MS = 250;

/** Of two processes that start on one path at once, the one whose socket was replaced must go. */
async function untilReplaced(listener: Listener): Promise<never> {
  await Bun.sleep(START_RACE_MS);
  if (!listener.isHeld && !listener.isOurs()) {
    throw new ExitError(1, "another process took the path of the socket at the same moment");
  }
  return new Promise<never>(() => {});
}

async function run(argv: readonly string[]): Promise<void> {
  const line = parseCommandLine(argv, process.env, DEFAULT_CONFIG_FILE);
  const { command, config } = line;
  const log = createLog({
    level: config.logLevel ?? "info",
    format: config.logFormat ?? (isatty(2) ? "text" : "json"), // process.stderr would touch the descriptor
  });
  for (const warning of command === "doctor" ? [] : line.warnings) {
    command === "serve"
      ? log.warn("the settings file is not read", { cause: warning })
      : stderr.write(`key4c-kms-plugin: ${warning}\n`);
  }
  if (command !== "manifest") {
    Object.assign(process.env, proxiesOf(line.configFile, process.env)); // where Bun's fetch looks for them
  }
  if (command !== "serve" && command !== "emulator") {
    endOnSignal();
  }
  // Each command is loaded when it is asked for: serve needs none of them, and would hold them in memory.
  switch (command) {
    case "serve":
      hardenProcess(log);
      return serve(config, log);
    case "emulator":
      hardenProcess(log);
      return (await import("./commands/emulator.ts")).emulatorCommand(line, log);
    case "doctor": {
      const { doctorCommand } = await import("./commands/doctor/doctor.ts");
      const { text, ok } = await doctorCommand(line, log);
      await print(text);
      process.exitCode = ok ? 0 : 1;
      return;
    }
    case "install":
      return (await import("./commands/install/install.ts")).installCommand(line, process.env, log);
    case "manifest": {
      const { manifestCommand } = await import("./commands/manifest/manifest.ts");
      return print(manifestCommand(line, process.env));
    }
    case "status":
      return print(await (await import("./commands/cli.ts")).statusCommand(line));
    case "encrypt":
      return print(await (await import("./commands/cli.ts")).encryptCommand(line));
    case "decrypt":
      return print(await (await import("./commands/cli.ts")).decryptCommand(line));
    case "inspect":
      hardenProcess(log);
      return (await import("./commands/inspect/command.ts")).inspectCommand(line, log);
    case "forget": {
      const { forgetCommand } = await import("./commands/forget.ts");
      return print(await forgetCommand(required(config.persistentCache)));
    }
    case "version": {
      const { licences } = await import("./commands/licences.ts");
      return print(config.licences ? await licences() : `key4c-kms-plugin ${BUILD_VERSION}\n`);
    }
    case "help":
      return print((await import("./commands/help.ts")).helpText(VERSION, line.operand));
  }
}

// Tests import the two services without starting anything.
if (import.meta.main) {
  run(process.argv.slice(2))
    .catch((error: unknown) => {
      // One line each; a stack would show minified source.
      for (const line of describeError(error).split("\n")) {
        stderr.write(`key4c-kms-plugin: ${line}\n`);
      }
      process.exitCode = error instanceof ExitError ? error.exitCode : 1;
    })
    .then(() => stderr.end())
    .finally(() => process.exit());
}
