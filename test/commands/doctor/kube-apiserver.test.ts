/** What the doctor reads of the API server's static pod. */
import { expect, test } from "bun:test";
import type { Check } from "../../../src/commands/doctor/check.ts";
import {
  checkKubeApiserver,
  findKubeApiserver,
  hostPaths,
} from "../../../src/commands/doctor/kube-apiserver.ts";
import { LIVENESS_PATH } from "../../../src/kubernetes/static-pod.ts";
import { temporaryFile } from "../../support.ts";

const CONFIGURATION = "/etc/kubernetes/pki/encryption-configuration.yaml";
const SOCKET = "/run/key4c-kms/kms.sock";

/** As kubeadm writes it, with what our patch adds. */
const POD = `apiVersion: v1
kind: Pod
metadata:
  name: kube-apiserver
spec:
  containers:
  - command:
    - kube-apiserver
    - --advertise-address=10.0.0.1
    - --feature-gates=A=false,KMSv1=true
    image: registry.k8s.io/kube-apiserver:v1.34.2
    args:
    - --encryption-provider-config=${CONFIGURATION}
    - --encryption-provider-config-automatic-reload=true
    volumeMounts:
    - { mountPath: /etc/kubernetes/pki, name: k8s-certs, readOnly: true }
    - { mountPath: /run/key4c-kms, name: kms }
  volumes:
  - { hostPath: { path: /etc/kubernetes/pki, type: DirectoryOrCreate }, name: k8s-certs }
  - { hostPath: { path: /run/key4c-kms }, name: kms }
`;

function read(text: string) {
  const found = findKubeApiserver(temporaryFile(text));
  if ("check" in found) {
    throw new Error(found.detail);
  }
  return found;
}

const results = (checks: readonly Check[]) =>
  checks.map(({ check, result }) => `${check.replace("kube-apiserver: ", "")} ${result}`);

test("well: flag, mounts, reload, feature gate", () => {
  const found = read(POD);
  expect(results(checkKubeApiserver(found, CONFIGURATION, SOCKET))).toEqual([
    "encryption pass",
    "socket pass",
    "reload pass",
  ]);
  expect(found.server).toEqual({ reloads: true, hasKmsV1: true });
  expect(found.configuration).toBe(CONFIGURATION);
});

test("paths of the container are not always those of the host", () => {
  const found = read(POD.replace("mountPath: /run/key4c-kms", "mountPath: /kms/"));
  expect(hostPaths(found)("/kms/kms.sock")).toBe(SOCKET);
  expect(checkKubeApiserver(found, undefined, SOCKET)[1]).toMatchObject({
    result: "pass",
    detail: expect.stringContaining("/kms/kms.sock"),
  });
});

test.each([
  ["no flag", `    - --encryption-provider-config=${CONFIGURATION}\n`, "", "encryption warn"],
  ["a flag in two words", "-config=/etc", "-config\n    - /etc", "encryption pass"],
  ["another file", "encryption-configuration", "other", "encryption fail"],
  [
    "no mount of its directory",
    "mountPath: /etc/kubernetes/pki",
    "mountPath: /x",
    "encryption fail",
  ],
  ["a single file", /\/etc\/kubernetes\/pki(?=,)/g, CONFIGURATION, "encryption warn"],
  ["no mount of the socket", "path: /run/key4c-kms", "path: /run/other", "socket fail"],
  ["the socket alone", /\/run\/key4c-kms(?=[, ])/g, SOCKET, "socket fail"],
  ["no reload", "-automatic-reload=true", "-automatic-reload=false", "reload warn"],
  ["reload as a switch", "-automatic-reload=true", "-automatic-reload", "reload pass"],
] as const)("%s", (_, from, to, wanted) => {
  const text = POD.replace(from, to);
  expect(text).not.toBe(POD);
  expect(results(checkKubeApiserver(read(text), CONFIGURATION, SOCKET))).toContain(wanted);
});

test("a socket that is mounted alone is not called absent: the next plugin's would be", () => {
  const found = read(POD.replace(/\/run\/key4c-kms(?=[, ])/g, SOCKET));
  expect(checkKubeApiserver(found, CONFIGURATION, SOCKET)[1]?.detail).toContain("a single file");
});

test.each([
  ["KMSv1=true", "B=true", "v1.34.2", { reloads: true, hasKmsV1: false }],
  ["KMSv1=true", "B=true", "v1.28.9", { reloads: true, hasKmsV1: true }],
  ["KMSv1=true", "B=true", "latest", { reloads: true }],
])("whether it has KMS v1, by gate and version: %p %p %p", (from, gate, tag, server) => {
  const found = read(POD.replace(from, gate).replace("v1.34.2", tag));
  expect(found.server).toEqual(server);
});

test.each([
  ["no YAML", "{", /is not YAML/],
  ["another pod", POD.replace("- kube-apiserver\n", "- etcd\n"), /no container that runs/],
  ["nothing in it", "x: 1", /no container that runs/],
])("a file that tells nothing is a fault: %s", (_, text, detail) => {
  expect(findKubeApiserver(temporaryFile(text))).toMatchObject({
    result: "fail",
    detail: expect.stringMatching(detail),
  });
});

test("no file: kubeadm's is looked for, another one must be there", () => {
  expect(findKubeApiserver("/nowhere/kube-apiserver.yaml")).toMatchObject({ result: "fail" });
});

test.each([
  ["v1.28.15", "/livez", true],
  ["v1.20.0", "/healthz", true],
  ["v1.28.15", "/livez?exclude=etcd", true],
  ["v1.28.15", LIVENESS_PATH, false],
  ["v1.28.15", "/livez?exclude=kms-providers", false],
  ["v1.29.0", "/livez", false],
  ["latest", "/livez", false],
])("up to 1.28 a sick plugin restarts the API server: %s %s %p", (image, path, isRisky) => {
  const probe = `    livenessProbe: { httpGet: { path: ${JSON.stringify(path)}, port: 6443 } }\n`;
  const pod = POD.replace("v1.34.2", image).replace(
    "    volumeMounts:\n",
    `${probe}    volumeMounts:\n`,
  );
  const checks = checkKubeApiserver(read(pod), CONFIGURATION, SOCKET);
  const liveness = checks.find(({ check }) => check === "kube-apiserver: liveness");
  expect(liveness?.result as string | undefined).toBe(isRisky ? "warn" : undefined);
});
