package scenarios

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// rawAuthority is what kube-apiserver sends up to 1.28, and what no HTTP/2 server need accept.
const rawAuthority = "/run/key4c-kms/kms.sock"

// longAuthority needs a length of three bytes, raw as well as Huffman-coded.
var longAuthority = "/run/" + strings.Repeat("key4c-kms/", 45) + "kms.sock"

// framing is how a header block is put into frames, and frames into writes.
type framing struct {
	name                       string
	padded, priority, bytewise bool
	// cuts are the offsets at which the block goes on in a CONTINUATION frame.
	cuts []int
}

// EveryFormOfHeadersIsServed calls over a raw connection with every form in which HPACK and HTTP/2 can carry
// an :authority that no server need accept. Each is a real call of KMS v1 Version. grpc-go only ever sends
// one of these forms; others may come from a later or another client.
func EveryFormOfHeadersIsServed(t *testing.T) {
	plugin := startPlugin(t, startEmulator(t), probeInterval)

	for _, framing := range []framing{
		{name: "plain"},
		{name: "padded", padded: true},
		{name: "priority", priority: true},
		{name: "padded_and_priority", padded: true, priority: true},
		{name: "continuation", cuts: []int{1, 20, 21}},
		{name: "all_byte_by_byte", padded: true, priority: true, cuts: []int{10, 30}, bytewise: true},
	} {
		for _, form := range authorityForms() {
			for _, authority := range []string{rawAuthority, longAuthority} {
				name := fmt.Sprintf("%s/%s/%d_bytes", framing.name, form, len(authority))
				t.Run(name, func(t *testing.T) {
					c := dialRaw(t, plugin.socket)
					// Again, so that what was indexed is used.
					for range 3 {
						c.expectVersion(t, versionFields(authority, form), framing)
					}
				})
			}
		}
	}

	t.Run("cut_at_every_byte", func(t *testing.T) {
		c := dialRaw(t, plugin.socket)
		form := fieldForm{name: nameHuffman, valueHuffman: true, indexing: notIndexed}
		c.expectVersion(t, versionFields(rawAuthority, form), framing{})
		for cut := range c.lastBlockBytes + 1 {
			c.expectVersion(t, versionFields(rawAuthority, form), framing{cuts: []int{cut}})
		}
	})

	// A client whose dynamic table is small evicts all the time. If the plugin's table fell out of step,
	// some request would arrive with other fields than were sent.
	t.Run("evictions", func(t *testing.T) {
		const seed = 7541
		random := rand.New(rand.NewSource(seed))
		c := dialRaw(t, plugin.socket)
		forms := authorityForms()
		for range 1000 {
			if random.Intn(10) == 0 {
				c.fields.resize([]int{0, 40, 64, 100, 128, 200, 300, 4096}[random.Intn(8)])
			}
			authority := fmt.Sprintf("/run/%s%d.sock", strings.Repeat("k", random.Intn(60)), random.Intn(5))
			fields := versionFields(authority, forms[random.Intn(len(forms))])
			// Something to be evicted, and to be found again.
			trace := fieldForm{nameRaw, random.Intn(2) == 0, incremental}
			fields = append(fields, sentField{"x-trace", fmt.Sprint(random.Intn(8)), trace})
			c.expectVersion(t, fields, framing{padded: random.Intn(4) == 0})
		}
	})
}

// String is for names of tests.
func (f fieldForm) String() string {
	name := map[nameForm]string{
		nameFromStaticTable: "static_name", nameRaw: "raw_name", nameHuffman: "huffman_name",
	}[f.name]
	value := map[bool]string{false: "raw_value", true: "huffman_value"}[f.valueHuffman]
	indexing := map[indexing]string{
		incremental: "indexed", notIndexed: "not_indexed", neverIndexed: "never_indexed",
	}[f.indexing]
	return name + "," + value + "," + indexing
}

func authorityForms() (forms []fieldForm) {
	for _, name := range []nameForm{nameFromStaticTable, nameRaw, nameHuffman} {
		for _, valueHuffman := range []bool{false, true} {
			for _, indexing := range []indexing{incremental, notIndexed, neverIndexed} {
				forms = append(forms, fieldForm{name, valueHuffman, indexing})
			}
		}
	}
	return forms
}

// sentField is a header field and how to write it.
type sentField struct {
	name, value string
	form        fieldForm
}

// versionFields are the header fields of a Version call, in grpc-go's order and, but for :authority, in its
// forms.
func versionFields(authority string, form fieldForm) []sentField {
	usual := fieldForm{nameFromStaticTable, true, incremental}
	return []sentField{
		{":method", "POST", usual},
		{":scheme", "http", usual},
		{":path", "/v1beta1.KeyManagementService/Version", usual},
		{":authority", authority, form},
		{"content-type", "application/grpc", usual},
		{"user-agent", "grpc-go/1.56.3", usual},
		{"te", "trailers", fieldForm{nameHuffman, true, incremental}},
	}
}

// rawConnection speaks HTTP/2 frame by frame.
type rawConnection struct {
	conn           net.Conn
	reading        *http2.Framer
	writing        *http2.Framer
	written        bytes.Buffer
	fields         *fieldWriter
	nextStream     uint32
	lastBlockBytes int
}

func dialRaw(t *testing.T, socket string) *rawConnection {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := &rawConnection{conn: conn, fields: newFieldWriter(), nextStream: 1}
	c.reading = http2.NewFramer(nil, conn)
	c.reading.ReadMetaHeaders = hpack.NewDecoder(tableBytes, nil)
	c.writing = http2.NewFramer(&c.written, nil)
	c.written.WriteString(http2.ClientPreface)
	_ = c.writing.WriteSettings() // into memory
	return c
}

// expectVersion is one call on a stream of its own, and fails unless it answers v1beta1.
func (c *rawConnection) expectVersion(t *testing.T, fields []sentField, framing framing) {
	t.Helper()
	if err := c.version(fields, framing); err != nil {
		t.Fatalf("stream %d: %v", c.nextStream-2, err)
	}
}

func (c *rawConnection) version(fields []sentField, framing framing) error {
	stream := c.nextStream
	c.nextStream += 2
	if err := c.conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return err
	}
	for _, field := range fields {
		c.fields.write(field.name, field.value, field.form)
	}
	block := c.fields.take()
	c.lastBlockBytes = len(block)
	c.writeHeaders(stream, block, framing)
	request := []byte("\x0a\x07v1beta1") // VersionRequest{version: "v1beta1"}
	_ = c.writing.WriteData(stream, true, grpcMessage(request))
	if err := c.flush(framing.bytewise); err != nil {
		return err
	}
	return c.readVersion(stream)
}

// writeHeaders puts frames into memory, where writing cannot fail.
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

// readVersion reads frames until the stream ends.
func (c *rawConnection) readVersion(stream uint32) error {
	var message []byte
	for {
		frame, err := c.reading.ReadFrame()
		if err != nil {
			return fmt.Errorf("no answer: %w", err)
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = c.writing.WriteSettingsAck() // leaves with the next request
			}
		case *http2.PingFrame:
			_ = c.writing.WritePing(true, frame.Data)
		case *http2.GoAwayFrame:
			return fmt.Errorf("GOAWAY: %s", frame.ErrCode)
		case *http2.RSTStreamFrame:
			return fmt.Errorf("RST_STREAM: %s", frame.ErrCode)
		case *http2.DataFrame:
			message = append(message, frame.Data()...)
			_ = c.writing.WriteWindowUpdate(0, max(1, uint32(len(frame.Data()))))
		case *http2.MetaHeadersFrame:
			if frame.StreamID != stream {
				return fmt.Errorf("HEADERS for stream %d", frame.StreamID)
			}
			if frame.StreamEnded() {
				return expectVersionAnswer(frame, message)
			}
		}
	}
}

// expectVersionAnswer looks into trailers and message.
func expectVersionAnswer(trailers *http2.MetaHeadersFrame, message []byte) error {
	grpcStatus := "missing"
	for _, field := range trailers.RegularFields() {
		if field.Name == "grpc-status" {
			grpcStatus = field.Value
		}
	}
	if grpcStatus != "0" {
		return fmt.Errorf("grpc-status %s in %v", grpcStatus, trailers.Fields)
	}
	if want := "\x0a\x07v1beta1"; !strings.Contains(string(message), want) { // VersionResponse.version
		return fmt.Errorf("answer %q does not contain %q", message, want)
	}
	return nil
}

// grpcMessage puts gRPC's prefix before a message: not compressed, length.
func grpcMessage(message []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
}
