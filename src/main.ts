import { Server } from "@grpc/grpc-js";
import { version as VERSION } from "../package.json";
import { decryptCommand, encryptCommand, statusCommand } from "./cli.ts";
import { type Config, parseCommandLine, required } from "./config.ts";
import { key4cClient } from "./configured.ts";
import { doctorCommand } from "./doctor/doctor.ts";
import { type Emulator, startEmulator } from "./emulator.ts";
import { describeError, ExitError, KINDS, toPluginError } from "./errors.ts";
import { KeyManagementService as KmsV1 } from "./gen/v1beta1/api_pb.ts";
import { KeyManagementService as KmsV2 } from "./gen/v2/api_pb.ts";
import { Health } from "./health.ts";
import { helpText } from "./help.ts";
import { serveHttp } from "./http.ts";
import { inspectCommand } from "./inspect-command.ts";
import { Keyring } from "./keyring.ts";
import { type Listener, listen, type Place } from "./listen.ts";
import { manifestCommand } from "./manifest.ts";
import { Metrics } from "./metrics.ts";
import { createLog, type Log } from "./observe.ts";
import { hardenProcess, print, untilSignal } from "./process.ts";
import { addService, MAX_CONCURRENT_STREAMS, MAX_MESSAGE_BYTES } from "./rpc.ts";
import { kmsV1, kmsV2 } from "./services.ts";
import { inheritedSocket, supervisor } from "./systemd.ts";
import { addStateMetrics } from "./telemetry.ts";

async function serve(config: Config, log: Log): Promise<void> {
  const metrics = new Metrics();
  const emulator = config.emulator === true ? emulate(config, log) : undefined;
  const kmsKeyId = config.kmsKeyId ?? EMULATED_KEY_ID;
  const key4c = key4cClient(config, emulator?.url, log, metrics);
  const previousKeyIds = config.previousKeyIds ?? [];
  const keyring = new Keyring({
    key4c,
    kmsKeyId,
    previousKeyIds,
    maxUses: required(config.localKekMaxUses),
    maxAgeMs: required(config.localKekMaxAge),
    cacheSize: required(config.localKekCacheSize),
    probeFailure: () => health.failure,
    firstProbe: () => health.firstProbe,
    suspect: () => health.suspect(),
    log,
  });
  const health = new Health({
    key4c,
    keyring,
    kmsKeyId,
    previousKeyIds,
    intervalMs: required(config.probeInterval),
    outageGraceMs: config.outageGrace,
    log,
  });

  const grpc = new Server({
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_concurrent_streams": MAX_CONCURRENT_STREAMS,
    "grpc.enable_channelz": 0,
  });
  const record = metrics.histogram(
    "key4c_kms_rpc_duration_seconds",
    "RPCs answered, by API, method and gRPC status code.",
    ["api", "method", "code"],
  );
  addService(grpc, KmsV1, kmsV1(keyring, health), { api: "v1", log, record });
  addService(grpc, KmsV2, kmsV2(keyring, health), { api: "v2", log, record });
  const listener = await listen(grpc, place(config, log), log);
  const systemd = supervisor(process.env, process.pid, { isLive: () => listener.isOurs(), log });
  addStateMetrics(metrics, {
    version: VERSION,
    keyring,
    health,
    connections: () => listener.connections,
    kmsKeyIds: [kmsKeyId, ...previousKeyIds],
    secretFiles: {
      KMS_USER_ID_FILE: config.kmsUserIdFile?.path,
      KMS_API_KEY_FILE: config.kmsApiKeyFile?.path,
    },
  });
  const http =
    config.httpAddress &&
    serveHttp({
      ...config.httpAddress,
      live: () => listener.isOurs(),
      ready: () => readiness(health),
      metrics: () => metrics.text(),
      log,
    });
  health.start();
  const endpoint = `unix://${required(config.kmsEndpoint)}`;
  log.info("serving", { version: VERSION, endpoint, kmsKeyId });
  systemd.ready();
  if (emulator !== undefined) {
    process.stdout.write(`export KMS_ENDPOINT=${endpoint}\n`);
  }

  const signal = await Promise.race([untilSignal(), untilReplaced(listener)]);
  log.info("stopping", { signal });
  systemd.stopping();
  health.stop();
  http?.stop();
  await listener.close();
  await emulator?.stop();
}

/** systemd's socket when it passed one, else a path of our own. */
function place(config: Config, log: Log): Place {
  const descriptor = inheritedSocket(process.env, process.pid);
  if (descriptor !== undefined) {
    log.info("listening on the socket that systemd passed");
    return { descriptor };
  }
  const { kmsEndpoint, socketMode, socketGroup } = config;
  return { path: required(kmsEndpoint), mode: required(socketMode), gid: socketGroup, log };
}

/** Ready exactly when Status is ok. */
function readiness(health: Health): { ok: boolean; text: string } {
  const text = `${health.state} since ${health.since.toISOString()}`;
  try {
    health.usable;
    return { ok: true, text };
  } catch (error) {
    return { ok: false, text: `${text}: ${KINDS[toPluginError(error).kind].text}` };
  }
}

/** How long after the start another one at the same moment may have renamed its socket over ours. */
const START_RACE_MS = 250;

/** Of two processes that start on one path at once, the one whose socket was replaced must go. */
async function untilReplaced(listener: Listener): Promise<never> {
  await Bun.sleep(START_RACE_MS);
  if (!listener.isOurs()) {
    throw new ExitError(1, "another process took the path of the socket at the same moment");
  }
  return new Promise<never>(() => {});
}

/** The key of `--emulator` when KMS_KEY_ID is not set. */
const EMULATED_KEY_ID = "demo";

function emulate(config: Config, log: Log): Emulator {
  const lost = config.emulatorData === undefined;
  log.warn(
    `EMULATOR: no HSM guards the key; never use this for real secrets${lost ? "; the key is lost at exit" : ""}`,
  );
  return startEmulatorOrExit({
    host: "127.0.0.1",
    port: 0,
    keyIds: [config.kmsKeyId ?? EMULATED_KEY_ID, ...(config.previousKeyIds ?? [])],
    dataFile: config.emulatorData,
    control: false,
  });
}

async function runEmulator(config: Config, log: Log): Promise<void> {
  const { host, port } = required(config.listen);
  const emulator = startEmulatorOrExit({
    host,
    port,
    keyIds: required(config.emulatorKeyIds),
    dataFile: config.data,
    tls: config.tlsCertFile &&
      config.tlsKeyFile && { cert: config.tlsCertFile.current, key: config.tlsKeyFile.current },
    control: config.control === true,
  });
  log.warn("EMULATOR: no HSM guards its keys; never use it for real secrets", {
    url: emulator.url,
  });
  process.stdout.write(`export KEY4C_URL=${emulator.url}\n`);
  await untilSignal();
  await emulator.stop();
}

function startEmulatorOrExit(options: Parameters<typeof startEmulator>[0]): Emulator {
  try {
    return startEmulator(options);
  } catch (error) {
    throw new ExitError(1, `the emulator cannot start: ${describeError(error)}`);
  }
}

async function run(argv: readonly string[]): Promise<void> {
  const line = parseCommandLine(argv, process.env);
  const { command, config } = line;
  const log = createLog({
    level: config.logLevel ?? "info",
    format: config.logFormat ?? (process.stderr.isTTY ? "text" : "json"),
  });
  switch (command) {
    case "serve":
    case "emulator":
      hardenProcess(log);
      return command === "serve" ? serve(config, log) : runEmulator(config, log);
    case "doctor": {
      const { text, ok } = await doctorCommand(line);
      await print(text);
      process.exitCode = ok ? 0 : 1;
      return;
    }
    case "manifest":
      return print(manifestCommand(line));
    case "status":
      return print(await statusCommand(config));
    case "encrypt":
      return print(await encryptCommand(config));
    case "decrypt":
      return print(await decryptCommand(config));
    case "inspect":
      hardenProcess(log);
      return inspectCommand(config, log);
    case "version":
      return print(`key4c-kms-plugin ${VERSION}\n`);
    case "help":
      return print(helpText(VERSION));
  }
}

run(process.argv.slice(2)).then(
  () => process.exit(),
  (error: unknown) => {
    // One line each; a stack would show minified source.
    for (const line of describeError(error).split("\n")) {
      process.stderr.write(`key4c-kms-plugin: ${line}\n`);
    }
    process.exit(error instanceof ExitError ? error.exitCode : 1);
  },
);
