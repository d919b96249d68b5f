/**
 * A client that sends requests and never reads an answer, for Node: under Bun a paused socket does not send
 * either. Arguments: path of the socket, number of requests.
 */
import { connect } from "node:net";

const [path, requests] = process.argv.slice(2);

function frame(type, flags, stream, payload) {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head.writeUInt8(type, 3);
  head.writeUInt8(flags, 4);
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
}

/** A literal field without indexing, its name too (RFC 7541 §6.2.2). */
function field(name, value) {
  const text = (one) => Buffer.concat([Buffer.from([one.length]), Buffer.from(one)]);
  return Buffer.concat([Buffer.from([0]), text(name), text(value)]);
}

const headers = Buffer.concat([
  field(":method", "POST"),
  field(":scheme", "http"),
  field(":path", "/v2.KeyManagementService/Encrypt"),
  field(":authority", "localhost"),
  field("content-type", "application/grpc"),
  field("te", "trailers"),
]);
const message = Buffer.from([0, 0, 0, 0, 0]); // an empty EncryptRequest

const socket = connect(path);
socket.on("error", () => {}); // the plugin ends first
socket.pause();
socket.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
socket.write(frame(4, 0, 0, Buffer.from("00047fffffff", "hex"))); // SETTINGS_INITIAL_WINDOW_SIZE
socket.write(frame(8, 0, 0, Buffer.from("7fff0000", "hex"))); // WINDOW_UPDATE of the connection
let sent = 0;
function send() {
  while (sent < Number(requests)) {
    const stream = 1 + 2 * sent++;
    if (
      !socket.write(Buffer.concat([frame(1, 4, stream, headers), frame(0, 1, stream, message)]))
    ) {
      socket.once("drain", send);
      return;
    }
  }
}
send();
