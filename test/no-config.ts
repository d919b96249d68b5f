/**
 * In the environment of every process of ours that a test starts: the machine of whoever runs the tests may have a
 * plugin, and its /etc/key4c-kms/config is no business of theirs.
 */
export const NO_CONFIG_FILE = { KMS_CONFIG: "/dev/null" } as const;
