/** What must hold, whatever happens. The numbers behind R are those of the design, where a rule stands for them. */
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
} as const;

export type Rule = keyof typeof RULES;
