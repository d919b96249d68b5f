/** A socket in /tmp, where the vendor's plugin has it: what is different there. */
import { normalize } from "node:path";

/** Whether systemd gives a service with PrivateTmp= another place there, and systemd-tmpfiles removes what is old. */
export function isBelowTmp(path: string): boolean {
  return /^\/(var\/)?tmp\//.test(normalize(path));
}

/** The command by which systemd-tmpfiles keeps a socket, whatever its age. */
export function keepCommand(path: string): string {
  return `echo 'x ${path}' > /etc/tmpfiles.d/key4c-kms-socket.conf`;
}
