/** What every command exits with when its command line or configuration is wrong. */
export const USAGE_EXIT_CODE = 2;

/** What the exit codes of a command mean, or of a command with one of its flags. */
export interface Exits {
  /** The flag that gives them this meaning; undefined: none. */
  readonly with?: string;
  readonly 0: string;
  readonly 1: string;
  /** Where it is not what it is for every other command, see {@link USAGE_EXIT_CODE}. */
  readonly 2?: string;
  readonly 3?: string;
  readonly 4?: string;
}

/** One row of the table: everything that is known about one command but its options. */
export interface CommandFacts {
  /** One line, for the list of commands. */
  readonly purpose: string;
  /** What stands behind the name of the command, before its options. */
  readonly operand?: {
    readonly shown: string;
    /** Behind this one another may stand. */
    readonly longer?: string;
    /** What it may be, each with its meaning; undefined where the list is elsewhere. */
    readonly values?: Readonly<Record<string, string>>;
  };
  /** What stands behind its options. */
  readonly redirection?: string;
  readonly reads: string;
  readonly writes: string;
  /** Arguments and more of a line that works, behind the name of the program. */
  readonly example: string;
  /** In sentences, where the options need a word. */
  readonly note?: string;
  readonly exits: readonly Exits[];
}

const NOT_ASKED = "no plugin at the socket, no answer, or a refusal";

/** The commands. Help, REFERENCE.md and the parser are made from this table. */
const TABLE = {
  serve: {
    purpose: "serve both KMS APIs on a unix socket (the default command)",
    reads: "the files that its options name",
    writes: "its log, on standard error; nothing on disk, unless KMS_PERSISTENT_CACHE is set",
    example: "serve --emulator",
    exits: [
      {
        0: "ended by SIGTERM or SIGINT",
        1: "something outside prevents the work, such as a path in use; a Key4C that cannot be reached is no reason to end",
      },
    ],
  },
  doctor: {
    purpose: "say what is wrong with an installation, and what to do",
    reads:
      "the configuration of serve, Key4C, the socket, the EncryptionConfiguration and kube-apiserver's static pod; it changes nothing",
    writes: "one line for each check: ✓ passed, ! warning, ✗ failed, – skipped",
    example: "doctor --encryption-configuration encryption-configuration.yaml",
    exits: [
      {
        0: "nothing failed; warnings (`!`) and skipped checks (`–`) do not count",
        1: "something failed (`✗`)",
        2: "never: a wrong option is a failed check",
      },
    ],
  },
  install: {
    purpose:
      "write the plugin's files on this node, start it, and say what is left for the API server",
    reads:
      "its options, the settings of this node, and KMS_USER_ID on standard input where nothing names it; it asks Key4C before it writes",
    writes:
      "files of the plugin alone, in /etc/key4c-kms, and its pod or units; the lines for the API server on standard output",
    example: "install --as systemd --key4c-url https://key4c.example --key-id KEY",
    note: "What is not the plugin's own stays as it is, and install stops and says why. Run again it changes nothing, or completes what was interrupted. An old file of its own is kept as *.before-key4c.",
    exits: [
      {
        0: "installed, and the plugin is ok (without a kubelet: it will be started); with `--dry-run`: shown",
        1: "nothing was written, or the plugin is not ok yet: the text says which",
      },
    ],
  },
  manifest: {
    purpose: "print what an installation needs: pod, units, alerts",
    operand: { shown: "[NAME]", longer: "profile" },
    reads: "its options",
    writes: "the manifest, or the file of --output; without a NAME the list of manifests",
    example: "manifest static-pod --key4c-url https://key4c.example --key-id KEY",
    note: "The manifest has serve run with the options of serve that are given here.",
    exits: [
      {
        0: "printed or written",
        1: "the file cannot be written, or is there already and holds keys",
      },
    ],
  },
  status: {
    purpose: "ask a running plugin whether it is ok",
    reads: "Status, as kube-apiserver asks for it",
    writes: "one line of JSON: healthz, key_id, versions",
    example: "status --wait 30s",
    exits: [
      {
        0: "the plugin is ok, and its key is KMS_KEY_ID where that is set; with `--live`: it serves its socket",
        1: "anything else",
      },
    ],
  },
  encrypt: {
    purpose: "wrap standard input through a running plugin",
    redirection: "< PLAINTEXT > CIPHERTEXT",
    reads: "at most 512 bytes of standard input: a DEK has 32",
    writes: "what decrypt reads",
    example: "encrypt < dek > dek.wrapped",
    exits: [{ 0: "wrapped", 1: `not wrapped: no bytes or too many, ${NOT_ASKED}` }],
  },
  decrypt: {
    purpose: "unwrap what encrypt wrote, through a running plugin",
    redirection: "< CIPHERTEXT > PLAINTEXT",
    reads: "what encrypt wrote, for either API, on standard input",
    writes: "the plaintext",
    example: "decrypt < dek.wrapped > dek",
    exits: [{ 0: "unwrapped", 1: `not unwrapped: ${NOT_ASKED}` }],
  },
  inspect: {
    purpose: "show under which key each value from etcd is",
    redirection: "< VALUES",
    reads: "the JSON of etcdctl on standard input, or one raw value (--etcd-key)",
    writes:
      "one line for each object, with --verify one for each local KEK; the summary on standard error",
    example: "inspect --stale < secrets.json",
    note: "Only --decrypt and --verify ask Key4C, with the options of Key4C and of the key. --verify says nothing about values of other providers. secrets.json, which belongs into a pipe where Secrets are not encrypted yet, is what `etcdctl get --prefix /registry/secrets/ -w json` prints.",
    exits: [
      {
        0: "everything in the input is under the current key",
        1: "no answer: the input is empty or incomplete, a value is not a Kubernetes object, or the current key is not known",
        3: "something is under another key, of another provider, plaintext, broken, or of a provider that `--encryption-configuration` does not have",
      },
      {
        with: "--verify",
        0: "Key4C unwraps every local KEK",
        1: "no answer: the input is not etcd's, or has no local KEK",
        3: "Key4C refuses a local KEK, its key is disabled or not named, or a value is broken",
        4: "no answer: Key4C does not answer for a local KEK, and refuses none",
      },
      { with: "--decrypt", 0: "all values are decrypted", 1: "a value is not decrypted" },
    ],
  },
  forget: {
    purpose: "remove what serve has kept in KMS_PERSISTENT_CACHE",
    reads: "nothing",
    writes: "how many files it removed",
    example: "forget --persistent-cache /run/key4c-kms-cache",
    note: "A plugin that runs with the option keeps its local KEKs again within a minute: restart it without the option first, while Key4C answers.",
    exits: [{ 0: "nothing is left", 1: "something cannot be removed" }],
  },
  emulator: {
    purpose: "run an emulated Key4C for demos, or change one that runs",
    operand: {
      shown: "[ACTION]",
      values: {
        rotate: "give the key a new version",
        disable: "disable the key: a revocation",
        enable: "enable it again",
        outage: "answer nothing but 503, as if Key4C were unreachable",
        recover: "end the outage",
      },
    },
    reads: "the file of --data",
    writes: "the line of shell that names its address; with an ACTION what came of it",
    example: "emulator --control",
    note: "An ACTION asks the emulator at KEY4C_URL, which must run with --control (serve --emulator: with --emulator-control).",
    exits: [
      {
        0: "ended by SIGTERM or SIGINT; with an ACTION: done",
        1: "address or data file cannot be used; with an ACTION: no emulator that allows it answers",
      },
    ],
  },
  version: {
    purpose: "print the version",
    reads: "nothing",
    writes: "one line; with --licenses the licence texts",
    example: "version",
    exits: [{ 0: "printed", 1: "not printed" }],
  },
  help: {
    purpose: "print the list of commands, or what one command does",
    operand: { shown: "[COMMAND]" },
    reads: "nothing",
    writes: "the text that --help and -h print too",
    example: "help encrypt",
    exits: [{ 0: "printed", 1: "not printed" }],
  },
} as const satisfies Record<string, CommandFacts>;

export type Command = keyof typeof TABLE;

export const COMMAND_FACTS: Readonly<Record<Command, CommandFacts>> = TABLE;

export const COMMANDS = Object.keys(TABLE) as readonly Command[]; // TABLE has no other keys
