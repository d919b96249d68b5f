import { beforeAll, describe, test } from "bun:test";

type Scenarios = Readonly<Record<string, () => Promise<void>>>;

/** SCENARIOS=REGEX plays some only, for whoever works on one. */
const WANTED = new RegExp(process.env["SCENARIOS"] ?? "");

/** So many at once: most of their time they wait, but the first probe of each plugin has 2.5 s. */
const WIDTH = 12;

/**
 * A test for each scenario of each group, several of them played at once. Each has its own plugins and its own Key4C.
 */
export function sideBySide(
  groups: Readonly<Record<string, Scenarios>>,
  timeoutMs: number,
  width = WIDTH,
): void {
  const wanted = Object.entries(groups).map(
    ([group, scenarios]) =>
      [group, Object.entries(scenarios).filter(([name]) => WANTED.test(name))] as const,
  );
  const results = new Map<() => Promise<void>, PromiseSettledResult<void>>();
  beforeAll(async () => {
    const plays = wanted.flatMap(([, scenarios]) => scenarios.map(([, play]) => play));
    const waiting = [...plays];
    const playOn = async () => {
      for (let play = waiting.shift(); play !== undefined; play = waiting.shift()) {
        const [result] = await Promise.allSettled([play()]);
        results.set(play, result);
      }
    };
    await Promise.all(Array.from({ length: Math.min(width, plays.length) }, playOn));
  }, timeoutMs);
  for (const [group, scenarios] of wanted) {
    describe(group, () => {
      test.each(scenarios)("%s", (_, play) => {
        const result = results.get(play);
        if (result?.status !== "fulfilled") {
          throw result?.reason ?? new Error("not played to its end");
        }
      });
    });
  }
}
