import { type Fault, ReloadedFile } from "../system/files.ts";
import { type Config, OPTION_LIST } from "./config.ts";

/** What is read again while serve runs, by the option that names it: why it cannot be used now. */
export type WatchedFiles = ReadonlyMap<string, { readonly fault: Fault }>;

export function watchedFiles(config: Config): WatchedFiles {
  const files = OPTION_LIST.flatMap(([name, { env }]) => {
    const value = config[name];
    return value instanceof ReloadedFile && env !== undefined ? [[env, value] as const] : [];
  });
  const { clientCertificate } = config;
  return new Map<string, { readonly fault: Fault }>(
    clientCertificate ? [...files, ["KEY4C_CERT_FILE and its key", clientCertificate]] : files,
  );
}
