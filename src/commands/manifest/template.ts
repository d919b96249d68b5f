/** Texts in the places of a template. */

/**
 * Replaces `{{name}}`: within a line by a text; alone on a line by any number of lines, each with that
 * line's indentation. Prometheus' own braces hold other names and stay.
 */
export function fill(
  template: string,
  values: Readonly<Record<string, string | readonly string[] | undefined>>,
): string {
  const lines = template
    .trimEnd()
    .split("\n")
    .flatMap((line) => {
      const [, indentation = "", name = ""] = /^( *)\{\{(\w+)\}\}$/.exec(line) ?? [];
      const value = values[name];
      return Array.isArray(value)
        ? value.map((one: string) => (one === "" ? "" : indentation + one))
        : [line.replace(/\{\{(\w+)\}\}/g, (whole, key: string) => String(values[key] ?? whole))];
    });
  return `${lines.join("\n")}\n`;
}

/** A text of YAML, whatever is in it: JSON's texts are YAML's, too, and `on`, `null` and `123` stay texts. */
export function quoted(text: string): string {
  return JSON.stringify(text);
}

/** The same where Kubernetes replaces `$(NAME)`: in the environment and the arguments of a container. */
export function quotedForContainer(text: string): string {
  return quoted(text.replaceAll("$", "$$$$")); // `$$$$` is replaceAll's own way to say `$$`
}
