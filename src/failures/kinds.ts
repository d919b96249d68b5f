import { status } from "@grpc/grpc-js";

/**
 * Everything that can go wrong, as a closed list. A kind decides what the caller is told, whether the
 * call to Key4C is tried again, and how the event is labelled; the cause goes to the log only.
 */
export type ErrorKind =
  /** Key4C refused the connection, timed out, failed (5xx) or gave an answer that makes no sense. */
  | "unavailable"
  /** Key4C, or our own limit on calls to it, asks for fewer requests. */
  | "throttled"
  /** Key4C refused the credential. */
  | "denied"
  /** Key4C says that the key is disabled or deleted. */
  | "keyUnusable"
  /** Key4C knows no such key. Mostly the address or the credential is wrong, and not the key. */
  | "keyNotFound"
  /** Key4C answers, and does not unwrap a local KEK that it has wrapped: other key material. */
  | "mismatch"
  /** Key4C reports an older version of the key than it did, or two at once. */
  | "olderVersion"
  /** The request or the ciphertext is malformed, tampered with, or not of this key. */
  | "invalid"
  /** The plaintext is longer than a DEK may be. The caller knows its length: to say so tells nothing of keys. */
  | "tooLarge"
  /** A Decrypt of KMS v2 without a key_id, likewise. */
  | "noKeyId"
  /** The ciphertext names a Key4C key that is neither KMS_KEY_ID nor in KMS_PREVIOUS_KEY_IDS. */
  | "unknownKey"
  /** The caller's deadline is about to pass. */
  | "deadline"
  /** The caller has gone. */
  | "cancelled"
  /** A defect of ours. */
  | "internal";

interface KindFacts {
  /** gRPC status code that kube-apiserver gets. */
  readonly code: status;
  /** The whole public text. Constant, so that nothing from inside can leak through it. */
  readonly text: string;
  /** Whether the same call to Key4C may succeed when made again at once. */
  readonly retry: boolean;
  /** For log and /readyz: a clause about Key4C. Only what a probe can meet has one. */
  readonly headline?: string;
  /** What to do, and what not. */
  readonly remedy: string;
}

/** In an outage. */
export const DO_NOT_RESTART =
  "do not restart a plugin that knows local KEKs: it would lose them until Key4C is reachable again";

/** Of an `unavailable` whose service is there, and says what nobody has told us the meaning of. */
export const UNLISTED_CODE = {
  headline: "Key4C answers with a code that the profile does not list",
  remedy: `find out what the code means, and list it in KEY4C_PROFILE under /errors/codes; ${DO_NOT_RESTART}`,
} as const;

/** Of an answer that is no failure, and that the profile cannot read. */
export const UNREADABLE_ANSWER = {
  headline: "an answer of Key4C does not fit the profile",
  remedy: `let doctor --profile-check show the answer, and correct KEY4C_PROFILE; ${DO_NOT_RESTART}`,
} as const;
/** Of a login whose token is refused soon after it. */
export const SESSION_ENDED = {
  headline: "Key4C ends our session soon after the login",
  remedy: `wait for the next login, within a minute; if this stays, give each node a user of its own, because another login may end this session; ${DO_NOT_RESTART}`,
} as const;

/** Of `unavailable`, beside the usual one. */
export const OTHER_HEADLINES = [UNLISTED_CODE, UNREADABLE_ANSWER, SESSION_ENDED] as const;

export const KINDS: Readonly<Record<ErrorKind, KindFacts>> = {
  unavailable: {
    code: status.UNAVAILABLE,
    text: "Key4C is not available",
    retry: true,
    headline: "Key4C is unreachable",
    remedy: `check KEY4C_URL, the network, the proxy and the CA; ${DO_NOT_RESTART}`,
  },
  throttled: {
    code: status.RESOURCE_EXHAUSTED,
    text: "too many requests to Key4C",
    retry: false,
    headline: "Key4C asks for fewer calls",
    remedy: "wait, or ask for a higher rate; do not restart the plugin: that costs more calls",
  },
  denied: {
    code: status.FAILED_PRECONDITION,
    text: "Key4C refuses access",
    retry: false,
    headline: "Key4C refuses the credential",
    remedy:
      "renew the credential; the plugin's log names its files, and says whether they are read again or need a restart; do not restart this node or the plugin before doctor says that it is accepted: a restarted plugin could not read Secrets",
  },
  keyUnusable: {
    code: status.FAILED_PRECONDITION,
    text: "the Key4C key is disabled or deleted",
    retry: false,
    headline: "Key4C says that the key is disabled or deleted",
    remedy: "enable the key in Key4C, unless it was disabled on purpose",
  },
  keyNotFound: {
    code: status.FAILED_PRECONDITION,
    text: "Key4C knows no such key",
    retry: false,
    headline: "Key4C knows no such key",
    remedy:
      "check KEY4C_URL, KMS_USER_ID (another tenant?) and KMS_KEY_ID; do not restart plugin or API server",
  },
  mismatch: {
    code: status.FAILED_PRECONDITION,
    text: "Key4C does not unwrap what it wrapped",
    retry: false,
    headline: "Key4C does not unwrap a local KEK that it wrapped",
    remedy:
      "do not restart plugin or API server: only they can still read the data; see whether only this node is affected: then its address or credential is wrong; otherwise restore the key material, or rotate the key in Key4C or name another one, then rewrite all objects and prove it with inspect --verify (docs/runbooks/mismatch.md)",
  },
  olderVersion: {
    code: status.UNAVAILABLE,
    text: "Key4C answers an older version of the key",
    retry: false,
    headline: "Key4C answers with another version of the key than before",
    remedy:
      "check whether a replica of Key4C lags or a backup was restored; after a restore rotate the key until its version is higher than any that was ever used",
  },
  invalid: {
    code: status.INVALID_ARGUMENT,
    text: "the request is not valid",
    retry: false,
    remedy:
      "it is no ciphertext of this plugin, or was changed: check that all of it is there, as encrypt or kube-apiserver wrote it",
  },
  tooLarge: {
    code: status.INVALID_ARGUMENT,
    text: "the plaintext has more than 512 bytes",
    retry: false,
    remedy: "a DEK has 32 bytes; the plugin wraps keys, not data",
  },
  noKeyId: {
    code: status.INVALID_ARGUMENT,
    text: "the request has no key_id",
    retry: false,
    remedy: "send the key_id that Encrypt returned",
  },
  unknownKey: {
    code: status.NOT_FOUND,
    text: "the ciphertext belongs to a key that is not configured",
    retry: false,
    remedy:
      "list its key in KMS_PREVIOUS_KEY_IDS, if it was used before; a plugin of another KMS_KEY_ID wrote it",
  },
  deadline: {
    code: status.DEADLINE_EXCEEDED,
    text: "no result before the deadline",
    retry: false,
    remedy: "Key4C answers slowly, or not at all",
  },
  cancelled: {
    code: status.CANCELLED,
    text: "the call was cancelled",
    retry: false,
    remedy: "try again",
  },
  internal: {
    code: status.INTERNAL,
    text: "internal error",
    retry: false,
    remedy: "a defect of the plugin: please report it",
  },
};
