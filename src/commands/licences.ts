/** `version --licenses`. */
import text from "./licences.txt" with { type: "file" };

/** Read only when it is asked for: it is beside the bundle in the binary, not in it. */
export function licences(): Promise<string> {
  return Bun.file(text).text();
}
