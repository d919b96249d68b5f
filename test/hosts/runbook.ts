/** What is typed on a machine before anything else, as OPERATIONS.md has it. */
import { dirname } from "node:path";
import { commandsOf, filledIn } from "../blocks.ts";
import { KEY4C_URL } from "./key4c.ts";

/** Where a machine has the file of a release. */
export const RELEASE = "/opt/release/key4c-kms-plugin-0.1.0-linux-x64";

/** "Install", typed where the release is: the binary, its credential and its settings. */
export const INSTALL = `cd ${dirname(RELEASE)}
${filledIn(commandsOf("OPERATIONS.md", "Install")[0] ?? "", {
  "https://…": KEY4C_URL,
  "KEY-ID >": "demo >",
  "cat > /etc/key4c-kms/user-id)": "cat > /etc/key4c-kms/user-id) <<< the-token",
})}`;
