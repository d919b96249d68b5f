/** The pod of the vendor's guide: its `volumes`, which stand in the container there, moved to where they belong; its image ours. */
export function vendorPod({
  image,
  directory = "/tmp",
  key4cUrl,
}: {
  readonly image: string;
  /** Of the host. */
  readonly directory?: string;
  /** For an image that has none, on a node without a network for pods. */
  readonly key4cUrl?: string;
}): string {
  return `apiVersion: v1
kind: Pod
metadata:
  name: key4c-kms-plugin
  namespace: kube-system
spec:
  hostNetwork: ${key4cUrl !== undefined}
  containers:
  - name: key4c-kms-plugin-encryption-provider
    image: ${image}
    securityContext:
      privileged: true
    env:
    - name: KMS_USER_ID
      value: some-token
    - name: KMS_KEY_ID
      value: demo${key4cUrl === undefined ? "" : `\n    - name: KEY4C_URL\n      value: ${key4cUrl}`}
    volumeMounts:
    - name: kms-plugin-socket
      mountPath: /tmp
  volumes:
  - name: kms-plugin-socket
    hostPath:
      type: DirectoryOrCreate
      path: ${directory}
`;
}
