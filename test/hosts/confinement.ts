import type { Machine } from "./machine.ts";

/** What the kernel lets a process do, by /proc/PID/status. */
export async function confinementOf(machine: Machine, pid: number) {
  const status = await machine.run(`cat /proc/${pid}/status`);
  const field = (name: string) => status.match(new RegExp(`^${name}:\\s*(\\S+)`, "m"))?.[1];
  return {
    uid: field("Uid"),
    rights: {
      capabilities: ["CapEff", "CapPrm", "CapBnd", "CapAmb"].map(field),
      noNewPrivileges: field("NoNewPrivs"),
      seccomp: field("Seccomp"),
    },
  };
}

/** No capability, none to be had, and a filter of system calls. */
export const NO_RIGHTS = {
  capabilities: Array<string>(4).fill("0".repeat(16)),
  noNewPrivileges: "1",
  seccomp: "2",
};
