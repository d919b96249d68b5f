/** The name that was meant, perhaps; undefined when none is near. */
export function nearest(text: string, names: readonly string[]): string | undefined {
  const ranked = names
    .map((name) => ({ name, distance: distance(text, name) }))
    .sort((one, other) => one.distance - other.distance);
  const [best] = ranked;
  const maxDistance = Math.min(3, Math.ceil(text.length / 3));
  if (best !== undefined && best.distance <= maxDistance) {
    return best.name;
  }
  return text.length >= 3 ? names.find((name) => name.startsWith(text)) : undefined;
}

/** `; did you mean …?`, or nothing. */
export function suggestion(text: string, names: readonly string[], prefix = ""): string {
  const name = nearest(text, names);
  return name === undefined ? "" : `; did you mean ${prefix}${name}?`;
}

/** How many letters to insert, delete, replace or swap with their neighbour (optimal string alignment). */
function distance(from: string, to: string): number {
  let before: number[] = [];
  let row = Array.from({ length: to.length + 1 }, (_, index) => index);
  for (let i = 1; i <= from.length; i += 1) {
    const next = [i];
    for (let j = 1; j <= to.length; j += 1) {
      const isSame = from[i - 1] === to[j - 1];
      const isSwap = i > 1 && j > 1 && from[i - 1] === to[j - 2] && from[i - 2] === to[j - 1];
      next[j] = Math.min(
        (row[j] ?? 0) + 1,
        (next[j - 1] ?? 0) + 1,
        (row[j - 1] ?? 0) + (isSame ? 0 : 1),
        ...(isSwap ? [(before[j - 2] ?? 0) + 1] : []),
      );
    }
    before = row;
    row = next;
  }
  return row[to.length] ?? 0;
}
