import { decodeBytes, ENCODINGS } from "../../key4c/template.ts";

/** A piece of a secret of so many characters is blacked out. */
const WINDOW = 8;
/** A shorter secret, in any form, is found in every text: who uses one hides nothing, and would read nothing. */
const MIN_CHARACTERS = 4;
/** Longer texts without a space that look random may be somebody's key or token. */
const MIN_RANDOM_CHARACTERS = 16;
const MAX_SHOWN_CHARACTERS = 2_000;

/** Makes a text fit to be shown: blacks out known secrets by their value, and others by their look. */
export class Blackout {
  readonly #key: { readonly name: string; readonly bytes: Buffer };
  /** By length: pieces of secrets, and whose they are. */
  readonly #pieces = new Map<number, Map<string, string>>();

  /** @param key blacked out like the texts; where a text is nothing but the key, its name and encoding are shown */
  constructor(
    key: { readonly name: string; readonly bytes: Buffer },
    texts: readonly (readonly [name: string, text: string | undefined])[],
  ) {
    this.#key = key;
    this.#learn(key.name, key.bytes);
    for (const [name, text] of texts) {
      this.learn(name, text);
    }
  }

  /** Blacks out this text too, from now on. */
  learn(name: string, text: string | undefined): void {
    if (text !== undefined && text.length >= MIN_CHARACTERS) {
      this.#learn(name, Buffer.from(text));
      this.#learnForm(name, text);
      this.#learnForm(name, encodeURIComponent(text));
      this.#learnForm(name, new URLSearchParams([["", text]]).toString().slice(1));
    }
  }

  /** For our own text: blacks out only what is known to be secret. */
  known(text: string): string {
    const owners = this.#ownersOf(text);
    let shown = "";
    for (let at = 0; at < text.length; at++) {
      const owner = owners[at];
      if (owner === undefined) {
        shown += text[at];
      } else if (owner !== owners[at - 1]) {
        shown += `█ ${owner} █`;
      }
    }
    return shown;
  }

  /** For a text of the service: also blacks out what looks like a secret. */
  text(text: string): string {
    const encoding = ENCODINGS.find((one) => decodeBytes(text, one)?.equals(this.#key.bytes));
    if (encoding !== undefined) {
      return `█ ${this.#key.name} in ${encoding} █`;
    }
    return this.known(text).replace(/[A-Za-z0-9+/_-]+={0,2}/g, (run) =>
      looksRandom(run) ? sizeOf(run) : run,
    );
  }

  /** For a document of the service, in one line. @param isShown whether a long text may be shown; else its size is */
  json(document: unknown, isShown: (text: string) => boolean = () => true): string {
    const shown = JSON.stringify(document, (_, value: unknown) => {
      if (Array.isArray(value) && value.length >= WINDOW && value.every(Number.isInteger)) {
        return `█ ${value.length} numbers █`;
      }
      if (typeof value !== "string") {
        return value;
      }
      const text = this.text(value);
      return text === value && text.length >= WINDOW && !isShown(text) ? sizeOf(text) : text;
    });
    return cut(this.known(shown ?? "nothing")); // names of members too
  }

  #learn(name: string, bytes: Buffer): void {
    const hex = bytes.toString("hex");
    const base64 = [0, 1, 2].map((before) =>
      Buffer.concat([Buffer.alloc(before), bytes])
        .toString("base64")
        .replace(/=+$/, "")
        .slice(Math.ceil((before * 8) / 6)),
    );
    const url = base64.map((text) => text.replaceAll("+", "-").replaceAll("/", "_"));
    for (const form of [hex, hex.toUpperCase(), ...base64, ...url]) {
      if (form.length >= MIN_CHARACTERS) {
        this.#learnForm(name, form);
      }
    }
    this.#learnForm(name, bytes.toString("latin1"));
  }

  #learnForm(name: string, form: string): void {
    const length = Math.min(WINDOW, form.length);
    const pieces = this.#pieces.get(length) ?? new Map<string, string>();
    this.#pieces.set(length, pieces);
    for (let at = 0; at + length <= form.length; at++) {
      pieces.set(form.slice(at, at + length), name);
    }
  }

  /** For each character the secret that it is a part of. */
  #ownersOf(text: string): (string | undefined)[] {
    const owners = new Array<string | undefined>(text.length).fill(undefined);
    for (const [length, pieces] of this.#pieces) {
      for (let at = 0; at + length <= text.length; at++) {
        const owner = pieces.get(text.slice(at, at + length));
        if (owner !== undefined) {
          owners.fill(owner, at, at + length);
        }
      }
    }
    return owners;
  }
}

/** Hex, or letters of both cases with digits: words and constants do not look like that. */
function looksRandom(text: string): boolean {
  return (
    text.length >= MIN_RANDOM_CHARACTERS &&
    /\d/.test(text) &&
    (/^[0-9A-Fa-f]+$/.test(text) || (/[a-z]/.test(text) && /[A-Z]/.test(text)))
  );
}

/** Describes a text by its length, and by the number of bytes that it may encode. */
export function sizeOf(text: string): string {
  const fitting = ENCODINGS.filter((one) => (decodeBytes(text, one)?.length ?? 0) > 0);
  const [encoding = ""] = fitting.includes("hex") ? ["hex"] : [fitting.join(" or ")];
  const bytes = decodeBytes(text, fitting.at(-1) ?? "hex")?.length ?? 0;
  const maybe = bytes > 0 ? `, ${encoding} of ${bytes} bytes` : "";
  return `█ ${text.length} characters${maybe} █`;
}

function cut(text: string): string {
  return text.length <= MAX_SHOWN_CHARACTERS
    ? text
    : `${text.slice(0, MAX_SHOWN_CHARACTERS)}… (${text.length} characters)`;
}
