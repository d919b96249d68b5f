/** `install` on nodes of its own: a mount namespace each, with an /etc, a /usr/local and a /var/lib that only it has. */
import { expect } from "bun:test";
import { createHash } from "node:crypto";
import {
  chmodSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { testWith } from "../needs.ts";
import { BINARY, emulator, fakeServer, onTestEnd, temporaryDirectory } from "../support.ts";
import { vendorPod } from "../vendor-pod.ts";

const rootTest = testWith("root", "mount namespaces");
/** Processes too: this machine may run a kubelet, for another test. */
const UNSHARE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
const OWN = ["etc", "usr/local", "var/lib"];
const CONFIG = "/etc/key4c-kms/config";
const POD = "/etc/kubernetes/manifests/key4c-kms-plugin.yaml";
const SERVICE = "/etc/systemd/system/key4c-kms-plugin.service";
const ENCRYPTION = "/etc/kubernetes/pki/encryption-configuration.yaml";
const PATCH = "/etc/kubernetes/patches/kube-apiserver+strategic.yaml";
const API_SERVER = "/etc/kubernetes/manifests/kube-apiserver.yaml";
const PROGRAM = "/usr/local/bin/key4c-kms-plugin";
const IMAGE = "registry.example/key4c-kms-plugin:0.1.0";

/** kube-apiserver's static pod, as kubeadm writes it. */
const apiServer = (...flags: string[]) => `apiVersion: v1
kind: Pod
spec:
  containers:
    - command: [kube-apiserver, --advertise-address=192.0.2.11, --secure-port=6443${flags.map((one) => `, ${one}`).join("")}]
      image: registry.k8s.io/kube-apiserver:v1.37.2
      volumeMounts: [{ mountPath: /etc/kubernetes/pki, name: pki }]
  volumes: [{ hostPath: { path: /etc/kubernetes/pki }, name: pki }]
`;
/** Says how many control planes there are. */
const kubectl = (nodes: number) => `#!/bin/sh\nfor i in $(seq ${nodes}); do echo node/n$i; done\n`;
/** Stands for systemd: tells what it was asked, and starts nothing. */
const SYSTEMCTL = `#!/bin/sh
case "$*" in --version) echo "systemd \${SYSTEMD:-252} (252)";; *show*) echo 0;; *) echo "$*" >> /var/lib/systemctl;; esac
`;

class Node {
  readonly #directory = temporaryDirectory();
  readonly url: string;
  readonly #program: string;

  /** @param hasProgram whether it is in its place already, and is what is run */
  constructor(url = emulator().url, hasProgram = true) {
    this.url = url;
    this.#program = hasProgram ? PROGRAM : BINARY;
    for (const [path, text] of [
      ["/etc/passwd", "root:x:0:0::/root:/bin/sh\n"],
      ["/etc/group", "root:x:0:\n"],
      ["/etc/nsswitch.conf", "hosts: files\n"],
      ["/usr/local/bin/kubeadm", "#!/bin/sh\n"],
      ["/var/lib/empty", ""],
    ] as const) {
      this.put(path, text, 0o755);
    }
    if (hasProgram) {
      linkSync(BINARY, this.at(PROGRAM));
    }
    onTestEnd(() => rmSync(this.at("/etc/key4c-kms"), { recursive: true, force: true })); // it holds secrets
  }

  /** Where this machine has a file of the node. */
  at(path: string): string {
    return join(this.#directory, path);
  }

  put(path: string, text: string, mode = 0o644): void {
    mkdirSync(dirname(this.at(path)), { recursive: true });
    writeFileSync(this.at(path), text);
    chmodSync(this.at(path), mode);
  }

  text(path: string): string {
    return readFileSync(this.at(path), "utf8");
  }

  /** Runs a script of sh in it. */
  async run(script: string, { input = "", env = {} as Record<string, string> } = {}) {
    const mounts = OWN.map((one) => `mount --bind ${this.at(one)} /${one}`).join("; ");
    const inside = `${mounts}; mount -t tmpfs tmpfs /run; ${script}`;
    const child = Bun.spawn([...UNSHARE, "sh", "-c", inside], {
      env: { PATH: "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", ...env },
      stdin: Buffer.from(input),
      stdout: "pipe",
      stderr: "pipe",
    });
    const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
    return { stdout, stderr, exitCode: await child.exited };
  }

  install(flags: string, input = "the-token") {
    return this.run(`exec ${this.command(flags)}`, { input });
  }

  command(flags: string): string {
    return `${this.#program} install ${flags}`;
  }

  get asPod(): string {
    return `--as static-pod --image ${IMAGE} --key4c-url ${this.url} --key-id demo`;
  }

  /** Every file: its mode and what is in it. @param exactly also when it was written */
  files(exactly = false): Record<string, string> {
    const found = OWN.flatMap((one) =>
      readdirSync(this.at(one), { recursive: true, encoding: "utf8" }).map(
        (name) => `/${one}/${name}`,
      ),
    );
    return Object.fromEntries(
      found.sort().map((path) => {
        const { mode, uid, ino, ctimeMs } = statSync(this.at(path));
        const text = statSync(this.at(path)).isFile() ? readFileSync(this.at(path)) : "";
        const digest = createHash("sha256").update(text).digest("hex").slice(0, 12);
        const facts = [(mode & 0o7777).toString(8), uid, digest];
        return [path, [...facts, ...(exactly ? [ino, ctimeMs] : [])].join(" ")];
      }),
    );
  }
}

rootTest(
  "a new cluster: the files, their modes, and the block; run twice it changes nothing",
  async () => {
    const node = new Node(emulator().url, false);
    const { stdout, stderr, exitCode } = await node.install(node.asPod);
    expect({ exitCode, stderr }).toMatchObject({
      exitCode: 0,
      stderr: expect.stringContaining("8 files written"),
    });
    expect(stderr).toContain("no kubelet runs here yet");
    expect(stdout).toContain("kubeadm init --config /root/key4c-kubeadm.yaml\n");
    expect(stdout).toContain(`scp OTHER-NODE:${ENCRYPTION} ${ENCRYPTION}\n`);
    expect(stdout + stderr).not.toContain("the-token");
    const modes = Object.fromEntries(
      [
        CONFIG,
        "/etc/key4c-kms",
        "/etc/key4c-kms/user-id",
        "/etc/key4c-kms/key-id",
        "/etc/key4c-kms/previous-key-ids",
        POD,
        ENCRYPTION,
        PATCH,
        PROGRAM,
      ].map((path) => [path, (statSync(node.at(path)).mode & 0o7777).toString(8)]),
    );
    expect(modes).toEqual({
      [CONFIG]: "644",
      "/etc/key4c-kms": "711",
      "/etc/key4c-kms/user-id": "600",
      "/etc/key4c-kms/key-id": "644",
      "/etc/key4c-kms/previous-key-ids": "644",
      [POD]: "600",
      [ENCRYPTION]: "600",
      [PATCH]: "644",
      [PROGRAM]: "755",
    });
    expect(node.text("/etc/key4c-kms/user-id")).toBe("the-token\n");
    expect(node.text(ENCRYPTION)).toMatch(/- kms:[\s\S]*- identity/);
    expect(node.text(POD)).toContain(`image: "${IMAGE}"`);
    for (const again of [node.asPod, ""]) {
      const before = node.files(true);
      const second = await node.install(again, "");
      expect([second.exitCode, second.stdout]).toEqual([0, stdout]);
      expect(second.stderr).toContain("every file is as it should be");
      expect(node.files(true)).toEqual(before);
    }
    // By the program in its place, in a shell that knows nothing.
    const doctor = await node.run("exec key4c-kms-plugin doctor");
    expect(doctor.stdout).toContain(`✓ configuration: complete and well-formed, with ${CONFIG}`);
    expect(doctor.stdout).toContain("✓ wrap and unwrap");
  },
);

rootTest(
  "--dry-run shows each file as a diff, secrets by name only, and writes nothing",
  async () => {
    const node = new Node();
    const before = node.files(true);
    const { stdout, stderr, exitCode } = await node.install(`${node.asPod} --dry-run`);
    expect([exitCode, node.files(true)]).toEqual([0, before]);
    expect(stdout).toContain("+++ /etc/key4c-kms/user-id (0600 root, a secret)\n");
    expect(stdout).toContain(`+++ ${POD} (0600 root)\n@@`);
    expect(stdout + stderr).not.toContain("the-token");
    await node.install(node.asPod);
    const change = await node.install("--outage-grace 1h --dry-run", "");
    expect(change.stdout).toContain(`--- ${CONFIG} (kept as ${CONFIG}.before-key4c)\n`);
    expect(change.stdout).toContain("\n+KMS_OUTAGE_GRACE=1h\n");
    expect(change.stdout).not.toContain("-KEY4C_URL");
  },
);

rootTest("another setting: config and pod change, what was there is kept", async () => {
  const node = new Node();
  await node.install(node.asPod);
  const before = [node.text(CONFIG), node.text(POD)];
  const { exitCode, stderr } = await node.install("--outage-grace 1h", "");
  expect([exitCode, stderr]).toEqual([0, expect.stringContaining("2 files written")]);
  expect(node.text(CONFIG)).toBe(`${before[0]}KMS_OUTAGE_GRACE=1h\n`);
  const bodies = [before[1] ?? "", node.text(POD)].map((text) => /settings: (\w+)/.exec(text)?.[1]);
  expect(bodies[0]).not.toBe(bodies[1]); // so a kubelet makes a new pod of it
  expect(node.text(`${CONFIG}.before-key4c`)).toBe(before[0] ?? "");
  expect(node.text("/etc/key4c-kms/key4c-kms-plugin.yaml.before-key4c")).toBe(before[1] ?? "");
  expect(readdirSync(dirname(node.at(POD)))).toEqual(["key4c-kms-plugin.yaml"]); // a kubelet reads all
  // The last line is changed, and another one comes behind it.
  await node.install("--outage-grace 2h --probe-interval 20s", "");
  expect(node.text(CONFIG)).toBe(`${before[0]}KMS_OUTAGE_GRACE=2h\nKMS_PROBE_INTERVAL=20s\n`);
});

rootTest("a profile, put where install.md says: pod and every command use it", async () => {
  const node = new Node();
  const profile = "/etc/key4c-kms/profile.json";
  const put = await node.run(`set -e; install -d -m 0711 /etc/key4c-kms; cd /var/lib
    key4c-kms-plugin manifest profile key4c > profile.json; install -m 0644 profile.json ${profile}`);
  expect(put).toMatchObject({ exitCode: 0, stderr: "" });
  const { exitCode } = await node.install(`${node.asPod} --key4c-profile ${profile}`);
  expect([exitCode, node.text(CONFIG)]).toEqual([
    0,
    expect.stringContaining(`KEY4C_PROFILE=${profile}\n`),
  ]);
  expect(node.text(POD)).toMatch(/mountPath: "?\/etc\/key4c-kms"?/);
  const doctor = () => node.run("exec key4c-kms-plugin doctor");
  expect((await doctor()).stdout).toContain("✓ wrap and unwrap");
  node.put(profile, node.text(profile).replace("/v1/keys/{keyId}", "/v9/keys/{keyId}"));
  expect((await doctor()).stdout).toContain("✗");
});

rootTest.each([
  [1, "", /- kms:[\s\S]*- identity/],
  [2, "", /- identity[\s\S]*- kms:/],
  [0, "", /- identity[\s\S]*- kms:/], // it does not say
  [2, "--control-planes one", /- kms:[\s\S]*- identity/],
])("a cluster that exists, of %p control planes %p", async (nodes, flags, order) => {
  const node = new Node();
  node.put(API_SERVER, apiServer(), 0o600);
  node.put("/etc/kubernetes/admin.conf", "", 0o600);
  node.put("/usr/local/bin/kubectl", kubectl(nodes), 0o755);
  const { stdout, exitCode } = await node.install(`${node.asPod} ${flags}`);
  expect([exitCode, node.text(API_SERVER)]).toEqual([0, apiServer()]);
  expect(node.text(ENCRYPTION)).toMatch(order);
  expect(stdout).toContain("localAPIEndpoint: { advertiseAddress: 192.0.2.11, bindPort: 6443 }\n");
  expect(stdout).toContain("apiVersion: kubeadm.k8s.io/v1beta4\n");
  const isTurned = stdout.includes("No API server writes under Key4C yet");
  expect(isTurned).toBe(order.source.startsWith("- identity"));
  if (isTurned) {
    expect((await node.install("", "")).stdout).toBe(stdout); // said until it is done
    const [, line = ""] = /^# {3}(key4c-kms-plugin manifest .*)$/m.exec(stdout) ?? [];
    expect((await node.run(line)).stderr).toBe("");
    expect(node.text(ENCRYPTION)).toMatch(/- kms:[\s\S]*- identity/);
    expect((await node.install("", "")).stdout).not.toContain("No API server writes");
  }
});

rootTest("an API server that has everything needs no block", async () => {
  const node = new Node();
  const mounted = apiServer(`--encryption-provider-config=${ENCRYPTION}`)
    .replace("name: pki }]", "name: pki }, { mountPath: /run/key4c-kms, name: kms }]")
    .replace("volumes: [", "volumes: [{ hostPath: { path: /run/key4c-kms }, name: kms }, ");
  node.put(API_SERVER, mounted, 0o600);
  const { stdout } = await node.install(`${node.asPod} --control-planes one`);
  expect(stdout).toBe("\n# The API server has everything.\nkey4c-kms-plugin doctor\n");
});

rootTest("as a service: both units, what systemd is asked, Status; again nothing", async () => {
  const node = new Node();
  node.put("/usr/local/bin/systemctl", SYSTEMCTL, 0o755);
  const serving = `mkdir -p /run/systemd/system
    KMS_CONFIG=/dev/null KEY4C_URL=${node.url} KMS_KEY_ID=demo KMS_USER_ID=the-token ${BINARY} serve > /var/lib/log 2>&1 & plugin=$!`;
  const install = (flags: string) =>
    node.run(`${serving}\n${node.command(flags)}; code=$?; kill $plugin; exit $code`, {
      input: "the-token",
    });
  const flags = `--as systemd --key4c-url ${node.url} --key-id demo --control-planes one`;
  const { exitCode, stderr } = await install(flags);
  expect([exitCode, stderr]).toEqual([0, expect.stringContaining("the plugin is ok: {")]);
  expect(node.text(SERVICE)).toContain(`LoadCredential=config:${CONFIG}\n`);
  const asked = [
    "daemon-reload",
    "enable --quiet key4c-kms-plugin.socket key4c-kms-plugin.service",
    "start key4c-kms-plugin.socket key4c-kms-plugin.service",
    "",
  ];
  expect(node.text("/var/lib/systemctl")).toBe(asked.join("\n"));
  const before = node.files(true);
  expect((await install("")).stderr).toContain("every file is as it should be");
  const { ["/var/lib/log"]: _, ["/var/lib/systemctl"]: __, ...after } = node.files(true);
  expect(before).toMatchObject(after);
  const old = new Node();
  old.put("/usr/local/bin/systemctl", SYSTEMCTL, 0o755);
  const tooOld = await old.run(
    `mkdir -p /run/systemd/system; exec ${old.command(`--as systemd --key4c-url ${old.url} --key-id demo`)}`,
    {
      input: "the-token",
      env: { SYSTEMD: "245" },
    },
  );
  expect([tooOld.exitCode, tooOld.stderr]).toEqual([
    1,
    expect.stringContaining("systemd 245 has no LoadCredential="),
  ]);
});

/** Files of others, each with what `install` says; none may be touched. */
const encryption = (providers: string) =>
  `apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n  - resources: [secrets]\n    providers:\n${providers}      - identity: {}\n`;
const UNTOUCHED: readonly (readonly [
  what: string,
  files: Readonly<Record<string, string>>,
  says: string,
])[] = [
  [
    "another provider's EncryptionConfiguration",
    {
      [ENCRYPTION]: encryption(
        "      - aescbc: { keys: [{ name: k, secret: c2VjcmV0IGlzIHNlY3VyZSwgb3IgMTIzNDU2Nzg5MA== }] }\n",
      ),
    },
    "Add this BEHIND",
  ],
  [
    "one at the path that the API server names",
    {
      [API_SERVER]: apiServer("--encryption-provider-config=/etc/kubernetes/pki/own.yaml"),
      "/etc/kubernetes/pki/own.yaml": encryption(""),
    },
    "/etc/kubernetes/pki/own.yaml is what this API server encrypts with",
  ],
  ["one that nobody can read", { [ENCRYPTION]: "resources: [" }, "Add this BEHIND"],
  [
    "what RKE2 encrypts with",
    {
      "/etc/rancher/rke2/config.yaml": "",
      "/var/lib/rancher/rke2/server/cred/encryption-config.json": "{}",
    },
    "rke2 writes that file itself",
  ],
  [
    "the vendor's pod",
    {
      "/etc/kubernetes/manifests/key4c.yaml": vendorPod({
        image: "x",
        key4cUrl: "https://k.example",
      }),
    },
    "docs/VENDOR-PLUGIN.md",
  ],
  [
    "our pod, changed by hand",
    {
      [POD]:
        "# Made by `key4c-kms-plugin manifest static-pod`, release 0.1.0, from:\n# sha256 of what follows: 0000000000000000\nkind: Pod\n",
    },
    "somebody has changed since",
  ],
  ["another pod under our name", { [POD]: "kind: Pod\n" }, "of kind Pod, and not of this program"],
  [
    "a unit that runs the plugin",
    { [SERVICE]: "[Service]\nExecStart=/usr/local/bin/key4c-kms-plugin serve\n" },
    "two fight for one socket",
  ],
  ["another patch under our name", { [PATCH]: "kind: Pod\n" }, `${PATCH} is of kind Pod`],
  [
    "another credential",
    { "/etc/key4c-kms/user-id": "another-token\n", "/var/lib/token": "the-token\n" },
    "this node has another KMS_USER_ID",
  ],
  ["another key", { "/etc/key4c-kms/key-id": "next\n" }, "this node has another KMS_KEY_ID"],
  [
    "a settings file with a mistake",
    { [CONFIG]: "KEY4C_ULR=https://key4c.example\n" },
    "did you mean KEY4C_URL?",
  ],
];
rootTest.each([...UNTOUCHED])("not touched, and said: %s", async (_, files, says) => {
  const node = new Node();
  for (const [path, text] of Object.entries(files)) {
    node.put(path, text, 0o600);
  }
  const before = node.files(true);
  const token = "/var/lib/token" in files ? "--user-id-file /var/lib/token" : "";
  const { exitCode, stderr, stdout } = await node.install(
    `${node.asPod} --control-planes one ${token}`,
  );
  expect([exitCode, stdout]).toEqual([says.startsWith("did you mean") ? 2 : 1, ""]);
  expect(stderr).toContain(says);
  expect(stderr).not.toMatch(/the-token|another-token/);
  expect(node.files(true)).toEqual(before);
  for (const path of Object.keys(files)) {
    rmSync(node.at(path)); // a credential may be among them
  }
});

rootTest("what Key4C refuses, or what is no credential, writes nothing", async () => {
  const denying = fakeServer(() => Response.json({ code: "DENIED", message: "" }, { status: 401 }));
  for (const [node, input, code, says] of [
    [new Node(denying.url), "the-token", 1, "nothing was written: correct what failed"],
    [new Node("http://127.0.0.1:9"), "the-token", 1, "✗ connection"],
    [new Node(), "", 2, "KMS_USER_ID, from standard input, must be 1 to 4096 visible"],
    [new Node(), "two words", 2, "KMS_USER_ID, from standard input, must be 1 to 4096 visible"],
  ] as const) {
    const before = node.files(true);
    const { exitCode, stderr } = await node.install(node.asPod, input);
    expect([exitCode, node.files(true)]).toEqual([code, before]);
    expect(stderr).toContain(says);
    expect(stderr).not.toContain("two words");
  }
  const node = new Node();
  const drop = "setpriv --reuid 65534 --regid 65534 --clear-groups --";
  const copy = `cp ${BINARY} /run/plugin; chmod 755 /run/plugin; exec ${drop} /run/plugin install ${node.asPod}`;
  expect((await node.run(copy)).stderr).toContain("run it as root");
  expect((await node.install(`--key4c-url ${node.url} --key-id demo`)).stderr).toContain(
    "--as static-pod, or --as systemd",
  );
});

testWith("root", "mount namespaces", "strace")(
  "killed at each file and run again: the same files as without",
  async () => {
    const whole = new Node();
    await whole.install(whole.asPod);
    const wanted = whole.files();
    const names = "rename,renameat,renameat2";
    for (let step = 1; ; step += 1) {
      const node = new Node(whole.url);
      const { exitCode } = await node.run(
        `exec strace -f -qq -o /var/lib/trace -e trace=${names} -e inject=${names}:signal=KILL:when=${step} ${node.command(node.asPod)}`,
        { input: "the-token" },
      );
      rmSync(node.at("/var/lib/trace"), { force: true });
      const isKilled = exitCode !== 0;
      const again = await node.install(node.asPod);
      expect([step, again.exitCode, node.files()]).toEqual([step, 0, wanted]);
      if (!isKilled) {
        expect(step).toBe(8); // seven files, and one run that nobody killed
        break;
      }
    }
  },
  300_000,
);

/** What is wrong with a node that was well, and what `doctor` says of it; each with exit code 1. */
const BROKEN: readonly (readonly [
  what: string,
  script: string,
  says: RegExp,
  env?: Readonly<Record<string, string>>,
])[] = [
  [
    "the plugin does not run",
    "kill $plugin; wait $plugin",
    /✗ socket: .*no plugin runs, .* → start it/,
  ],
  [
    "it was killed",
    "kill -9 $plugin; wait $plugin || :",
    /✗ socket: .* the process that made it has ended → start it/,
  ],
  ["it hangs", "kill -STOP $plugin", /✗ socket: .*did not answer within 3 s/],
  [
    "identity comes first",
    `${PROGRAM} manifest encryption-configuration --identity-first --force --output ${ENCRYPTION}`,
    /✗ EncryptionConfiguration: who writes secrets: identity, in clear/,
  ],
  [
    "no EncryptionConfiguration",
    `rm ${ENCRYPTION}`,
    /✗ EncryptionConfiguration: file: cannot read/,
  ],
  [
    "one with a mistake",
    `sed -i 's/timeout:/timeuot:/' ${ENCRYPTION}`,
    /✗ EncryptionConfiguration: file: kube-apiserver refuses it/,
  ],
  [
    "the socket is not mounted into the API server",
    `sed -i 's#path: /run/key4c-kms#path: /run/other#' ${API_SERVER}`,
    /✗ kube-apiserver: socket: the directory of .* is not mounted/,
  ],
  [
    "everybody may use the socket",
    "chmod 666 /run/key4c-kms/kms.sock",
    /✗ socket: .*0666: every user/,
  ],
  ["another key in the environment", "", /✗ key: .*KEY_NOT_FOUND/, { KMS_KEY_ID: "other" }],
  [
    "a name that nobody knows",
    `echo KMS_OUTGE_GRACE=1h >> ${CONFIG}`,
    /✗ configuration: .*did you mean KMS_OUTAGE_GRACE\?/,
  ],
  [
    "a secret that others can read",
    `echo KMS_API_KEY=hidden >> ${CONFIG}`,
    /✗ configuration: .*not only its owner can read it/,
  ],
  [
    "Key4C is elsewhere",
    `sed -i 's#^KEY4C_URL=.*#KEY4C_URL=http://127.0.0.1:9#' ${CONFIG}`,
    /✗ connection: 127\.0\.0\.1:9: .*ECONNREFUSED/,
  ],
  [
    "TLS checks are off",
    "",
    /✗ configuration: NODE_TLS_REJECT_UNAUTHORIZED is set/,
    { NODE_TLS_REJECT_UNAUTHORIZED: "0" },
  ],
];
/** Nodes; more would make each other slow, which doctor says too. */
const AT_ONCE = 3;
rootTest(
  "doctor on a node that is well, and on each broken one",
  async () => {
    const { url } = emulator();
    const judge = async (script: string, env: Readonly<Record<string, string>> = {}) => {
      const node = new Node(url);
      const told = apiServer(
        `--encryption-provider-config=${ENCRYPTION}`,
        "--encryption-provider-config-automatic-reload=true",
      )
        .replace("name: pki }]", "name: pki }, { mountPath: /run/key4c-kms, name: kms }]")
        .replace("volumes: [", "volumes: [{ hostPath: { path: /run/key4c-kms }, name: kms }, ");
      node.put(API_SERVER, told, 0o600);
      const doctor = `env ${Object.entries(env)
        .map(([name, value]) => `${name}=${value}`)
        .join(" ")} ${PROGRAM} doctor; code=$?`;
      const all = `${node.command(`${node.asPod} --http-address "" --control-planes one`)} > /dev/null 2>&1 || exit 9
      ${PROGRAM} serve > /var/lib/log 2>&1 & plugin=$!; ${PROGRAM} status --wait 60s > /dev/null || exit 8
      ${script || ":"}\n${doctor}; kill -9 $plugin 2> /dev/null; exit $code`;
      return node.run(all, { input: "the-token" });
    };
    const well = await judge("");
    expect([well.exitCode, well.stdout]).toEqual([0, expect.not.stringContaining("✗")]);
    const found: object[] = [];
    for (let index = 0; index < BROKEN.length; index += AT_ONCE) {
      const some = BROKEN.slice(index, index + AT_ONCE).map(async ([what, script, says, env]) => {
        const { exitCode, stdout } = await judge(script, env);
        return { what, exitCode, says: says.test(stdout) ? "so" : stdout };
      });
      found.push(...(await Promise.all(some)));
    }
    expect(found).toEqual(BROKEN.map(([what]) => ({ what, exitCode: 1, says: "so" })));
  },
  240_000,
);
