/** A result at once, as nearly every time, or later where Key4C must be asked first. */
export type Soon<T> = T | Promise<T>;

/** Does the next step in the same turn where it can. */
export function soon<T, U>(value: Soon<T>, next: (value: T) => U): Soon<U> {
  return value instanceof Promise ? value.then(next) : next(value);
}
