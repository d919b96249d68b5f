import { expect, test } from "bun:test";
import type { ErrorKind } from "../../src/failures/kinds.ts";
import { PluginError } from "../../src/failures/plugin-error.ts";
import { ChangeLog } from "../../src/health/change-log.ts";
import { HealthRecord } from "../../src/keys/health-record.ts";
import { TestClock } from "../clock.ts";
import { recordingLog } from "../support.ts";

/** A key whose changes are logged; `meets` records what a probe met and tells the new lines. */
function setup(outageGraceMs?: number) {
  const clock = new TestClock();
  const health = new HealthRecord({ outageGraceMs, revocationGraceMs: 60_000 }, clock);
  health.hasLocalKek = true;
  const { log, lines } = recordingLog();
  const changes = new ChangeLog(log, clock);
  const meets = (kind?: ErrorKind, message = `fake: ${kind}`, isByContract = false) => {
    const before = lines.length;
    health.record(kind && new PluginError(kind, message, { isByContract }));
    changes.note({ kmsKeyId: "demo", current: { keyId: "k4c-x.v1" }, health });
    return lines
      .slice(before)
      .map(({ level, state, kind }) => [level, state, kind ?? ""].join(" "));
  };
  return { clock, changes, meets, lines };
}

test("one line a change of state, and none while nothing changes", async () => {
  const { clock, meets, lines } = setup(60_000);
  expect(meets()).toEqual(["info ok "]);
  expect([meets(), meets()]).toEqual([[], []]);
  expect(meets("unavailable")).toEqual(["warn degraded unavailable"]);
  for (let second = 0; second < 59; second++) {
    await clock.pass(1_000);
    expect(meets("unavailable")).toEqual([]);
  }
  await clock.pass(1_000);
  expect(meets("unavailable")).toEqual(["error expired unavailable"]);
  expect(meets()).toEqual(["info ok "]);
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
  const { meets, lines } = setup();
  meets("unavailable");
  expect(meets("denied")).toEqual(["warn degraded denied"]);
  expect(meets("keyUnusable", "disabled", true)).toEqual(["warn degraded keyUnusable"]);
  expect(meets("keyUnusable", "another text", true)).toEqual(["warn degraded keyUnusable"]);
  expect(lines.map(({ msg }) => String(msg).split(";")[0])).toEqual([
    "Key4C is unreachable",
    "Key4C refuses the credential",
    "Key4C says that the key is disabled or deleted",
    "Key4C says that the key is disabled or deleted",
  ]);
});

test("causes that take turns are told once in ten seconds each", async () => {
  const { clock, meets } = setup();
  const told: string[] = [];
  for (let ms = 0; ms < 60_000; ms += 500) {
    for (const line of meets(ms % 1_000 === 0 ? "unavailable" : "denied")) {
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
  const { clock, meets } = setup();
  meets("unavailable");
  await clock.pass(1_000);
  expect(meets("denied")).toEqual(["warn degraded denied"]);
  await clock.pass(1_000);
  expect(meets("unavailable")).toEqual([]);
  await clock.pass(7_000);
  expect(meets("unavailable")).toEqual([]);
  await clock.pass(1_000);
  expect(meets("unavailable")).toEqual(["warn degraded unavailable"]);
});

test("a new state is told at once, whatever its cause was told before", async () => {
  const { clock, meets } = setup();
  meets("unavailable");
  await clock.pass(100);
  expect(meets()).toEqual(["info ok "]);
  await clock.pass(100);
  expect(meets("unavailable")).toEqual(["warn degraded unavailable"]);
});

test("as long as a verdict holds its cause is told, and not what was heard after it", async () => {
  const { clock, meets } = setup();
  meets("keyUnusable", "disabled", true);
  meets("keyUnusable", "disabled", true);
  await clock.pass(60_000);
  expect(meets("keyUnusable", "disabled", true)).toEqual(["error revoked keyUnusable"]);
  await clock.pass(60_000);
  expect(meets("unavailable")).toEqual([]);
});

test("however many texts a cause has, only the last ones are remembered", () => {
  const { meets } = setup();
  meets("unavailable", "text 0");
  for (let text = 1; text <= 16; text++) {
    expect(meets("unavailable", `text ${text}`)).toEqual(["warn degraded unavailable"]);
  }
  expect(meets("unavailable", "text 16")).toEqual([]);
  expect(meets("unavailable", "text 1")).toEqual([]);
  expect(meets("unavailable", "text 0")).toEqual(["warn degraded unavailable"]); // forgotten
});

test("since tells when the state was entered, and not when its cause changed", async () => {
  const { changes, meets } = setup();
  meets("unavailable");
  const { since } = changes;
  await Bun.sleep(5);
  meets("denied");
  expect(changes.since).toBe(since);
  meets();
  expect(changes.since.getTime()).toBeGreaterThan(since.getTime());
});
