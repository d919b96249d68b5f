package scenarios

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
)

const (
	v1Service = "/v1beta1.KeyManagementService/"
	v2Service = "/v2.KeyManagementService/"
)

// rawConnection speaks HTTP/2 frame by frame.
type rawConnection struct {
	conn           net.Conn
	reading        *http2.Framer
	writing        *http2.Framer
	written        bytes.Buffer
	fields         *fieldWriter
	nextStream     uint32
	lastBlockBytes int
	// answers are those of the streams that were opened.
	answers map[uint32]*answer
	// keepsWindow leaves it to the scenario to give back what DATA took from the connection's window.
	keepsWindow  bool
	settingsAcks int
	pings        [][8]byte // those that were acknowledged
	// timeout is for what flush sends and for the answer to it.
	timeout time.Duration
}

// answer is what came back on one stream.
type answer struct {
	// frames are the types of the frames in their order.
	frames  []http2.FrameType
	headers map[string]string
	// trailers are the headers themselves when there is nothing else.
	trailers map[string]string
	message  []byte
	ended    bool
	reset    error
}

// sentField is a header field and how to write it.
type sentField struct {
	name, value string
	form        fieldForm
}

// framing is how a header block is put into frames, and frames into writes.
type framing struct {
	name                       string
	padded, priority, bytewise bool
	// cuts are the offsets at which the block goes on in a CONTINUATION frame.
	cuts []int
}

// usualForm is grpc-go's, for names that the static table has.
var usualForm = fieldForm{nameFromStaticTable, true, incremental}

// metadata is a field as grpc-go writes one whose name it has not sent before.
func metadata(name, value string) sentField {
	return sentField{name, value, fieldForm{nameHuffman, true, incremental}}
}

// callFields are the header fields of a call, in grpc-go's order and forms.
func callFields(path string, more ...sentField) []sentField {
	return append([]sentField{
		{":method", "POST", usualForm},
		{":scheme", "http", usualForm},
		{":path", path, usualForm},
		{":authority", rawAuthority, usualForm},
		{"content-type", "application/grpc", usualForm},
		{"user-agent", "grpc-go/1.56.3", usualForm},
		metadata("te", "trailers"),
	}, more...)
}

func dialRaw(t *testing.T, socket string, settings ...http2.Setting) *rawConnection {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := &rawConnection{
		conn: conn, fields: newFieldWriter(), nextStream: 1, answers: map[uint32]*answer{},
		timeout: callTimeout,
	}
	c.reading = http2.NewFramer(nil, conn)
	c.reading.ReadMetaHeaders = hpack.NewDecoder(tableBytes, nil)
	c.writing = http2.NewFramer(&c.written, nil)
	c.written.WriteString(http2.ClientPreface)
	_ = c.writing.WriteSettings(settings...) // into memory
	return c
}

// call is one on a stream of its own; whether it succeeded is for the answer to tell.
func (c *rawConnection) call(fields []sentField, framing framing, message []byte) (*answer, error) {
	stream := c.open(fields, framing)
	c.data(stream, true, grpcMessage(message))
	if err := c.flush(framing.bytewise); err != nil {
		return nil, err
	}
	return c.answer(stream)
}

// open puts the HEADERS of a new stream into memory, where writing cannot fail.
func (c *rawConnection) open(fields []sentField, framing framing) (stream uint32) {
	stream = c.nextStream
	c.nextStream += 2
	c.answers[stream] = &answer{}
	for _, field := range fields {
		c.fields.write(field.name, field.value, field.form)
	}
	block := c.fields.take()
	c.lastBlockBytes = len(block)
	c.writeHeaders(stream, block, framing)
	return stream
}

// data puts a DATA frame into memory.
func (c *rawConnection) data(stream uint32, end bool, payload []byte) {
	_ = c.writing.WriteData(stream, end, payload)
}

func (c *rawConnection) writeHeaders(stream uint32, block []byte, framing framing) {
	fragments := [][]byte{}
	from := 0
	for _, cut := range framing.cuts {
		cut = min(cut, len(block))
		fragments = append(fragments, block[from:cut])
		from = cut
	}
	fragments = append(fragments, block[from:])
	headers := http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: fragments[0], EndHeaders: len(fragments) == 1,
	}
	if framing.padded {
		headers.PadLength = 17
	}
	if framing.priority {
		headers.Priority = http2.PriorityParam{StreamDep: 0, Weight: 200}
	}
	_ = c.writing.WriteHeaders(headers)
	for i, fragment := range fragments[1:] {
		_ = c.writing.WriteContinuation(stream, i == len(fragments)-2, fragment)
	}
}

// flush sends what has been written, in one piece or each byte by itself.
func (c *rawConnection) flush(bytewise bool) error {
	if err := c.conn.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return err
	}
	pieceBytes := c.written.Len()
	if bytewise {
		pieceBytes = 1
	}
	for c.written.Len() > 0 {
		if _, err := c.conn.Write(c.written.Next(pieceBytes)); err != nil {
			return err
		}
	}
	return nil
}

// answer reads until the stream ends.
func (c *rawConnection) answer(stream uint32) (*answer, error) {
	got := c.answers[stream]
	err := c.readUntil(func() bool { return got.ended || got.reset != nil })
	if err == nil {
		err = got.reset
	}
	return got, err
}

// readUntil sends what has been written and reads frames until the condition holds.
func (c *rawConnection) readUntil(done func() bool) error {
	for !done() {
		if err := c.flush(false); err != nil {
			return err
		}
		frame, err := c.reading.ReadFrame()
		if err != nil {
			return fmt.Errorf("no answer: %w", err)
		}
		if err := c.take(frame); err != nil {
			return err
		}
	}
	return nil
}

// take files a frame under its stream, or answers it.
func (c *rawConnection) take(frame http2.Frame) error {
	stream := frame.Header().StreamID
	a := c.answers[stream]
	if stream != 0 && a == nil {
		return fmt.Errorf("%s", frame.Header())
	}
	if stream != 0 {
		a.frames = append(a.frames, frame.Header().Type)
	}
	switch frame := frame.(type) {
	case *http2.SettingsFrame:
		if frame.IsAck() {
			c.settingsAcks++
		} else {
			_ = c.writing.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if frame.IsAck() {
			c.pings = append(c.pings, frame.Data)
		} else {
			_ = c.writing.WritePing(true, frame.Data)
		}
	case *http2.GoAwayFrame:
		return fmt.Errorf("GOAWAY: %s", frame.ErrCode)
	case *http2.RSTStreamFrame:
		a.reset = fmt.Errorf("RST_STREAM: %s", frame.ErrCode)
	case *http2.DataFrame:
		a.message = append(a.message, frame.Data()...)
		a.ended = frame.StreamEnded()
		if len(frame.Data()) > 0 && !c.keepsWindow {
			_ = c.writing.WriteWindowUpdate(0, uint32(len(frame.Data())))
		}
	case *http2.MetaHeadersFrame:
		fields := map[string]string{}
		for _, field := range frame.Fields {
			fields[field.Name] = field.Value
		}
		if a.headers == nil {
			a.headers = fields
		}
		if a.ended = frame.StreamEnded(); a.ended {
			a.trailers = fields
		}
	}
	return nil
}

// code is the call's gRPC status; gRPC wants one in every answer (case 6).
func (a *answer) code() (codes.Code, error) {
	text, found := a.trailers["grpc-status"]
	number, err := strconv.ParseUint(text, 10, 32)
	if !found || err != nil {
		return codes.Unknown, fmt.Errorf("grpc-status %q in %v", text, a.trailers)
	}
	return codes.Code(number), nil
}

func (a *answer) expectStatus(want codes.Code) error {
	code, err := a.code()
	if err == nil && code != want {
		err = fmt.Errorf("grpc-status %s (%s), want %s", code, a.text(), want)
	}
	return err
}

// text is the grpc-message, which is percent-encoded.
func (a *answer) text() string {
	text, err := url.PathUnescape(a.trailers["grpc-message"])
	if err != nil {
		return err.Error()
	}
	return text
}

// grpcMessage puts gRPC's prefix before a message: not compressed, length.
func grpcMessage(message []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
}

// protoField is a field of protobuf's type string or bytes.
func protoField(number int, value []byte) []byte {
	const lengthDelimited = 2
	field := []byte{byte(number<<3 | lengthDelimited)}
	return append(binary.AppendUvarint(field, uint64(len(value))), value...)
}

// versionRequest is the request of KMS v1 Version, and the start of those of Encrypt and Decrypt.
var versionRequest = protoField(1, []byte("v1beta1"))

// v1Request is that of Encrypt with a plaintext, and of Decrypt with a ciphertext.
func v1Request(payload []byte) []byte {
	return append(bytes.Clone(versionRequest), protoField(2, payload)...)
}
