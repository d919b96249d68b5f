/** What goes over the network in one call of a profile, and how it is shown. */
import type { OperationName } from "../../key4c/answer.ts";
import { notJson, readBody } from "../../key4c/body.ts";
import { type Pointer, resolvePointer } from "../../key4c/json.ts";
import type { Profile } from "../../key4c/profile.ts";
import { isObject, parsedJson } from "../../system/json.ts";
import type { Blackout } from "./blackout.ts";

/** What a pointer of a profile is for, and the pointer. */
export type Named = readonly [what: string, pointer: Pointer];

/** Where a profile finds what it wants of an answer; `{sent:iv}` is no such place. */
export function resultPointers(name: OperationName | "login", profile: Profile): Named[] {
  const results: readonly (readonly [string, unknown])[] = Object.entries({
    ...profile[name]?.result,
  });
  return results
    .flatMap(([what, at]) =>
      what === "ciphertext" && isObject(at)
        ? Object.entries(at).map(([member, one]) => [`${what}.${member}`, one] as const)
        : [[what, isObject(at) ? at["pointer"] : at] as const],
    )
    .flatMap(([what, at]): Named[] =>
      typeof at === "string" && at.startsWith("/") ? [[what, at]] : [],
    );
}

interface Answer {
  readonly status: number;
  readonly type: string;
  /** What it is instead of JSON, with its type. */
  readonly notJson?: string;
  readonly text?: string;
}

export class Exchange {
  readonly #method: string;
  readonly #url: string;
  readonly #headers: Headers;
  readonly #body: string | undefined;
  /** undefined: there is none. */
  answer: Answer | undefined;

  constructor(url: string, init: BunFetchRequestInit) {
    this.#method = init.method ?? "GET";
    this.#url = url;
    this.#headers = new Headers(init.headers as Headers); // the client makes them so
    this.#body = typeof init.body === "string" ? init.body : undefined;
  }

  async answered(response: Response): Promise<void> {
    const text = await readBody(response);
    const { status, headers } = response;
    const encoding = headers.get("Content-Encoding");
    const type = `${headers.get("Content-Type") ?? "no content type"}${encoding ? `, ${encoding}` : ""}`;
    const isJson = parsedJson(text ?? "") !== undefined;
    this.answer = {
      status,
      type,
      ...(text !== undefined && { text }),
      ...(!isJson && { notJson: `${notJson(response, text ?? "")} (Content-Type: ${type})` }),
    };
  }

  /** The parsed answer; undefined when it is not JSON. */
  get document(): unknown {
    return parsedJson(this.answer?.text ?? "");
  }

  /** Line by line: the request, the answer, and what each pointer found in it. */
  lines(
    name: OperationName | "login",
    profile: Profile,
    results: readonly Named[],
    blackout: Blackout,
  ): string[] {
    const headers = Object.keys(profile[name]?.headers ?? {}).map((header) => {
      const value = this.#headers.get(header);
      return `  ${header}: ${value === null ? "left out: it has no value" : blackout.text(value)}`;
    });
    const request = [
      `→ ${this.#method} ${blackout.known(this.#url)}`,
      ...headers,
      ...(this.#body === undefined
        ? []
        : [`  ${blackout.json(parsedJson(this.#body) ?? this.#body)}`]),
    ];
    if (this.answer === undefined) {
      return [...request, "← no answer"];
    }
    const { status, type, text } = this.answer;
    const isSuccess = this.#isSuccess(status, profile);
    const { success, errors } = profile;
    const pointers: Named[] = [
      ...(success === undefined ? [] : [["success", success.pointer] as const]),
      ...(isSuccess ? results : []),
      ...(isSuccess ? [] : (errors.code ?? []).map((at) => ["code", at] as const)),
    ];
    return [
      ...request,
      `← ${status} ${blackout.text(type)}`,
      `  ${text === undefined ? "larger than is read" : shownBody(text, isSuccess && (name === "decrypt" || name === "login"), blackout)}`,
      ...pointers.map(([what, at]) => `  ${what} at ${at}: ${this.#found(at, blackout)}`),
    ];
  }

  #isSuccess(status: number, { success }: Profile): boolean {
    return (
      status >= 200 &&
      status < 300 &&
      (success === undefined || resolvePointer(this.document, success.pointer) === success.equals)
    );
  }

  #found(at: Pointer, blackout: Blackout): string {
    const value = resolvePointer(this.document, at);
    return value === undefined ? `nothing; ${this.#nearest(at, blackout)}` : blackout.json(value);
  }

  /** What the answer has at the last place of the pointer that exists. */
  #nearest(at: Pointer, blackout: Blackout): string {
    const tokens = at.split("/");
    for (let length = tokens.length - 1; length > 0; length--) {
      const way = tokens.slice(0, length).join("/");
      const there = length === 1 ? this.document : resolvePointer(this.document, way);
      if (typeof there === "object" && there !== null) {
        const names = Object.keys(there).map((one) => blackout.text(one));
        return `${way || "the answer"} has ${names.join(", ") || "nothing in it"}`;
      }
    }
    return "the answer is no JSON object";
  }
}

/** @param isSecret whether the body holds a key or a token: then all long texts are blacked out, whatever their form */
function shownBody(text: string, isSecret: boolean, blackout: Blackout): string {
  const document = parsedJson(text);
  if (text === "") {
    return "empty";
  }
  return blackout.json(document ?? text, () => !isSecret);
}
