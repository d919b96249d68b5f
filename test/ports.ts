/**
 * A port on loopback that nobody listens on, also after a pause: it is below those that the kernel gives to outgoing
 * connections, and so to the tests that run beside this one.
 */
export function freePort(): number {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 12_000);
    try {
      Bun.listen({ hostname: "127.0.0.1", port, socket: { data() {} } }).stop(true);
      return port;
    } catch {
      // in use; the next one
    }
  }
}
