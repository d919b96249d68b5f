/** Key4C in a machine: the emulator, as a service of it, at an address of its loopback. */
import { BINARY } from "../support.ts";
import type { Machine } from "./machine.ts";

export const KEY4C_URL = "http://127.0.0.1:9641";

const EMULATOR = "/usr/local/bin/emulated-key4c";
/** A copy that no upgrade of the plugin replaces. */
export const KEY4C_FILES = { [EMULATOR]: BINARY };

const UNIT = `[Service]
ExecStart=${EMULATOR} emulator --control --data /var/lib/key4c.json --key-id demo,next
Restart=on-failure
[Install]
WantedBy=multi-user.target
`;

/** Nothing is sent back: the kernel accepts connections, and nobody answers them. */
const BLACK_HOLE = `[Socket]
ListenStream=${new URL(KEY4C_URL).host}
[Install]
WantedBy=sockets.target
`;

/** Both ways in which Key4C is unreachable, as commands; over reboots, too. */
export const UNREACHABLE = {
  refuses: "systemctl disable --quiet --now emulated-key4c",
  hangs: `systemctl disable --quiet --now emulated-key4c
    systemctl enable --quiet --now hole.socket`,
};
export type Outage = keyof typeof UNREACHABLE;
/** Ends either. */
export const REACHABLE = `systemctl disable --quiet --now hole.socket; systemctl stop hole.service
  systemctl enable --quiet --now emulated-key4c`;

/** Starts it, now and at each boot. */
export async function startKey4C(machine: Machine): Promise<void> {
  await machine.put("/etc/systemd/system/emulated-key4c.service", UNIT);
  await machine.put("/etc/systemd/system/hole.socket", BLACK_HOLE);
  await machine.put(
    "/etc/systemd/system/hole.service",
    "[Service]\nExecStart=/bin/sleep infinity\n",
  );
  await machine.run(`systemctl daemon-reload
    systemctl enable --quiet --now emulated-key4c
    for i in $(seq 600); do curl -s ${KEY4C_URL}/emulator/stats > /dev/null && exit; sleep 0.1; done; exit 1`);
}

export function key(machine: Machine, id: string, action: "rotate" | "disable" | "enable") {
  return machine.run(`curl -sf -X POST ${KEY4C_URL}/emulator/keys/${id}/${action}`);
}
