/** Another user than root, because root may do everything. */
import type { NeedName } from "./needs.ts";
import { type Running, startProcess } from "./support.ts";

/** For `testWith`: what it takes to become that user. */
export const DROPPING: readonly NeedName[] = ["root", "setpriv"];
export const NOBODY = 65_534;

/** Starts a program as that user. */
export function asNobody(command: readonly string[], setup = ""): Running {
  const drop = `setpriv --reuid ${NOBODY} --regid ${NOBODY} --clear-groups --`;
  const script = `${setup} exec ${drop} "$@"`;
  const path = process.env["PATH"] ?? "";
  return startProcess(["sh", "-c", script, "sh", ...command], { PATH: path });
}
