package scenarios

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
)

// defaultWindow is how much of every stream, and of the connection, may be under way before anybody changes
// it (RFC 9113 §6.9.2).
const defaultWindow = 65_535

// TransportFramesAreAnswered is about what HTTP/2 itself wants of a server (case 7 of kubernetes.md §7):
// without an answer to its PINGs grpc-go ends the connection.
func TransportFramesAreAnswered(t *testing.T) {
	plugin := startPlugin(t, startEmulator(t), probeInterval)
	fields := callFields(v1Service + "Version")

	t.Run("ping", func(t *testing.T) {
		c := dialRaw(t, plugin.socket)
		// The last two look like an :authority, which a plugin that rewrites it must leave alone here.
		for _, payload := range []string{"12345678", "\x41\x06/run/k", "\x01\x86/run/k"} {
			c.expectPing(t, [8]byte([]byte(payload)))
		}
		c.expectVersion(t, fields, framing{})
	})

	t.Run("settings", func(t *testing.T) {
		c := dialRaw(t, plugin.socket)
		const changes = 3
		for i := range uint32(changes) {
			_ = c.writing.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1<<14 + i})
		}
		// One more for those of the preface.
		c.expectUntil(t, "every SETTINGS to be acknowledged", func() bool { return c.settingsAcks == 1+changes })
		c.expectVersion(t, fields, framing{})
	})

	t.Run("window_updates", func(t *testing.T) {
		c := dialRaw(t, plugin.socket)
		_ = c.writing.WriteWindowUpdate(0, 1<<30)
		stream := c.open(fields, framing{})
		_ = c.writing.WriteWindowUpdate(stream, 1<<30)
		c.data(stream, true, grpcMessage(versionRequest))
		c.expectAnswer(t, stream, codes.OK)
		// The stream has ended, and what is late for it is no error (RFC 9113 §5.1).
		_ = c.writing.WriteWindowUpdate(stream, 1)
		c.expectVersion(t, fields, framing{})
	})

	for _, window := range []uint32{0, 1, 7} {
		t.Run(fmt.Sprintf("stream_window_of_%d", window), func(t *testing.T) {
			whole, err := dialRaw(t, plugin.socket).call(fields, framing{}, versionRequest)
			if err != nil {
				t.Fatal(err)
			}
			c := dialRaw(t, plugin.socket, http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
			stream := c.open(fields, framing{})
			c.data(stream, true, grpcMessage(versionRequest))
			granted := int(window)
			c.expectExactly(t, stream, granted)
			for _, more := range []int{1, 3, 1 << 16} {
				_ = c.writing.WriteWindowUpdate(stream, uint32(more))
				granted += more
				c.expectExactly(t, stream, min(granted, len(whole.message)))
			}
			if got := c.expectAnswer(t, stream, codes.OK); !bytes.Equal(got.message, whole.message) {
				t.Fatalf("got %q, want %q", got.message, whole.message)
			}
		})
	}

	t.Run("connection_window", func(t *testing.T) {
		c := dialRaw(t, plugin.socket)
		c.keepsWindow = true
		var streams []uint32
		received := func() (total int) {
			for _, stream := range streams {
				total += len(c.answers[stream].message)
			}
			return total
		}
		// As many as may be open at once, and as large as may be: in the end the window is too small.
		const calls = 120
		request := grpcMessage(v1Request(bytes.Repeat([]byte{1}, 512)))
		for range calls {
			stream := c.open(callFields(v1Service+"Encrypt"), framing{})
			c.data(stream, true, request)
			streams = append(streams, stream)
		}
		c.expectUntil(t, "the window to be used up", func() bool { return received() >= defaultWindow })
		c.expectPing(t, [8]byte{1})
		if received() != defaultWindow {
			t.Fatalf("%d bytes of DATA, want %d", received(), defaultWindow)
		}
		_ = c.writing.WriteWindowUpdate(0, 1<<20)
		for _, stream := range streams {
			c.expectAnswer(t, stream, codes.OK)
		}
	})

	t.Run("large_headers", func(t *testing.T) {
		large := fields
		for i := range 8 {
			name, value := fmt.Sprintf("x-large-%d", i), strings.Repeat(fmt.Sprint(i), 1024)
			large = append(large, sentField{name, value, fieldForm{nameRaw, false, notIndexed}})
		}
		// The last has :authority, which comes before them, in a CONTINUATION frame too.
		for _, cuts := range [][]int{nil, {1000, 2000, 3000, 5000, 7000}, {10, 11, 8000}} {
			c := dialRaw(t, plugin.socket)
			c.expectVersion(t, large, framing{cuts: cuts})
			c.expectVersion(t, fields, framing{})
		}
	})
}

// expectPing sends what has been written and a PING after it, and fails unless that comes back.
func (c *rawConnection) expectPing(t *testing.T, ping [8]byte) {
	t.Helper()
	if err := c.writing.WritePing(false, ping); err != nil {
		t.Fatal(err)
	}
	before := len(c.pings)
	c.expectUntil(t, "PING to be acknowledged", func() bool { return len(c.pings) > before })
	if got := c.pings[len(c.pings)-1]; got != ping {
		t.Fatalf("PING %x came back as %x", ping, got)
	}
}

// expectExactly fails unless so many bytes come, and no more: a PING after them would come back later.
func (c *rawConnection) expectExactly(t *testing.T, stream uint32, want int) {
	t.Helper()
	a := c.answers[stream]
	c.expectUntil(t, fmt.Sprintf("%d bytes of DATA", want), func() bool {
		return a.headers != nil && len(a.message) >= want
	})
	c.expectPing(t, [8]byte{byte(want)})
	if len(a.message) != want {
		t.Fatalf("%d bytes of DATA, want %d", len(a.message), want)
	}
}

// expectAnswer waits for the end of a stream.
func (c *rawConnection) expectAnswer(t *testing.T, stream uint32, want codes.Code) *answer {
	t.Helper()
	got, err := c.answer(stream)
	if err == nil {
		err = got.expectStatus(want)
	}
	if err != nil {
		t.Fatalf("stream %d: %v", stream, err)
	}
	return got
}

func (c *rawConnection) expectUntil(t *testing.T, what string, done func() bool) {
	t.Helper()
	if err := c.readUntil(done); err != nil {
		t.Fatalf("waited for %s: %v", what, err)
	}
}
