/**
 * What the environment can do to the compiled binary, and what other processes can learn of one that
 * runs. SECURITY.md says the same in words.
 */
import { expect, test } from "bun:test";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
} from "node:fs";
import { join } from "node:path";
import { testWith } from "../needs.ts";
import { asNobody, DROPPING, NOBODY } from "../nobody.ts";
import {
  BINARY,
  emulator,
  fakeServer,
  onTestEnd,
  startBinary,
  startPlugin,
  startProcess,
  temporaryDirectory,
  temporaryFile,
} from "../support.ts";

const SERVE = ["serve", "--emulator"];

const SCRATCH = "a file that Bun may write";

test.each([
  ["BUN_CONFIG_VERBOSE_FETCH", "curl"],
  ["NODE_TLS_REJECT_UNAUTHORIZED", "0"],
  ["BUN_INSPECT", "127.0.0.1:0/x"],
  ["BUN_INSPECT_CONNECT_TO", "ws://127.0.0.1:9/"],
  ["BUN_INSPECT_NOTIFY", "tcp://127.0.0.1:9"],
  ["BUN_INSPECT_PRELOAD", join(import.meta.dir, "../../src/commands/manifest/profiles/kes.json")], // runs, and does nothing
  ["BUN_OPTIONS", "--smol"],
  ["BUN_ENABLE_CRASH_REPORTING", "1"],
  ["BUN_CRASH_REPORT_URL", "http://127.0.0.1:9"],
  // Bun replaces what is there before a line of ours runs: as root even /dev/null, for the whole machine.
  ["BUN_BYTECODE_DIGEST_OUT", SCRATCH],
  ["BUN_BYTECODE_ORDER_OUT", SCRATCH],
])("refuses to serve with %s set", async (name, given) => {
  const value = given === SCRATCH ? join(temporaryDirectory(), "out") : given;
  const running = startBinary(SERVE, { [name]: value });
  expect(await running.exited).toBe(2);
  expect(running.output()).toContain(`${name} must not be set`);
});

test.each([
  ["BUN_BE_BUN", "1", (path: string) => [path]],
  ["BUN_OPTIONS", "--preload PATH", () => ["version"]],
  ["BUN_INSPECT_PRELOAD", "PATH", () => ["version"]],
])(
  "%s acts before our code does: whoever sets the environment owns the process",
  async (name, value, args) => {
    const path = temporaryFile('console.log("RAN FIRST");\n');
    const running = startBinary(args(path), { [name]: value.replace("PATH", path) });
    await running.exited;
    expect(running.output()).toContain("RAN FIRST");
  },
);

test("what has no effect is ignored", async () => {
  const file = temporaryFile('console.log("RAN FIRST");\n');
  const keyLog = join(temporaryDirectory(), "keys");
  const plugin = await startPlugin(emulator().url, {
    NODE_OPTIONS: `--require ${file}`,
    SSLKEYLOGFILE: keyLog,
    BUN_DEBUG_ALL: "1",
    NODE_CHANNEL_FD: "9",
  });
  expect(plugin.output()).not.toContain("RAN FIRST");
  expect(existsSync(keyLog)).toBe(false);
});

test("a proxy sees a tunnel to Key4C, and nothing of what is on loopback", async () => {
  const proxy = fakeServer(() => new Response(null, { status: 502 }));
  await startPlugin(emulator().url, { HTTPS_PROXY: proxy.url, HTTP_PROXY: proxy.url });
  expect(proxy.requests.length).toBe(0);
});

/** The binary and an empty directory, where nobody reaches them. */
function reachable() {
  const directory = temporaryDirectory();
  chmodSync(directory, 0o755);
  const binary = join(directory, "plugin");
  copyFileSync(BINARY, binary);
  const work = join(directory, "work");
  mkdirSync(work);
  chmodSync(work, 0o777);
  return { binary, work };
}

/** The test's own timeout ends it. */
async function until(what: () => boolean): Promise<void> {
  while (!what()) {
    await Bun.sleep(20);
  }
}

const serveIn = (binary: string, work: string) => [
  ...["env", "-C", work, binary, ...SERVE, "--endpoint", `unix://${work}/kms.sock`],
];

testWith(...DROPPING)(
  "another process of the same user reads neither memory nor environment",
  async () => {
    const { binary, work } = reachable();
    const read = async (pid: number, file: string) =>
      asNobody(["head", "-c", "1", `/proc/${pid}/${file}`]).exited;
    const plain = asNobody(["sleep", "600"]);
    await until(() => statSync(`/proc/${plain.pid}/environ`).uid === NOBODY);
    expect(await read(plain.pid, "environ")).toBe(0); // so the question can be answered otherwise
    const plugin = asNobody(serveIn(binary, work));
    await until(() => plugin.output().includes("Key4C is ok"));
    for (const file of ["environ", "mem", "maps", "auxv"]) {
      expect([file, await read(plugin.pid, file)]).toEqual([file, 1]);
      expect(statSync(`/proc/${plugin.pid}/${file}`).uid).toBe(0);
    }
  },
);

testWith(...DROPPING, "core files").each(["SIGSEGV", "SIGABRT", "SIGQUIT"] as const)(
  "%s leaves no core file",
  async (signal) => {
    const { binary, work } = reachable();
    const limit = "ulimit -c unlimited;";
    const plain = asNobody(["env", "-C", work, "sleep", "600"], limit);
    await until(() => statSync(`/proc/${plain.pid}/environ`).uid === NOBODY);
    await until(() => readFileSync(`/proc/${plain.pid}/comm`, "utf8") === "sleep\n"); // env execs it
    await plain.stop(signal);
    const cores = () => readdirSync(work).filter((name) => name.startsWith("core"));
    expect(cores().length).toBeGreaterThan(0); // so it could be otherwise
    const plugin = asNobody(serveIn(binary, work), limit);
    await until(() => plugin.output().includes("Key4C is ok"));
    const before = cores();
    await Bun.$`rm -f ${before.map((name) => join(work, name))}`;
    await plugin.stop(signal);
    expect(cores()).toEqual([]);
  },
);

testWith(
  "prlimit",
  "setpriv",
  "root",
)("limits that are too small end with a sentence, at the start", async () => {
  const copy = join("/tmp", `k4c-limits-${crypto.randomUUID()}`);
  copyFileSync(BINARY, copy); // another user cannot reach the checkout
  chmodSync(copy, 0o755);
  onTestEnd(() => rmSync(copy));
  const nobody = ["setpriv", "--reuid=64123", "--regid=64123", "--clear-groups"] as const;
  const serve = [copy, "serve", "--emulator", "--endpoint", "unix:///tmp/k4c-never/kms.sock"];
  for (const [command, sentence] of [
    [["prlimit", "--nofile=12:12"], /may have 12 open files, and needs 640: raise RLIMIT_NOFILE/],
    [[...nobody, "prlimit", "--nproc=10:10"], /may have 10 threads, and needs 16: raise pids\.max/],
  ] as const) {
    const [first, ...rest] = command;
    const plugin = startProcess([first, ...rest, ...serve]);
    expect(await plugin.exited).toBe(1);
    expect(plugin.output()).toMatch(
      new RegExp(`^key4c-kms-plugin: this process ${sentence.source}`),
    );
  }
});

test("it asks for no newer glibc than REFERENCE says", () => {
  const versions = [...readFileSync(BINARY, "latin1").matchAll(/GLIBC_2\.(\d+)(?:\.\d+)?\0/g)];
  const newest = Math.max(...versions.map(([, minor]) => Number(minor)));
  const reference = readFileSync(join(import.meta.dir, "../../docs/REFERENCE.md"), "utf8");
  expect(reference).toContain(`It needs glibc 2.${newest} or newer`);
});
