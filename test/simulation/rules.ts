/** What must hold, whatever happens. Behind some stands the rule of the design that says so. */
export const RULES = {
  S1: "what is acknowledged is readable, or somebody says at once that it is not",
  S2: "local KEKs are dropped only when a key is revoked",
  S3: "Status, Encrypt and the state agree, and nothing is an unexpected error",
  S4: "Status and Encrypt tell one key_id, and none that is older than before",
  S5: "every call is answered before its deadline",
  S6: "what a fault leads to, and what its end does, comes within its bound",
  S7: "Key4C is asked no more than it wants",
  S8: "nothing is left over: timers, calls, keys in memory",
  S9: "what becomes current is given back to whoever connects now (R24)",
  S10: "what Key4C confirmed is readable after a restart or reboot without it; what is revoked is kept nowhere",
  S11: "a describe or an encrypt that fails, and what is wrong with other keys, stops no read (R15)",
  S12: "a key that is not configured is refused by both APIs (R13)",
  S13: "new material is noticed when only a key check value, or only encrypt, tells it (R17, R18)",
  S14: "unwraps in an hour are bounded, whatever Key4C answers to one of them (R19)",
  S15: "Retry-After suspends neither KMS_OUTAGE_GRACE nor a change of key (R20)",
  S16: "nothing is unwrapped for a caller once its key is revoked (R21)",
  S17: "a replica that lags makes no object invalid (R25)",
  S18: "a refused secret is presented once in 30 s, a refused PIN four times at most (R3, R16)",
  S19: "a revocation of any configured key is noticed within the bound while Key4C answers for that key (R14)",
  S20: "a new process counts each use that earlier ones have made of a local KEK under which it wraps",
} as const;

export type Rule = keyof typeof RULES;
