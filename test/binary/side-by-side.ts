import { beforeAll, test } from "bun:test";

/**
 * A test for each scenario, all of them played at once: most of their time they wait. Each has its own plugins and its
 * own Key4C.
 */
export function sideBySide(
  scenarios: Readonly<Record<string, () => Promise<void>>>,
  timeoutMs: number,
): void {
  const names = Object.keys(scenarios);
  let results: readonly PromiseSettledResult<void>[] = [];
  beforeAll(async () => {
    results = await Promise.allSettled(Object.values(scenarios).map((play) => play()));
  }, timeoutMs);
  test.each(names)("%s", (name) => {
    const result = results[names.indexOf(name)];
    if (result?.status !== "fulfilled") {
      throw result?.reason ?? new Error("not played to its end");
    }
  });
}
