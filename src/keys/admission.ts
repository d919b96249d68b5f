/** Whether Key4C may be asked now for what callers of a key need, and what follows where it did not answer one. */
import { PluginError } from "../failures/plugin-error.ts";
import type { Key } from "./key.ts";

/** Why Key4C must not be asked now for a local KEK that a caller needs; undefined if it may be asked. */
export function refusalOfCaller(key: Key): PluginError | undefined {
  const { health, circuits } = key;
  const { revocation, refusalOfCallers } = health;
  if (revocation !== undefined) {
    return revoked(revocation);
  }
  const failure = refusalOfCallers ?? circuits.refusalToUnwrap(key.pinned.length > 0);
  if (failure === undefined) {
    return undefined;
  }
  health.wantProbe();
  return new PluginError(failure.kind, "Key4C is not asked: the last call failed", {
    cause: failure,
  });
}

/** Whether Key4C is known not to wrap, or not to unwrap what it wraps. */
export function isWrappingFutile({ health, circuits }: Key): boolean {
  const refusal = health.refusalOfCallers ?? circuits.refusalToWrap;
  return refusal !== undefined || circuits.isUnwrapOpen;
}

/** A caller failed because Key4C did not answer: the next probe comes soon. A throttled answer changes the state at once. */
export function callerFailed(key: Key, failure: PluginError): void {
  if (failure.kind === "throttled" && key.health.failure === undefined) {
    key.record(failure);
  }
  key.health.wantProbe();
}

/** The error of every RPC on a revoked key. */
export function revoked(cause: PluginError): PluginError {
  return new PluginError(cause.kind, "the key is revoked", { cause });
}
