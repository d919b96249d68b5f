/** What `emulator ACTION` asks of an emulator that runs with --control. */
import { USAGE_EXIT_CODE } from "../config/commands.ts";
import { type Config, required } from "../config/config.ts";
import { isLoopback } from "../config/option-types.ts";
import { readBody } from "../key4c/body.ts";
import { ExitError } from "../system/errors.ts";
import { errorCode } from "../system/files.ts";
import { isObject, parsedJson } from "../system/json.ts";
import { printable } from "./printable.ts";

const TIMEOUT_MS = 3_000;

/**
 * @returns one line for each change
 * @throws ExitError 1 where no emulator does it, 2 without its address
 */
export async function changeEmulator(action: string, config: Config): Promise<string> {
  const url = config.key4cUrl;
  if (url === undefined || !isLoopback(url)) {
    const wanted = "the loopback address that the emulator printed";
    throw new ExitError(USAGE_EXIT_CODE, `KEY4C_URL (--key4c-url) must be ${wanted}`);
  }
  const ca = config.caFile?.current;
  if (action === "outage" || action === "recover") {
    await ask(url, ca, "PUT", "outage", { on: action === "outage" });
    return action === "outage" ? "Key4C answers nothing but 503\n" : "Key4C answers again\n";
  }
  const lines: string[] = [];
  for (const id of required(config.emulatorKeyIds)) {
    const { version, state } = await ask(
      url,
      ca,
      "POST",
      `keys/${encodeURIComponent(id)}/${action}`,
    );
    lines.push(`${printable(`key ${id}: version ${version}, ${state}`)}\n`);
  }
  return lines.join("");
}

/** @param ca in PEM, to trust in the place of the system's. @throws ExitError 1 */
async function ask(
  url: string,
  ca: string | undefined,
  method: string,
  path: string,
  body?: object,
): Promise<Readonly<Record<string, unknown>>> {
  const refused = (why: string) => new ExitError(1, printable(`the emulator at ${url} ${why}`));
  const response = await fetch(`${url}/emulator/${path}`, {
    method,
    redirect: "manual",
    signal: AbortSignal.timeout(TIMEOUT_MS),
    ...(ca !== undefined && { tls: { ca } }),
    ...(body && { body: JSON.stringify(body) }),
  }).catch((error) => {
    throw refused(`does not answer (${errorCode(error)}): does it run, at this address?`);
  });
  const text = await readBody(response);
  if (response.status === 404) {
    throw refused(
      "does not do that: it runs without --control (serve --emulator: --emulator-control), or has no such key (--key-id)",
    );
  }
  const answer = parsedJson(text ?? "");
  if (response.ok && isObject(answer)) {
    return answer; // its members are told, whatever they are
  }
  throw refused(`answers ${response.status}: is it one?`);
}
