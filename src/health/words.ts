/** What log, /readyz and alerts say about a state and its cause: what is wrong, what still works, what to do. */
import type { State } from "../keys/standing.ts";
import type { ErrorKind } from "../system/errors.ts";

interface Words {
  /** A clause; its subject is Key4C. */
  readonly what: string;
  readonly remedy: string;
}

/** By the kind of failure that the last probe met. A kind that is not here has the words of `unavailable`. */
export const CAUSES: { readonly [K in ErrorKind]?: Words } & { readonly unavailable: Words } = {
  unavailable: {
    what: "Key4C is away",
    remedy:
      "check KEY4C_URL, the network, the proxy and the CA; do not restart a plugin that knows local KEKs: it would lose them until Key4C is back",
  },
  throttled: {
    what: "Key4C asks for fewer calls",
    remedy: "wait, or ask for a higher rate; do not restart the plugin: that costs more calls",
  },
  denied: {
    what: "Key4C refuses the credential",
    remedy:
      "renew KMS_USER_ID, KMS_API_KEY and KMS_PIN: their files are read again (a refused PIN is not tried again before it changes); do not restart this node or the plugin before that: a restarted plugin could not read Secrets",
  },
  keyUnusable: {
    what: "Key4C says that the key is disabled or deleted",
    remedy: "enable the key in Key4C, unless it was disabled on purpose",
  },
  keyNotFound: {
    what: "Key4C knows no such key",
    remedy:
      "check KEY4C_URL, KMS_USER_ID (another tenant?) and KMS_KEY_ID; do not restart plugin or API server",
  },
  mismatch: {
    what: "Key4C does not give back a local KEK that it wrapped",
    remedy:
      "restore the key material, or rotate the key in Key4C or name another one; then rewrite all objects and prove it with inspect --verify; do not restart plugin or API server before that: only they can still read the data (OPERATIONS.md, Mismatch)",
  },
  olderVersion: {
    what: "Key4C answers with another version of the key than before",
    remedy:
      "check whether a replica of Key4C lags or a backup was restored; after a restore rotate above every version that was ever used",
  },
};

export const LEADS_TO: Readonly<Record<State, string>> = {
  starting: "there is no local KEK yet: Status, Encrypt and Decrypt fail",
  ok: "",
  degraded: "known local KEKs go on",
  expired: "longer than KMS_OUTAGE_GRACE: Status and Encrypt fail, known local KEKs still decrypt",
  mismatch: "Status and Encrypt fail, so that nothing more is lost; known local KEKs still decrypt",
  revoked: "the key is revoked: its local KEKs are dropped, every RPC on it fails",
};

/** A sentence for a state and its cause. */
export function headline(state: State, kind: ErrorKind | undefined): string {
  if (state === "ok") {
    return "Key4C is ok";
  }
  return kind === undefined ? LEADS_TO[state] : `${wordsOf(kind).what}; ${LEADS_TO[state]}`;
}

export function remedyOf(kind: ErrorKind): string {
  return wordsOf(kind).remedy;
}

function wordsOf(kind: ErrorKind): Words {
  return CAUSES[kind] ?? CAUSES.unavailable;
}
