import { type Config, keyIdOf, previousKeyIdsOf, required } from "../config/config.ts";
import { type Emulator, startEmulator } from "../key4c/emulator.ts";
import { describeError, ExitError } from "../system/errors.ts";
import type { Log } from "../system/log.ts";
import { untilSignal } from "../system/process.ts";

/** The key of `--emulator` when KMS_KEY_ID is not set. */
export const EMULATED_KEY_ID = "demo";

/** For `serve --emulator`: a Key4C inside the process. */
export function emulatorInside(config: Config, log: Log): Emulator {
  log.warn("EMULATOR: no HSM guards its keys; never use it for real secrets", {
    keys: config.emulatorData ?? "in memory, lost at exit",
  });
  return startEmulatorOrExit({
    host: "127.0.0.1",
    port: 0,
    keyIds: [keyIdOf(config) ?? EMULATED_KEY_ID, ...previousKeyIdsOf(config)],
    dataFile: config.emulatorData,
    control: false,
  });
}

/** What to type next, in lines of shell. @param endpoint where it serves */
export function nextSteps(endpoint: string): string {
  const path = process.execPath;
  const binary = /^[\w./-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`;
  return `# Ready, until Ctrl-C. In a second shell:
export KMS_ENDPOINT=${endpoint}
${binary} status
echo a-data-key | ${binary} encrypt | ${binary} decrypt
`;
}

/** The command `emulator`: a Key4C on an address of its own, until a signal. */
export async function runEmulator(config: Config, log: Log): Promise<void> {
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
