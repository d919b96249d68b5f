/** One line of the doctor. */
export interface Check {
  readonly check: string;
  /** `warn` says what may be wrong, or will be; like `skip` it is no failure. */
  readonly result: "pass" | "warn" | "fail" | "skip";
  /** What was found. Never a secret. */
  readonly detail: string;
  /** What to do; empty if it passed or was left out. */
  readonly remedy: string;
  /** What it is judged by, line by line. Never a secret. */
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
