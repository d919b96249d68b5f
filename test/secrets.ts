/**
 * Every key, DEK and token that the tests of this process used, and the search for them in whatever came
 * out: what processes wrote, what HTTP endpoints told, argv, files, errors, logs.
 */
import { createDecipheriv } from "node:crypto";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";

/** So much of a secret counts as the secret: 64 bits in hex, 96 in base64. */
const WINDOW = 16;
/** Zeros, or the same letter over and over, are found everywhere. */
const MIN_DISTINCT_BYTES = 8;
const MAX_FILE_BYTES = 4 * 1024 * 1024;

/** From the beginning of each form of a secret to what it is. */
const known = new Map<string, string>();
/** Data files of emulators: the KEKs. */
const keyFiles = new Set<string>();
/** Local KEKs as the emulator wrapped them, not yet unwrapped here. */
const wrappedLocalKeks = new Set<string>();
/** Files that are meant to hold a secret. */
const allowedFiles = new Set<string>();

/** From now on `value` must not be seen anywhere. */
export function secret(what: string, value: string | Uint8Array): void {
  const bytes = Buffer.from(value);
  if (new Set(bytes).size < MIN_DISTINCT_BYTES || bytes.length < WINDOW) {
    return;
  }
  for (const form of forms(bytes)) {
    known.set(form.slice(0, WINDOW), what);
  }
}

/** Raw, hex, base64 at each place in a longer text, and as a Buffer or an array is printed. */
function forms(bytes: Buffer): string[] {
  const hex = bytes.toString("hex");
  const base64 = [0, 1, 2].map((before) =>
    Buffer.concat([Buffer.alloc(before), bytes])
      .toString("base64")
      .slice(Math.ceil((before * 8) / 6)),
  );
  const url = base64.map((text) => text.replaceAll("+", "-").replaceAll("/", "_"));
  const spaced = hex.replace(/..(?=.)/g, "$& ");
  return [
    bytes.toString("latin1"),
    hex,
    hex.toUpperCase(),
    ...base64,
    ...url,
    spaced,
    bytes.join(),
  ];
}

/** A file that holds a secret by its purpose. */
export function allowFile(path: string): void {
  allowedFiles.add(path);
}

/** The keys in the data file of an emulator are secrets, as often as they are rotated. */
export function emulatorKeys(path: string): void {
  keyFiles.add(path);
  allowFile(path);
}

/** The local KEK that an emulator wrapped so is a secret. */
export function wrappedLocalKek(text: string): void {
  wrappedLocalKeks.add(text);
}

/** What a process is started with: credentials, by themselves or in files, and data files. */
export function startedWith(command: readonly string[], env: Record<string, string>): void {
  for (const name of ["KMS_USER_ID", "KMS_API_KEY", "KMS_PIN"]) {
    secret(name, env[name] ?? "");
    const path = env[`${name}_FILE`];
    if (path !== undefined) {
      allowFile(path);
      secret(name, readText(path).trim());
    }
  }
  command.forEach((flag, index) => {
    if (flag === "--data" || flag === "--emulator-data") {
      emulatorKeys(command[index + 1] ?? "");
    }
  });
}

/** @throws Error when `output` has a secret; the message names it, and never shows it */
export function expectNoSecret(where: string, output: string | Uint8Array): void {
  learnKeys();
  const text = Buffer.from(output).toString("latin1");
  for (let at = 0; at + WINDOW <= text.length; at++) {
    const what = known.get(text.slice(at, at + WINDOW));
    if (what !== undefined) {
      throw new Error(`a secret (${what}) is at byte ${at} of ${where}`);
    }
  }
}

/** The same of the files below a directory, but for those that hold a secret by their purpose. */
export function expectNoSecretInFiles(directory: string): void {
  if (!existsSync(directory)) {
    return; // its test has removed it
  }
  for (const entry of readdirSync(directory, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    if (entry.isFile() && !allowedFiles.has(path) && statSync(path).size <= MAX_FILE_BYTES) {
      expectNoSecret(path, readFileSync(path));
    }
  }
}

function learnKeys(): void {
  for (const path of keyFiles) {
    const keys = [...readText(path).matchAll(/"([A-Za-z0-9+/]{43}=)"/g)].map((match) =>
      Buffer.from(match[1] ?? "", "base64"),
    );
    for (const key of keys) {
      secret("KEK", key);
      for (const wrapped of wrappedLocalKeks) {
        secret("local KEK", unwrap(key, Buffer.from(wrapped, "base64")));
      }
    }
  }
  if (keyFiles.size > 0) {
    wrappedLocalKeks.clear();
  }
}

/**
 * The emulator's `version (4) || IV (12) || encrypted || tag (16)`, by the CTR that is in GCM: who looks for
 * bytes need not authenticate them. Under another key it gives bytes that are nowhere.
 */
function unwrap(key: Buffer, wrapped: Buffer): Buffer {
  const counter = Buffer.concat([wrapped.subarray(4, 16), Buffer.from([0, 0, 0, 2])]);
  return counter.length === 16
    ? createDecipheriv("aes-256-ctr", key, counter).update(wrapped.subarray(16, -16))
    : Buffer.alloc(0);
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return ""; // not written yet, or gone with its test
  }
}
