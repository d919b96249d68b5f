/** What a cell of the campaign must show, by REFERENCE.md's tables of states and statuses. */
import { status } from "@grpc/grpc-js";
import type { Role } from "./callers.ts";
import { isMet, type Row } from "./cell.ts";
import { type Fault, LASTING, type Situation } from "./faults.ts";
import { PROBE_INTERVAL_MS } from "./plugin.ts";

/** kube-apiserver's default deadline; the plugin answers 100 ms before. */
const DEADLINE_MS = 3_000;
/** A probe comes up to a tenth of the interval late, and is tried twice with up to 100 ms between. */
const PROBE_MS = PROBE_INTERVAL_MS * 1.1 + 100;
/** What a busy machine may add to any time. */
const SLACK_MS = 2_000;
/** At rest the plugin has 65 MiB, under these callers without a fault 85; 64 MB held once is too much. */
const MAX_MIB = 140;
/** 64 unwraps, a probe and a renewal, and as many again that are just closing. */
const MAX_CONNECTIONS = 2 * (64 + 2);
/**
 * 26 unwraps under way that are tried again every 250 ms, as MAX_RETRY_DELAY_MS makes them, for as long as a fault is
 * held; or 256 local KEKs once; probes, renewals; and as much again.
 */
const MAX_REQUESTS = 600;
/** A cause that is new, at most one in a probe. */
const MAX_STATE_LINES = 10;
/** One a kind and API in 10 s for failed RPCs, one in 5 s for a renewal that came to nothing. */
const MAX_OTHER_LINES = 12;
/** The same where a fault lasts. */
const MAX_LASTING_LINES = 100;
/** MAX_THROTTLED_PAUSE_MS in src/keys/standing.ts, with its jitter: where the fault lasts, pauses are as long. */
const MAX_LASTING_PAUSE_MS = 33_000;

/** Everything about a row that is not as it must be. */
export function complaints(fault: Fault, situation: Situation, row: Row): string[] {
  const { during, between, after, leaked } = row;
  const found = [during, between, after].flatMap(({ defects }) => [...defects]);
  const want = (holds: boolean, complaint: string) => {
    if (!holds) {
      found.push(complaint);
    }
  };
  for (const role of ["status", "encrypt", "known", "unseen"] as const) {
    const may = allowed(fault, situation, role);
    for (const code of during.codesOf(role)) {
      want(may.includes(code), `${role}: ${status[code]} in the fault`);
    }
    for (const code of between.codesOf(role)) {
      want([status.OK, ...may].includes(code), `${role}: ${status[code]} before the recovery`);
    }
    for (const code of after.codesOf(role)) {
      want(code === status.OK, `${role}: ${status[code]} after the recovery`);
    }
  }
  want(isMet(fault, during) || situation === "at start", "the fault was not met");
  const longestMs = longestOf(row);
  // A caller and a plugin that the machine keeps from work see each other's answers late.
  want(longestMs <= DEADLINE_MS + 2 * row.stallMs, `an RPC ended after ${longestMs} ms`);
  const isNoticed = leadsAway(fault, situation);
  want(row.state === stateIn(fault, situation), `state ${row.state}`);
  const slackMs = SLACK_MS + 2 * row.stallMs;
  want(row.noticedMs <= PROBE_MS + 2 * fault.attemptMs + slackMs, `noticed ${row.noticedMs}`);
  const learnMs =
    situation === LASTING ? Math.max(fault.learnMs, MAX_LASTING_PAUSE_MS) : fault.learnMs;
  const recoveryMs = PROBE_MS + fault.attemptMs + learnMs;
  want(row.recoveredMs <= recoveryMs + slackMs, `recovered after ${row.recoveredMs} ms`);
  want(row.lastKekMs <= fault.lastKekMs + slackMs, "a local KEK stayed unreadable");
  want(row.peakMiB <= MAX_MIB, `${row.peakMiB} MiB`);
  want(row.peakConnections <= MAX_CONNECTIONS, `${row.peakConnections} connections`);
  // A local KEK that Key4C calls invalid is one of many, until a probe finds that all of them are.
  const rpcs = fault.firstCode === undefined ? 0 : during.count;
  want(row.requests <= MAX_REQUESTS + rpcs, `${row.requests} requests`);
  // Into the state and out of it, with each new cause; a start that meets no fault has the line that says ok.
  const stateLines = isNoticed ? 2 : situation === "at start" ? 1 : 0;
  const maxStateLines = isNoticed ? MAX_STATE_LINES : stateLines;
  want(
    row.stateLines >= stateLines && row.stateLines <= maxStateLines,
    `${row.stateLines} lines of state, not ${stateLines} to ${maxStateLines}`,
  );
  const { otherLines } = row;
  const maxOtherLines = situation === LASTING ? MAX_LASTING_LINES : MAX_OTHER_LINES;
  want(otherLines.length <= maxOtherLines, `other lines, such as ${otherLines.slice(-20)}`);
  want(!leaked, "a request went where a redirect pointed");
  return found;
}

export function longestOf({ during, between, after }: Row): number {
  return Math.max(during.longestMs, between.longestMs, after.longestMs);
}

/** Whether the probe meets the fault. */
export function leadsAway(fault: Fault, situation: Situation): boolean {
  return situation === "at start" ? fault.startCode !== status.OK : fault.state === "degraded";
}

export function stateIn(fault: Fault, situation: Situation): string {
  if (situation === LASTING) {
    return fault.lastingState ?? "ok";
  }
  return leadsAway(fault, situation) ? (situation === "at start" ? "starting" : "degraded") : "ok";
}

/** Whether callers wait: for what is tried again, or for an attempt that hangs. */
function waits({ code, attemptMs }: Fault): boolean {
  return code === status.UNAVAILABLE || attemptMs > 0;
}

/** What RPCs may end with that began in the fault. Some end after it. */
function allowed(fault: Fault, situation: Situation, role: Role): status[] {
  const isStart = situation === "at start";
  const late = waits(fault) ? [status.DEADLINE_EXCEEDED] : [];
  if (role === "unseen") {
    const known = situation === "idle" ? [] : [status.OK, ...late];
    const first = fault.firstCode === undefined ? [] : [fault.firstCode];
    return [fault.code, ...first, ...known, ...(isStart ? [fault.startCode] : [])];
  }
  if (isStart) {
    // As the probe found it; Status waits for the first one for 2 s.
    return role === "status" ? [fault.startCode, status.UNAVAILABLE] : [fault.startCode, ...late];
  }
  const state = stateIn(fault, situation);
  const isRefused = state === "revoked" || (state === "mismatch" && role !== "known");
  return isRefused ? [status.OK, fault.code] : [status.OK];
}
