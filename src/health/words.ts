/** What log, /readyz and alerts say about a state and its cause: what is wrong, what still works, what to do. */

import { type ErrorKind, KINDS } from "../failures/kinds.ts";
import type { PluginError } from "../failures/plugin-error.ts";
import type { State } from "../keys/key-health.ts";

export const LEADS_TO: Readonly<Record<State, string>> = {
  starting: "there is no local KEK yet: Status and Encrypt fail, Decrypt asks Key4C",
  ok: "",
  degraded: "known local KEKs continue to work",
  expired: "longer than KMS_OUTAGE_GRACE: Status and Encrypt fail, known local KEKs still decrypt",
  mismatch: "Status and Encrypt fail, so that nothing more is lost; known local KEKs still decrypt",
  revoked: "the key is revoked: its local KEKs are dropped, every RPC on it fails",
};

/** A sentence for a state and its cause. */
export function headline(
  state: State,
  failure: Pick<PluginError, "kind" | "headline"> | undefined,
): string {
  if (state === "ok") {
    return "Key4C is ok";
  }
  return failure === undefined
    ? LEADS_TO[state]
    : `${failure.headline ?? causeOf(failure.kind).headline}; ${LEADS_TO[state]}`;
}

const KEEP_RUNNING =
  "; do not restart this node or the plugin before that: a restarted plugin could not read Secrets";

/** @param renewal how this process comes by another credential; undefined: nobody knows */
export function remedyOf(kind: ErrorKind, state: State, renewal: string | undefined): string {
  if (kind !== "denied" || renewal === undefined) {
    return causeOf(kind).remedy;
  }
  return state === "starting" ? renewal : renewal + KEEP_RUNNING; // a start has nothing to lose
}

/** What no probe should meet has the words of `unavailable`. */
function causeOf(kind: ErrorKind) {
  return KINDS[kind].headline === undefined ? KINDS.unavailable : KINDS[kind];
}
