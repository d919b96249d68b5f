/** Whether nothing but this machine reaches a host. @param host as a name or address, an IPv6 one without brackets */
export function isLoopbackHost(host: string): boolean {
  return /^(127(\.\d{1,3}){3}|::1|localhost)$/.test(host);
}
