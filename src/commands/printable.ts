/**
 * A text from outside as a terminal may show it: whatever it would obey (control and format characters) is a
 * question mark, and so is what could break a line or a field.
 */
export function printable(text: string): string {
  return text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "?");
}
