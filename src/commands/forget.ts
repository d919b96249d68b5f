/** The command `forget`: no later process finds what was kept. */
import { lstatSync } from "node:fs";
import { ownDirectory } from "../cache/place.ts";
import { removeAll, Store } from "../cache/store.ts";
import { describeError, ExitError } from "../system/errors.ts";

/** @throws ExitError 1 when something is left */
export async function forgetCommand(directory: string): Promise<string> {
  try {
    const isThere = (path: string) => lstatSync(path, { throwIfNoEntry: false }) !== undefined;
    if (!isThere(directory) || !isThere(ownDirectory(directory))) {
      return `nothing was kept in ${directory}\n`;
    }
    const own = ownDirectory(directory);
    const store = await Store.open(own);
    const count = removeAll(own);
    await store?.close();
    const isInUse = store === undefined ? "; the plugin that has them in use keeps them again" : "";
    return `removed ${count} file${count === 1 ? "" : "s"} from ${own}${isInUse}\n`;
  } catch (error) {
    throw new ExitError(1, describeError(error));
  }
}
