/** A client whose requests and answers are watched, to be shown and explained. */
import { type ErrorKind, UNLISTED_CODE, UNREADABLE_ANSWER } from "../../failures/kinds.ts";
import { type PluginError, toPluginError } from "../../failures/plugin-error.ts";
import type { OperationName } from "../../key4c/answer.ts";
import type { Key4COptions } from "../../key4c/calls.ts";
import { Key4C } from "../../key4c/client.ts";
import { resolvePointer } from "../../key4c/json.ts";
import type { Profile } from "../../key4c/profile.ts";
import { describeError } from "../../system/errors.ts";
import type { Blackout } from "./blackout.ts";
import { type Check, fail, pass } from "./check.ts";
import { Exchange, type Named, resultPointers } from "./exchange.ts";

/** Here the answer is in sight. */
const FOR_A_RUNNING_PLUGIN: readonly (string | undefined)[] = [
  UNLISTED_CODE.remedy,
  UNREADABLE_ANSWER.remedy,
];

export type Call = OperationName | "login";

/** A call's result, or its failure. */
export type Outcome<T> = { readonly result: T } | { readonly failure: PluginError };

export class WatchedKey4C {
  readonly key4c: Key4C;
  readonly #profile: Profile;
  readonly #blackout: Blackout;
  /** Of the last call; undefined when nothing was sent. */
  #exchange: Exchange | undefined;

  constructor(options: Key4COptions, blackout: Blackout) {
    this.#profile = options.profile;
    this.#blackout = blackout;
    this.key4c = new Key4C({ ...options, fetch: (url, init) => this.#watch(url, init) });
  }

  /** The parsed answer to the last call. */
  get document(): unknown {
    return this.#exchange?.document;
  }

  async call<T>(call: () => Promise<T>): Promise<Outcome<T>> {
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
    // Before anything of it is shown. Only a login has one.
    const token = resolvePointer(exchange.document, this.#profile.login?.result.token ?? "/");
    this.#blackout.learn("token", typeof token === "string" ? token : undefined);
    return response;
  }

  /** A step that must succeed, and whose pointers must all find something. */
  judge(name: Call, outcome: Outcome<unknown>, told: string): Check {
    const pointers = resultPointers(name, this.#profile);
    const shown = this.shown(name, pointers);
    if ("failure" in outcome) {
      const detail = this.counts(outcome.failure);
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

  #remedy(name: Call, { kind, remedy }: PluginError): string {
    const told = FOR_A_RUNNING_PLUGIN.includes(remedy) ? undefined : remedy;
    if (told !== undefined || this.#exchange?.answer === undefined) {
      return told ?? "let `doctor` without --profile-check say what is in the way";
    }
    const remedies: { readonly [K in ErrorKind]?: string } = {
      denied:
        "correct KMS_USER_ID, KMS_API_KEY or KMS_PIN, or the headers of the profile; each run of doctor presents them again, and a token locks after a few wrong PINs",
      keyUnusable: "enable the key, or correct /describe/unusableStates or /errors/codes",
      keyNotFound: `correct KMS_KEY_ID, or /${name}/path`,
      throttled: "wait before the next try",
    };
    return (
      remedies[kind] ??
      this.notJson() ??
      this.#severalMembers(name) ??
      `compare /${name} with what is sent and answered here`
    );
  }

  /** What to do about an answer that is no JSON; undefined for one that is. */
  notJson(): string | undefined {
    const what = this.#exchange?.answer?.notJson;
    return (
      what &&
      this.#blackout.known(
        `the answer is ${what}: a profile reads nothing else. See what stands before the service, and whether the API has JSON under another path or Accept header`,
      )
    );
  }

  /** The ciphertext's pointer finds an object: IV and data apart. */
  #severalMembers(name: Call): string | undefined {
    const at = this.#profile.encrypt.result.ciphertext;
    const found =
      name === "encrypt" && typeof at === "string"
        ? resolvePointer(this.#exchange?.document, at)
        : undefined;
    if (typeof found !== "object" || found === null) {
      return undefined;
    }
    const members = Object.keys(found).map((one) => `${JSON.stringify(one)}: "${at}/${one}"`);
    return this.#blackout.known(
      `the ciphertext has several members: write { ${members.join(", ")} } in /encrypt/result/ciphertext, with those that decrypt wants, and each as {ciphertext.NAME} in /decrypt/body`,
    );
  }

  counts(failure: PluginError): string {
    return `${this.#blackout.known(describeError(failure))}; it counts as ${failure.kind}`;
  }

  shown(name: Call, pointers: readonly Named[] = []): string[] {
    return this.#exchange?.lines(name, this.#profile, pointers, this.#blackout) ?? [];
  }
}
