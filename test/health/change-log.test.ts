import { expect, test } from "bun:test";
import type { ErrorKind } from "../../src/failures/kinds.ts";
import { PluginError } from "../../src/failures/plugin-error.ts";
import { ChangeLog } from "../../src/health/change-log.ts";
import { Standing } from "../../src/keys/standing.ts";
import { TestClock } from "../clock.ts";
import { recordingLog } from "../support.ts";

/** A standing whose changes are logged; `hears` notes what was heard and tells the new lines. */
function setup(outageGraceMs?: number) {
  const clock = new TestClock();
  const standing = new Standing("demo", { outageGraceMs, revocationGraceMs: 60_000 }, clock);
  standing.hasLocalKek = true;
  const { log, lines } = recordingLog();
  const changes = new ChangeLog(log, clock);
  const hears = (kind?: ErrorKind, message = `fake: ${kind}`, isVerdict = false) => {
    const before = lines.length;
    standing.hear(kind && new PluginError(kind, message, { isVerdict }));
    changes.note(standing, "k4c-x.v1");
    return lines
      .slice(before)
      .map(({ level, state, kind }) => [level, state, kind ?? ""].join(" "));
  };
  return { clock, changes, hears, lines };
}

test("one line a change of state, and none while nothing changes", async () => {
  const { clock, hears, lines } = setup(60_000);
  expect(hears()).toEqual(["info ok "]);
  expect([hears(), hears()]).toEqual([[], []]);
  expect(hears("unavailable")).toEqual(["warn degraded unavailable"]);
  for (let second = 0; second < 59; second++) {
    await clock.pass(1_000);
    expect(hears("unavailable")).toEqual([]);
  }
  await clock.pass(1_000);
  expect(hears("unavailable")).toEqual(["error expired unavailable"]);
  expect(hears()).toEqual(["info ok "]);
  expect(lines[1]).toEqual({
    time: expect.any(String),
    level: "warn",
    msg: "Key4C is unreachable; known local KEKs continue to work",
    state: "degraded",
    kmsKeyId: "demo",
    keyId: "k4c-x.v1",
    kind: "unavailable",
    cause: "fake: unavailable",
    remedy: expect.stringContaining("do not restart a plugin that knows"),
  });
});

test("a new cause within one state is a line, with its own words", () => {
  const { hears, lines } = setup();
  hears("unavailable");
  expect(hears("denied")).toEqual(["warn degraded denied"]);
  expect(hears("keyUnusable", "disabled", true)).toEqual(["warn degraded keyUnusable"]);
  expect(hears("keyUnusable", "another text", true)).toEqual(["warn degraded keyUnusable"]);
  expect(lines.map(({ msg }) => String(msg).split(";")[0])).toEqual([
    "Key4C is unreachable",
    "Key4C refuses the credential",
    "Key4C says that the key is disabled or deleted",
    "Key4C says that the key is disabled or deleted",
  ]);
});

test("causes that take turns are told once in ten seconds each", async () => {
  const { clock, hears } = setup();
  const told: string[] = [];
  for (let ms = 0; ms < 60_000; ms += 500) {
    for (const line of hears(ms % 1_000 === 0 ? "unavailable" : "denied")) {
      told.push(`${ms} ${line}`);
    }
    await clock.pass(500);
  }
  const kinds = told.map((line) => line.split(" ").at(-1));
  expect(kinds.filter((kind) => kind === "unavailable").length).toBe(6);
  expect(kinds.filter((kind) => kind === "denied").length).toBe(6);
  const timesOf = (kind: string) =>
    told.filter((line) => line.endsWith(kind)).map((line) => Number(line.split(" ")[0]));
  for (const times of [timesOf("unavailable"), timesOf("denied")]) {
    for (const [at, ms] of times.slice(1).entries()) {
      expect(ms - (times[at] ?? 0)).toBeGreaterThanOrEqual(10_000);
    }
  }
});

test("a cause that was told just before is told again when it stays", async () => {
  const { clock, hears } = setup();
  hears("unavailable");
  await clock.pass(1_000);
  expect(hears("denied")).toEqual(["warn degraded denied"]);
  await clock.pass(1_000);
  expect(hears("unavailable")).toEqual([]);
  await clock.pass(7_000);
  expect(hears("unavailable")).toEqual([]);
  await clock.pass(1_000);
  expect(hears("unavailable")).toEqual(["warn degraded unavailable"]);
});

test("a new state is told at once, whatever its cause was told before", async () => {
  const { clock, hears } = setup();
  hears("unavailable");
  await clock.pass(100);
  expect(hears()).toEqual(["info ok "]);
  await clock.pass(100);
  expect(hears("unavailable")).toEqual(["warn degraded unavailable"]);
});

test("as long as a verdict holds its cause is told, and not what was heard after it", async () => {
  const { clock, hears } = setup();
  hears("keyUnusable", "disabled", true);
  hears("keyUnusable", "disabled", true);
  await clock.pass(60_000);
  expect(hears("keyUnusable", "disabled", true)).toEqual(["error revoked keyUnusable"]);
  await clock.pass(60_000);
  expect(hears("unavailable")).toEqual([]);
});

test("however many texts a cause has, only the last ones are remembered", () => {
  const { hears } = setup();
  hears("unavailable", "text 0");
  for (let text = 1; text <= 16; text++) {
    expect(hears("unavailable", `text ${text}`)).toEqual(["warn degraded unavailable"]);
  }
  expect(hears("unavailable", "text 16")).toEqual([]);
  expect(hears("unavailable", "text 1")).toEqual([]);
  expect(hears("unavailable", "text 0")).toEqual(["warn degraded unavailable"]); // forgotten
});

test("since tells when the state was entered, and not when its cause changed", async () => {
  const { changes, hears } = setup();
  hears("unavailable");
  const { since } = changes;
  await Bun.sleep(5);
  hears("denied");
  expect(changes.since).toBe(since);
  hears();
  expect(changes.since.getTime()).toBeGreaterThan(since.getTime());
});
