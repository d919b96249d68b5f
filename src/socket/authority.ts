/**
 * Every kube-apiserver up to 1.28 (grpc-go before 1.57) sends the path of the socket as `:authority`,
 * such as `/run/key4c-kms/kms.sock`. The HTTP/2 servers of Bun and Node refuse such a request before
 * any handler sees it. This filter stands between socket and server and overwrites the value of
 * `:authority` in place: nothing is reframed, lengthened or held back, and because an entry of the
 * HPACK table never gets longer than the client believes, no index shifts and nothing is evicted
 * early (RFC 7541 §4). Delete it when 1.28 is history.
 */

const PREFACE = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "latin1"); // RFC 9113 §3.4
const FRAME_HEADER_BYTES = 9; // RFC 9113 §4.1: length (3) || type (1) || flags (1) || stream (4)
const FRAME_HEADERS = 0x1;
const FRAME_CONTINUATION = 0x9;
const FLAG_PADDED = 0x8;
const FLAG_PRIORITY = 0x20;
const PRIORITY_BYTES = 5;

const AUTHORITY_STATIC_INDEX = 1; // RFC 7541 appendix A
const AUTHORITY_NAME = Buffer.from(":authority", "latin1");
const AUTHORITY_NAME_HUFFMAN = Buffer.from("b83b5339ec327d7f", "hex"); // RFC 7541 appendix B
const HUFFMAN_BIT = 0x80;
/** "k", legal in any authority. */
const FILL = 0x6b;
/** No honest string is longer; the server behind the filter refuses such a string too. */
const MAX_INTEGER = 2 ** 28;

/** What the next byte of a header block belongs to (RFC 7541 §6). */
type Step = "representation" | "nameLength" | "name" | "valueLength" | "value";

/** One filter serves one connection, in the direction from client to server. */
export class AuthorityFilter {
  #passThrough = false;
  #prefaceSeen = 0;

  // The frame.
  readonly #frameHeader = Buffer.alloc(FRAME_HEADER_BYTES);
  #frameHeaderSeen = 0;
  #padLengthNext = false;
  #priorityLeft = 0;
  #fragmentLeft = 0;
  #restLeft = 0;

  // The header block, which may continue in CONTINUATION frames.
  #step: Step = "representation";
  #integerAfterFirstByte = false;
  #integer = 0;
  #integerScale = 1;
  #literal = false;
  #nameHuffman = false;
  #isAuthority = false;
  #stringLeft = 0;
  readonly #name = Buffer.alloc(AUTHORITY_NAME.length);
  #nameSeen = 0;

  /** Overwrites the value of `:authority` in place, however the bytes are cut into chunks. */
  transform(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length && !this.#passThrough) {
      if (this.#prefaceSeen < PREFACE.length) {
        // A client that does not speak HTTP/2 is left to the server.
        this.#passThrough = chunk[at++] !== PREFACE[this.#prefaceSeen++];
      } else if (this.#frameHeaderSeen < FRAME_HEADER_BYTES) {
        this.#frameHeader[this.#frameHeaderSeen++] = byteAt(chunk, at++);
        if (this.#frameHeaderSeen === FRAME_HEADER_BYTES) {
          this.#startFrame();
        }
      } else if (this.#padLengthNext) {
        this.#padLengthNext = false;
        this.#restLeft = Math.min(byteAt(chunk, at++), this.#fragmentLeft);
        this.#fragmentLeft -= this.#restLeft;
      } else if (this.#priorityLeft > 0) {
        this.#priorityLeft--;
        at++;
      } else if (this.#fragmentLeft > 0) {
        const end = Math.min(chunk.length, at + this.#fragmentLeft);
        this.#fragmentLeft -= end - at;
        this.#headerBlock(chunk, at, end);
        at = end;
      } else {
        const end = Math.min(chunk.length, at + this.#restLeft);
        this.#restLeft -= end - at;
        at = end;
      }
      if (this.#frameHeaderSeen === FRAME_HEADER_BYTES && this.#frameIsOver()) {
        this.#frameHeaderSeen = 0;
      }
    }
  }

  #frameIsOver(): boolean {
    return (
      !this.#padLengthNext &&
      this.#priorityLeft === 0 &&
      this.#fragmentLeft === 0 &&
      this.#restLeft === 0
    );
  }

  #startFrame(): void {
    const length = this.#frameHeader.readUIntBE(0, 3);
    const type = this.#frameHeader[3];
    const flags = byteAt(this.#frameHeader, 4);
    this.#fragmentLeft = 0;
    this.#restLeft = 0;
    if (type === FRAME_HEADERS) {
      this.#step = "representation";
      this.#integerAfterFirstByte = false;
      this.#padLengthNext = (flags & FLAG_PADDED) !== 0 && length > 0;
      const afterPadLength = length - (this.#padLengthNext ? 1 : 0);
      this.#priorityLeft =
        (flags & FLAG_PRIORITY) === 0 ? 0 : Math.min(PRIORITY_BYTES, afterPadLength);
      this.#fragmentLeft = afterPadLength - this.#priorityLeft;
    } else if (type === FRAME_CONTINUATION) {
      this.#fragmentLeft = length;
    } else {
      this.#restLeft = length;
    }
  }

  #headerBlock(chunk: Buffer, start: number, end: number): void {
    for (let at = start; at < end && !this.#passThrough; ) {
      if (this.#step === "name" || this.#step === "value") {
        const stop = Math.min(end, at + this.#stringLeft);
        this.#stringBytes(chunk, at, stop);
        this.#stringLeft -= stop - at;
        at = stop;
        if (this.#stringLeft === 0) {
          this.#endString();
        }
      } else if (this.#integerAfterFirstByte) {
        const byte = byteAt(chunk, at++);
        this.#integer += (byte & 0x7f) * this.#integerScale;
        this.#integerScale *= 128;
        if (this.#integer > MAX_INTEGER || this.#integerScale > MAX_INTEGER * 128) {
          this.#passThrough = true;
        } else if ((byte & 0x80) === 0) {
          this.#integerAfterFirstByte = false;
          this.#endInteger();
        }
      } else {
        this.#firstByte(chunk, at++);
      }
    }
  }

  /** The byte with the pattern bits and the start of an integer (RFC 7541 §5.1). */
  #firstByte(chunk: Buffer, at: number): void {
    const byte = byteAt(chunk, at);
    let prefixMax = 0x7f;
    if (this.#step === "representation") {
      const indexed = (byte & 0x80) !== 0; // §6.1
      const incremental = (byte & 0xc0) === 0x40; // §6.2.1
      const tableSize = (byte & 0xe0) === 0x20; // §6.3
      this.#literal = !indexed && !tableSize;
      prefixMax = indexed ? 0x7f : incremental ? 0x3f : tableSize ? 0x1f : 0x0f; // else §6.2.2, §6.2.3
    } else if (this.#step === "nameLength") {
      this.#nameHuffman = (byte & HUFFMAN_BIT) !== 0;
    } else if (this.#isAuthority && (byte & prefixMax) !== 0) {
      chunk[at] = byte & ~HUFFMAN_BIT;
    }
    this.#integer = byte & prefixMax;
    if (this.#integer === prefixMax) {
      this.#integerAfterFirstByte = true;
      this.#integerScale = 1;
    } else {
      this.#endInteger();
    }
  }

  #endInteger(): void {
    if (this.#step !== "representation") {
      this.#stringLeft = this.#integer;
      this.#step = this.#step === "nameLength" ? "name" : "value";
      this.#nameSeen = 0;
    } else if (this.#literal) {
      this.#isAuthority = this.#integer === AUTHORITY_STATIC_INDEX;
      this.#step = this.#integer === 0 ? "nameLength" : "valueLength";
    }
  }

  #stringBytes(chunk: Buffer, start: number, end: number): void {
    if (this.#step === "value") {
      if (this.#isAuthority) {
        chunk.fill(FILL, start, end);
      }
      return;
    }
    for (let at = start; at < end && this.#nameSeen <= this.#name.length; at++) {
      this.#name[this.#nameSeen++] = byteAt(chunk, at); // beyond its end: ignored
    }
  }

  #endString(): void {
    if (this.#step === "name") {
      const wanted = this.#nameHuffman ? AUTHORITY_NAME_HUFFMAN : AUTHORITY_NAME;
      this.#isAuthority =
        this.#nameSeen === wanted.length &&
        wanted.equals(this.#name.subarray(0, Math.min(this.#nameSeen, this.#name.length)));
      this.#step = "valueLength";
    } else {
      this.#step = "representation";
    }
  }
}

function byteAt(bytes: Buffer, at: number): number {
  return bytes[at] as number; // every caller stays below the length
}
