/** What the log tells of a refused credential: only what is configured, and only what is true where the process runs. */
import { expect, test } from "bun:test";
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { renewalOf } from "../../src/commands/configured.ts";
import { parseCommandLine } from "../../src/config/config.ts";
import { KINDS } from "../../src/failures/kinds.ts";
import { remedyOf } from "../../src/health/words.ts";
import { temporaryDirectory } from "../support.ts";

const KEY4C = { KEY4C_URL: "https://key4c.example", KMS_KEY_ID: "k" };

test("a file is read again, a copy of systemd and a variable are not", () => {
  const directory = temporaryDirectory();
  for (const name of ["user-id", "kms-user-id", "kms-api-key"]) {
    writeFileSync(join(directory, name), "a-secret");
  }
  const renewal = (env: Record<string, string>) =>
    renewalOf(parseCommandLine([], { ...KEY4C, ...env }).config, env["CREDENTIALS_DIRECTORY"]);
  const file = join(directory, "user-id");
  expect(renewal({ KMS_USER_ID_FILE: file })).toBe(
    `renew KMS_USER_ID in ${file}: the plugin reads it again, without a restart`,
  );
  const copied = renewal({ CREDENTIALS_DIRECTORY: directory });
  expect(copied).toBe(
    "renew KMS_USER_ID and KMS_API_KEY; this process has a copy that systemd made at its start, so restart it when doctor says that the new one is accepted",
  );
  expect(renewal({ KMS_USER_ID: "a-secret" })).toContain("it from its environment or its settings");
  // Known local KEKs are worth a warning; a start has none.
  expect(remedyOf("denied", "degraded", copied)).toBe(
    `${copied}; do not restart this node or the plugin before that: a restarted plugin could not read Secrets`,
  );
  expect(remedyOf("denied", "starting", copied)).toBe(copied);
  expect(remedyOf("unavailable", "starting", copied)).not.toContain("renew");
  expect(remedyOf("denied", "degraded", undefined)).toBe(KINDS.denied.remedy);
  for (const name of ["user-id", "kms-user-id", "kms-api-key"]) {
    rmSync(join(directory, name));
  }
});
