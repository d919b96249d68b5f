/** The command `install`: writes the plugin's own files on a node, starts it, and says what is left for the API server. */
import { existsSync, statSync } from "node:fs";
import { type CommandLine, type Environment, parseCommandLine } from "../../config/config.ts";
import { DEFAULT_CONFIG_FILE } from "../../config/config-file.ts";
import { parseSecret } from "../../config/option-types.ts";
import { DEFAULT_PROFILE, sends } from "../../key4c/profile.ts";
import { ExitError } from "../../system/errors.ts";
import type { Log } from "../../system/log.ts";
import { hardenProcess, print } from "../../system/process.ts";
import { stderr } from "../../system/stderr.ts";
import { readStdin, statusCommand } from "../cli.ts";
import { checkLine } from "../doctor/check.ts";
import { checkKey4C } from "../doctor/key4c.ts";
import { counted } from "../printable.ts";
import { blockFor } from "./block.ts";
import { diffOf, write } from "./files.ts";
import { command, controlPlanes, type Host, hasKubelet, lookAround, startOf } from "./node.ts";
import { isReplacedPod, type Plan, planOf, SERVICE_FILE, SOCKET_FILE } from "./plan.ts";

/** A user ID is at most 4,096 characters; more is another file. */
const MAX_SECRET_BYTES = 8_192;
const OWN_USER_ID = "/etc/key4c-kms/user-id";
const SERVICE = "key4c-kms-plugin.service";
const UNITS = ["key4c-kms-plugin.socket", SERVICE];
/** From the kubelet's look at a manifest to a pod that is ok, with an image to be pulled. */
const START_WAIT = "180s";
/** A kubelet takes 13 to 16 s from a new manifest to the end of the old pod. */
const REPLACE_MS = 120_000;
const POLL_MS = 500;

/** @throws ExitError 1 before anything is written, or when the plugin does not become ok */
export async function installCommand(line: CommandLine, env: Environment, log: Log): Promise<void> {
  const isDry = line.config.dryRun === true;
  if (!isDry && process.getuid?.() !== 0) {
    throw new ExitError(1, "install writes into /etc: run it as root");
  }
  const before = { ...env }; // with the proxies of the operator, and not with those of this process alone
  hardenProcess(log);
  process.umask(0o022); // each file has a mode of its own; directories are for all
  const userId = await userIdFromInput(line);
  await judge(line, userId);
  const host = lookAround();
  const told = line.config.controlPlanes;
  const isAlone = told === undefined ? isKnownAlone(host) : told === "one";
  const plan = planOf(line, before, host, userId, isAlone);
  if (plan.obstacles.length > 0) {
    throw new ExitError(1, ["nothing was written, because:", ...plan.obstacles].join("\n"));
  }
  if (isDry) {
    return print(plan.changes.map(diffOf).join("\n") || "nothing would change\n");
  }
  const old = socketOf(plan);
  for (const change of plan.changes) {
    write(change);
    tell(`wrote ${change.path}${change.backup === undefined ? "" : ` (before: ${change.backup})`}`);
  }
  tell(
    plan.changes.length === 0
      ? "every file is as it should be"
      : `${counted(plan.changes.length, "file")} written`,
  );
  await start(plan, host, old);
  return print(`\n${blockFor(host, plan)}`);
}

function tell(text: string): void {
  stderr.write(`${text}\n`);
}

function namesUserId({ given }: CommandLine): boolean {
  return given.has("KMS_USER_ID") || given.has("KMS_USER_ID_FILE");
}

/** The credential where no file and no variable has it. @throws ExitError 2 when there is none */
async function userIdFromInput(line: CommandLine): Promise<string | undefined> {
  const isSent = sends(line.config.profile ?? DEFAULT_PROFILE, "userId");
  if (namesUserId(line) || existsSync(OWN_USER_ID) || !isSent) {
    return undefined;
  }
  tell(
    "KMS_USER_ID is read from standard input: paste it, Enter, Ctrl-D (or name a file: --user-id-file)",
  );
  const input = Buffer.from(await readStdin(MAX_SECRET_BYTES)).toString();
  try {
    return parseSecret(input);
  } catch (error) {
    throw new ExitError(2, `KMS_USER_ID, from standard input, ${(error as Error).message}`); // parseSecret's own
  }
}

/** What doctor says of Key4C, with the settings that are to be installed. @throws ExitError 1 */
async function judge(line: CommandLine, userId: string | undefined): Promise<void> {
  const { config } = line;
  const own = existsSync(OWN_USER_ID) ? (await Bun.file(OWN_USER_ID).text()).trim() : undefined;
  const kmsUserId = userId ?? own;
  const { checks } = await checkKey4C(
    namesUserId(line) || kmsUserId === undefined ? config : { ...config, kmsUserId },
    true,
  );
  stderr.write(checks.map(checkLine).join(""));
  if (checks.some(({ result }) => result === "fail")) {
    throw new ExitError(1, "nothing was written: correct what failed (✗), and run install again");
  }
}

/** A new cluster has one; of one that exists the cluster itself must say so. */
function isKnownAlone({ apiServer, platform }: Host): boolean {
  return platform === "kubeadm" && (apiServer === undefined || controlPlanes() === 1);
}

/** Which file the path of the socket leads to: each process makes one of its own. undefined: none */
function socketOf({ socket }: Plan): number | undefined {
  return statSync(socket, { throwIfNoEntry: false })?.ino;
}

/**
 * Has the plugin run with these files, and waits until its Status is ok.
 * @param old the socket before they were written
 * @throws ExitError 1
 */
async function start(plan: Plan, host: Host, old: number | undefined): Promise<void> {
  const { as, image, binary } = plan;
  if (as === "systemd") {
    startService(binary);
  } else if (!hasKubelet(host)) {
    tell("no kubelet runs here yet: it starts the plugin, together with the API server");
    return;
  } else {
    tell(`the kubelet starts the plugin from ${image}`);
    const isReplaced = plan.changes.some(isReplacedPod);
    const endMs = Date.now() + REPLACE_MS;
    while (isReplaced && socketOf(plan) === old && Date.now() < endMs) {
      await Bun.sleep(POLL_MS); // the old pod answers until the kubelet has ended it
    }
  }
  try {
    const status = await statusCommand(
      parseCommandLine(["status", "--wait", START_WAIT], {}, DEFAULT_CONFIG_FILE),
    );
    tell(`the plugin is ok: ${status.trim()}`);
  } catch (error) {
    const why =
      as === "systemd"
        ? "journalctl -u key4c-kms-plugin"
        : "crictl ps -a --name key4c-kms-plugin, and crictl logs (no container: journalctl -u kubelet; is the image there?)";
    throw new ExitError(
      1,
      `${(error as Error).message}\nall files are written; the plugin is not ok: ${why}. Then run install again`,
    );
  }
}

/** Starts it, or again where a file is newer than the process: an install may have been killed in between. */
function startService(binary: string): void {
  systemctl("daemon-reload");
  systemctl("enable", "--quiet", ...UNITS);
  const shown = command(["systemctl", "show", "-p", "MainPID", "--value", SERVICE]).output;
  const startMs = Number(shown) > 0 ? startOf(Number(shown)) : Number.POSITIVE_INFINITY;
  const isOlder = (path: string) => startMs < statSync(path).ctimeMs;
  if (isOlder(SOCKET_FILE)) {
    systemctl("restart", ...UNITS);
  } else if ([SERVICE_FILE, DEFAULT_CONFIG_FILE, binary].some(isOlder)) {
    systemctl("restart", SERVICE); // calls wait in the socket meanwhile
  } else {
    systemctl("start", ...UNITS);
  }
}

/** @throws ExitError 1 with what it printed */
function systemctl(...words: string[]): void {
  const { ok, output } = command(["systemctl", ...words]);
  if (!ok) {
    throw new ExitError(1, `systemctl ${words.join(" ")} failed: ${output.trim()}`);
  }
}
