import { join } from "node:path";
import { isatty } from "node:tty";
import type { DescMethodUnary, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { ageOf, readMoment } from "../cache/age.ts";
import { decodeHead } from "../cache/form.ts";
import { ownDirectory } from "../cache/place.ts";
import { readStored } from "../cache/store.ts";
import {
  COMMAND_LINE,
  type CommandLine,
  type Config,
  keyIdOf,
  required,
} from "../config/config.ts";
import { KeyManagementService as V1 } from "../gen/v1beta1/api_pb.ts";
import { KeyManagementService as V2 } from "../gen/v2/api_pb.ts";
import { MAX_PLAINTEXT_BYTES } from "../keys/envelope.ts";
import { parseKeyId, standsFor } from "../keys/key-id.ts";
import { ExitError } from "../system/errors.ts";
import { stderr } from "../system/stderr.ts";
import { CallError } from "./call-error.ts";
import { callPlugin, runtimeVersion } from "./client.ts";
import { printable } from "./printable.ts";

const WAIT_INTERVAL_MS = 200;
/** Above the largest ciphertext that the plugin takes (128 KiB), in base64 and JSON. */
const MAX_CIPHERTEXT_BYTES = 256 * 1024;
/** Counted, not kept, so that whoever sends too much is told how much; more than this has no end, perhaps. */
const MAX_COUNTED_BYTES = 1024 ** 2;

/** With the start of the process, `status --live` takes at most 2 s. */
export const LIVE_TIMEOUT_MS = 1_500;

/**
 * One line of JSON with what Status says, and the plugin's version; with --live what Version says.
 * @throws ExitError 1 unless it says ok, of KMS_KEY_ID where that is set
 */
export async function statusCommand(line: CommandLine): Promise<string> {
  const { config, origins } = line;
  const endMs = performance.now() + (config.wait ?? 0);
  for (;;) {
    try {
      if (config.live === true) {
        return `${JSON.stringify(await fetchVersion(line))}\n`;
      }
      const { version, healthz, keyId } = await fetchStatus(line);
      const kmsKeyId = keyIdOf(config);
      if (healthz !== "ok") {
        throw new ExitError(1, printable(`the plugin is not ok: ${healthz}`));
      }
      if (kmsKeyId !== undefined && !standsFor(keyId, kmsKeyId)) {
        const origin = origins.get("KMS_KEY_ID") ?? origins.get("KMS_KEY_ID_FILE");
        const told = `its key_id ${keyId} does not stand for KMS_KEY_ID (${kmsKeyId}, from ${origin})`;
        throw new ExitError(1, printable(`the plugin is ok, and uses another key: ${told}`));
      }
      const pluginVersion = await runtimeVersion(socketOf(config)).catch(() => undefined);
      const afterRestart = await afterRestartOf(config, keyId);
      return `${JSON.stringify({ version, healthz, keyId, kmsKeyId, pluginVersion, afterRestart })}\n`;
    } catch (error) {
      if (performance.now() >= endMs) {
        throw error;
      }
      await Bun.sleep(WAIT_INTERVAL_MS);
    }
  }
}

/** What a plugin that restarted now would have from KMS_PERSISTENT_CACHE; null: nothing. undefined: it is not set. */
async function afterRestartOf(config: Config, keyId: string) {
  const { persistentCache, persistentCacheMaxAge } = config;
  const name = parseKeyId(keyId)?.hashText;
  if (persistentCache === undefined || name === undefined) {
    return undefined;
  }
  try {
    const bytes = await readStored(join(ownDirectory(persistentCache), name));
    const head = bytes && decodeHead(bytes);
    const age = head && ageOf(head.confirmed, readMoment(), required(persistentCacheMaxAge));
    return age ? { localKeks: head.kekCount, until: new Date(age.untilMs).toISOString() } : null;
  } catch {
    return null;
  }
}

/** What a plugin that serves the socket answers, whatever Key4C does. */
async function fetchVersion(line: CommandLine) {
  const request = { version: "v1beta1" };
  const { runtimeName, runtimeVersion } = await ask(
    line,
    V1.method.version,
    request,
    LIVE_TIMEOUT_MS,
  );
  return { live: true, runtimeName, runtimeVersion };
}

/** A call to the plugin at KMS_ENDPOINT. @throws CallError which says where that came from, unless it is the default */
async function ask<I extends DescMethodUnary["input"], O extends DescMethodUnary["output"]>(
  { config, origins }: CommandLine,
  method: { readonly input: I; readonly output: O } & DescMethodUnary,
  request: MessageInitShape<I>,
  timeoutMs?: number,
): Promise<MessageShape<O>> {
  try {
    return await callPlugin(socketOf(config), method, request, undefined, timeoutMs);
  } catch (error) {
    const origin = origins.get("KMS_ENDPOINT");
    const isTold = origin !== undefined && origin !== COMMAND_LINE;
    if (!(error instanceof CallError) || error.unanswered === undefined || !isTold) {
      throw error;
    }
    const what = `${error.what} (KMS_ENDPOINT is from ${origin})`;
    throw new CallError({ ...error.unanswered, what });
  }
}

function socketOf(config: Config): string {
  return required(config.kmsEndpoint);
}

/** What Status answers. */
export function fetchStatus(line: CommandLine) {
  return ask(line, V2.method.status, {});
}

/** Wraps standard input: the raw cipher of KMS v1, or one line of JSON for v2. */
export async function encryptCommand(line: CommandLine): Promise<Uint8Array | string> {
  const plaintext = await readStdin(MAX_PLAINTEXT_BYTES);
  if (plaintext.length === 0) {
    throw new ExitError(1, "standard input is empty: there is nothing to wrap"); // mostly a broken pipeline
  }
  if (line.config.api === "v1") {
    const { cipher } = await ask(line, V1.method.encrypt, {
      version: "v1beta1",
      plain: plaintext,
    });
    return cipher;
  }
  const uid = crypto.randomUUID();
  const response = await ask(line, V2.method.encrypt, {
    plaintext,
    uid,
  });
  return `${JSON.stringify({
    ciphertext: toBase64(response.ciphertext),
    keyId: response.keyId,
    annotations: Object.fromEntries(
      Object.entries(response.annotations).map(([name, value]) => [name, toBase64(value)]),
    ),
  })}\n`;
}

/** Unwraps standard input; the line of JSON that encrypt made starts with "{", a v1 cipher does not. */
export async function decryptCommand(line: CommandLine): Promise<Uint8Array> {
  const input = await readStdin(MAX_CIPHERTEXT_BYTES);
  if (input.length === 0) {
    throw new ExitError(1, "standard input is empty: there is nothing to unwrap");
  }
  if (input[0] !== "{".charCodeAt(0)) {
    return (
      await ask(line, V1.method.decrypt, {
        version: "v1beta1",
        cipher: input,
      })
    ).plain;
  }
  const { ciphertext, keyId, annotations } = parseV2(input);
  const uid = crypto.randomUUID();
  return (
    await ask(line, V2.method.decrypt, {
      ciphertext,
      keyId,
      annotations,
      uid,
    })
  ).plaintext;
}

function parseV2(input: Uint8Array) {
  const wrong = () =>
    new ExitError(1, 'input must be {"ciphertext","keyId","annotations"} with bytes in base64');
  let document: unknown;
  try {
    document = JSON.parse(Buffer.from(input).toString("utf8"));
  } catch {
    throw wrong();
  }
  const { ciphertext, keyId, annotations } = (document ?? {}) as Record<string, unknown>; // an object: "{"
  if (
    typeof ciphertext !== "string" ||
    typeof keyId !== "string" ||
    typeof annotations !== "object" ||
    annotations === null
  ) {
    throw wrong();
  }
  const decoded = Object.entries(annotations).map(([name, value]: [string, unknown]) => {
    if (typeof value !== "string") {
      throw wrong();
    }
    return [name, Buffer.from(value, "base64")] as const;
  });
  return {
    ciphertext: Buffer.from(ciphertext, "base64"),
    keyId,
    annotations: Object.fromEntries(decoded),
  };
}

/** Standard input to its end. @throws ExitError 1 above `maxBytes` */
export async function readStdin(maxBytes: number): Promise<Uint8Array> {
  if (isatty(0)) {
    stderr.write("key4c-kms-plugin: reading standard input, to its end (Ctrl-D)\n");
  }
  const chunks: Uint8Array[] = [];
  let length = 0;
  let isWhole = true;
  for await (const chunk of Bun.stdin.stream()) {
    length += chunk.length;
    if (length <= maxBytes) {
      chunks.push(chunk);
    } else if (length > maxBytes + MAX_COUNTED_BYTES) {
      isWhole = false;
      break;
    }
  }
  if (length > maxBytes) {
    const found = `${isWhole ? "" : "more than "}${length}`;
    throw new ExitError(1, `standard input: ${maxBytes} bytes at most, and this is ${found}`);
  }
  return Buffer.concat(chunks);
}

function toBase64(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("base64");
}
