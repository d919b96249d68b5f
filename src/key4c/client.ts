import { PluginError } from "../failures/plugin-error.ts";
import type { CallOptions, KeyDescription, WrappedKek, WrappingService } from "../keys/wrapping.ts";
import { readKcv, readLocalKek, readVersion } from "./answer.ts";
import { Calls, type Key4COptions } from "./calls.ts";
import { hintOfMembers, readCiphertext, storedCiphertext } from "./ciphertext.ts";
import { resolvePointer } from "./json.ts";
import type { Profile } from "./profile.ts";
import { uses } from "./template.ts";

/** The client of Key4C: a profile over HTTPS. Every failure is a PluginError. */
export class Key4C implements WrappingService {
  readonly #profile: Profile;
  readonly #calls: Calls;

  constructor(options: Key4COptions) {
    this.#profile = options.profile;
    this.#calls = new Calls(options);
  }

  /** Logs in, if the profile has a login and there is no token yet. Calls do so by themselves. @throws PluginError */
  login(): Promise<void> {
    return this.#calls.login();
  }

  /** Whether the profile can ask for a key's version and state. */
  get canDescribe(): boolean {
    return this.#profile.describe !== undefined;
  }

  /** @throws PluginError `keyUnusable` when the key exists but must not be used */
  async describe(keyId: string, options: CallOptions = {}): Promise<KeyDescription> {
    const operation = this.#profile.describe;
    if (operation === undefined) {
      return { version: undefined, kcv: undefined, algorithm: undefined };
    }
    const { result, unusableStates } = operation;
    return this.#calls.call("describe", operation, { keyId }, options, ({ document }) => {
      const state = result.state && resolvePointer(document, result.state);
      if (unusableStates.some((one) => one === state)) {
        throw new PluginError("keyUnusable", `Key4C says that the state of the key is ${state}`, {
          isByContract: true,
        });
      }
      const algorithm = result.algorithm && resolvePointer(document, result.algorithm);
      return {
        version: readVersion("describe", document, result.version),
        kcv: readKcv(document, result.kcv),
        algorithm: typeof algorithm === "string" ? algorithm : undefined,
      };
    });
  }

  async wrap(
    keyId: string,
    localKek: Buffer,
    aad: Buffer,
    options: CallOptions = {},
  ): Promise<WrappedKek> {
    const operation = this.#profile.encrypt;
    const { result } = operation;
    const payload = { keyId, plaintext: localKek, aad };
    return this.#calls.call("encrypt", operation, payload, options, ({ document, sent }) => ({
      ciphertext: readCiphertext(document, sent, result.ciphertext),
      version: readVersion("encrypt", document, result.version),
      aadSent: uses(operation.body, "aad"),
    }));
  }

  async unwrap(
    keyId: string,
    ciphertext: string,
    aad: Buffer | undefined,
    options: CallOptions = {},
  ): Promise<Buffer> {
    const operation = this.#profile.decrypt;
    if (aad !== undefined && !uses(operation.body, "aad")) {
      throw new PluginError("invalid", "wrapped with AAD, which the profile does not send");
    }
    const source = this.#profile.encrypt.result.ciphertext;
    const payload = { keyId, ciphertext: storedCiphertext(ciphertext, source), aad };
    try {
      return await this.#calls.call("decrypt", operation, payload, options, ({ document }) =>
        readLocalKek(document, operation.result.plaintext),
      );
    } catch (error) {
      const hint = hintOfMembers(ciphertext, source);
      throw error instanceof PluginError && error.kind === "invalid" && hint !== ""
        ? new PluginError("unavailable", error.message + hint, { isUnlisted: true })
        : error;
    }
  }
}
