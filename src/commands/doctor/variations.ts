/** Texts made from others, for what a profile check asks: a damaged ciphertext, the ID of another key. */
import { randomInt } from "node:crypto";

/** So many characters in a row are alike by chance once in 2^80. */
const WINDOW = 20;
/** The third text agrees with the first in so many of them by chance, and in more where there is a header. */
const MAX_SAME = WINDOW / 2;

/** Whether two texts have a stretch in common, at one place, that a third one has not. */
export function areAlike(one: string, alike: string, other: string): boolean {
  for (let at = 0; at + WINDOW <= one.length; at++) {
    if (one.slice(at, at + WINDOW) !== alike.slice(at, at + WINDOW)) {
      continue;
    }
    const same = [...one.slice(at, at + WINDOW)].filter(
      (letter, index) => letter === other[at + index],
    );
    if (same.length <= MAX_SAME) {
      return true;
    }
  }
  return false;
}

/** With one letter or digit, at three quarters of it (of its longest member), changed to another. */
export function damaged(ciphertext: string | Readonly<Record<string, string>>): string {
  if (typeof ciphertext === "string") {
    const places = [...ciphertext.matchAll(/[A-Za-z0-9]/g)].map(({ index }) => index);
    const at = places[Math.floor(places.length * 0.75)] ?? 0;
    const other = /[0a]/i.test(ciphertext[at] ?? "") ? "1" : "0";
    return ciphertext.slice(0, at) + other + ciphertext.slice(at + 1);
  }
  const [longest = ""] = Object.keys(ciphertext).toSorted(
    (a, b) => (ciphertext[b]?.length ?? 0) - (ciphertext[a]?.length ?? 0),
  );
  return JSON.stringify({ ...ciphertext, [longest]: damaged(ciphertext[longest] ?? "") });
}

/** An ID of the same form, letter by letter: a service may refuse another form before it looks for the key. */
export function anotherId(id: string): string {
  const isHex = /^[^g-z]*$/i.test(id);
  const alphabets: readonly (readonly [RegExp, string])[] = [
    [/[0-9]/, "0123456789"],
    [/[a-z]/, isHex ? "abcdef" : "abcdefghijklmnopqrstuvwxyz"],
    [/[A-Z]/, isHex ? "ABCDEF" : "ABCDEFGHIJKLMNOPQRSTUVWXYZ"],
  ];
  const another = id.replace(/[0-9a-zA-Z]/g, (letter) => {
    const [, alphabet = letter] = alphabets.find(([of]) => of.test(letter)) ?? [];
    return alphabet[randomInt(alphabet.length)] ?? letter;
  });
  return another === id && /[0-9a-zA-Z]/.test(id) ? anotherId(id) : another;
}
