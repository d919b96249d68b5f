/** The settings file of a node, and the files that it names: what is there, and what was given now. */
import { statSync } from "node:fs";
import { join } from "node:path";
import type { CommandLine, Environment } from "../../config/config.ts";
import {
  DEFAULT_CONFIG_FILE,
  loadConfigFile,
  parseConfigFile,
  proxiesIn,
  secretsIn,
} from "../../config/config-file.ts";
import { METRICS_ADDRESS } from "../manifest/settings.ts";
import { DIRECTORY, type Draft, textAt } from "./files.ts";

/** What the plugin is told by a file of its own: its mode, and where to read how to change it. */
const OWN_FILES = [
  { name: "KMS_USER_ID", file: "user-id", mode: 0o600, document: "docs/runbooks/credential.md" },
  { name: "KMS_API_KEY", file: "api-key", mode: 0o600, document: "docs/runbooks/credential.md" },
  { name: "KMS_PIN", file: "pin", mode: 0o600, document: "docs/runbooks/credential.md" },
  { name: "KMS_KEY_ID", file: "key-id", mode: 0o644, document: "docs/keys.md" },
  { name: "KMS_PREVIOUS_KEY_IDS", file: "previous-key-ids", mode: 0o644, document: "docs/keys.md" },
] as const;
const TITLE =
  "# Settings of key4c-kms-plugin on this node (docs/REFERENCE.md, The settings file)\n";

/**
 * Adds to a draft what of these files is to be written.
 * @param userId from standard input; undefined: it is named or there
 * @returns the text of the settings file as it should be
 */
export function draftSettings(
  line: CommandLine,
  env: Environment,
  userId: string | undefined,
  draft: Draft,
): string {
  const before = textAt(DEFAULT_CONFIG_FILE);
  const { file, problems } = loadConfigFile(undefined, {}, DEFAULT_CONFIG_FILE);
  draft.obstacles.push(...problems);
  const there = file?.settings ?? new Map<string, string>();
  const settings = new Map([
    ...givenNow(line, env, there),
    ...OWN_FILES.flatMap((one) => draftOwnFile(one, line, userId, there, draft)),
  ]);
  const text = withSettings(before ?? TITLE, settings);
  if (text !== before) {
    const all = parseConfigFile(DEFAULT_CONFIG_FILE, text, true).file.settings;
    const isSecret = secretsIn(all).length > 0;
    const now = before === undefined ? 0o644 : statSync(DEFAULT_CONFIG_FILE).mode & 0o777;
    draft.changes.push({
      path: DEFAULT_CONFIG_FILE,
      content: text,
      mode: isSecret ? 0o600 : now,
      ...(before !== undefined && { backup: `${DEFAULT_CONFIG_FILE}.before-key4c` }),
      ...(isSecret && { instead: "with a secret" }),
    });
  }
  return text;
}

/** Settings of the command line and the environment, and the address of the metrics where there is none. */
function givenNow(
  { given, origins }: CommandLine,
  env: Environment,
  there: ReadonlyMap<string, string>,
): [string, string][] {
  const isOwn = (name: string) => OWN_FILES.some((one) => name.replace(/_FILE$/, "") === one.name);
  const isNew = ([name]: readonly [string, string]) =>
    origins.get(name) !== DEFAULT_CONFIG_FILE && name !== "KMS_CONFIG" && !isOwn(name);
  const proxies = proxiesIn(env).filter(([name]) => !there.has(name));
  const metrics: [string, string][] = there.has("KMS_HTTP_ADDRESS")
    ? []
    : [["KMS_HTTP_ADDRESS", METRICS_ADDRESS]];
  return [...metrics, ...[...given].filter(isNew), ...proxies];
}

/** @returns the setting that names the file; none where the settings file has the value itself */
function draftOwnFile(
  { name, file, mode, document }: (typeof OWN_FILES)[number],
  { given }: CommandLine,
  userId: string | undefined,
  there: ReadonlyMap<string, string>,
  draft: Draft,
): [string, string][] {
  const setting = `${name}_FILE`;
  const path = there.get(setting) ?? join(DIRECTORY, file);
  const before = there.get(name) ?? textAt(path)?.trim();
  const input = name === "KMS_USER_ID" ? userId : undefined;
  const named = given.get(setting);
  const wanted = given.get(name) ?? (named === undefined ? input : textAt(named)?.trim());
  // No key is a file all the same: it is read again when it changes.
  const content = wanted ?? (name === "KMS_PREVIOUS_KEY_IDS" ? "none" : undefined);
  if (before !== undefined && wanted !== undefined && before !== wanted) {
    const where = there.has(name) ? DEFAULT_CONFIG_FILE : path;
    draft.obstacles.push(
      `this node has another ${name} (${where}): ${document} says how to change it`,
    );
  } else if (before === undefined && content !== undefined) {
    draft.changes.push({
      path,
      content: `${content}\n`,
      mode,
      ...(mode === 0o600 && { instead: "a secret" }),
    });
  }
  return there.has(name) || (before ?? content) === undefined ? [] : [[setting, path]];
}

/** A settings file with these values; its comments and its order stay. */
function withSettings(text: string, settings: ReadonlyMap<string, string>): string {
  let result = text.endsWith("\n") ? text : `${text}\n`;
  for (const [name, value] of settings) {
    const found = new RegExp(`^[ \\t]*${name}[ \\t]*=[ \\t]*(["']?)(.*?)\\1[ \\t]*$`, "m").exec(
      result,
    );
    if (found === null) {
      result += `${name}=${value}\n`;
    } else if (found[2] !== value) {
      result = result.replace(found[0], () => `${name}=${value}`);
    }
  }
  return result;
}
