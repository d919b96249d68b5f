import { constants } from "node:os";
import { describeError, ExitError } from "./errors.ts";
import { errorCode } from "./files.ts";
import { forbidDumps, setNativeEnvironment } from "./libc.ts";
import type { Log } from "./log.ts";

/**
 * Variables that Bun obeys even in a compiled binary, and that nobody needs here. Some have acted before this line runs
 * (SECURITY.md). So the refusal does not stop an attacker; it stops a debugging session from becoming a service.
 */
export const FORBIDDEN_ENVIRONMENT = [
  "BUN_CONFIG_VERBOSE_FETCH", // prints the calls to Key4C, with tokens and local KEKs
  "NODE_TLS_REJECT_UNAUTHORIZED", // ends TLS checks
  "BUN_INSPECT", // a debugger's port: whoever connects reads the memory
  "BUN_INSPECT_CONNECT_TO", // the same, but this process connects
  "BUN_INSPECT_NOTIFY", // tells a debugger where that port is
  "BUN_INSPECT_PRELOAD", // runs a file first
  "BUN_OPTIONS", // any flag of Bun, such as --preload and --inspect
  "BUN_ENABLE_CRASH_REPORTING", // a crash runs curl, to report it
  "BUN_CRASH_REPORT_URL", // where it reports
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

/** Hardens a process that keeps running, or that may talk to Key4C. @throws ExitError 2 for a forbidden variable */
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
  // Plain http goes only to loopback, and never through a proxy.
  const direct = ["localhost", "127.0.0.1", "::1"];
  process.env["NO_PROXY"] = [process.env["NO_PROXY"], process.env["no_proxy"], ...direct]
    .filter(Boolean)
    .join();
  process.env["no_proxy"] = process.env["NO_PROXY"];
  // A defect in one place must not end the process that the whole cluster depends on.
  let toldAtMs = Number.NEGATIVE_INFINITY;
  let suppressedSinceLast = 0;
  const unexpected = (error: unknown) => {
    if (performance.now() - toldAtMs < UNEXPECTED_INTERVAL_MS) {
      suppressedSinceLast += 1;
      return;
    }
    log.error("unexpected error", { cause: describeError(error), suppressedSinceLast });
    toldAtMs = performance.now();
    suppressedSinceLast = 0;
  };
  process.on("uncaughtException", unexpected);
  process.on("unhandledRejection", unexpected);
}

/** A client may cause them by the thousand, with streams that it resets. */
const UNEXPECTED_INTERVAL_MS = 1_000;

const END_SIGNALS = ["SIGTERM", "SIGINT"] as const;
/** By custom they ask to open files or logs again. The plugin reads changed files by itself, and opens no log. */
const HARMLESS_SIGNALS = ["SIGHUP", "SIGUSR1", "SIGUSR2"] as const;

/**
 * For commands that serve: resolves with the first signal that asks for the end. A second one changes nothing, because
 * calls are in progress. Signals that would end the process by default do nothing either.
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

/** For commands that end by themselves: a signal ends them at once, also as PID 1, where the kernel ignores it by default. */
export function endOnSignal(): void {
  for (const signal of END_SIGNALS) {
    process.on(signal, () => process.exit(128 + constants.signals[signal]));
  }
}

/** As the shell tells of a process that a pipe without a reader ended. */
const NO_READER_EXIT_CODE = 128 + constants.signals.SIGPIPE;

/**
 * Writes to standard output, to the last byte. A reader that wants no more (`| head`) ends the process without a word, as
 * it ends other tools.
 * @throws ExitError when it cannot be written
 */
export function print(output: string | Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    const settle = (error?: Error | null) => {
      if (errorCode(error) === "EPIPE") {
        process.exit(NO_READER_EXIT_CODE);
      }
      error ? reject(new ExitError(1, `cannot write the result (${errorCode(error)})`)) : resolve();
    };
    process.stdout.once("error", settle);
    process.stdout.write(output, settle);
  });
}
