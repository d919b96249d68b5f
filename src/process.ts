import { describeError, ExitError } from "./errors.ts";
import { forbidDumps } from "./libc.ts";
import type { Log } from "./observe.ts";

/** Values that Bun obeys even in a compiled binary: one prints tokens and keys, one ends TLS checks. */
const FORBIDDEN_ENVIRONMENT = ["BUN_CONFIG_VERBOSE_FETCH", "NODE_TLS_REJECT_UNAUTHORIZED"];

/** Those of them that are set. */
export function forbiddenEnvironment(): string[] {
  return FORBIDDEN_ENVIRONMENT.filter((name) => process.env[name] !== undefined);
}

/** What holds for every process that stays, or that may talk to Key4C. */
export function hardenProcess(log: Log): void {
  const found = forbiddenEnvironment();
  if (found.length > 0) {
    throw new ExitError(
      2,
      `${found.join(", ")} must not be set: it would leak or weaken the calls`,
    );
  }
  process.umask(0o077);
  try {
    if (!forbidDumps()) {
      log.warn("the kernel does not forbid core dumps of this process");
    }
  } catch (error) {
    log.warn("core dumps of this process are not forbidden", { cause: describeError(error) });
  }
  // Plain http is only ever spoken to loopback, where a proxy has no business.
  const direct = ["localhost", "127.0.0.1", "::1"];
  process.env["NO_PROXY"] = [process.env["NO_PROXY"], process.env["no_proxy"], ...direct]
    .filter(Boolean)
    .join();
  process.env["no_proxy"] = process.env["NO_PROXY"];
  // A defect in one place must not end the process that the whole cluster depends on.
  const unexpected = (error: unknown) => {
    log.error("unexpected error", { cause: describeError(error) });
  };
  process.on("uncaughtException", unexpected);
  process.on("unhandledRejection", unexpected);
}

/** Resolves with the signal that asks for the end. */
export function untilSignal(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    for (const signal of ["SIGTERM", "SIGINT"] as const) {
      process.once(signal, () => resolve(signal));
    }
  });
}

/** Writes to standard output, to the last byte. */
export function print(output: string | Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.write(output, (error) => (error ? reject(error) : resolve()));
  });
}
