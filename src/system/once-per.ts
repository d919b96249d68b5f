/**
 * What depends on an object alone is computed once for each: the same answer as from `make`, at the price of a look-up.
 * @param make must not depend on anything that changes
 */
export function oncePer<K extends object, V>(make: (of: K) => V): (of: K) => V {
  const made = new WeakMap<K, V>();
  return (of) => {
    let value = made.get(of);
    if (value === undefined) {
      value = make(of);
      made.set(of, value);
    }
    return value;
  };
}
