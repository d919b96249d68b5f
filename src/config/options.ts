import { version as VERSION } from "../../package.json";
import { parseProfile } from "../key4c/profile.ts";
import { ReloadedFile, readSmallFile } from "../system/files.ts";
import { LOG_FORMATS, LOG_LEVELS } from "../system/log.ts";
import {
  absolutePath,
  certificates,
  duration,
  group,
  httpAddress,
  integer,
  keyId,
  keyIdLines,
  keyIds,
  loopbackAddress,
  NAMED_UNITS_MS,
  oneOf,
  parseSecret,
  privateKey,
  providerName,
  secretFile,
  serviceUrl,
  socketMode,
  unixEndpoint,
} from "./option-types.ts";

export const COMMANDS = [
  "serve",
  "doctor",
  "manifest",
  "emulator",
  "status",
  "encrypt",
  "decrypt",
  "inspect",
  "version",
  "help",
] as const;
export type Command = (typeof COMMANDS)[number];

/** One row of the table: everything that is known about one option. */
export interface Option<T = unknown> {
  /** Environment name; undefined for what only makes sense as a flag. */
  readonly env?: string;
  /** Flag without its dashes; undefined for secrets, which argv would show to every user. */
  readonly flag?: string;
  readonly commands: readonly Command[];
  /** What stands for the value in help, such as `DURATION`; undefined for a switch. */
  readonly value?: string;
  /** Shown, and parsed like any input; undefined when there is none. */
  readonly default?: string;
  readonly help: string;
  /** @throws Error whose message completes "NAME …", never with a secret */
  readonly parse: (text: string) => T;
}

const text = (value: string) => value;
const yes = () => true;

const KUBEADM_APIS = ["v1beta3", "v1beta4"] as const;
const SERVE = ["serve"] as const;
const MANIFEST = ["manifest"] as const;
const CLIENTS = ["status", "encrypt", "decrypt", "inspect"] as const;
/** What talks to Key4C itself: inspect only with --decrypt or --verify. */
const KEY4C = ["serve", "inspect"] as const;
const MAX_DURATION_MS = 365 * NAMED_UNITS_MS.d;

/** The options of all commands. Help, REFERENCE.md and the parser are made from this table. */
export const OPTIONS = {
  kmsEndpoint: {
    env: "KMS_ENDPOINT",
    flag: "endpoint",
    commands: [...SERVE, ...CLIENTS],
    value: "unix:///PATH",
    default: "unix:///run/key4c-kms/kms.sock",
    help: "Unix socket on which kube-apiserver calls the plugin",
    parse: unixEndpoint,
  },
  key4cUrl: {
    env: "KEY4C_URL",
    flag: "key4c-url",
    commands: KEY4C,
    value: "URL",
    help: "Address of the Key4C service",
    parse: serviceUrl,
  },
  kmsKeyId: {
    env: "KMS_KEY_ID",
    flag: "key-id",
    commands: [...KEY4C, "status"],
    value: "ID",
    help: "ID of the Key4C key that wraps from now on",
    parse: keyId,
  },
  kmsKeyIdFile: {
    env: "KMS_KEY_ID_FILE",
    flag: "key-id-file",
    commands: [...KEY4C, "status"],
    value: "FILE",
    help: "File with KMS_KEY_ID; read again when it changes: the other key wraps once it is proven, without a restart",
    parse: (path: string) => new ReloadedFile(path, (text) => keyId(text.trim())),
  },
  previousKeyIds: {
    env: "KMS_PREVIOUS_KEY_IDS",
    flag: "previous-key-ids",
    commands: KEY4C,
    value: "ID,…",
    help: "IDs of former keys whose data are still decrypted",
    parse: keyIds,
  },
  previousKeyIdsFile: {
    env: "KMS_PREVIOUS_KEY_IDS_FILE",
    flag: "previous-key-ids-file",
    commands: KEY4C,
    value: "FILE",
    help: "File with KMS_PREVIOUS_KEY_IDS, by commas or lines; read again when it changes; it may be empty",
    parse: (path: string) => new ReloadedFile(path, keyIdLines, "mayBeEmpty"),
  },
  kmsUserId: {
    env: "KMS_USER_ID",
    commands: KEY4C,
    help: "ID of the token from the registration of the service; a secret",
    parse: parseSecret,
  },
  kmsUserIdFile: {
    env: "KMS_USER_ID_FILE",
    flag: "user-id-file",
    commands: KEY4C,
    value: "FILE",
    help: "File with KMS_USER_ID; read again when it changes",
    parse: secretFile,
  },
  kmsApiKey: {
    env: "KMS_API_KEY",
    commands: KEY4C,
    help: "API key, sent as a bearer token; a secret; only if the service wants one",
    parse: parseSecret,
  },
  kmsApiKeyFile: {
    env: "KMS_API_KEY_FILE",
    flag: "api-key-file",
    commands: KEY4C,
    value: "FILE",
    help: "File with KMS_API_KEY; read again when it changes",
    parse: secretFile,
  },
  kmsPin: {
    env: "KMS_PIN",
    commands: KEY4C,
    help: "PIN; a secret; only where the profile sends {pin}. A refused one is not tried again before it changes",
    parse: parseSecret,
  },
  kmsPinFile: {
    env: "KMS_PIN_FILE",
    flag: "pin-file",
    commands: KEY4C,
    value: "FILE",
    help: "File with KMS_PIN; read again when it changes",
    parse: secretFile,
  },
  profile: {
    env: "KEY4C_PROFILE",
    flag: "key4c-profile",
    commands: KEY4C,
    value: "FILE",
    help: "JSON file with the shapes of requests and answers, for another API than the documented one",
    parse: (path: string) => parseProfile(readSmallFile(path)),
  },
  caFile: {
    env: "KEY4C_CA_FILE",
    flag: "key4c-ca-file",
    commands: KEY4C,
    value: "FILE",
    help: "PEM file with the CAs to trust for Key4C, instead of the system's and Mozilla's",
    parse: certificates,
  },
  certFile: {
    env: "KEY4C_CERT_FILE",
    flag: "key4c-cert-file",
    commands: KEY4C,
    value: "FILE",
    help: "PEM file with a client certificate for Key4C",
    parse: certificates,
  },
  certKeyFile: {
    env: "KEY4C_CERT_KEY_FILE",
    flag: "key4c-cert-key-file",
    commands: KEY4C,
    value: "FILE",
    help: "PEM file with the private key of that certificate",
    parse: privateKey,
  },
  socketMode: {
    env: "KMS_SOCKET_MODE",
    flag: "socket-mode",
    commands: SERVE,
    value: "MODE",
    default: "0600",
    help: "Permissions of the socket",
    parse: socketMode,
  },
  socketGroup: {
    env: "KMS_SOCKET_GROUP",
    flag: "socket-group",
    commands: SERVE,
    value: "GROUP",
    help: "Group of the socket, and of its directory if that is made, by name or number",
    parse: group,
  },
  localKekMaxUses: {
    env: "KMS_LOCAL_KEK_MAX_USES",
    flag: "local-kek-max-uses",
    commands: SERVE,
    value: "N",
    default: String(2 ** 20),
    help: "DEKs wrapped under one local KEK; 1 asks Key4C for every DEK (while it is away, the last one goes on)",
    parse: integer(1, 2 ** 32),
  },
  localKekMaxAge: {
    env: "KMS_LOCAL_KEK_MAX_AGE",
    flag: "local-kek-max-age",
    commands: SERVE,
    value: "DURATION",
    default: "7d",
    help: "Age at which a local KEK is replaced",
    parse: duration(NAMED_UNITS_MS.m, MAX_DURATION_MS),
  },
  localKekCacheSize: {
    env: "KMS_LOCAL_KEK_CACHE_SIZE",
    flag: "local-kek-cache-size",
    commands: SERVE,
    value: "N",
    default: "16384",
    help: "Unwrapped local KEKs kept in memory, beside the current one",
    parse: integer(0, 2 ** 20),
  },
  probeInterval: {
    env: "KMS_PROBE_INTERVAL",
    flag: "probe-interval",
    commands: SERVE,
    value: "DURATION",
    default: "30s",
    help: "Time between probes of Key4C; a rotation that describe tells is noticed within it",
    parse: duration(100, NAMED_UNITS_MS.h),
  },
  outageGrace: {
    env: "KMS_OUTAGE_GRACE",
    flag: "outage-grace",
    commands: SERVE,
    value: "DURATION",
    help: "How long Status and Encrypt go on while Key4C is away (default: without limit)",
    parse: duration(0, MAX_DURATION_MS),
  },
  revocationGrace: {
    env: "KMS_REVOCATION_GRACE",
    flag: "revocation-grace",
    commands: SERVE,
    value: "DURATION",
    default: "60s",
    help: "How long Key4C must call the key disabled or deleted before its local KEKs are dropped; 0s: at the first answer",
    parse: duration(0, NAMED_UNITS_MS.h),
  },
  httpAddress: {
    env: "KMS_HTTP_ADDRESS",
    flag: "http-address",
    commands: SERVE,
    value: "HOST:PORT",
    help: "Address of /metrics, /readyz and /livez, such as 127.0.0.1:9640 (default: no HTTP)",
    parse: httpAddress,
  },
  logLevel: {
    env: "KMS_LOG_LEVEL",
    flag: "log-level",
    commands: [...KEY4C, "emulator"],
    value: LOG_LEVELS.join("|"),
    default: "info",
    help: "Lowest level that is logged; debug shows every RPC and every call to Key4C",
    parse: oneOf(LOG_LEVELS),
  },
  logFormat: {
    env: "KMS_LOG_FORMAT",
    flag: "log-format",
    commands: [...KEY4C, "emulator"],
    value: LOG_FORMATS.join("|"),
    help: "Form of the log on stderr (default: text on a terminal, else json)",
    parse: oneOf(LOG_FORMATS),
  },
  emulator: {
    flag: "emulator",
    commands: SERVE,
    help: "Serve with a Key4C inside the process; for demos and tests, never for secrets",
    parse: yes,
  },
  emulatorData: {
    flag: "emulator-data",
    commands: SERVE,
    value: "FILE",
    help: "Where --emulator keeps its keys (default: in memory, lost at exit)",
    parse: text,
  },
  listen: {
    flag: "listen",
    commands: ["emulator"],
    value: "127.0.0.1:PORT",
    default: "127.0.0.1:9641",
    help: "Address of the emulator",
    parse: loopbackAddress,
  },
  emulatorKeyIds: {
    flag: "key-id",
    commands: ["emulator"],
    value: "ID,…",
    default: "demo",
    help: "IDs of the keys to have",
    parse: keyIds,
  },
  data: {
    flag: "data",
    commands: ["emulator"],
    value: "FILE",
    help: "Where the emulator keeps its keys (default: in memory, lost at exit)",
    parse: text,
  },
  tlsCertFile: {
    flag: "tls-cert-file",
    commands: ["emulator"],
    value: "FILE",
    help: "PEM file with the server's certificate (default: plain http)",
    parse: certificates,
  },
  tlsKeyFile: {
    flag: "tls-key-file",
    commands: ["emulator"],
    value: "FILE",
    help: "PEM file with the private key of that certificate",
    parse: privateKey,
  },
  control: {
    flag: "control",
    commands: ["emulator"],
    help: "Allow control requests: rotate, disable, enable, delete, latency, stats",
    parse: yes,
  },
  api: {
    flag: "api",
    commands: ["encrypt", "manifest"],
    value: "v1|v2",
    default: "v2",
    help: "KMS API to call, or to configure; encrypt gives the raw cipher for v1, one JSON line for v2",
    parse: oneOf(["v1", "v2"]),
  },
  etcdKey: {
    flag: "etcd-key",
    commands: ["inspect"],
    value: "KEY",
    help: "Standard input is one raw value, and this its key in etcd",
    parse: text,
  },
  current: {
    flag: "current",
    commands: ["inspect"],
    value: "KEY_ID",
    help: "The key_id that counts as current (default: what Status of a running plugin tells)",
    parse: text,
  },
  stale: {
    flag: "stale",
    commands: ["inspect"],
    help: "List only what is not under the current key; with --verify, what is not given back",
    parse: yes,
  },
  json: {
    flag: "json",
    commands: ["inspect", "doctor"],
    help: "JSON: of inspect one object a line, of doctor one array",
    parse: yes,
  },
  decrypt: {
    flag: "decrypt",
    commands: ["inspect"],
    help: "Decrypt through Key4C, without an API server, and print in clear text: for emergencies",
    parse: yes,
  },
  verify: {
    flag: "verify",
    commands: ["inspect"],
    help: "Have Key4C itself unwrap each local KEK once: exit code 0 only if it gives all of them back",
    parse: yes,
  },
  encryptionConfiguration: {
    flag: "encryption-configuration",
    commands: ["doctor", "inspect", "manifest"],
    value: "FILE",
    help: "kube-apiserver's EncryptionConfiguration: doctor checks it (default: that of --kube-apiserver), inspect compares its names, manifests name its path",
    parse: text,
  },
  kubeApiserver: {
    flag: "kube-apiserver",
    commands: ["doctor"],
    value: "FILE",
    help: "kube-apiserver's static pod: flags and mounts are checked (default: kubeadm's, where it is there)",
    parse: text,
  },
  profileCheck: {
    flag: "profile-check",
    commands: ["doctor"],
    help: "Go through the profile against the service, and nothing else: each request and answer, secrets and keys blacked out",
    parse: yes,
  },
  migrated: {
    flag: "migrated",
    commands: ["doctor"],
    help: "Nothing in etcd is plaintext any more (inspect): the EncryptionConfiguration must not have identity",
    parse: yes,
  },
  providerName: {
    flag: "provider-name",
    commands: MANIFEST,
    value: "NAME",
    default: "key4c-kms-plugin",
    help: "Name of the provider in the EncryptionConfiguration; it can never be changed once data are written",
    parse: providerName,
  },
  image: {
    flag: "image",
    commands: MANIFEST,
    value: "IMAGE",
    default: `key4c-kms-plugin:${VERSION}`,
    help: "Image of the static pod",
    parse: text,
  },
  runAsUser: {
    flag: "run-as-user",
    commands: MANIFEST,
    value: "UID",
    default: "0",
    help: "User of the static pod; another than 0 needs directories prepared for it",
    parse: integer(0, 2 ** 31 - 1),
  },
  binary: {
    flag: "binary",
    commands: MANIFEST,
    value: "/PATH",
    default: "/usr/local/bin/key4c-kms-plugin",
    help: "Where systemd finds the plugin",
    parse: absolutePath,
  },
  licences: {
    flag: "licenses",
    commands: ["version"],
    help: "Print the licences of everything that the binary carries, Bun's included",
    parse: yes,
  },
  live: {
    flag: "live",
    commands: ["status"],
    help: "Ask only whether the plugin serves its socket, which never depends on Key4C: at most 2 s",
    parse: yes,
  },
  environmentFile: {
    flag: "environment-file",
    commands: MANIFEST,
    value: "/PATH",
    help: "systemd below 247: file of KMS_USER_ID=… that systemd reads as root, in the place of LoadCredential=",
    parse: absolutePath,
  },
  kubeadmApi: {
    flag: "kubeadm-api",
    commands: MANIFEST,
    value: KUBEADM_APIS.join("|"),
    default: "v1beta4",
    help: "Version of kubeadm's configuration: v1beta3 for kubeadm up to 1.30",
    parse: oneOf(KUBEADM_APIS),
  },
  output: {
    flag: "output",
    commands: MANIFEST,
    value: "/PATH",
    help: "Write to this file, as a whole or not at all, instead of standard output",
    parse: text,
  },
  wait: {
    flag: "wait",
    commands: ["status"],
    value: "DURATION",
    help: "Wait until the plugin is ok, at most this long",
    parse: duration(0, NAMED_UNITS_MS.h),
  },
} as const satisfies Record<string, Option>;
