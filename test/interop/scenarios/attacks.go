package scenarios

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// attack is one way to be a bad neighbour. `run` starts it and returns; it goes on until the attacker stops.
type attack struct {
	name    string
	prepare func(t *testing.T, a *attacker, honest *connection)
	run     func(a *attacker)
	// overHTTP: not on the socket but on the address of the metrics, which every user of the node reaches.
	overHTTP bool
	// maxCalls is how often Key4C may be called meanwhile.
	maxCalls int
}

// attacker holds the connections of an attack.
type attacker struct {
	network     string
	address     string
	stopped     chan struct{}
	group       sync.WaitGroup
	mutex       sync.Mutex
	open        []net.Conn
	connections int
	// cipher is an honest answer to Encrypt, to be spoiled.
	cipher []byte
}

var errStopped = errors.New("the attack is over")

// dial connects; in a goroutine of its own nobody could fail the test.
func (a *attacker) dial() (net.Conn, error) {
	conn, err := net.Dial(a.network, a.address)
	if err != nil {
		return nil, err
	}
	a.mutex.Lock()
	defer a.mutex.Unlock()
	select {
	case <-a.stopped:
		_ = conn.Close()
		return nil, errStopped
	default:
	}
	a.connections++
	a.open = append(a.open, conn)
	return conn, nil
}

// stop ends whatever waits on a connection.
func (a *attacker) stop() {
	a.mutex.Lock()
	close(a.stopped)
	for _, conn := range a.open {
		_ = conn.Close()
	}
	a.mutex.Unlock()
	a.group.Wait()
}

func (a *attacker) isOver() bool {
	select {
	case <-a.stopped:
		return true
	default:
		return false
	}
}

// hold opens connections that say something once and then nothing.
func (a *attacker) hold(count int, say func(i int) []byte) {
	for i := range count {
		conn, err := a.dial()
		for err != nil && !a.isOver() { // the backlog is full
			time.Sleep(time.Millisecond)
			conn, err = a.dial()
		}
		if err != nil {
			return
		}
		_, _ = conn.Write(say(i)) // whether the plugin bears it is what is tested
	}
}

// redialPause keeps a client that is thrown out from being nothing but a flood of connects.
const redialPause = 10 * time.Millisecond

// each runs `speak` on so many connections at once, and again on a new one whenever that ends.
func (a *attacker) each(count int, reads bool, speak func(h *hostile) error) {
	for range count {
		a.group.Add(1)
		go func() {
			defer a.group.Done()
			for !a.isOver() {
				conn, err := a.dial()
				if err == nil {
					h := newHostile(a, conn)
					if reads {
						go func() { _, _ = io.Copy(io.Discard, conn) }() // ends with the connection
					}
					_ = speak(h) // ends when the plugin has had enough, or the attack is over
					_ = conn.Close()
				}
				time.Sleep(redialPause)
			}
		}()
	}
}

// hostile is a connection that writes what it likes.
type hostile struct {
	attacker *attacker
	conn     net.Conn
	out      bytes.Buffer
	frames   *http2.Framer
	fields   *fieldWriter
	stream   uint32
}

func newHostile(a *attacker, conn net.Conn) *hostile {
	h := &hostile{attacker: a, conn: conn, fields: newFieldWriter(), stream: 1}
	h.frames = http2.NewFramer(&h.out, nil)
	h.frames.AllowIllegalWrites = true
	h.out.WriteString(http2.ClientPreface)
	_ = h.frames.WriteSettings() // into memory
	return h
}

// send writes what has been put into memory.
func (h *hostile) send() error {
	_, err := h.conn.Write(h.out.Bytes())
	h.out.Reset()
	return err
}

// forever sends what `put` writes, many times at once, until the connection ends.
func (h *hostile) forever(put func(i int)) error {
	const batch = 100
	for i := 0; ; i++ {
		put(i)
		if i%batch == batch-1 {
			if err := h.send(); err != nil {
				return err
			}
		}
	}
}

// open puts the HEADERS of a call into memory, with more fields if there are any.
func (h *hostile) open(path string, end bool, more ...sentField) uint32 {
	for _, field := range callFields(path, more...) {
		h.fields.write(field.name, field.value, field.form)
	}
	return h.headers(h.fields.take(), end)
}

func (h *hostile) headers(block []byte, end bool) uint32 {
	stream := h.stream
	h.stream += 2
	_ = h.frames.WriteHeaders(http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: block, EndHeaders: true, EndStream: end,
	})
	return stream
}

func (h *hostile) call(path string, message []byte) uint32 {
	stream := h.open(path, false)
	_ = h.frames.WriteData(stream, true, grpcMessage(message))
	return stream
}

// writers is how many connections attack at once where each writes as fast as it can.
const writers = 8

// silent is how many connections are there and do nothing.
const silent = 1000

// shortAttacks has one for each thing that stops them.
var shortAttacks = []string{
	"1000 idle connections",             // the number of connections
	"Decrypts of invented wrapped KEKs", // calls to Key4C
	"answers unread",                    // what is written and not taken: data
	"SETTINGS, unread",                  // and other frames
	"rapid reset",                       // streams that end at once
	"streams without end",               // and those that do not end
	"CONTINUATIONs of 16 KiB",           // the size of a header block as sent
	"HPACK bomb",                        // and as unpacked
}

func attacks() []attack {
	random := func(count int) []byte {
		b := make([]byte, count)
		_, _ = rand.Read(b) // never fails
		return b
	}
	var list []attack
	add := func(name string, run func(a *attacker)) {
		list = append(list, attack{name: name, run: run})
	}
	flood := func(name string, reads bool, speak func(h *hostile) error) {
		add(name, func(a *attacker) { a.each(writers, reads, speak) })
	}

	add("1000 idle connections", func(a *attacker) { a.hold(silent, func(int) []byte { return nil }) })
	add("1000 half-open connections", func(a *attacker) {
		whole := newHostile(a, nil)
		whole.open(v1Service+"Version", false)
		all := whole.out.Bytes()
		cuts := []int{10, len(http2.ClientPreface), len(http2.ClientPreface) + 9, len(all) - 7, len(all)}
		a.hold(silent, func(i int) []byte { return all[:cuts[i%len(cuts)]] })
	})
	flood("connects and closes", true, func(h *hostile) error { return h.send() })

	// Garbage on the level of the KMS API.
	flood("malformed Decrypts", true, func(h *hostile) error {
		return h.forever(func(int) { h.call(v1Service+"Decrypt", v1Request(random(200))) })
	})
	list = append(list, attack{
		name: "Decrypts of invented wrapped KEKs",
		prepare: func(t *testing.T, a *attacker, honest *connection) {
			w, err := wireEncrypt("v1", honest, dek(0))
			if err != nil {
				t.Fatal(err)
			}
			a.cipher = w.ciphertext
		},
		run: func(a *attacker) {
			a.each(writers, true, func(h *hostile) error {
				return h.forever(func(int) { h.call(v1Service+"Decrypt", v1Request(invented(a.cipher))) })
			})
		},
		maxCalls: 2000,
	})

	// Those that do not read, or slowly.
	flood("answers unread", false, func(h *hostile) error {
		return h.forever(func(i int) { h.call(v1Service+"Encrypt", v1Request(dek(i))) })
	})
	flood("answers read a byte at a time", false, func(h *hostile) error {
		_ = h.frames.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
		go func() {
			one := make([]byte, 1)
			for {
				if _, err := h.conn.Read(one); err != nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
		return h.forever(func(i int) { h.call(v1Service+"Encrypt", v1Request(dek(i))) })
	})
	flood("PINGs, unread", false, func(h *hostile) error {
		return h.forever(func(int) { _ = h.frames.WritePing(false, [8]byte{}) })
	})

	// Floods of frames.
	flood("PINGs", true, func(h *hostile) error {
		return h.forever(func(int) { _ = h.frames.WritePing(false, [8]byte{}) })
	})
	flood("SETTINGS", true, func(h *hostile) error {
		return h.forever(func(int) { _ = h.frames.WriteSettings() })
	})
	flood("SETTINGS, unread", false, func(h *hostile) error {
		return h.forever(func(int) { _ = h.frames.WriteSettings() })
	})
	flood("window sizes of 1,000 streams", true, func(h *hostile) error {
		for range 1000 {
			h.open(v1Service+"Version", false)
		}
		return h.forever(func(i int) {
			_ = h.frames.WriteSettings(http2.Setting{
				ID: http2.SettingInitialWindowSize, Val: []uint32{0, 1 << 20}[i%2],
			})
		})
	})
	flood("WINDOW_UPDATEs by 1", true, func(h *hostile) error {
		stream := h.open(v1Service+"Version", false)
		return h.forever(func(i int) {
			_ = h.frames.WriteWindowUpdate([]uint32{0, stream}[i%2], 1)
		})
	})
	flood("WINDOW_UPDATEs that overflow", true, func(h *hostile) error {
		return h.forever(func(i int) {
			_ = h.frames.WriteWindowUpdate(0, 1<<31-1)
			_ = h.frames.WriteWindowUpdate(h.open(v1Service+"Version", false), 1<<31-1)
		})
	})
	flood("empty DATA", true, func(h *hostile) error {
		stream := h.open(v1Service+"Version", false)
		return h.forever(func(int) { _ = h.frames.WriteData(stream, false, nil) })
	})
	flood("PRIORITY and unknown frames", true, func(h *hostile) error {
		return h.forever(func(int) {
			_ = h.frames.WritePriority(1, http2.PriorityParam{StreamDep: 3, Weight: 1})
			_ = h.frames.WriteRawFrame(0xbe, 0xff, 1, nil)
		})
	})
	flood("random frames", true, func(h *hostile) error {
		return h.forever(func(int) {
			r := random(3)
			_ = h.frames.WriteRawFrame(http2.FrameType(r[0]%10), http2.Flags(r[1]), uint32(r[2]%8), random(int(r[1])))
		})
	})

	// Streams.
	flood("rapid reset", true, func(h *hostile) error {
		return h.forever(func(i int) {
			stream := h.call(v1Service+"Encrypt", v1Request(dek(i)))
			_ = h.frames.WriteRSTStream(stream, http2.ErrCodeCancel)
		})
	})
	flood("rapid reset, unread", false, func(h *hostile) error {
		return h.forever(func(i int) {
			stream := h.call(v1Service+"Encrypt", v1Request(dek(i)))
			_ = h.frames.WriteRSTStream(stream, http2.ErrCodeCancel)
		})
	})
	flood("streams that are reset by errors", true, func(h *hostile) error {
		return h.forever(func(int) { // the plugin resets them: "made you reset"
			stream := h.open(v1Service+"Version", false)
			_ = h.frames.WriteWindowUpdate(stream, 0)
		})
	})
	flood("streams without end", true, func(h *hostile) error {
		return h.forever(func(int) { h.open(v1Service+"Version", false) })
	})
	flood("RST_STREAMs", true, func(h *hostile) error {
		stream := h.open(v1Service+"Version", true)
		return h.forever(func(int) { _ = h.frames.WriteRSTStream(stream, http2.ErrCodeCancel) })
	})
	flood("GOAWAYs", true, func(h *hostile) error {
		return h.forever(func(int) { _ = h.frames.WriteGoAway(0, http2.ErrCodeNo, random(100)) })
	})
	flood("GOAWAY and again", true, func(h *hostile) error {
		h.call(v1Service+"Encrypt", v1Request(dek(0)))
		_ = h.frames.WriteGoAway(0, http2.ErrCodeInternal, nil)
		return h.send()
	})

	// Header blocks.
	for _, size := range []int{0, 1, 16 << 10} {
		fragment := bytes.Repeat([]byte{0x82}, size) // :method GET, from the static table
		flood("CONTINUATIONs of "+byteCount(size), true, func(h *hostile) error {
			_ = h.frames.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}})
			return h.forever(func(int) { _ = h.frames.WriteContinuation(1, false, fragment) })
		})
	}
	bomb := func(h *hostile, references int) []byte {
		h.fields.write("x", strings.Repeat("b", 4000), fieldForm{nameRaw, false, incremental})
		block := h.fields.take()
		for range references {
			block = append(block, 0x80|62) // the newest entry of the dynamic table
		}
		return block
	}
	flood("HPACK bomb", true, func(h *hostile) error {
		return h.forever(func(int) { h.headers(bomb(h, 8000), true) })
	})
	flood("HPACK bomb in CONTINUATIONs", true, func(h *hostile) error {
		_ = h.frames.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: bomb(h, 8000)})
		fragment := bytes.Repeat([]byte{0x80 | 62}, 16<<10)
		return h.forever(func(int) { _ = h.frames.WriteContinuation(1, false, fragment) })
	})
	flood("large headers on every stream", true, func(h *hostile) error {
		value := strings.Repeat("v", 12<<10)
		return h.forever(func(int) {
			h.open(v1Service+"Version", false, sentField{"x-large", value, fieldForm{nameRaw, false, notIndexed}})
		})
	})
	flood("sizes of the dynamic table", true, func(h *hostile) error {
		return h.forever(func(int) {
			for range 100 {
				h.fields.resize(0)
				h.fields.resize(tableBytes)
			}
			h.call(v1Service+"Version", versionRequest)
		})
	})
	flood("a header table of 4 GiB", true, func(h *hostile) error {
		_ = h.frames.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 1<<32 - 1})
		return h.forever(func(i int) {
			h.call(v1Service+"Version"+strings.Repeat("x", i%1000), versionRequest)
		})
	})
	return append(list, httpAttacks()...)
}

// holders is how many of them connect at once.
const holders = 10

// httpWriters is how many connections hammer the HTTP address.
const httpWriters = 64

// httpAttacks are those of whoever cannot reach the socket.
func httpAttacks() []attack {
	const request = "GET /metrics HTTP/1.1\r\nHost: a\r\n"
	write := func(h *hostile, text string) error {
		h.out.Reset() // no HTTP/2 here
		return h.forever(func(int) { h.out.WriteString(text) })
	}
	each := func(reads bool, text string) func(a *attacker) {
		return func(a *attacker) {
			a.each(httpWriters, reads, func(h *hostile) error { return write(h, text) })
		}
	}
	list := []attack{
		{name: "HTTP: pipelined requests", run: each(true, request+"\r\n")},
		{name: "HTTP: answers unread", run: each(false, request+"\r\n")},
		{name: "HTTP: malformed Hosts", run: each(true, "GET / HTTP/1.1\r\nHost: ]\r\n\r\n")},
		{name: "HTTP: headers without end", run: each(true, request+"X: y\r\n")},
		{name: "HTTP: 1000 requests that stop halfway", run: func(a *attacker) {
			for range holders {
				a.group.Add(1)
				go func() { // what does not get through to the plugin waits in the kernel
					defer a.group.Done()
					a.hold(silent/holders, func(int) []byte { return []byte(request) })
				}()
			}
		}},
		{name: "HTTP: connects and closes", run: func(a *attacker) {
			a.each(httpWriters, true, func(h *hostile) error { return nil })
		}},
	}
	for i := range list {
		list[i].overHTTP = true
	}
	return list
}

// invented is an honest cipher under a wrapped KEK that Key4C has never made.
func invented(cipher []byte) []byte {
	changed := bytes.Clone(cipher)
	noise := make([]byte, 12)
	_, _ = rand.Read(noise)
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789AB"
	from := len(changed)/2 - len(noise) // in the midst of that text, which is most of the cipher
	for i, b := range noise {
		changed[from+i] = letters[int(b)%len(letters)]
	}
	return changed
}

func byteCount(size int) string {
	if size >= 1024 {
		return "16 KiB"
	}
	return []string{"0 bytes", "1 byte"}[size]
}
