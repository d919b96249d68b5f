/**
 * The settings of a machine in one file, which every command reads: NAME=VALUE, with the names of the environment.
 * Comments begin with `#`. A pair of quotes around a value is taken away; nothing is expanded.
 */
import { statSync } from "node:fs";
import { isNothing, lookAt, readSmallBytes } from "../system/files.ts";
import { credentialFile } from "../system/systemd.ts";
import { nearest } from "./nearest.ts";
import { OPTIONS, type Option } from "./options.ts";

/** Read where it is there, and no other one is named. */
export const DEFAULT_CONFIG_FILE = "/etc/key4c-kms/config";
/** The name of `LoadCredential=`: the user of the service may not read the file itself. */
export const CONFIG_CREDENTIAL = "config";
/** What Bun's fetch asks for a proxy. */
export const PROXY_NAMES = [
  "https_proxy",
  "HTTPS_PROXY",
  "all_proxy",
  "ALL_PROXY",
  "no_proxy",
  "NO_PROXY",
];
/** For the lines of etcdctl that `inspect` wants the output of; etcdctl has them from the environment. */
export const ETCDCTL_NAMES = ["ETCDCTL_ENDPOINTS", "ETCDCTL_CACERT", "ETCDCTL_CERT", "ETCDCTL_KEY"];

const ALL_OPTIONS: readonly Option[] = Object.values(OPTIONS);
const NAMES = [
  ...ALL_OPTIONS.flatMap(({ env }) => (env === undefined || env === "KMS_CONFIG" ? [] : [env])),
  ...PROXY_NAMES,
  ...ETCDCTL_NAMES,
];
/** A secret has no flag. */
const SECRETS = new Set(
  ALL_OPTIONS.flatMap(({ env, flag }) => (flag === undefined && env !== undefined ? [env] : [])),
);

export interface ConfigFile {
  readonly path: string;
  readonly settings: ReadonlyMap<string, string>;
}

/** A file that was read; or why it was not, and whether the command can do without. */
export interface Loaded {
  readonly file?: ConfigFile;
  /** One line each. */
  readonly problems: readonly string[];
  readonly warnings: readonly string[];
}

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * @param flag what --config says
 * @param fallback what is read where it is there; undefined: nothing
 */
export function loadConfigFile(
  flag: string | undefined,
  env: Environment,
  fallback: string | undefined,
): Loaded {
  const credential = credentialFile(env, CONFIG_CREDENTIAL);
  const named = flag ?? (env["KMS_CONFIG"] || credential);
  const path = named ?? fallback;
  if (path === undefined) {
    return { problems: [], warnings: [] };
  }
  try {
    const text = readSmallBytes(path).toString();
    // systemd has the service's user read its credential by an ACL, which the bits of the group show.
    const isPrivate = path === credential || (statSync(path).mode & 0o077) === 0;
    return { ...parseConfigFile(path, text, isPrivate), warnings: [] };
  } catch (error) {
    const why = (error as Error).message; // readSmallBytes throws Errors
    if (named !== undefined) {
      return { problems: [`KMS_CONFIG (--config) ${why}`], warnings: [] };
    }
    const warning = `${why}, so its settings are not used: run this as root, or name a file with --config`;
    return { problems: [], warnings: isNothing(lookAt(path, statSync)) ? [] : [warning] };
  }
}

/**
 * Its problems never show a value, nor what may be one.
 * @param isPrivate whether only its owner can read it
 */
export function parseConfigFile(
  path: string,
  text: string,
  isPrivate: boolean,
): { readonly file: ConfigFile; readonly problems: readonly string[] } {
  const settings = new Map<string, string>();
  const problems: string[] = [];
  for (const [index, line] of text.split("\n").entries()) {
    const at = `${path}, line ${index + 1}:`;
    if (/^\s*(#|$)/.test(line)) {
      continue;
    }
    const [, name = "", value = ""] = /^\s*(\w+)\s*=\s*(.*?)\s*$/.exec(line) ?? [];
    if (name === "") {
      problems.push(`${at} must be NAME=VALUE, or begin with #`);
    } else if (!NAMES.includes(name)) {
      problems.push(`${at} ${unknownName(name)}`);
    } else if (settings.has(name)) {
      problems.push(`${at} ${name} stands twice`);
    } else {
      settings.set(name, value.replace(/^(["'])(.*)\1$/, "$2"));
    }
  }
  const secrets = secretsIn(settings);
  if (secrets.length > 0 && !isPrivate) {
    problems.push(
      `${path} has ${secrets.join(", ")}, and not only its owner can read it: chmod 0600 ${path}, or keep the secret in a file of its own (…_FILE)`,
    );
  }
  return { file: { path, settings }, problems };
}

/** The names of those settings that only the owner of the file may read: credentials, and the password of a proxy. */
export function secretsIn(settings: ReadonlyMap<string, string>): string[] {
  return [...settings]
    .filter(([name, value]) =>
      PROXY_NAMES.includes(name) ? value.includes("@") : SECRETS.has(name) && value !== "",
    )
    .map(([name]) => name);
}

/** The proxies that an environment names. */
export function proxiesIn(env: Environment): [string, string][] {
  return PROXY_NAMES.flatMap((name) => (env[name] ? [[name, env[name]]] : []));
}

/** Its proxies, where the environment names none: a capital letter makes no other name of one. */
export function proxiesOf(file: ConfigFile | undefined, env: Environment): Record<string, string> {
  const isSet = (name: string) => Boolean(env[name.toLowerCase()] || env[name.toUpperCase()]);
  return Object.fromEntries(
    [...(file?.settings ?? [])].filter(([name]) => PROXY_NAMES.includes(name) && !isSet(name)),
  );
}

/** A name is said only where it is nearly one, or looks like ours: it may be a secret that ends with `=`. */
function unknownName(name: string): string {
  const near = nearest(name, NAMES);
  const isSaid = near !== undefined || /^(KMS|KEY4C|ETCDCTL)_[A-Z0-9_]{1,40}$/.test(name);
  const hint = near === undefined ? "names are those of the environment" : `did you mean ${near}?`;
  return `unknown name${isSaid ? ` ${name}` : ""}; ${hint}`;
}
