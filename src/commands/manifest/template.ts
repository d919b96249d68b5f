/**
 * Replaces `{{name}}`. Within a line a text takes its place. Alone on a line, any number of lines take its place, each
 * with the indentation of that line. Prometheus' own braces have other names, and stay.
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

/** A YAML string, whatever is in it. JSON strings are YAML strings too, and `on`, `null` and `123` stay strings. */
export function quoted(text: string): string {
  return JSON.stringify(text);
}

/** The same where Kubernetes replaces `$(NAME)`: in the environment and the arguments of a container. */
export function quotedForContainer(text: string): string {
  return quoted(text.replaceAll("$", "$$$$")); // replaceAll reads `$$$$` as `$$`
}
