/** Whatever the values are: a manifest says them, in the syntax of its reader, or there is no manifest. */
import { expect, test } from "bun:test";
import {
  chmodSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { testWith } from "../needs.ts";
import { NO_CONFIG_FILE } from "../no-config.ts";
import { BINARY, runBinary, temporaryDirectory } from "../support.ts";

const SERVE = { KEY4C_URL: "https://key4c.example", KMS_KEY_ID: "demo" };

async function manifest(name: string, flags: readonly string[] = [], env: Env = SERVE) {
  const { stdout, stderr, exitCode } = await runBinary(["manifest", name, ...flags], { env });
  return { stdout: stdout.toString(), stderr, exitCode };
}
type Env = Record<string, string>;

const printed = async (name: string, flags: readonly string[] = [], env: Env = SERVE) => {
  const { stdout, stderr, exitCode } = await manifest(name, flags, env);
  expect({ stderr, exitCode }).toEqual({ stderr: "", exitCode: 0 });
  return stdout;
};

/** What it says when it prints nothing. */
const refusal = async (name: string, flags: readonly string[] = [], env: Env = SERVE) => {
  const { stdout, stderr, exitCode } = await manifest(name, flags, env);
  expect({ stdout, exitCode }).toEqual({ stdout: "", exitCode: 2 });
  return stderr;
};

interface Mount {
  readonly name: string;
  readonly mountPath: string;
}
interface Pod {
  readonly spec: {
    readonly securityContext: { readonly supplementalGroups?: readonly number[] };
    readonly containers: readonly {
      readonly env: readonly { readonly name: string; readonly value: string }[];
      readonly volumeMounts: readonly Mount[];
    }[];
    readonly volumes: readonly { readonly name: string }[];
  };
}

async function pod(flags: readonly string[] = [], env: Env = SERVE) {
  const { spec } = Bun.YAML.parse(await printed("static-pod", flags, env)) as Pod;
  const [container] = spec.containers;
  return {
    groups: spec.securityContext.supplementalGroups,
    env: Object.fromEntries((container?.env ?? []).map(({ name, value }) => [name, value])),
    mounts: (container?.volumeMounts ?? []).map(({ mountPath }) => mountPath),
    volumes: spec.volumes.map(({ name }) => name),
  };
}

test("--output writes all or nothing, and only where a file may be", async () => {
  const directory = temporaryDirectory();
  const file = join(directory, "pod.yaml");
  await printed("static-pod", ["--output", file]);
  const whole = readFileSync(file, "utf8");
  expect(whole).toContain("kind: Pod");
  expect(whole).toContain(`#   --output ${file}`);
  expect(statSync(file).mode & 0o777).toBe(0o600);
  // Without its variables: the plugin that runs must not lose its manifest.
  expect((await manifest("static-pod", ["--output", file], {})).exitCode).toBe(2);
  expect(readFileSync(file, "utf8")).toBe(whole);
  await printed("static-pod", ["--output", file, "--key-id", "next"]);
  expect(readFileSync(file, "utf8")).toContain('value: "next"');
  await printed("systemd-service", ["--output", join(directory, "unit")]);
  expect(statSync(join(directory, "unit")).mode & 0o777).toBe(0o644);

  mkdirSync(join(directory, "directory"));
  symlinkSync(file, join(directory, "link"));
  for (const [path, message] of [
    [join(directory, "directory"), "is no regular file"],
    [join(directory, "link"), "is no regular file"],
    ["/dev/full", "is no regular file"],
    [join(directory, "none/pod.yaml"), "(there is no directory"],
  ] as const) {
    const { stdout, stderr, exitCode } = await manifest("static-pod", ["--output", path]);
    expect([path, stdout, exitCode]).toEqual([path, "", 1]);
    expect(stderr).toContain(message);
  }
  expect(readdirSync(directory).sort()).toEqual(["directory", "link", "pod.yaml", "unit"]);
});

testWith("root", "mount namespaces")(
  "on a full disk the old file stays, and nothing is beside it",
  () => {
    const directory = temporaryDirectory();
    const script = `mount -t tmpfs -o size=8k tmpfs ${directory} && cd ${directory}
    echo old > pod.yaml; head -c 100k /dev/zero > filling 2> /dev/null
    ${BINARY} manifest static-pod --force --output ${directory}/pod.yaml; echo "exit code $?"; cat pod.yaml; ls -A`;
    const { stdout, stderr } = Bun.spawnSync(["unshare", "--mount", "sh", "-c", script], {
      env: { ...NO_CONFIG_FILE, ...SERVE, PATH: process.env["PATH"] ?? "" },
    });
    expect([stdout.toString(), stderr.toString()]).toEqual([
      "exit code 1\nold\nfilling\npod.yaml\n",
      `key4c-kms-plugin: cannot write ${directory}/pod.yaml (ENOSPC)\n`,
    ]);
  },
);

test("an EncryptionConfiguration is never replaced: it may hold the only keys", async () => {
  const file = join(temporaryDirectory(), "encryption-configuration.yaml");
  writeFileSync(file, "secret: key");
  const { stderr, exitCode } = await manifest("encryption-configuration", ["--output", file]);
  expect([exitCode, readFileSync(file, "utf8")]).toEqual([1, "secret: key"]);
  expect(stderr).toContain("is there already");
  const other = `${file}.new`;
  await printed("encryption-configuration", ["--output", other]);
  expect(statSync(other).mode & 0o777).toBe(0o600);
});

test("--output replaces only what this manifest wrote, unchanged; --force the rest", async () => {
  const directory = temporaryDirectory();
  const file = join(directory, "file");
  const encryption = "apiVersion: v1\nkind: EncryptionConfiguration\nresources: []\n";
  const pod = await printed("static-pod");
  for (const [there, what] of [
    [encryption, "of kind EncryptionConfiguration, and not of this program"],
    ["the-credential\n", "another file"],
    ["", "another file"],
    [await printed("systemd-socket"), "what `manifest systemd-socket` wrote"],
    [pod.replace("runAsUser: 0", "runAsUser: 1"), "and somebody has changed since"],
    [`${pod}# mine\n`, "and somebody has changed since"],
  ] as const) {
    writeFileSync(file, there);
    const { exitCode, stderr } = await manifest("static-pod", ["--output", file]);
    expect([exitCode, readFileSync(file, "utf8")]).toEqual([1, there]);
    expect(stderr).toContain(`${file} is there already: it is `);
    expect(stderr).toContain(what);
    expect(stderr).not.toContain("the-credential");
  }
  await printed("static-pod", ["--output", file, "--force"]);
  expect(readFileSync(file, "utf8")).toContain("kind: Pod");
  await printed("static-pod", ["--output", file, "--key-id", "another"]); // of this manifest, unchanged
  expect(readFileSync(file, "utf8")).toContain('value: "another"');
  symlinkSync(file, `${file}.link`);
  const link = await manifest("static-pod", ["--output", `${file}.link`]);
  expect([link.exitCode, link.stderr]).toEqual([1, expect.stringContaining("no regular file")]);
  // JSON has no comment that could hold a head: the title tells.
  const dashboard = join(directory, "dashboard.json");
  await printed("grafana", ["--output", dashboard]);
  await printed("grafana", ["--output", dashboard, "--cluster-label", "site"]);
  expect(readFileSync(dashboard, "utf8")).toContain("site");
  const { stderr } = await manifest("profile-schema", ["--output", dashboard]);
  expect(stderr).toContain("it is another file");
});

test("an image is one that a kubelet could pull", async () => {
  const digest = `@sha256:${"0".repeat(64)}`;
  for (const image of [
    "key4c-kms-plugin:0.1.0",
    "registry.example/key4c-kms-plugin:0.1.0",
    "registry.example:5000/a/b__c/key4c.kms-plugin",
    "localhost/plugin",
    "REGISTRY:5000/plugin:V1",
    `registry.example/plugin:1${digest}`,
    `plugin${digest}`,
  ]) {
    expect(await printed("static-pod", ["--image", image])).toContain(`image: "${image}"`);
  }
  for (const image of [
    "",
    "a b",
    "REGISTRY/key4c-kms-plugin:0.1.0",
    "https://registry.example/plugin",
    "registry.example/Plugin",
    "plugin:",
    "plugin:a:b",
    "plugin@sha256:0",
    "/plugin",
    "registry.example//plugin",
    `registry.example/${"a".repeat(600)}`,
  ]) {
    expect(await refusal("static-pod", ["--image", image])).toContain(
      "--image must be an image such as registry.example/key4c-kms-plugin:0.1.0",
    );
  }
});

test("it tells what it was made from, and where that was said; secrets by name only", async () => {
  const text = await printed("static-pod", ["--key-id", "next", "--image", "registry/i:1"], {
    ...SERVE,
    KMS_USER_ID: "the-token",
    NO_PROXY: "10.0.0.0/8",
  });
  expect(text.split("\n").slice(0, 6)).toEqual([
    expect.stringContaining("# Made by `key4c-kms-plugin manifest static-pod`, release "),
    "#   KEY4C_URL=https://key4c.example (environment)",
    "#   --key-id next",
    "#   KMS_USER_ID (environment)",
    "#   --image registry/i:1",
    "#   NO_PROXY=10.0.0.0/8 (environment)",
  ]);
});

test("YAML takes every text for a text, and Kubernetes replaces no $(NAME)", async () => {
  for (const id of [
    "on",
    "123",
    "null",
    "~",
    "1e3",
    "0x1f",
    '"',
    "'{}'",
    "a:b#c",
    "%YAML",
    "\\n",
  ]) {
    expect((await pod(["--key-id", id])).env["KMS_KEY_ID"]).toBe(id);
  }
  const odd = "a$(HOME)$$b";
  expect((await pod(["--key-id", odd])).env["KMS_KEY_ID"]).toBe("a$$(HOME)$$$$b");
  for (const name of ["on", "123", "null", "1.5", "y"]) {
    const text = await printed("encryption-configuration", ["--provider-name", name]);
    expect(Bun.YAML.parse(text)).toMatchObject({
      resources: [{ providers: [{ kms: { name } }, { identity: {} }] }],
    });
  }
  for (const [api, args] of [
    [
      "v1beta4",
      [
        { name: "encryption-provider-config", value: "/etc/kubernetes/pki/e.yaml" },
        { name: "encryption-provider-config-automatic-reload", value: "true" },
        { name: "feature-gates", value: "KMSv1=true" },
      ],
    ],
    [
      "v1beta3",
      {
        "encryption-provider-config": "/etc/kubernetes/pki/e.yaml",
        "encryption-provider-config-automatic-reload": "true",
        "feature-gates": "KMSv1=true",
      },
    ],
  ] as const) {
    const configuration = ["--encryption-configuration", "/etc/kubernetes/pki/e.yaml"];
    const flags = ["--kubeadm-api", api, "--api", "v1", ...configuration];
    expect(Bun.YAML.parse(await printed("kubeadm-config", flags))).toMatchObject({
      apiVersion: `kubeadm.k8s.io/${api}`,
      apiServer: { extraArgs: args },
    });
  }
});

test("a settings file is mounted or loaded, and what is in it stands nowhere else", async () => {
  const path = join(temporaryDirectory(), "config");
  const key = "KMS_KEY_ID_FILE=/etc/key4c-kms/key-id\nKEY4C_CA_FILE=/etc/key4c-tls/ca.pem\n";
  writeFileSync(path, `KEY4C_URL=https://key4c.example\n${key}KMS_OUTAGE_GRACE=1h\n`);
  const env = { KMS_CONFIG: path, KMS_PROBE_INTERVAL: "1m" };
  const { env: inPod, mounts } = await pod([], env);
  expect(inPod).toEqual({
    KMS_CONFIG: path,
    KEY4C_URL: "", // whatever the image has
    KMS_ENDPOINT: "unix:///run/key4c-kms/kms.sock",
    KMS_HTTP_ADDRESS: "127.0.0.1:9640",
    KMS_PROBE_INTERVAL: "1m",
    KMS_USER_ID_FILE: "/etc/key4c-kms/user-id",
  });
  expect(mounts).toEqual(["/run/key4c-kms", dirname(path), "/etc/key4c-kms", "/etc/key4c-tls"]);
  const unit = await printed("systemd-service", [], env);
  expect(unit.match(/^LoadCredential=.*$/gm)).toEqual([
    `LoadCredential=config:${path}`,
    "LoadCredential=key4c-ca:/etc/key4c-tls/ca.pem",
    "LoadCredential=kms-user-id:/etc/key4c-kms/user-id",
  ]);
  expect(unit.match(/^Environment=.*$/gm)).toEqual([
    'Environment="KMS_ENDPOINT=unix:///run/key4c-kms/kms.sock"',
    'Environment="KMS_HTTP_ADDRESS=127.0.0.1:9640"',
    'Environment="KMS_PROBE_INTERVAL=1m"',
  ]);
  const older = await printed("systemd-service", ["--environment-file", "/etc/k/e"], env);
  expect(older).toContain(`Environment="KMS_CONFIG=${path}"`);
  // A secret in it needs no file of its own.
  writeFileSync(path, `KEY4C_URL=https://key4c.example\n${key}KMS_USER_ID=hidden\n`);
  chmodSync(path, 0o600);
  const text = await printed("systemd-service", [], { KMS_CONFIG: path });
  expect(text).not.toMatch(/kms-user-id|hidden/);
  rmSync(path);
});

test("what serve would refuse is not printed", async () => {
  expect(
    await refusal("static-pod", ["--key-id-file", "/etc/key4c-kms/key-id", "--key-id", "demo"]),
  ).toContain("KMS_KEY_ID (--key-id) and KMS_KEY_ID_FILE (--key-id-file): give one of them");
  expect(await refusal("static-pod", ["--key4c-cert-file", "/etc/k/c.pem"])).toContain(
    "both or none",
  );
});

test("a control character is in no manifest", async () => {
  for (const name of ["static-pod", "systemd-service", "systemd-socket", "kubeadm-config"]) {
    expect(await refusal(name, ["--socket-group", "a\nExecStartPre=/bin/false"])).toContain(
      "--socket-group has a control character",
    );
    expect(await refusal(name, [], { ...SERVE, NO_PROXY: "a\tb" })).toContain("NO_PROXY has a");
  }
  expect(await refusal("static-pod", ["--image", "a\nb"])).toContain("--image must be");
  expect(await refusal("systemd-socket", ["--endpoint", "unix:///run/50%n/s"])).toContain(
    "KMS_ENDPOINT must be an absolute path of",
  );
});

test("a pod of another name stands beside the vendor's, which has the name of ours", async () => {
  const named = async (...flags: string[]) => {
    const { metadata } = Bun.YAML.parse(await printed("static-pod", flags)) as {
      metadata: { name: string }; // what kubelet reads
    };
    return metadata.name;
  };
  expect([await named(), await named("--pod-name", "key4c")]).toEqual([
    "key4c-kms-plugin",
    "key4c",
  ]);
  for (const name of ["Key4C", "key4c-", "a.b", "a".repeat(64), "a\nb"]) {
    expect(await refusal("static-pod", ["--pod-name", name])).toContain("--pod-name must be");
  }
});

test("a proxy travels with pod and unit; one with a password does not", async () => {
  const env = { ...SERVE, HTTPS_PROXY: "http://proxy:3128", no_proxy: ".example,10.0.0.0/8" };
  expect((await pod([], env)).env).toMatchObject({
    HTTPS_PROXY: "http://proxy:3128",
    no_proxy: ".example,10.0.0.0/8",
  });
  expect(await printed("systemd-service", [], env)).toContain(
    'Environment="HTTPS_PROXY=http://proxy:3128"\n',
  );
  const secret = { ...SERVE, https_proxy: "http://me:secret@proxy:3128" };
  for (const name of ["static-pod", "systemd-service", "k3s"]) {
    const text = await refusal(name, [], secret);
    expect([text.includes("https_proxy has a password"), text.includes("secret")]).toEqual([
      true,
      false,
    ]);
  }
});

test("the group of the socket: a pod has its number, and is in it", async () => {
  const { groups, env } = await pod(["--socket-group", "daemon"]);
  expect([groups, env["KMS_SOCKET_GROUP"]]).toEqual([[1], "1"]);
  expect((await pod(["--socket-group", "4711"])).groups).toEqual([4711]);
  expect((await pod()).groups).toBeUndefined();
  expect(await refusal("static-pod", ["--socket-group", "nobody-here"])).toContain(
    "this machine has no group nobody-here; give its number",
  );
  expect(await printed("systemd-socket", ["--socket-group", "nobody-here"])).toContain(
    "SocketGroup=nobody-here\n",
  );
  expect(await refusal("systemd-socket", ["--socket-group", "a b"])).toContain("KMS_SOCKET_GROUP");
});

test("a pod has each directory once, and none that is not the file's own", async () => {
  const { mounts, volumes } = await pod([
    ...["--key4c-ca-file", "/etc/key4c-kms/ca.pem", "--endpoint", "unix:///etc/key4c-kms/k.sock"],
    ...["--key4c-profile", "/etc/key4c-profile/p.json"],
  ]);
  expect(mounts).toEqual(["/etc/key4c-kms", "/etc/key4c-profile"]);
  expect(volumes).toEqual(["socket", "files-0"]);
  for (const directory of ["/etc", "/etc/ssl/certs", "/etc/kubernetes/pki"]) {
    expect(await refusal("static-pod", ["--key4c-ca-file", `${directory}/ca.pem`])).toContain(
      `KEY4C_CA_FILE must lie in a directory of its own, not in ${directory}`,
    );
  }
  for (const name of ["kube-apiserver-patch", "kubeadm-config", "rke2"]) {
    const beside = ["--encryption-configuration", "/etc/encryption.yaml"];
    expect(await refusal(name, beside)).toContain("--encryption-configuration must lie in");
    expect(await refusal(name, ["--endpoint", "unix:///tmp/kms.sock"])).toContain(
      "KMS_ENDPOINT must lie in a directory of its own",
    );
  }
  for (const endpoint of [
    "unix:///tmp/kms.sock",
    "unix:///var/tmp/k/kms.sock",
    "unix:///run/../tmp/k",
  ]) {
    for (const name of ["systemd-service", "systemd-socket"]) {
      expect(await refusal(name, ["--endpoint", endpoint])).toContain("must not lie in /tmp");
    }
  }
  const inTmp = await printed("static-pod", ["--endpoint", "unix:///tmp/kms.sock"]);
  expect(inTmp).toMatch(
    /# All of this machine's \/tmp: [\s\S]*'x \/tmp\/kms\.sock' > \/etc\/tmpfiles\.d/,
  );
  expect(await printed("static-pod")).not.toMatch(/# All of|tmpfiles/);
  const same = ["--encryption-configuration", "/run/key4c-kms/e.yaml"];
  const patch = Bun.YAML.parse(await printed("kube-apiserver-patch", same)) as Pod;
  expect(patch.spec.volumes).toHaveLength(1);
});

test("systemd below 247: the credential from a file that systemd reads", async () => {
  const flags = ["--environment-file", "/etc/key4c-kms/credential.env"];
  const text = await printed("systemd-service", [...flags, "--key4c-ca-file", "/etc/k/ca.pem"]);
  expect(text).toContain("\nEnvironmentFile=/etc/key4c-kms/credential.env\n");
  expect(text).toContain('\nEnvironment="KEY4C_CA_FILE=/etc/k/ca.pem"\n');
  expect(text).not.toMatch(/^LoadCredential|USER_ID_FILE=/m);
  const pair = ["--key4c-cert-file", "/etc/k/c.pem", "--key4c-cert-key-file", "/etc/k/k.pem"];
  expect(await refusal("systemd-service", [...flags, ...pair])).toContain("systemd 247");
});

test("a user ID that the profile does not send is asked for by no manifest; where the profile is not here, by each", async () => {
  const profile = join(temporaryDirectory(), "vault.json");
  writeFileSync(profile, await printed("profile", ["vault"], {}));
  const flags = ["static-pod", ["--image", "registry.example/key4c-kms-plugin:1"]] as const;
  for (const [name, more] of [flags, ["systemd-service", []]] as const) {
    const env = { ...SERVE, KMS_API_KEY_FILE: "/etc/key4c-kms/keys/api-key" };
    const isAsked = async (path: string) =>
      /user-id/i.test(await printed(name, more, { ...env, KEY4C_PROFILE: path }));
    expect([await isAsked(profile), await isAsked("/opt/key4c/profile.json")]).toEqual([
      false,
      true,
    ]);
  }
});

test("the same EncryptionConfiguration may be printed again; another one may not take its place", async () => {
  const file = join(temporaryDirectory(), "encryption-configuration.yaml");
  await printed("encryption-configuration", ["--output", file]);
  const first = readFileSync(file, "utf8");
  await printed("encryption-configuration", ["--output", file]);
  expect(readFileSync(file, "utf8")).toBe(first);
  const flags = ["--output", file, "--provider-name", "another"];
  const other = await manifest("encryption-configuration", flags);
  expect([other.exitCode, other.stderr]).toEqual([1, expect.stringContaining("is there already")]);
  expect(readFileSync(file, "utf8")).toBe(first);
});
