/** The image, run by podman and runc: the vendor's pod, our static pod, other users, the real grpc-go client. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { chmodSync, chownSync, lstatSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { version } from "../../package.json";
import { commandsOf, filledIn, ROOT } from "../documents/blocks.ts";
import { eventually, run } from "../e2e/process.ts";
import { makePki, startHttpsEmulator } from "../pki.ts";
import { freePort } from "../ports.ts";
import { BINARY, onTestEnd, startBinary } from "../support.ts";
import { vendorPod } from "../vendor-pod.ts";
import {
  BASE,
  buildImage,
  directory,
  podman,
  settings,
  setUpContainers,
  tearDownContainers,
} from "./podman.ts";
import { expectServing } from "./serving.ts";

const IMAGE = "localhost/key4c-kms-plugin:test";
const port = freePort();
const KEY4C_URL = `http://127.0.0.1:${port}`;
const loader = join(directory, "loader");

/** As a container should be run: read-only, without capabilities. */
const CONFINED = [
  ...["--network", "host", "--read-only", "--cap-drop=ALL"],
  ...["--security-opt", "no-new-privileges"],
];

beforeAll(async () => {
  await setUpContainers();
  const [build = ""] = commandsOf("docs/install-special.md", "Make the image yourself");
  const typed = filledIn(build, {
    "https://…": KEY4C_URL,
    "NAME@sha256:…": BASE,
    "REGISTRY/key4c-kms-plugin:0.1.0": IMAGE,
  });
  await run(["sh", "-ec", typed], settings, "", ROOT);
  const module = join(import.meta.dir, "../bench");
  const go = Bun.spawnSync(["go", "build", "-o", loader, "."], { cwd: module });
  if (go.exitCode !== 0) {
    throw new Error(`the grpc-go client needs Go: ${go.stderr}`);
  }
}, 300_000);
afterAll(tearDownContainers, 60_000);

/** A directory of the host for one test, and the path of the socket in it. */
function place(name: string, uid = 0, mode = 0o700) {
  const path = join(directory, name);
  mkdirSync(path);
  chownSync(path, uid, uid);
  chmodSync(path, mode);
  return { path, socket: join(path, "kms.sock") };
}

/** Key4C on the host's loopback, where a pod with the host's network finds it. */
function startKey4C(): void {
  startBinary(["emulator", "--listen", `127.0.0.1:${port}`]);
}

/** What grpc-go calls. */
const CALLS = [
  ["v2", "status"],
  ["v2", "encrypt"],
  ["v2", "decrypt"],
  ["v1", "encrypt"],
  ["v1", "decrypt"],
] as const;

/** From outside of the container: both APIs, then the same with grpc-go. */
async function expectServingGrpcGo(socket: string): Promise<void> {
  await expectServing(socket);
  for (const [api, operation] of CALLS) {
    const flags = [
      ...["-targets", `${socket}@${process.pid}`], // it measures a process, and nobody looks at the figure
      ...["-api", api, "-operation", operation, "-callers", "8", "-rounds", "1", "-slice", "200ms"],
    ];
    const results = JSON.parse(await run([loader, ...flags])) as Record<string, number>[][];
    const { errors, perSecond = 0 } = results[0]?.[0] ?? {};
    expect([api, operation, errors, perSecond > 0]).toEqual([api, operation, 0, true]);
  }
}

/** Plays a pod with podman, as the kubelet would run it. */
async function play(name: string, pod: string, ...flags: string[]): Promise<void> {
  const file = join(directory, `${name}.yaml`);
  writeFileSync(file, pod);
  onTestEnd(() => podman("kube", "down", file).catch(() => {}));
  await podman("kube", "play", ...flags, file);
}

test("is configured as Containerfile says, and with nothing else", async () => {
  const format = "{{json .Config}}";
  const config = JSON.parse(await podman("image", "inspect", IMAGE, "--format", format));
  const label = (name: string) => `org.opencontainers.image.${name}`;
  expect(config).toEqual({
    User: "0:0",
    Entrypoint: ["/usr/local/bin/key4c-kms-plugin"],
    Env: [
      expect.stringMatching(/^PATH=/), // buildah's own
      `KEY4C_URL=${KEY4C_URL}`,
      "KMS_ENDPOINT=unix:///tmp/kms.sock",
    ],
    Labels: {
      [label("title")]: "key4c-kms-plugin",
      [label("description")]: "Kubernetes KMS provider for Key4C",
      [label("licenses")]: "Apache-2.0",
      [label("version")]: version,
      "io.buildah.version": expect.any(String),
    },
  });
  expect(await podman("run", "--rm", "--network", "none", IMAGE, "version")).toStartWith(
    `key4c-kms-plugin ${version}+`,
  );
}, 60_000);

test("holds the base and the binary, and nothing else", async () => {
  const [base, image] = [await mounted(BASE), await mounted(IMAGE)];
  const binary = "usr/local/bin/key4c-kms-plugin";
  const only = (one: Set<string>, other: Set<string>) =>
    [...one].filter((path) => !other.has(path));
  expect(only(files(base), files(image))).toEqual([]);
  expect(only(files(image), files(base))).toEqual([binary]);
  expect(await run(["cmp", join(image, binary), BINARY])).toBe("");
}, 60_000);

test("built again, it is the same", async () => {
  const id = (tag: string) => podman("image", "inspect", tag, "--format", "{{.Id}} {{.Digest}}");
  await buildImage(`${IMAGE}-again`, "--key4c-url", KEY4C_URL);
  expect(await id(`${IMAGE}-again`)).toBe(await id(IMAGE));
}, 60_000);

/** Where the files of an image are, until the test ends. */
async function mounted(image: string): Promise<string> {
  const path = (await podman("image", "mount", image)).trim();
  onTestEnd(() => podman("image", "unmount", image));
  return path;
}

/** Everything but directories, by its path in `root`. */
function files(root: string): Set<string> {
  const entries = readdirSync(root, { recursive: true, withFileTypes: true });
  return new Set(
    entries
      .filter((entry) => !entry.isDirectory())
      .map((entry) => relative(root, join(entry.parentPath, entry.name))),
  );
}

test("the vendor's pod, mended where it is invalid: two variables and /tmp", async () => {
  startKey4C();
  const { path, socket } = place("vendor", 0, 0o1777); // as /tmp is
  await play(
    "vendor",
    vendorPod({ image: IMAGE, directory: path }),
    ...["--network", "host"], // for the emulator; a real Key4C is reached from the pod network
  );
  await expectServingGrpcGo(socket);
  const stat = lstatSync(socket);
  expect([stat.mode & 0o777, stat.uid]).toEqual([0o600, 0]);
}, 60_000);

test("the static pod that `manifest` prints", async () => {
  startKey4C();
  const secrets = place("secrets").path;
  writeFileSync(join(secrets, "user-id"), "some-token\n", { mode: 0o600 });
  const socket = join(directory, "made/by/pod/kms.sock");
  const pod = await run([
    BINARY,
    ...["manifest", "static-pod", "--image", IMAGE, "--key-id", "demo", "--key4c-url", KEY4C_URL],
    ...["--endpoint", `unix://${socket}`, "--user-id-file", join(secrets, "user-id")],
    ...["--http-address", `127.0.0.1:${freePort()}`],
  ]);
  await play("static", pod);
  await expectServingGrpcGo(socket);
  const stat = lstatSync(socket);
  expect([stat.mode & 0o777, stat.uid]).toEqual([0o600, 0]);
}, 60_000);

async function start(
  name: string,
  uid: number,
  path: string,
  ...flags: readonly string[]
): Promise<void> {
  onTestEnd(() => podman("rm", "--force", "--time", "1", name).catch(() => {}));
  await podman(
    ...["run", "--detach", "--name", name, "--user", `${uid}:${uid}`, ...CONFINED],
    ...["--env", "KMS_USER_ID=some-token", "--env", "KMS_KEY_ID=demo"],
    ...["--env", "KMS_HTTP_ADDRESS=", "--volume", `${path}:/tmp`, ...flags, IMAGE],
  );
}

/** The command of the binary, in another container that shares the directory of the socket. */
function client(command: string, uid: number, path: string): Promise<string> {
  const user = `${uid}:${uid}`;
  const confined = [...CONFINED, "--volume", `${path}:/tmp`];
  return podman("run", "--rm", "--user", user, ...confined, IMAGE, command);
}

for (const [who, uid] of [
  ["root, without any capability", 0],
  ["another user, in a directory prepared for it", 65_532],
] as const) {
  test(`${who}: serves, and leaves nothing behind`, async () => {
    startKey4C();
    const { path, socket } = place(`user-${uid}`, uid);
    await start(`user-${uid}`, uid, path);
    await expectServingGrpcGo(socket);
    const stat = lstatSync(socket);
    expect([stat.mode & 0o777, stat.uid]).toEqual([0o600, uid]);
    expect(JSON.parse(await client("status", uid, path))).toMatchObject({ healthz: "ok" });
    await podman("stop", "--time", "10", `user-${uid}`);
    expect((await podman("inspect", `user-${uid}`, "--format", "{{.State.ExitCode}}")).trim()).toBe(
      "0",
    );
    expect(readdirSync(path)).toEqual([]);
  }, 60_000);
}

/** What a container wrote, on both streams. */
function logs(name: string): Promise<string> {
  return run(["sh", "-c", `podman logs ${name} 2>&1`], settings);
}

test("another user in root's directory: says what is wrong, and ends", async () => {
  const { path } = place("roots");
  await start("stranger", 65_532, path);
  const state = await eventually("the end of the container", 30_000, async () => {
    const text = await podman(
      "inspect",
      "stranger",
      "--format",
      "{{.State.Status}} {{.State.ExitCode}}",
    );
    return text.startsWith("exited") && text.trim();
  });
  expect(state).toBe("exited 1");
  expect(await logs("stranger")).toContain("cannot listen on /tmp/kms.sock (EACCES)");
}, 60_000);

test("https: the certificates of the base are trusted, and no others of this machine", async () => {
  const pki = makePki();
  await pki.issue("server", "DNS:localhost,IP:127.0.0.1");
  const url = await startHttpsEmulator(pki, "server");
  const { path, socket } = place("https");
  const key4c = ["--env", `KEY4C_URL=${url}`];
  await start("untrusted", 0, path, ...key4c);
  await eventually("the refusal", 20_000, async () =>
    /CERT|SELF_SIGNED|VERIFY/.test(await logs("untrusted")),
  );
  await podman("rm", "--force", "--time", "10", "untrusted");
  // Where distroless has them; the stand-in, made of unpacked packages, has no such file.
  const trusted = `${pki.file("ca.pem")}:/etc/ssl/certs/ca-certificates.crt:ro`;
  await start("trusted", 0, path, ...key4c, "--volume", trusted);
  await expectServing(socket);
}, 60_000);

test("the client of kube-apiserver, with both APIs, while the container restarts", async () => {
  // What the Go scenarios take for the plugin: serve is a container, and the rest is this machine's.
  const plugin = join(directory, "plugin");
  const variables = [
    "KMS_ENDPOINT",
    "KEY4C_URL",
    "KMS_KEY_ID",
    "KMS_USER_ID",
    "KMS_PROBE_INTERVAL",
  ];
  const passed = variables.flatMap((name) => ["--env", name]).join(" ");
  const set = Object.entries(settings).map(([name, value]) => `export ${name}='${value}'\n`);
  const script = `#!/bin/sh -e
[ "$1" = serve ] || exec ${BINARY} "$@"
${set.join("")}socket_directory=$(dirname "\${KMS_ENDPOINT#unix://}")
exec podman run --rm ${CONFINED.join(" ")} ${passed} --env KMS_HTTP_ADDRESS= \
  --volume "$socket_directory:$socket_directory" ${IMAGE} "$@"
`;
  writeFileSync(plugin, script, { mode: 0o755 });
  const output = await run(
    ["go", "test", "-count=1", "-v", "-run", "^TestObjectsSurviveRestarts$", "."],
    { ...Bun.env, KEY4C_KMS_PLUGIN: plugin } as Record<string, string>, // nothing in it is undefined
    "",
    join(import.meta.dir, "../interop/current"),
  );
  for (const api of ["v1", "v2"]) {
    expect(output).toContain(`--- PASS: TestObjectsSurviveRestarts/KMS_${api}`);
  }
}, 300_000);
