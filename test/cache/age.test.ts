import { expect, test } from "bun:test";
import { uptime } from "node:os";
import { ageOf, type Moment, readMoment } from "../../src/cache/age.ts";

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const NOW: Moment = { wallMs: 1_900_000_000_000, bootId: "a", bootMs: 10 * DAY_MS };
const sameBoot = (ms: number): Moment => ({ ...NOW, bootMs: NOW.bootMs - ms });
const earlierBoot = (ms: number): Moment => ({
  wallMs: NOW.wallMs - ms,
  bootId: "b",
  bootMs: 50 * DAY_MS,
});

test.each([
  ["now, same boot", sameBoot(0), { ms: 0, aheadMs: 0 }],
  ["within the maximum, same boot", sameBoot(DAY_MS), { ms: DAY_MS, aheadMs: 0 }],
  ["beyond it, same boot", sameBoot(DAY_MS + 1), undefined],
  [
    "the wall clock stepped a year ahead, same boot",
    { ...sameBoot(HOUR_MS), wallMs: 0 },
    { ms: HOUR_MS, aheadMs: 0 },
  ],
  [
    "the wall clock stepped back, same boot",
    { ...sameBoot(DAY_MS + 1), wallMs: NOW.wallMs },
    undefined,
  ],
  ["within the maximum, after a reboot", earlierBoot(DAY_MS), { ms: DAY_MS, aheadMs: 0 }],
  ["beyond it, after a reboot", earlierBoot(DAY_MS + 1), undefined],
  ["the clock an hour back, after a reboot", earlierBoot(-HOUR_MS), { ms: 0, aheadMs: HOUR_MS }],
  ["the clock back by the maximum", earlierBoot(-DAY_MS), { ms: 0, aheadMs: DAY_MS }],
  ["the clock back by more, such as to 1970", earlierBoot(-DAY_MS - 1), undefined],
])("the age of a confirmation: %s", (_, confirmed, age) => {
  expect(ageOf(confirmed, NOW, DAY_MS)).toEqual(
    age && { ...age, untilMs: NOW.wallMs + DAY_MS - age.ms },
  );
});

test("the moment is that of this machine", () => {
  const [fromMs, fromBootMs] = [Date.now(), uptime() * 1_000];
  const { wallMs, bootId, bootMs } = readMoment();
  expect(wallMs).toBeWithin(fromMs - 1_000, Date.now() + 1_000);
  expect(bootId).toMatch(/^[0-9a-f-]{36}$/);
  expect(bootMs).toBeWithin(fromBootMs - 2_000, uptime() * 1_000 + 2_000);
});
