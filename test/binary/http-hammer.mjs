/**
 * Another user of the node who wants the plugin to have no time: connections that ask for ever, and connect again
 * when they are ended. Arguments: port, number of connections, requests that are sent at once. Prints nothing.
 */
import { connect } from "node:net";

const [port, connections, requests] = process.argv.slice(2).map(Number);
const text = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(requests);

function hammer() {
  const socket = connect(port, "127.0.0.1");
  const ask = () => socket.write(text);
  socket.on("connect", ask);
  socket.on("data", ask);
  socket.on("error", () => {});
  socket.on("close", () => setImmediate(hammer));
}
for (let i = 0; i < connections; i++) {
  hammer();
}
