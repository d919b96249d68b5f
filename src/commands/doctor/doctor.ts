/** Says before and after an installation what is wrong, and what to do. */
import type { CommandLine } from "../../config/config.ts";
import { forbiddenEnvironment } from "../../system/process.ts";
import { type Check, fail, pass } from "./check.ts";
import { checkEncryptionConfiguration } from "./encryption-configuration.ts";
import { checkKey4C } from "./key4c.ts";
import { checkSocket } from "./socket.ts";

/** All checks, in the order in which their faults should be mended. */
export async function doctorCommand({ config, problems }: CommandLine): Promise<{
  readonly text: string;
  readonly ok: boolean;
}> {
  const checks = [
    ...checkConfiguration(problems),
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
    ok: checks.every(({ result }) => result !== "fail"),
  };
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

function line({ check, result, detail, remedy }: Check): string {
  return `${MARKS[result]} ${check}: ${detail}${remedy === "" ? "" : ` → ${remedy}`}\n`;
}
