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
  const key = keyId === EMULATED_KEY_ID ? "" : ` --key-id ${quoted(keyId)}`;
  const seconds = (ms: number | undefined) => `${required(ms) / 1_000} s`;
  return `# Ready, until Ctrl-C. In a second shell:
export KMS_ENDPOINT=${quoted(endpoint)} KEY4C_URL=${url}
plugin() { ${quoted(process.execPath)} "$@"; }
readyz() { curl -s ${httpUrl}readyz; }
# Times are shortened: here Key4C is asked every ${seconds(config.probeInterval)} (30 s unless set),
# and a disabled key counts as revoked after ${seconds(config.revocationGrace)} (60 s unless set).
# 1. Wrap a data key, as kube-apiserver would, and unwrap it again.
dek=$(mktemp); key=$(head -c 32 /dev/urandom | base64); echo "$key"
echo "$key" | plugin encrypt > $dek; plugin decrypt < $dek; readyz
# 2. Rotate the key: key_id changes from .v1 to .v2. What was wrapped under .v1 is still read.
plugin status; plugin emulator rotate${key}; sleep 2; plugin status; plugin decrypt < $dek
# 3. An outage of Key4C. Status stays ok, readyz says degraded, and Decrypt works from memory.
plugin emulator outage; sleep 2; plugin status; readyz; plugin decrypt < $dek
# 4. The end of the outage: readyz says ok again.
plugin emulator recover; sleep 2; readyz
# 5. Disable the key: some seconds later it counts as revoked, and Status and Decrypt are refused.
plugin emulator disable${key}; sleep 6; plugin status; readyz; plugin decrypt < $dek
# 6. Enable the key: both work again, and nothing was restarted.
plugin emulator enable${key}; sleep 2; plugin status; plugin decrypt < $dek
`;
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
