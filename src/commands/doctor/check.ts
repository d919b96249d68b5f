/** One line of the doctor. */
export interface Check {
  readonly check: string;
  readonly result: "pass" | "fail" | "skip";
  /** What was found. Never a secret. */
  readonly detail: string;
  /** What to do; empty unless it failed. */
  readonly remedy: string;
  /** What it is judged by, line by line. Never a secret. */
  readonly shown?: readonly string[];
}

export function pass(check: string, detail: string): Check {
  return { check, result: "pass", detail, remedy: "" };
}

export function fail(check: string, detail: string, remedy: string): Check {
  return { check, result: "fail", detail, remedy };
}

/** Not checked, and why. */
export function skip(check: string, detail: string): Check {
  return { check, result: "skip", detail, remedy: "" };
}
