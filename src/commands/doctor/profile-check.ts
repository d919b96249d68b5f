/**
 * Goes through a profile against a live service, step by step. Each step shows what was sent and what came back,
 * and what each pointer of the profile found in it.
 */
import { randomBytes, timingSafeEqual } from "node:crypto";
import type { Config } from "../../config/config.ts";
import { readKcv } from "../../key4c/answer.ts";
import type { Key4COptions } from "../../key4c/calls.ts";
import { storedCiphertext } from "../../key4c/ciphertext.ts";
import type { Key4C } from "../../key4c/client.ts";
import type { Profile } from "../../key4c/profile.ts";
import { uses } from "../../key4c/template.ts";
import { LOCAL_KEK_BYTES, type WrappedKek } from "../../keys/wrapping.ts";
import { silentLog } from "../../system/log.ts";
import { configuredKeys, key4cOptions } from "../configured.ts";
import { Blackout } from "./blackout.ts";
import { type Check, fail, pass, skip, warn } from "./check.ts";
import { checkLimits, literalSecrets } from "./profile-limits.ts";
import { anotherId, areAlike, damaged } from "./variations.ts";
import { type Outcome, WatchedKey4C } from "./watched.ts";

const STEPS = [
  "describe",
  "encrypt",
  "decrypt",
  "three ciphertexts",
  "another AAD",
  "a damaged ciphertext",
  "an unknown key",
] as const;
type Step = (typeof STEPS)[number];

const AAD = Buffer.from("key4c-kms-plugin profile check");
const OTHER_AAD = Buffer.from("key4c-kms-plugin another AAD");

/** One attempt, so that each step shows one exchange. */
const ONCE = { newConnection: true };

/** @param isUsable whether the configuration is one that serve would take */
export async function checkProfile(config: Config, isUsable: boolean): Promise<Check[]> {
  if (!isUsable) {
    return STEPS.map((step) => skip(step, "the configuration is to be corrected first"));
  }
  const options = key4cOptions(config, undefined, silentLog);
  const walk = new Walk(options, configuredKeys(config).kmsKeyId());
  try {
    return [...(await walk.checks()), ...checkLimits(options.profile)];
  } finally {
    walk.forget();
  }
}

class Walk {
  readonly #profile: Profile;
  readonly #keyId: string;
  readonly #key4c: Key4C;
  readonly #watched: WatchedKey4C;
  readonly #localKek = randomBytes(LOCAL_KEK_BYTES);

  constructor(options: Key4COptions, keyId: string) {
    const { userId, apiKey, pin } = options.credentials();
    this.#profile = options.profile;
    this.#keyId = keyId;
    const blackout = new Blackout({ name: "local KEK", bytes: this.#localKek }, [
      ["KMS_USER_ID", userId],
      ["KMS_API_KEY", apiKey],
      ["KMS_PIN", pin],
      ...literalSecrets(this.#profile).map(([header, text]) => [`of ${header}`, text] as const),
    ]);
    this.#watched = new WatchedKey4C(options, blackout);
    this.#key4c = this.#watched.key4c;
  }

  forget(): void {
    this.#localKek.fill(0);
  }

  /** In their order; after one without which the next make no sense, those are left out. */
  async checks(): Promise<Check[]> {
    const login = await this.#login();
    const done: Check[] = [];
    const rest = (why: string) => [
      ...login,
      ...done,
      ...STEPS.slice(done.length).map((step) => skip(step, why)),
    ];
    if (login.some(({ result }) => result === "fail")) {
      return rest("nothing can be asked without a token");
    }
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
    done.push(await this.#threeCiphertexts(ciphertext));
    done.push(await this.#anotherAad(ciphertext));
    done.push(await this.#damaged(ciphertext));
    done.push(await this.#unknownKey(ciphertext));
    return rest("");
  }

  async #login(): Promise<Check[]> {
    return this.#profile.login === undefined
      ? []
      : [
          this.#watched.judge(
            "login",
            await this.#watched.call(() => this.#key4c.login()),
            "a token",
          ),
        ];
  }

  async #describe(): Promise<{ readonly check: Check; readonly isRefused: boolean }> {
    const result = this.#profile.describe?.result;
    if (result === undefined) {
      const why = "the profile has none: no state is seen, and no version but that of encrypt";
      return { check: skip("describe", why), isRefused: false };
    }
    const outcome = await this.#watched.call(() => this.#key4c.describe(this.#keyId, ONCE));
    const told = "result" in outcome ? versionOf(outcome.result) : "";
    const check = this.#watched.judge("describe", outcome, `the key may be used; ${told}`);
    const kcv = check.result === "pass" ? result.kcv : undefined;
    if (kcv !== undefined && readKcv(this.#watched.document, kcv) === undefined) {
      const { pointer, encoding } = kcv;
      const detail = `at ${pointer} is no key check value of 4 to 64 hexadecimal digits, or of 2 to 32 bytes in ${encoding}`;
      const remedy =
        'correct /describe/result/kcv, such as { "pointer": "/kcv", "encoding": "base64url" }, or leave it out';
      return { check: { ...check, ...fail("describe", detail, remedy) }, isRefused: false };
    }
    return { check, isRefused: "failure" in outcome && outcome.failure.kind === "denied" };
  }

  async #encrypt(): Promise<{ readonly check: Check; readonly ciphertext?: string }> {
    const outcome = await this.#wrap(this.#localKek);
    const told = "result" in outcome ? versionOf(outcome.result) : "";
    return {
      check: this.#watched.judge("encrypt", outcome, told),
      ...("result" in outcome && { ciphertext: outcome.result.ciphertext }),
    };
  }

  async #decrypt(ciphertext: string): Promise<Check> {
    const outcome = await this.#unwrap(this.#keyId, ciphertext, AAD);
    const check = this.#watched.judge("decrypt", outcome, "the very bytes that were wrapped");
    if ("result" in outcome && !timingSafeEqual(outcome.result, this.#localKek)) {
      const detail = "Key4C unwraps other bytes than were wrapped";
      const remedy = "compare the encodings of /encrypt/body and /decrypt/result";
      return { ...check, ...fail("decrypt", detail, remedy) };
    }
    return check;
  }

  /**
   * Two local KEKs that begin alike must not have ciphertexts that do: then an IV was used twice, or there is none. A third
   * one that begins otherwise tells what is the same in every ciphertext, such as a header.
   */
  async #threeCiphertexts(first: string): Promise<Check> {
    const step: Step = "three ciphertexts";
    const half = this.#localKek.subarray(0, LOCAL_KEK_BYTES / 2);
    const alike = Buffer.concat([half, randomBytes(LOCAL_KEK_BYTES / 2)]);
    const [second, third] = [
      await this.#wrap(alike),
      await this.#wrap(randomBytes(LOCAL_KEK_BYTES)),
    ];
    alike.fill(0);
    if (!("result" in second && "result" in third)) {
      return fail(step, "a second wrap fails", "run the check again");
    }
    if (!areAlike(first, second.result.ciphertext, third.result.ciphertext)) {
      return pass(
        step,
        "no IV is used twice: local KEKs with the same beginning have different ciphertexts",
      );
    }
    return fail(
      step,
      "local KEKs with the same beginning have ciphertexts with the same beginning: the same IV is used twice. Under GCM or CTR this reveals the local KEKs",
      uses(this.#profile.encrypt.body, "random")
        ? "see whether the service takes the IV from the member that has {random:…}"
        : "write {random:12:hex} in the place of a constant IV in /encrypt/body; do not use this operation if there is none",
    );
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
    const source = this.#profile.encrypt.result.ciphertext;
    const outcome = await this.#unwrap(
      this.#keyId,
      damaged(storedCiphertext(ciphertext, source)),
      AAD,
    );
    return this.#mustBeInvalid("a damaged ciphertext", outcome, "do not use this operation");
  }

  #mustBeInvalid(step: Step, outcome: Outcome<Buffer>, remedyIfOpened: string): Check {
    const shown = this.#watched.shown("decrypt");
    if ("result" in outcome) {
      return { ...fail(step, "Key4C unwraps the local KEK all the same", remedyIfOpened), shown };
    }
    const detail = this.#watched.counts(outcome.failure);
    const remedy =
      this.#watched.notJson() ??
      "list its code under /errors/codes, or its status under /errors/statuses: invalid";
    const isInvalid = outcome.failure.kind === "invalid";
    return { ...(isInvalid ? pass(step, detail) : fail(step, detail, remedy)), shown };
  }

  /** Never asked of encrypt: there are services that make the key then. */
  async #unknownKey(ciphertext: string): Promise<Check> {
    const step: Step = "an unknown key";
    const keyId = anotherId(this.#keyId);
    const name = this.#key4c.canDescribe ? "describe" : "decrypt";
    const outcome = await (name === "describe"
      ? this.#watched.call(() => this.#key4c.describe(keyId, ONCE))
      : this.#unwrap(keyId, ciphertext, AAD));
    const shown = this.#watched.shown(name);
    if ("result" in outcome) {
      const remedy = `see that the request names the key by {keyId}, and that there is no key ${keyId}`;
      return { ...fail(step, `Key4C answers for the ID ${keyId} too`, remedy), shown };
    }
    const { kind } = outcome.failure;
    const detail = `${keyId}: ${this.#watched.counts(outcome.failure)}`;
    const remedy =
      "let its code or status be keyNotFound: a wrong ID must look neither like a revocation nor like an outage";
    const judged =
      kind === "keyNotFound"
        ? pass(step, detail)
        : (kind === "keyUnusable" ? fail : warn)(step, detail, this.#watched.notJson() ?? remedy);
    return { ...judged, shown };
  }

  #wrap(localKek: Buffer): Promise<Outcome<WrappedKek>> {
    return this.#watched.call(() => this.#key4c.wrap(this.#keyId, localKek, AAD, ONCE));
  }

  #unwrap(keyId: string, ciphertext: string, aad: Buffer): Promise<Outcome<Buffer>> {
    const sent = uses(this.#profile.decrypt.body, "aad") ? aad : undefined;
    return this.#watched.call(() => this.#key4c.unwrap(keyId, ciphertext, sent, ONCE));
  }
}

function versionOf({ version }: { readonly version: number | undefined }): string {
  return version === undefined ? "no version is told" : `version ${version}`;
}
