/** The command `doctor`: says what is wrong before or after an installation, and what to do. */
import type { CommandLine, Config } from "../../config/config.ts";
import type { Log } from "../../system/log.ts";
import { forbiddenEnvironment, hardenProcess } from "../../system/process.ts";
import { printableJson } from "../printable.ts";
import { type Check, checkLine, fail, pass, warn } from "./check.ts";
import { checkEncryptionConfiguration } from "./encryption-configuration.ts";
import { checkKey4C } from "./key4c.ts";
import { checkKubeApiserver, findKubeApiserver, hostPaths } from "./kube-apiserver.ts";
import { checkPersistentCache } from "./persistent-cache.ts";
import { checkProfile } from "./profile-check.ts";
import { checkSocket } from "./socket.ts";

/** All checks, in the order in which their faults should be repaired. */
export async function doctorCommand(
  { config, problems, warnings, configFile }: CommandLine,
  log: Log,
): Promise<{
  readonly text: string;
  readonly ok: boolean;
}> {
  const forbidden = forbiddenEnvironment();
  if (forbidden.length === 0) {
    hardenProcess(log);
  }
  const configuration = [
    ...warnings.map((one) => warn("configuration", one, "run the doctor as root")),
    ...checkConfiguration(
      problems,
      forbidden,
      configFile?.settings.size === 0 ? undefined : configFile?.path,
    ),
  ];
  const isUsable = problems.length + forbidden.length === 0;
  const checks = [
    ...configuration,
    ...(config.profileCheck === true
      ? await checkProfile(config, isUsable)
      : await checkInstallation(config, isUsable)),
  ];
  return {
    text: config.json === true ? `${printableJson(checks)}\n` : checks.map(checkLine).join(""),
    ok: checks.every(({ result }) => result !== "fail"),
  };
}

async function checkInstallation(config: Config, isUsable: boolean): Promise<Check[]> {
  const key4c = await checkKey4C(config, isUsable);
  const found = findKubeApiserver(config.kubeApiserver);
  const apiServer = "check" in found ? undefined : found;
  const configuration = await checkEncryptionConfiguration({
    path: config.encryptionConfiguration ?? apiServer?.configuration,
    socket: config.kmsEndpoint,
    isMigrated: config.migrated === true,
    server: apiServer?.server ?? {},
    toHost: hostPaths(apiServer),
  });
  return [
    ...key4c.checks,
    ...(await checkSocket(config, key4c.keyId, configuration.namesSocket)),
    ...(await checkPersistentCache(config)),
    ...configuration.checks,
    ...("check" in found
      ? [found]
      : checkKubeApiserver(found, config.encryptionConfiguration, config.kmsEndpoint)),
  ];
}

function checkConfiguration(
  problems: readonly string[],
  forbidden: readonly string[],
  file: string | undefined,
): Check[] {
  return [
    ...problems.map((one) =>
      fail(
        "configuration",
        one,
        "correct the option: key4c-kms-plugin help serve, and help doctor",
      ),
    ),
    ...forbidden.map((name) =>
      fail("configuration", `${name} is set, and serve refuses to start with it`, `unset ${name}`),
    ),
    ...(problems.length + forbidden.length === 0
      ? [
          pass(
            "configuration",
            `complete and well-formed${file === undefined ? "" : `, with ${file}`}`,
          ),
        ]
      : []),
  ];
}
