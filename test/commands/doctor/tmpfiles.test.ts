/** Whether the doctor knows what systemd-tmpfiles does with a socket in /tmp. */
import { expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { checkTmpfiles } from "../../../src/commands/doctor/tmpfiles.ts";
import { temporaryDirectory } from "../../support.ts";

const SOCKET = "/tmp/kms.sock";

function directoryWith(line: string): string {
  const directory = temporaryDirectory();
  writeFileSync(join(directory, "tmp.conf"), `# a comment\nq /tmp 1777 root root 10d\n${line}\n`);
  writeFileSync(join(directory, "no-rules"), `x ${SOCKET}\n`);
  return directory;
}

test.each([
  ["x /tmp/kms.sock", "pass"],
  ["X! /tmp/kms.sock", "pass"],
  ["x /tmp/kms.*", "pass"],
  ["x   /tmp", "pass"],
  ["", "warn"],
  ["X /tmp", "warn"],
  ["x /tmp/other", "warn"],
  ["# x /tmp/kms.sock", "warn"],
  ["r /tmp/kms.sock", "warn"],
])("%p: %s", (line, result) => {
  const [check] = checkTmpfiles(SOCKET, ["/nowhere", directoryWith(line)]);
  expect(check?.result as string).toBe(result);
  if (result === "warn") {
    expect(check?.remedy).toStartWith("echo 'x /tmp/kms.sock' > /etc/tmpfiles.d/");
  }
});

test("nothing is said of another place, or where there is no systemd-tmpfiles", () => {
  expect(checkTmpfiles("/run/key4c-kms/kms.sock", [directoryWith("")])).toEqual([]);
  expect(checkTmpfiles(SOCKET, ["/nowhere"])).toEqual([]);
});
