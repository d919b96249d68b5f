/**
 * Goes through a profile against a live service, step by step. Each step shows what was sent and what came back,
 * and what each pointer of the profile found in it.
 */
import { randomBytes, timingSafeEqual } from "node:crypto";
import type { Config } from "../../config/config.ts";
import type { ErrorKind } from "../../failures/kinds.ts";
import { type PluginError, toPluginError } from "../../failures/plugin-error.ts";
import { type OperationName, readKcv } from "../../key4c/answer.ts";
import type { Key4COptions } from "../../key4c/calls.ts";
import { Key4C } from "../../key4c/client.ts";
import { resolvePointer } from "../../key4c/json.ts";
import type { Profile } from "../../key4c/profile.ts";
import { uses } from "../../key4c/template.ts";
import { LOCAL_KEK_BYTES } from "../../keys/wrapping.ts";
import { describeError } from "../../system/errors.ts";
import { createLog } from "../../system/log.ts";
import { configuredKeys, key4cOptions } from "../configured.ts";
import { Blackout } from "./blackout.ts";
import { type Check, fail, pass, skip } from "./check.ts";
import { Exchange, type Named, resultPointers } from "./exchange.ts";

const STEPS = [
  "describe",
  "encrypt",
  "decrypt",
  "another AAD",
  "a damaged ciphertext",
  "a key that there is not",
] as const;
type Step = (typeof STEPS)[number];

const SILENT = createLog({ level: "error", format: "text", write: () => {} });
const AAD = Buffer.from("key4c-kms-plugin profile check");
const OTHER_AAD = Buffer.from("key4c-kms-plugin another AAD");
const NO_SUCH_KEY = "key4c-no-such-key";

/** One attempt, so that each step shows one exchange. */
const ONCE = { newConnection: true };

/** @param isUsable whether the configuration is one that serve would take */
export async function checkProfile(config: Config, isUsable: boolean): Promise<Check[]> {
  if (!isUsable) {
    return STEPS.map((step) => skip(step, "the configuration is to be corrected first"));
  }
  const walk = new Walk(key4cOptions(config, undefined, SILENT), configuredKeys(config).kmsKeyId());
  try {
    return await walk.checks();
  } finally {
    walk.forget();
  }
}

/** A call's result, or its failure. */
type Outcome<T> = { readonly result: T } | { readonly failure: PluginError };

class Walk {
  readonly #profile: Profile;
  readonly #keyId: string;
  readonly #key4c: Key4C;
  /** A wrap by this one is one call: it does not describe the key before and after. */
  readonly #withoutDescribe: Key4C;
  readonly #localKek = randomBytes(LOCAL_KEK_BYTES);
  readonly #blackout: Blackout;
  /** Of the last call; undefined when nothing was sent. */
  #exchange: Exchange | undefined;

  constructor(options: Key4COptions, keyId: string) {
    const { profile } = options;
    const watched: Key4COptions = { ...options, fetch: (url, init) => this.#watch(url, init) };
    const { userId, apiKey, pin } = options.credentials();
    this.#profile = profile;
    this.#keyId = keyId;
    this.#key4c = new Key4C(watched);
    this.#withoutDescribe = new Key4C({ ...watched, profile: { ...profile, describe: undefined } });
    this.#blackout = new Blackout({ name: "local KEK", bytes: this.#localKek }, [
      ["KMS_USER_ID", userId],
      ["KMS_API_KEY", apiKey],
      ["KMS_PIN", pin],
    ]);
  }

  forget(): void {
    this.#localKek.fill(0);
  }

  /** In their order; after one without which the next make no sense, those are left out. */
  async checks(): Promise<Check[]> {
    const done: Check[] = [];
    const rest = (why: string) => [
      ...done,
      ...STEPS.slice(done.length).map((step) => skip(step, why)),
    ];
    const described = await this.#describe();
    done.push(described.check);
    if (described.isRefused) {
      return rest("a refused credential is not tried again: tokens lock");
    }
    const { check, ciphertext } = await this.#encrypt();
    done.push(check);
    if (ciphertext === undefined) {
      return rest("nothing is wrapped");
    }
    const decrypted = await this.#decrypt(ciphertext);
    done.push(decrypted);
    if (decrypted.result === "fail") {
      return rest("nothing is unwrapped");
    }
    done.push(await this.#anotherAad(ciphertext));
    done.push(await this.#damaged(ciphertext));
    done.push(await this.#unknownKey(ciphertext));
    return done;
  }

  async #describe(): Promise<{ readonly check: Check; readonly isRefused: boolean }> {
    const result = this.#profile.describe?.result;
    if (result === undefined) {
      const why = "the profile has none: no state is seen, and no version but that of encrypt";
      return { check: skip("describe", why), isRefused: false };
    }
    const outcome = await this.#call(() => this.#key4c.describe(this.#keyId, ONCE));
    const told = "result" in outcome ? versionOf(outcome.result) : "";
    const check = this.#judge("describe", outcome, `the key may be used; ${told}`);
    const kcv = check.result === "pass" ? result.kcv : undefined;
    if (kcv !== undefined && readKcv(this.#exchange?.document, kcv) === undefined) {
      const detail = `at ${kcv} is no key check value of 4 to 64 hexadecimal digits`;
      const remedy = "correct /describe/result/kcv, or leave it out";
      return { check: { ...check, ...fail("describe", detail, remedy) }, isRefused: false };
    }
    return { check, isRefused: "failure" in outcome && outcome.failure.kind === "denied" };
  }

  async #encrypt(): Promise<{ readonly check: Check; readonly ciphertext?: string }> {
    const outcome = await this.#call(() =>
      this.#withoutDescribe.wrap(this.#keyId, this.#localKek, AAD, ONCE),
    );
    const told = "result" in outcome ? versionOf(outcome.result) : "";
    return {
      check: this.#judge("encrypt", outcome, told),
      ...("result" in outcome && { ciphertext: outcome.result.ciphertext }),
    };
  }

  async #decrypt(ciphertext: string): Promise<Check> {
    const outcome = await this.#unwrap(this.#keyId, ciphertext, AAD);
    const told = "the very bytes that were wrapped";
    const check = this.#judge("decrypt", outcome, told);
    if ("result" in outcome && !timingSafeEqual(outcome.result, this.#localKek)) {
      const detail = "Key4C unwraps other bytes than were wrapped";
      const remedy = "compare the encodings of /encrypt/body and /decrypt/result";
      return { ...check, ...fail("decrypt", detail, remedy) };
    }
    return check;
  }

  /** What AAD is for: a ciphertext of another purpose must not open. */
  async #anotherAad(ciphertext: string): Promise<Check> {
    if (!uses(this.#profile.decrypt.body, "aad")) {
      return skip("another AAD", "the profile sends none");
    }
    const outcome = await this.#unwrap(this.#keyId, ciphertext, OTHER_AAD);
    return this.#mustBeInvalid(
      "another AAD",
      outcome,
      "see under which name the service takes AAD; if it takes none, leave {aad} out",
    );
  }

  /** A damaged object in etcd must not look like an outage of the service. */
  async #damaged(ciphertext: string): Promise<Check> {
    const outcome = await this.#unwrap(this.#keyId, damaged(ciphertext), AAD);
    return this.#mustBeInvalid("a damaged ciphertext", outcome, "do not use this operation");
  }

  #mustBeInvalid(step: Step, outcome: Outcome<Buffer>, remedyIfOpened: string): Check {
    const shown = this.#shown("decrypt");
    if ("result" in outcome) {
      return { ...fail(step, "the service gives the local KEK back", remedyIfOpened), shown };
    }
    const { kind } = outcome.failure;
    const detail = this.#counts(outcome.failure);
    const remedy =
      "list its code under /errors/codes, or its status under /errors/statuses: invalid";
    return { ...(kind === "invalid" ? pass(step, detail) : fail(step, detail, remedy)), shown };
  }

  /** Never asked of encrypt: there are services that make the key then. */
  async #unknownKey(ciphertext: string): Promise<Check> {
    const step: Step = "a key that there is not";
    const name = this.#key4c.canDescribe ? "describe" : "decrypt";
    const outcome = await (name === "describe"
      ? this.#call(() => this.#key4c.describe(NO_SUCH_KEY, ONCE))
      : this.#unwrap(NO_SUCH_KEY, ciphertext, AAD));
    const shown = this.#shown(name);
    if ("result" in outcome) {
      const remedy = "see that the request names the key by {keyId}";
      return { ...fail(step, "the service answers for any ID of a key", remedy), shown };
    }
    const detail = this.#counts(outcome.failure);
    const remedy =
      "let its code or status be keyNotFound: a wrong ID must not look like a revocation";
    const isMistaken = outcome.failure.kind === "keyUnusable";
    return { ...(isMistaken ? fail(step, detail, remedy) : pass(step, detail)), shown };
  }

  #unwrap(keyId: string, ciphertext: string, aad: Buffer): Promise<Outcome<Buffer>> {
    const sent = uses(this.#profile.decrypt.body, "aad") ? aad : undefined;
    return this.#call(() => this.#key4c.unwrap(keyId, ciphertext, sent, ONCE));
  }

  async #call<T>(call: () => Promise<T>): Promise<Outcome<T>> {
    this.#exchange = undefined;
    try {
      return { result: await call() };
    } catch (error) {
      return { failure: toPluginError(error) };
    }
  }

  async #watch(url: string, init: BunFetchRequestInit): Promise<Response> {
    const exchange = new Exchange(url, init);
    this.#exchange = exchange;
    const response = await fetch(url, init);
    await exchange.answered(response.clone() as Response); // Bun types its clone as that of undici
    return response;
  }

  /** A step that must succeed, and whose pointers must all find something. */
  #judge(name: OperationName, outcome: Outcome<unknown>, told: string): Check {
    const pointers = resultPointers(name, this.#profile);
    const shown = this.#shown(name, pointers);
    if ("failure" in outcome) {
      const detail = this.#counts(outcome.failure);
      return { ...fail(name, detail, this.#remedy(name, outcome.failure)), shown };
    }
    const document = this.#exchange?.document;
    const empty = pointers.filter(([, at]) => resolvePointer(document, at) === undefined);
    if (empty.length > 0) {
      const list = empty.map(([what, at]) => `${at} (${what})`).join(", ");
      const remedy = `correct /${name}/result, or leave out what the service does not tell`;
      return { ...fail(name, `nothing is at ${list}`, remedy), shown };
    }
    return { ...pass(name, told), shown };
  }

  #remedy(name: OperationName, failure: PluginError): string {
    if (failure.remedy !== undefined || this.#exchange?.isAnswered !== true) {
      return failure.remedy ?? "let `doctor` without --profile-check say what is in the way";
    }
    const remedies: { readonly [K in ErrorKind]?: string } = {
      denied: "correct KMS_USER_ID, KMS_API_KEY or KMS_PIN, or the headers of the profile",
      keyUnusable: "enable the key, or correct /describe/unusableStates",
      keyNotFound: `correct KMS_KEY_ID, or /${name}/path`,
      throttled: "wait before the next try",
    };
    return remedies[failure.kind] ?? `compare /${name} with what is sent and answered here`;
  }

  #counts(failure: PluginError): string {
    return `${this.#blackout.known(describeError(failure))}; it counts as ${failure.kind}`;
  }

  #shown(name: OperationName, pointers: readonly Named[] = []): string[] {
    return this.#exchange?.lines(name, this.#profile, pointers, this.#blackout) ?? [];
  }
}

function versionOf({ version }: { readonly version: number | undefined }): string {
  return version === undefined ? "no version is told" : `version ${version}`;
}

/** With one letter or digit, at three quarters of it, changed to another. */
function damaged(ciphertext: string): string {
  const places = [...ciphertext.matchAll(/[A-Za-z0-9]/g)].map(({ index }) => index);
  const at = places[Math.floor(places.length * 0.75)] ?? 0;
  const other = /[0a]/i.test(ciphertext[at] ?? "") ? "1" : "0";
  return ciphertext.slice(0, at) + other + ciphertext.slice(at + 1);
}
