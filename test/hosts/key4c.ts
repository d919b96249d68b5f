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

/** Starts it, now and at each boot. */
export async function startKey4C(machine: Machine): Promise<void> {
  await machine.put("/etc/systemd/system/emulated-key4c.service", UNIT);
  await machine.run(`systemctl daemon-reload
    systemctl enable --quiet --now emulated-key4c
    for i in $(seq 600); do curl -s ${KEY4C_URL}/emulator/stats > /dev/null && exit; sleep 0.1; done; exit 1`);
}

export function key(machine: Machine, id: string, action: "rotate" | "disable" | "enable") {
  return machine.run(`curl -sf -X POST ${KEY4C_URL}/emulator/keys/${id}/${action}`);
}
