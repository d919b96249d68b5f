/** package-lock.json: what of npm's packages is exactly the one that we mean. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { ROOT } from "./compile.ts";

export interface Locked {
  readonly version: string;
  readonly license?: string;
  /** `sha512-BASE64` of the package as the registry gives it. */
  readonly integrity: string;
}

/** @throws Error when the lock file does not have it */
export function locked(name: string): Locked {
  const { packages } = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8")) as {
    packages: Record<string, Locked>; // npm's own format, checked by `npm ci`
  };
  const found = packages[`node_modules/${name}`];
  if (found?.integrity === undefined) {
    throw new Error(`${name} is not in package-lock.json, or has no hash there`);
  }
  return found;
}
