/** What a run has really met: a simulation that meets nothing finds nothing. */
import { STATES, type State } from "../../src/keys/key-health.ts";
import { endOf, FAULT_KINDS, type FaultKind, type History } from "./faults.ts";

/** A fault that happens once overlaps with what comes so soon after it. */
const ONCE_MS = 60_000;

export const HEARD = [
  "success",
  "unavailable",
  "throttled",
  "denied",
  "keyUnusable",
  "keyNotFound",
  "mismatch",
  "olderVersion",
] as const;

/**
 * A revoked key holds nothing that Key4C could fail to unwrap, and a describe that tells a version ends the revocation before
 * the version counts. (A key that only decrypts has the state `starting`, and may be lost.)
 */
const UNREACHABLE = new Set(["revoked/mismatch", "revoked/olderVersion"]);

const CELLS = STATES.flatMap((state) => HEARD.map((heard) => `${state}/${heard}`));

export class Coverage {
  histories = 0;
  steps = 0;
  simulatedMs = 0;
  faults = 0;
  rpcs = 0;
  key4cCalls = 0;
  writes = 0;
  writesUnderLost = 0;
  writesThatNobodyCouldKnow = 0;
  knownReads = 0;
  freshReads = 0;
  freshReadsOfLost = 0;
  pairsOfCalls = 0;
  steadyChecks = 0;
  healings = 0;
  verdicts = 0;
  publishedChecks = 0;
  revocations = 0;
  readsBeside = 0;
  unlistedReads = 0;
  materialChecks = 0;
  changesInPauses = 0;
  logLines = 0;
  takenOver = 0;
  readonly cells: Record<string, number> = {};
  readonly pairs: Record<string, number> = {};

  cell(state: State, heard: string): void {
    const name = `${state}/${heard}`;
    this.cells[name] = (this.cells[name] ?? 0) + 1;
  }

  history({ faults }: History): void {
    this.histories += 1;
    this.faults += faults.length;
    for (const [index, one] of faults.entries()) {
      const endMs = Math.max(endOf(one), one.atMs + ONCE_MS);
      for (const other of faults.slice(index + 1)) {
        if (other.atMs < endMs) {
          const name = pairOf(one.kind, other.kind);
          this.pairs[name] = (this.pairs[name] ?? 0) + 1;
        }
      }
    }
  }

  /** What another worker has met; it came as a message. */
  add(other: Coverage): void {
    sum(this, other);
    sum(this.cells, other.cells);
    sum(this.pairs, other.pairs);
  }

  /** Pairs of kinds that overlapped less often than that. */
  rarePairs(than: number): string[] {
    return FAULT_KINDS.flatMap((one, index) =>
      FAULT_KINDS.slice(index)
        .map((other) => pairOf(one, other))
        .filter((name) => (this.pairs[name] ?? 0) < than),
    );
  }

  get leastPair(): number {
    return Math.min(
      ...FAULT_KINDS.flatMap((one) =>
        FAULT_KINDS.map((other) => this.pairs[pairOf(one, other)] ?? 0),
      ),
    );
  }

  /** Cells of the table that were never visited. */
  get unvisitedCells(): string[] {
    return CELLS.filter((name) => !(name in this.cells) && !UNREACHABLE.has(name));
  }

  /** Those that cannot be, and were. */
  get impossibleCells(): string[] {
    return Object.keys(this.cells).filter((name) => UNREACHABLE.has(name));
  }

  text(): string {
    const width = 13;
    const row = (name: string, values: readonly (string | number)[]) =>
      name.padEnd(width) + values.map((one) => String(one).padStart(width)).join("");
    const cells = STATES.map((state) =>
      row(
        state,
        HEARD.map((heard) => {
          const name = `${state}/${heard}`;
          return this.cells[name] ?? (UNREACHABLE.has(name) ? "-" : 0);
        }),
      ),
    );
    const numbers = Object.entries(this)
      .filter(([, value]) => typeof value === "number")
      .map(([name, value]) => `${name} ${Math.round(value as number)}`); // just filtered
    return [
      numbers.join(", "),
      `pairs of kinds of faults: each overlapped at least ${this.leastPair} times`,
      "what a probe heard, by the state in which it did:",
      row("", HEARD),
      ...cells,
    ].join("\n");
  }
}

function pairOf(one: FaultKind, other: FaultKind): string {
  return one < other ? `${one}+${other}` : `${other}+${one}`;
}

function sum<T extends object>(into: T, from: T): void {
  for (const [name, value] of Object.entries(from)) {
    if (typeof value === "number") {
      Object.assign(into, { [name]: value + Number(Reflect.get(into, name) ?? 0) });
    }
  }
}
