/** Says before and after an installation what is wrong, and what to do. */
import type { CommandLine } from "../../config/config.ts";
import { forbiddenEnvironment } from "../../system/process.ts";
import { printable } from "../printable.ts";
import { type Check, fail, pass } from "./check.ts";
import { checkEncryptionConfiguration } from "./encryption-configuration.ts";
import { checkKey4C } from "./key4c.ts";
import { checkProfile } from "./profile-check.ts";
import { checkSocket } from "./socket.ts";

/** All checks, in the order in which their faults should be mended. */
export async function doctorCommand({ config, problems }: CommandLine): Promise<{
  readonly text: string;
  readonly ok: boolean;
}> {
  const configuration = checkConfiguration(problems);
  const checks = config.profileCheck
    ? [...configuration, ...(await checkProfile(config, isFine(configuration)))]
    : [
        ...configuration,
        ...(await checkKey4C(config)),
        ...(await checkSocket(config)),
        ...(await checkEncryptionConfiguration(
          config.encryptionConfiguration,
          config.kmsEndpoint,
          config.migrated,
        )),
      ];
  return {
    text: config.json === true ? `${JSON.stringify(checks)}\n` : checks.map(line).join(""),
    ok: isFine(checks),
  };
}

function isFine(checks: readonly Check[]): boolean {
  return checks.every(({ result }) => result !== "fail");
}

function checkConfiguration(problems: readonly string[]): Check[] {
  const forbidden = forbiddenEnvironment();
  return [
    ...problems.map((one) => fail("configuration", one, "correct the option; `help` lists them")),
    ...forbidden.map((name) =>
      fail("configuration", `${name} is set, and serve refuses to start with it`, `unset ${name}`),
    ),
    ...(problems.length + forbidden.length === 0
      ? [pass("configuration", "complete and well-formed")]
      : []),
  ];
}

const MARKS = { pass: "✓", fail: "✗", skip: "–" } as const;

function line({ check, result, detail, remedy, shown = [] }: Check): string {
  const judged = `${MARKS[result]} ${check}: ${detail}${remedy === "" ? "" : ` → ${remedy}`}`;
  return [judged, ...shown.map((one) => `    ${printable(one)}`), ""].join("\n");
}
