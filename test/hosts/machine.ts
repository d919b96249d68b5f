/**
 * A machine that systemd boots: systemd-nspawn on an overlay of a Debian root. It keeps its disk when it is rebooted
 * or loses its power; its network is its own.
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { eventually } from "../e2e/process.ts";
import { enterCgroups, HAS_SYSTEMD, removeCgroups } from "./cgroups.ts";
import { debianRoot } from "./root.ts";

/** nspawn's own exit status for a machine that wants to be started again. */
const REBOOT = 133;
/** Generous: two cores, shared. */
const BOOT_MS = 120_000;
const COMMAND_MS = 300_000;

export interface MachineOptions {
  readonly name: string;
  /** Paths of ours that the machine has, to be read only, by its own names for them. */
  readonly files: Readonly<Record<string, string>>;
  /** What a container runtime needs inside: every capability, cgroups and directories that are no overlay. */
  readonly runsContainers?: boolean;
}

export interface RunOptions {
  readonly env?: Readonly<Record<string, string>>;
  /** On its standard input. */
  readonly input?: string;
}

export interface Ran {
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Where a container runtime and a kubelet want a plain file system below them. */
const PLAIN_DIRECTORIES = [
  "/var/lib/containerd",
  "/var/lib/kubelet",
  "/var/lib/etcd",
  "/var/log/pods",
];

/** Namespaces that end with the process that made them, and that process with its parent, however that ends. */
const UNSHARE = [
  ...["setpriv", "--pdeathsig", "KILL"],
  ...["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"],
];

export class Machine {
  readonly directory = mkdtempSync(join(tmpdir(), "k4c-host-"));
  readonly #options: MachineOptions;
  readonly #root: string;
  #nspawn: Bun.Subprocess | undefined;
  /** PID 1 of the machine, as this one knows it. */
  leader = 0;

  /** Two runs at once have machines of the same name. */
  get #cgroup(): string {
    return basename(this.directory);
  }

  private constructor(options: MachineOptions, root: string) {
    this.#options = options;
    this.#root = root;
    for (const name of ["upper", "work", "root"]) {
      mkdirSync(join(this.directory, name));
    }
  }

  static async boot(options: MachineOptions): Promise<Machine> {
    const machine = new Machine(options, await debianRoot());
    mkdirSync(join(machine.directory, "upper/etc"));
    writeFileSync(join(machine.directory, "upper/etc/hostname"), `${options.name}\n`);
    await machine.powerOn();
    return machine;
  }

  async powerOn(): Promise<void> {
    const { name, files, runsContainers = false } = this.#options;
    const at = (part: string) => join(this.directory, part);
    const overlay = `lowerdir=${this.#root},upperdir=${at("upper")},workdir=${at("work")}`;
    const plain = runsContainers ? PLAIN_DIRECTORIES : [];
    for (const path of plain) {
      mkdirSync(at(`plain${path}`), { recursive: true });
    }
    const nspawn = [
      ...["systemd-nspawn", "--quiet", "--boot", "-D", at("root"), "-M", name],
      ...["--private-network", "--register=no", "--link-journal=no"],
      ...(HAS_SYSTEMD ? [] : ["--keep-unit"]),
      ...Object.entries(files).map(([inside, outside]) => `--bind-ro=${outside}:${inside}`),
      ...plain.map((path) => `--bind=${at(`plain${path}`)}:${path}`),
      ...(runsContainers ? ["--capability=all", "--system-call-filter=add_key keyctl bpf"] : []),
    ];
    const script = `${HAS_SYSTEMD ? "" : enterCgroups(this.#cgroup)}
      mount -t overlay overlay -o ${overlay} ${at("root")}
      exec "$@"`;
    this.#nspawn = Bun.spawn([...UNSHARE, "sh", "-euc", script, "sh", ...nspawn], {
      env: { PATH: process.env["PATH"] ?? "" },
      stdin: "ignore",
      stdout: Bun.file(at("console")),
      stderr: Bun.file(at("console")),
    });
    const found = await eventually(`${name} boots`, BOOT_MS, () =>
      this.#nspawn?.exitCode === null ? this.#findLeader() : "ended",
    );
    if (found === "ended") {
      throw new Error(`${name} does not boot: ${this.console()}`);
    }
    this.leader = found;
    await eventually(
      `${name} is up`,
      BOOT_MS,
      async () => {
        const { stdout } = await this.try("systemctl is-system-running");
        return /^(running|degraded)$/m.test(stdout);
      },
      () => this.console(),
    );
  }

  /** PID 1 of the machine, as this one knows it: unshare has nspawn for a child, and that has systemd. */
  #findLeader(): number | false {
    const [nspawn = 0] = childrenOf(this.#nspawn?.pid ?? 0);
    const isSystemd = (pid: number) => readFileSync(`/proc/${pid}/comm`, "utf8") === "systemd\n";
    return childrenOf(nspawn).find(isSystemd) ?? false;
  }

  /** As if the plug were pulled. */
  async powerOff(): Promise<void> {
    this.#nspawn?.kill("SIGKILL");
    await this.#nspawn?.exited;
    await eventually("the machine is off", BOOT_MS, () => !existsSync(`/proc/${this.leader}`));
  }

  async reboot(): Promise<void> {
    await this.try("systemctl reboot");
    const status = await this.#nspawn?.exited;
    if (status !== REBOOT) {
      throw new Error(`the machine did not want to reboot: ${status}\n${this.console()}`);
    }
    await this.powerOn();
  }

  /** Writes a file in the machine, as a whole: who watches its directory never sees a part of it. */
  async put(path: string, text: string, mode = 0o644): Promise<void> {
    const beside = join(dirname(path), `.${basename(path)}`); // a kubelet ignores it
    const script = `mkdir -p ${dirname(path)}; cat > ${beside}; chmod ${mode.toString(8)} ${beside}; mv ${beside} ${path}`;
    await this.run(script, { input: text });
  }

  /** Runs a shell script as root, in a login that knows nothing but `env`; -e. @throws Error when it fails */
  async run(script: string, options: RunOptions = {}): Promise<string> {
    const { exitCode, stdout, stderr } = await this.try(`set -e\n${script}`, options);
    if (exitCode !== 0) {
      throw new Error(`${script}\nexit code ${exitCode}\n${stdout}${stderr}`.slice(0, 4_000));
    }
    return stdout;
  }

  /** The same, whatever comes of it. */
  async try(script: string, { env = {}, input = "" }: RunOptions = {}): Promise<Ran> {
    const child = this.start(script, env);
    child.stdin.write(input);
    child.stdin.end();
    const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
    return { exitCode: await child.exited, stdout, stderr };
  }

  /** The same, for what goes on; its standard input is open. */
  start(script: string, env: Readonly<Record<string, string>> = {}) {
    return Bun.spawn(
      [
        ...["nsenter", "-t", String(this.leader), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"],
        ...["env", "-i", ...Object.entries(env).map(([name, text]) => `${name}=${text}`)],
        ...["HOME=/root", "LANG=C.UTF-8"],
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ...["bash", "-c", script],
      ],
      { stdin: "pipe", stdout: "pipe", stderr: "pipe", timeout: COMMAND_MS },
    );
  }

  console(): string {
    return readFileSync(join(this.directory, "console"), "utf8");
  }

  async remove(): Promise<void> {
    await this.powerOff();
    if (!HAS_SYSTEMD) {
      // The last processes of a machine without power are still on their way out.
      await eventually("its cgroups are gone", BOOT_MS, () => {
        removeCgroups(this.#cgroup);
        return true;
      });
    }
    rmSync(this.directory, { recursive: true, force: true });
  }
}

function childrenOf(pid: number): number[] {
  return (readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").match(/\d+/g) ?? []).map(
    Number,
  );
}
