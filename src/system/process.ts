import { constants } from "node:os";
import { describeError, ExitError } from "./errors.ts";
import { errorCode } from "./files.ts";
import { forbidDumps, setNativeEnvironment } from "./libc.ts";
import type { Log } from "./log.ts";

/**
 * What Bun obeys even in a compiled binary, and nobody needs here. Some of it has acted before this line
 * runs (SECURITY.md): to refuse keeps a debugging session from becoming a service, not an attacker out.
 */
const FORBIDDEN_ENVIRONMENT = [
  "BUN_CONFIG_VERBOSE_FETCH", // prints the calls to Key4C, with tokens and local KEKs
  "NODE_TLS_REJECT_UNAUTHORIZED", // ends TLS checks
  "BUN_INSPECT", // a debugger's port: whoever connects reads the memory
  "BUN_INSPECT_CONNECT_TO", // the same, called from here
  "BUN_INSPECT_NOTIFY", // tells a debugger where that port is
  "BUN_INSPECT_PRELOAD", // runs a file first
  "BUN_OPTIONS", // any flag of Bun, such as --preload and --inspect
  "BUN_ENABLE_CRASH_REPORTING", // a crash runs curl, to tell somebody of it
  "BUN_CRASH_REPORT_URL", // whom it tells
  "BUN_BYTECODE_DIGEST_OUT", // a file that is written over at the end
  "BUN_BYTECODE_ORDER_OUT", // the same
];

/**
 * How long Bun believes an address. Its 30 s are long when Key4C has moved: Bun asks for the name again
 * neither when nobody listens there (bun #38983) nor when nobody answers. Names are looked up for new
 * connections only, which are few.
 */
const DNS_TTL_SECONDS = "5";

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
      throw new Error("the kernel refuses it");
    }
  } catch (error) {
    log.warn("core dumps of this process are not forbidden", { cause: describeError(error) });
  }
  try {
    setNativeEnvironment("BUN_CONFIG_DNS_TIME_TO_LIVE_SECONDS", DNS_TTL_SECONDS);
  } catch (error) {
    log.warn("a new address of Key4C is noticed after 30 s instead of 5 s", {
      cause: describeError(error),
    });
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

const END_SIGNALS = ["SIGTERM", "SIGINT"] as const;
/** Whoever sends one wants files or logs opened again: files are read again by themselves, and we open no log. */
const HARMLESS_SIGNALS = ["SIGHUP", "SIGUSR1", "SIGUSR2"] as const;

/**
 * For what serves: resolves with the first signal that asks for the end. A second one changes nothing, nor does
 * any that would end the process without asking: calls are in flight.
 */
export function untilSignal(): Promise<NodeJS.Signals> {
  for (const signal of HARMLESS_SIGNALS) {
    process.on(signal, () => {});
  }
  return new Promise((resolve) => {
    for (const signal of END_SIGNALS) {
      process.on(signal, resolve);
    }
  });
}

/** For what ends by itself: a signal ends it at once, also as PID 1, for which the kernel's default is to ignore it. */
export function endOnSignal(): void {
  for (const signal of END_SIGNALS) {
    process.on(signal, () => process.exit(128 + constants.signals[signal]));
  }
}

/** Writes to standard output, to the last byte. @throws ExitError when it cannot be */
export function print(output: string | Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    const settle = (error?: Error | null) =>
      error ? reject(new ExitError(1, `cannot write the result (${errorCode(error)})`)) : resolve();
    process.stdout.once("error", settle);
    process.stdout.write(output, settle);
  });
}
