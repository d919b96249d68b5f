import {
  type CommandLine,
  type Config,
  keyIdOf,
  previousKeyIdsOf,
  required,
} from "../config/config.ts";
import { type Emulator, startEmulator } from "../emulator/emulator.ts";
import { describeError, ExitError } from "../system/errors.ts";
import type { Log } from "../system/log.ts";
import { print, untilSignal } from "../system/process.ts";
import { changeEmulator } from "./emulator-actions.ts";
import demo from "./emulator-demo.txt";
import { fill } from "./manifest/template.ts";

/** The key of `--emulator` when KMS_KEY_ID is not set. */
const EMULATED_KEY_ID = "demo";

interface EmulatorInside extends Emulator {
  /** Of the key that wraps. */
  readonly keyId: string;
  /**
   * What to type next, in lines of shell.
   * @param endpoint where it serves
   * @param httpUrl where it tells its state, if it does
   */
  nextSteps(endpoint: string, httpUrl: string | undefined): string;
}

/** For `serve --emulator`: a Key4C inside the process. */
export function emulatorInside(config: Config, log: Log): EmulatorInside {
  log.warn("EMULATOR: no HSM guards its keys; never use it for real secrets", {
    keys: config.emulatorData ?? "in memory, lost at exit",
  });
  const keyId = keyIdOf(config) ?? EMULATED_KEY_ID;
  const control = config.emulatorControl === true;
  const emulator = startEmulatorOrExit({
    host: "127.0.0.1",
    port: 0,
    keyIds: [keyId, ...previousKeyIdsOf(config)],
    dataFile: config.emulatorData,
    control,
  });
  return {
    ...emulator,
    keyId,
    nextSteps: (endpoint, httpUrl) =>
      control && httpUrl !== undefined
        ? demoSteps(endpoint, emulator.url, httpUrl, config)
        : firstSteps(endpoint),
  };
}

function firstSteps(endpoint: string): string {
  const binary = quoted(process.execPath);
  return `# Ready, until Ctrl-C. In a second shell:
export KMS_ENDPOINT=${quoted(endpoint)}
${binary} status
echo a-data-key | ${binary} encrypt | ${binary} decrypt
`;
}

function demoSteps(endpoint: string, url: string, httpUrl: string, config: Config): string {
  const keyId = keyIdOf(config) ?? EMULATED_KEY_ID;
  const seconds = (ms: number | undefined) => `${required(ms) / 1_000} s`;
  return fill(demo, {
    endpoint: quoted(endpoint),
    url,
    binary: quoted(process.execPath),
    httpUrl,
    probeInterval: seconds(config.probeInterval),
    revocationGrace: seconds(config.revocationGrace),
    key: keyId === EMULATED_KEY_ID ? "" : ` --key-id ${quoted(keyId)}`,
  });
}

/** A word of shell. */
function quoted(text: string): string {
  return /^[\w./:@%+=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** The command `emulator`: a Key4C on an address of its own, until a signal; with an ACTION, that one and no more. */
export async function emulatorCommand({ config, operand }: CommandLine, log: Log): Promise<void> {
  if (operand !== undefined) {
    return print(await changeEmulator(operand, config));
  }
  const { host, port } = required(config.listen);
  const emulator = startEmulatorOrExit({
    host,
    port,
    keyIds: required(config.emulatorKeyIds),
    dataFile: config.data,
    tls: config.serverCertificate?.current,
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
