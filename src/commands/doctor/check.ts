import { printable } from "../printable.ts";

/** One line of the doctor. */
export interface Check {
  readonly check: string;
  /** `warn` says what may be wrong or will be. Neither `warn` nor `skip` is a failure. */
  readonly result: "pass" | "warn" | "fail" | "skip";
  /** What was found. Never a secret. */
  readonly detail: string;
  /** What to do; empty if the check passed or was skipped. */
  readonly remedy: string;
  /** The evidence, line by line. Never a secret. */
  readonly shown?: readonly string[];
}

export function pass(check: string, detail: string): Check {
  return { check, result: "pass", detail, remedy: "" };
}

export function warn(check: string, detail: string, remedy: string): Check {
  return { check, result: "warn", detail, remedy };
}

export function fail(check: string, detail: string, remedy: string): Check {
  return { check, result: "fail", detail, remedy };
}

/** Not checked, and why. */
export function skip(check: string, detail: string): Check {
  return { check, result: "skip", detail, remedy: "" };
}

const MARKS = { pass: "✓", warn: "!", fail: "✗", skip: "–" } as const;

/** One line for people, and its evidence below it. */
export function checkLine({ check, result, detail, remedy, shown = [] }: Check): string {
  const text = `${check}: ${detail}${remedy === "" ? "" : ` → ${remedy}`}`;
  return [
    `${MARKS[result]} ${printable(text)}`,
    ...shown.map((one) => `    ${printable(one)}`),
    "",
  ].join("\n");
}
