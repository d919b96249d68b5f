/** What log, /readyz and alerts say about a state and its cause: what is wrong, what still works, what to do. */

import { type ErrorKind, KINDS } from "../failures/kinds.ts";
import type { State } from "../keys/key-health.ts";

export const LEADS_TO: Readonly<Record<State, string>> = {
  starting: "there is no local KEK yet: Status, Encrypt and Decrypt fail",
  ok: "",
  degraded: "known local KEKs continue to work",
  expired: "longer than KMS_OUTAGE_GRACE: Status and Encrypt fail, known local KEKs still decrypt",
  mismatch: "Status and Encrypt fail, so that nothing more is lost; known local KEKs still decrypt",
  revoked: "the key is revoked: its local KEKs are dropped, every RPC on it fails",
};

/** A sentence for a state and its cause. */
export function headline(state: State, kind: ErrorKind | undefined): string {
  if (state === "ok") {
    return "Key4C is ok";
  }
  return kind === undefined ? LEADS_TO[state] : `${causeOf(kind).headline}; ${LEADS_TO[state]}`;
}

export function remedyOf(kind: ErrorKind): string {
  return causeOf(kind).remedy;
}

/** What no probe should meet has the words of `unavailable`. */
function causeOf(kind: ErrorKind) {
  return KINDS[kind].headline === undefined ? KINDS.unavailable : KINDS[kind];
}
