/** The narrowest terminal that people have. */
const WIDTH = 80;

/** Lines of at most 80 characters, where words allow; the second and later ones stand under the first one's text. */
export function wrap(text: string, before = ""): string[] {
  return Bun.wrapAnsi(text, WIDTH - before.length)
    .split("\n")
    .map((line, index) => (index === 0 ? before : " ".repeat(before.length)) + line);
}
