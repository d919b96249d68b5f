/** Log lines on stderr: one JSON object each, or text for a terminal. Never a secret. */
import { stderr } from "./stderr.ts";

export const LOG_LEVELS = ["debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

export const LOG_FORMATS = ["json", "text"] as const;
export type LogFormat = (typeof LOG_FORMATS)[number];

/** What a log line may hold: names, numbers, texts of ours, and texts whose form was checked. */
export type LogFields = Readonly<Record<string, string | number | boolean | undefined>>;

export type Log = Readonly<Record<LogLevel, (message: string, fields?: LogFields) => void>>;

interface LogOptions {
  /** Lines below this level are dropped. */
  readonly level: LogLevel;
  readonly format: LogFormat;
  /** Takes each line with its newline; without it, standard error does. */
  readonly write?: (line: string) => void;
}

export function createLog({ level, format, write }: LogOptions): Log {
  const lowest = LOG_LEVELS.indexOf(level);
  const line = format === "json" ? jsonLine : textLine;
  if (write === undefined) {
    stderr.describeLoss = (lines) =>
      line("warn", "log lines were dropped while standard error took none", { lines });
  }
  const writeLine = write ?? ((text: string) => stderr.write(text));
  const at = (of: LogLevel) => {
    if (LOG_LEVELS.indexOf(of) < lowest) {
      return () => {};
    }
    return (message: string, fields: LogFields = {}) => writeLine(line(of, message, fields));
  };
  return { debug: at("debug"), info: at("info"), warn: at("warn"), error: at("error") };
}

/** For what says in its own words what it met. */
export const silentLog = createLog({ level: "error", format: "text", write: () => {} });

function jsonLine(level: LogLevel, msg: string, fields: LogFields): string {
  return `${JSON.stringify({ time: new Date().toISOString(), level, msg, ...fields })}\n`;
}

function textLine(level: LogLevel, message: string, fields: LogFields): string {
  const pairs = Object.entries(fields)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => ` ${name}=${JSON.stringify(value)}`);
  return `${new Date().toISOString()} ${level.toUpperCase().padEnd(5)} ${message}${pairs.join("")}\n`;
}
