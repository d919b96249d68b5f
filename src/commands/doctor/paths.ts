import { realpathSync } from "node:fs";
import { normalize } from "node:path";

/** Whether two paths lead to the same place, or would. */
export function leadsTo(one: string, other: string): boolean {
  return realPath(one) === realPath(other);
}

function realPath(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return normalize(path);
  }
}
