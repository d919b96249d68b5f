/** Whether systemd-tmpfiles may remove the socket of a plugin that is stopped, or stuck, for days. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { readSmallBytes } from "../../system/files.ts";
import { isBelowTmp, keepCommand } from "../below-tmp.ts";
import { type Check, pass, warn } from "./check.ts";

/** tmpfiles.d(5) */
const DIRECTORIES = ["/etc/tmpfiles.d", "/run/tmpfiles.d", "/usr/lib/tmpfiles.d"];

/** Nothing for a path that is not aged, or on a machine without systemd-tmpfiles. */
export function checkTmpfiles(path: string, directories = DIRECTORIES): Check[] {
  const lines = directories.flatMap(linesOf);
  if (!isBelowTmp(path) || lines.length === 0) {
    return [];
  }
  const check = "tmpfiles";
  // `x PATH` or `X PATH`, with wildcards; `x` holds for what is below it too.
  const isKept = lines.some((line) => {
    const [, type, pattern = ""] = /^([xX])[!=+-]*\s+"?([^\s"]+)/.exec(line) ?? [];
    return [pattern, ...(type === "x" ? [`${pattern}/**`] : [])].some((one) =>
      new Bun.Glob(one).match(path),
    );
  });
  return [
    isKept
      ? pass(check, `systemd-tmpfiles keeps ${path}`)
      : warn(
          check,
          `systemd-tmpfiles removes what is old below /tmp; a plugin that runs keeps ${path} young, a held-up one does not`,
          keepCommand(path),
        ),
  ];
}

function linesOf(directory: string): string[] {
  try {
    return readdirSync(directory)
      .filter((name) => name.endsWith(".conf"))
      .flatMap((name) => readSmallBytes(join(directory, name)).toString().split("\n"));
  } catch {
    return []; // it is not there, or not for this user
  }
}
