/** The narrowest terminal that people have. */
const WIDTH = 80;

/** Lines of at most 80 characters, where words allow; the second and later ones stand under the first one's text. */
export function wrap(text: string, before = ""): string[] {
  const result: string[] = [];
  let line = before;
  let isEmpty = true;
  for (const word of text.split(" ")) {
    if (!isEmpty && line.length + 1 + word.length > WIDTH) {
      result.push(line);
      line = " ".repeat(before.length);
      isEmpty = true;
    }
    line += isEmpty ? word : ` ${word}`;
    isEmpty = false;
  }
  return [...result, line];
}
